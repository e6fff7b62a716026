"""Shutdown hook: granian (2.x) sends lifespan.shutdown only after every response has ended, and streams do not end."""

import asyncio
import signal
import threading
from collections.abc import Callable
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def call_on_stop_signal(callback: Callable[[], None]) -> None:
    """
    Run `callback` in the running loop on SIGTERM or SIGINT; existing handlers run, too.

    The server itself watches the loop's wake-up file descriptor, which the interpreter writes to regardless of the
    Python handler. No effect outside of the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        previous = signal.getsignal(number)
        if callable(previous):
            signal.signal(number, _chain_handlers(loop, callback, previous))


def _chain_handlers(
    loop: asyncio.AbstractEventLoop, callback: Callable[[], None], previous: Callable[[int, FrameType | None], object]
) -> Callable[[int, FrameType | None], None]:
    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(callback)
        previous(number, frame)

    return handle
