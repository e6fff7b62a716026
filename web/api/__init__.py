"""The endpoints under /v1, a file a resource."""
