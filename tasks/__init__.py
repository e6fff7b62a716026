"""The steps and the sweeps as plain functions that return what comes next; no Celery in here."""
