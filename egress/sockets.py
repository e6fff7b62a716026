"""
Sockets that wait in steps of one second, so that a step that waits for a silent server can be interrupted.

The steps are below http.client's buffers: a timeout raised above them cannot be resumed.
"""

import contextlib
import contextvars
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, TypeVar

T = TypeVar("T")
STEP_SECONDS: Final = 1.0


_wait_callback: contextvars.ContextVar[Callable[[], None]] = contextvars.ContextVar(
    "moorage_wait", default=lambda: None
)


@contextlib.contextmanager
def call_while_waiting(callback: Callable[[], None]) -> Iterator[None]:
    """Call `callback` before and every second during each socket read in the block; its exceptions propagate."""
    token = _wait_callback.set(callback)
    try:
        yield
    finally:
        _wait_callback.reset(token)


class _SteppedTimeout:
    """Applies the timeout across several short waits."""

    timeout_seconds: float | None = None

    def settimeout(self, value: float | None) -> None:
        self.timeout_seconds = value
        step = STEP_SECONDS if value is None else min(value, STEP_SECONDS)
        super().settimeout(step)  # type: ignore[misc]  # defined by the other base class

    def gettimeout(self) -> float | None:
        return self.timeout_seconds

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        read: Callable[..., int] = super().recv_into  # type: ignore[misc]  # as above
        return self._call_in_steps(lambda: read(*args, **kwargs))

    def _call_in_steps(self, call: Callable[[], T]) -> T:
        end = None if self.timeout_seconds is None else time.monotonic() + self.timeout_seconds
        while True:
            _wait_callback.get()()
            try:
                return call()
            except TimeoutError:
                if end is not None and time.monotonic() >= end:
                    raise


class PlainSocket(_SteppedTimeout, socket.socket):
    pass


class TlsSocket(_SteppedTimeout, ssl.SSLSocket):
    """OpenSSL resumes an interrupted read."""

    def do_handshake(self, block: bool = False) -> None:
        self._call_in_steps(lambda: ssl.SSLSocket.do_handshake(self, block))
