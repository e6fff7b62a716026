"""
Hears that the server is asked to stop, before it waits for open streams.

granian (2.x) sends lifespan.shutdown only when every answer has ended, and a stream does not end by itself.
"""

import asyncio
import signal
import threading
from collections.abc import Callable
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def call_on_stop_signal(callback: Callable[[], None]) -> None:
    """
    Have `call` run in the running loop when the process is told to stop; whoever listened before is told too.

    The server's own listener hangs on the loop's wake-up descriptor, which the interpreter writes to whatever the
    Python handler is; the handler beside it is a dummy. Outside of the main thread nothing is heard.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        before = signal.getsignal(number)
        if callable(before):
            signal.signal(number, _chain_handlers(loop, callback, before))


def _chain_handlers(
    loop: asyncio.AbstractEventLoop, callback: Callable[[], None], previous: Callable[[int, FrameType | None], object]
) -> Callable[[int, FrameType | None], None]:
    def heard(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(callback)
        previous(number, frame)

    return heard
