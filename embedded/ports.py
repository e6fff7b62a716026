"""Free TCP ports on loopback."""

import random
import socket

from moorage.errors import ConfigError

# Below the range from which the kernel takes ports for outgoing connections (32768 on Linux, 49152 on macOS), so that
# the port of a crashed server is still free when it is started again.
_FIRST, _LAST = 20_000, 32_000


def free(count: int) -> list[int]:
    """
    Return ports that nothing listens on, all different, and never given to another caller, of any process, while this
    process lives: a server may take its port late, die, and take it again.
    """
    found: list[int] = []
    for port in random.sample(range(_FIRST, _LAST), _LAST - _FIRST):
        if len(found) == count:
            break
        if _reserve(port):
            found.append(port)
    if len(found) < count:
        raise ConfigError(f"fewer than {count} free ports between {_FIRST} and {_LAST} on 127.0.0.1")
    return found


def _reserve(port: int) -> bool:
    """Return whether a port is ours now: its UDP twin, which no server here uses, is held until this process ends."""
    twin = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try:
        twin.bind(("127.0.0.1", port))
    except OSError:
        twin.close()
        return False
    if not _is_free(port):
        twin.close()
        return False
    twin.detach()  # left open on purpose; children do not inherit it
    return True


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
