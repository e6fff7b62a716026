"""UUIDv7 ids, ordered by creation time. Python 3.11 to 3.13 have no `uuid.uuid7`."""

import secrets
import time
from uuid import UUID


def uuid7(now_ms: int | None = None, *, random_bits: int | None = None) -> UUID:
    """Return a new UUIDv7 (RFC 9562, 5.7): 48 bits of Unix milliseconds, 74 random bits."""
    value = (time.time_ns() // 1_000_000 if now_ms is None else now_ms) & (2**48 - 1)
    value = value << 80 | (secrets.randbits(80) if random_bits is None else random_bits)
    value = value & ~(0xF << 76) | 7 << 76  # version
    value = value & ~(0x3 << 62) | 2 << 62  # variant
    return UUID(int=value)
