"""Services shared by endpoints: context, database threads, authentication, upload spool."""
