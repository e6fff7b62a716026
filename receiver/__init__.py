"""Receives webhooks; health and metrics endpoints. Loads no tasks, storage or image code."""
