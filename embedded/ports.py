"""Reservation of free TCP ports on loopback."""

import json
import random
import socket
from collections.abc import Mapping
from pathlib import Path

from embedded.credentials import write_private
from moorage.errors import ConfigError

# Below the kernel's range for outgoing connections (from 32768 on Linux, 49152 on macOS), so that the port of a crashed
# server is still free when it is restarted.
_FIRST, _LAST, _BLOCK_SIZE = 20_000, 32_000, 50
_unused: list[int] = []
_locked: set[int] = set()  # by this process: first ports of blocks, and ports outside of the blocks
_preferred: set[int] = set()


def reserve(count: int) -> list[int]:
    """
    Return distinct ports that nothing listens on.

    No other process gets them from this function while this process lives: a server may bind its port late, crash, and
    bind it again.
    """
    reserved: list[int] = []
    while len(reserved) < count:
        if not _unused:
            _unused.extend(_lock_block())
        port = _unused.pop()
        if _is_free(port):
            reserved.append(port)
    return reserved


def prefer(port: int) -> int:
    """Return this port if it is free, and reserve it, with its block; otherwise another one, as `reserve` does."""
    lock = port - (port - _FIRST) % _BLOCK_SIZE if _FIRST <= port < _LAST else port
    if port in _preferred or not _is_free(port) or not (lock in _locked or _lock(lock)):
        return reserve(1)[0]
    _preferred.add(port)
    if port in _unused:
        _unused.remove(port)
    return port


def load(path: Path) -> dict[str, int]:
    """Return the ports by name that the file has; none if it cannot be read."""
    try:
        return {str(name): int(port) for name, port in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def store(path: Path, used: Mapping[str, int]) -> None:
    """Add the ports that the file does not have: those of the first start are wanted again if one was in use."""
    write_private(path, json.dumps({**used, **load(path)}))


def _lock(port: int) -> bool:
    """Reserve a port until this process ends, by the UDP port of its number; children do not inherit it."""
    lock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        lock.bind(("127.0.0.1", port))
    except OSError:
        lock.close()
        return False
    lock.detach()
    _locked.add(port)
    return True


def _lock_block() -> list[int]:
    """Return a block of ports for this process: the UDP port of the first number, which no server uses, is the lock."""
    firsts = range(_FIRST, _LAST, _BLOCK_SIZE)
    for first in random.sample(firsts, len(firsts)):
        if _lock(first):
            return random.sample(range(first, first + _BLOCK_SIZE), _BLOCK_SIZE)
    raise ConfigError(f"other processes have reserved all ports between {_FIRST} and {_LAST} on 127.0.0.1")


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
            # Two processes may bind one port with SO_REUSEADDR, but only one may listen.
            listener.listen(1)
        except OSError:
            return False
    return True
