"""Objects in any S3-compatible store: put, get, delete, list, presign, ensure buckets. No other part talks to S3."""
