"""The worker's shutdown deadline, shared between the main process and its pool children."""

import mmap
import struct
import time
from typing import Final

# Created at import, before the fork; CLOCK_MONOTONIC is the same in all processes of a machine.
_shared: Final = mmap.mmap(-1, 8)


def begin_shutdown(grace_seconds: float) -> None:
    """Set the deadline in all children: steps that cannot end within the grace period are interrupted."""
    _shared[:] = struct.pack("d", time.monotonic() + grace_seconds)


def is_grace_over() -> bool:
    until = float(struct.unpack("d", _shared[:])[0])
    return 0.0 < until <= time.monotonic()
