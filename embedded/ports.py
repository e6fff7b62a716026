"""Free TCP ports on loopback."""

import random
import socket

from moorage.errors import ConfigError

# Below the range from which the kernel takes ports for outgoing connections (32768 on Linux, 49152 on macOS), so that
# the port of a crashed server is still free when it is started again.
_FIRST, _LAST, _BLOCK = 20_000, 32_000, 50
_left: list[int] = []


def free(count: int) -> list[int]:
    """
    Return ports that nothing listens on, all different, and never given to another caller, of any process, while this
    process lives: a server may take its port late, die, and take it again.
    """
    found: list[int] = []
    while len(found) < count:
        if not _left:
            _left.extend(_block())
        port = _left.pop()
        if _is_free(port):
            found.append(port)
    return found


def _block() -> list[int]:
    """Return ports that are ours alone: the UDP twin of their first, which no server uses, is held till our end."""
    firsts = range(_FIRST, _LAST, _BLOCK)
    for first in random.sample(firsts, len(firsts)):
        twin = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            twin.bind(("127.0.0.1", first))
        except OSError:
            twin.close()
            continue
        twin.detach()  # left open on purpose; children do not inherit it
        return random.sample(range(first, first + _BLOCK), _BLOCK)
    raise ConfigError(f"other processes hold all ports between {_FIRST} and {_LAST} on 127.0.0.1")


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
