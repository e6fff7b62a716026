"""Steps on predictions: submit, poll, ingest, recover."""
