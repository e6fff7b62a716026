"""A byte that the worker's main process and its children share: the worker is being stopped, and until when."""

import mmap
import struct
import time
from typing import Final

# Made when the module is imported, before the fork; CLOCK_MONOTONIC is the same in all processes of a machine.
_shared: Final = mmap.mmap(-1, 8)


def begin_shutdown(grace_seconds: float) -> None:
    """Tell every child that the worker stops; work that cannot end within the grace is to be handed back."""
    _shared[:] = struct.pack("d", time.monotonic() + grace_seconds)


def is_grace_over() -> bool:
    """Return whether the worker stops and the grace has passed."""
    until = float(struct.unpack("d", _shared[:])[0])
    return 0.0 < until <= time.monotonic()
