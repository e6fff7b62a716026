"""
Ends the receiver when the main process of its server has died.

granian serves in a child of its main process. Killed by SIGKILL, the main process cannot stop the child, which would
keep the port and serve an old version beside the new one. The end of the parent closes a pipe that multiprocessing
opened for this purpose: no interval, and on every system (the parent death signal exists on Linux only).
"""

import multiprocessing
import os
import signal
import threading
import time
from multiprocessing.connection import wait
from typing import Final

from moorage import logs

log = logs.get_logger(__name__)

GRACE_SECONDS: Final = 10.0  # for requests in flight, as granian's main process grants


def end_with_parent() -> None:
    """Watch the process that started this one by multiprocessing; do nothing if none did."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), name="parent-watch", daemon=True).start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    log.error("receiver.parent_died", grace_s=GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)
