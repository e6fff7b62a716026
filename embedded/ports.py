"""Free TCP ports on loopback."""

import random
import socket

from moorage.errors import ConfigError

# Below the range from which the kernel takes ports for outgoing connections (32768 on Linux, 49152 on macOS), so that
# the port of a crashed server is still free when it is started again.
_FIRST, _LAST = 20_000, 32_000
# A server needs a moment to take its port; meanwhile the port must not be given to another.
_given: set[int] = set()


def free(count: int) -> list[int]:
    """
    Return ports that nothing listens on, all different and different from those given before.

    Another process can still take one before it is used: a server that finds its port taken is given new ones.
    """
    held: list[socket.socket] = []
    try:
        for port in random.sample(range(_FIRST, _LAST), _LAST - _FIRST):
            if len(held) == count:
                break
            if port not in _given and (listener := _bind(port)) is not None:
                held.append(listener)
        if len(held) < count:
            raise ConfigError(f"fewer than {count} free ports between {_FIRST} and {_LAST} on 127.0.0.1")
        found = [listener.getsockname()[1] for listener in held]
        _given.update(found)
        return found
    finally:
        for listener in held:
            listener.close()


def _bind(port: int) -> socket.socket | None:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        # Two processes may bind one port with SO_REUSEADDR, but only one may listen.
        listener.listen(1)
    except OSError:
        listener.close()
        return None
    return listener
