"""Steps and sweeps as plain functions that return wakes, independent of Celery."""
