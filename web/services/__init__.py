"""What endpoints share: context, database threads, authentication, spools."""
