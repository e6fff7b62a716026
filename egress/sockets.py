"""
Sockets that wait in steps of a second, so that work which waits for a silent server still hears that it must stop.

The wait sits below http.client's buffers: a time-out seen above them cannot be resumed.
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


def _nothing() -> None:
    """Nobody listens."""


_pulse: contextvars.ContextVar[Callable[[], None]] = contextvars.ContextVar("moorage_pulse", default=_nothing)


@contextlib.contextmanager
def call_while_waiting(callback: Callable[[], None]) -> Iterator[None]:
    """Call `pulse` before every read of a socket inside, and each second that a read waits; what it raises gets out."""
    token = _pulse.set(callback)
    try:
        yield
    finally:
        _pulse.reset(token)


class _Patient:
    """Takes the time-out as patience: the whole wait of one call, spent in steps."""

    patience: float | None = None

    def settimeout(self, value: float | None) -> None:
        self.patience = value
        step = STEP_SECONDS if value is None else min(value, STEP_SECONDS)
        super().settimeout(step)  # type: ignore[misc]  # the socket class beside this one in the bases

    def gettimeout(self) -> float | None:
        return self.patience

    def _patiently(self, call: Callable[[], T]) -> T:
        end = None if self.patience is None else time.monotonic() + self.patience
        while True:
            _pulse.get()()
            try:
                return call()
            except TimeoutError:
                if end is not None and time.monotonic() >= end:
                    raise


class PlainSocket(_Patient, socket.socket):
    """A TCP socket that waits in steps."""

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        """Read as `socket.recv_into` does, within the patience."""
        return self._patiently(lambda: socket.socket.recv_into(self, *args, **kwargs))


class TlsSocket(_Patient, ssl.SSLSocket):
    """A TLS socket that waits in steps; OpenSSL goes on where it stood."""

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        """Read as `SSLSocket.recv_into` does, within the patience."""
        return self._patiently(lambda: ssl.SSLSocket.recv_into(self, *args, **kwargs))

    def do_handshake(self, block: bool = False) -> None:
        """Shake hands within the patience."""
        self._patiently(lambda: ssl.SSLSocket.do_handshake(self, block))
