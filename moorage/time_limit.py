"""
The time limit of a step: the kernel ends the process whose work takes longer, also inside a decoder that hangs.

Celery's own limit cannot be extended by the process that it kills. This one stands still while the process waits for
PostgreSQL, so that an outage does not count as a crash of a step that lived.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

_is_enabled = False


def enable() -> None:
    """Enable the limit in this process, which must be a pool child: the limit ends the whole process."""
    global _is_enabled
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # billiard's handler would wait until the decoder returns
    _is_enabled = True


def apply_limit(seconds: float) -> AbstractContextManager[None]:
    return _set_timer(seconds) if _is_enabled else nullcontext()


def suspend_limit() -> AbstractContextManager[None]:
    """Do not count the time of the block."""
    is_limited = _is_enabled and threading.current_thread() is threading.main_thread()
    return _set_timer(0) if is_limited else nullcontext()


@contextmanager
def _set_timer(seconds: float) -> Iterator[None]:
    before, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, before)  # 0: there was no limit
