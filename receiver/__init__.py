"""The thin front door: takes webhooks, answers for its own health. Loads no tasks, storage or picture code."""
