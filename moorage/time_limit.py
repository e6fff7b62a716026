"""
The time limit of a step: the kernel ends the process whose work takes longer, also inside a decoder that hangs.

Celery's own limit cannot be extended by the process that it kills. This one stands still while the process waits for
PostgreSQL, so that an outage does not count as a crash of a step that lived.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator

_is_enabled = False


def enable() -> None:
    """Enable the limit in this process, which must be a pool child: the limit ends the whole process."""
    global _is_enabled
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # billiard's handler would wait until the decoder returns
    _is_enabled = True


@contextlib.contextmanager
def apply_limit(seconds: float) -> Iterator[None]:
    if not _is_enabled:
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


@contextlib.contextmanager
def suspend_limit() -> Iterator[None]:
    """Do not count the time of the block."""
    if not _is_enabled or threading.current_thread() is not threading.main_thread():
        yield
        return
    remaining_seconds, _ = signal.setitimer(signal.ITIMER_REAL, 0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, remaining_seconds)  # 0: there was no limit
