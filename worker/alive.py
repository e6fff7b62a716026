"""A file that a running worker or beat touches every few seconds: a health check then costs one look at its age."""

from pathlib import Path

from celery import signals


def watch(path: str | None) -> None:
    """
    Have this process touch the file while its event loop turns; without a path nothing is done.

    A worker does at each of its heartbeats (every 2 s), from the loop that also takes messages; a beat does whenever
    the broker took a tick. `celery inspect ping` as a health check costs a second of CPU and 70 MB each time.
    """
    if path is None:
        return
    file = Path(path)

    def touch(**_: object) -> None:
        file.touch()

    def touch_at_ticks(**_: object) -> None:
        signals.after_task_publish.connect(touch, weak=False)

    signals.heartbeat_sent.connect(touch, weak=False)
    signals.beat_init.connect(touch_at_ticks, weak=False)
