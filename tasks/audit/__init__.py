"""The audit: rows and objects compared, and repaired."""
