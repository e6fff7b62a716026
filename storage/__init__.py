"""Access to any S3-compatible object store: put, get, delete, list, presign, create buckets."""
