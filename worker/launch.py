"""How granian and Celery are started."""

from collections.abc import Sequence


def granian_flags(host: str, port: int) -> list[str]:
    """Return how granian serves the front: the receiver and the API beside it."""
    return [
        "--interface", "asgi", "--host", host, "--port", str(port), "--workers", "1", "--no-access-log",
        "--workers-kill-timeout", "10", "--log-level", "warning", "web.asgi:app",
    ]  # fmt: skip


def worker_flags(more: Sequence[str] = ()) -> list[str]:
    """Return how Celery runs a worker of ours: gossip and mingle only cost, heartbeats are for Flower."""
    return ["-A", "worker", "worker", "--without-gossip", "--without-mingle", *more]
