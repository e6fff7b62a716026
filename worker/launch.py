"""Command lines of granian and of Celery workers."""

from collections.abc import Sequence


def granian_flags(host: str, port: int, *, max_streams: int = 5000) -> list[str]:
    connections = max_streams + 1024  # at once; those without a stream are webhooks, requests, and idle
    return [
        "--interface", "asgi", "--host", host, "--port", str(port), "--workers", "1", "--no-access-log",
        "--backpressure", str(connections),
        "--workers-kill-timeout", "10", "--log-level", "warning", "web.asgi:app",
    ]  # fmt: skip


def worker_flags(extra: Sequence[str] = ()) -> list[str]:
    """
    Return the module and arguments of a worker. Gossip and mingle have no use here; heartbeats are needed by Flower,
    every ten seconds: at Celery's two they cost half of an idle worker's CPU time.
    """
    return ["worker", "worker", "--without-gossip", "--without-mingle", "--heartbeat-interval", "10", *extra]
