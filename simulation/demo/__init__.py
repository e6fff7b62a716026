"""The demo: jobs with each kind of fault of a provider, on real servers, checked against the stand-in's ledger."""
