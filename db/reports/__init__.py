"""Read-only views over several tables, for people and for metrics."""
