"""Bounds how many requests of one kind run at once."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Final


class RequestLimits:
    """At most `total` requests at once, and `per_owner` of one owner, so that it does not exhaust `total`."""

    def __init__(self, total: int, per_owner: int) -> None:
        self._total: Final = total
        self._per_owner: Final = per_owner
        self._active: Counter[str | None] = Counter()

    @contextlib.contextmanager
    def reserve(self, owner: str | None) -> Iterator[bool]:
        """Hold a slot for one request of an owner (None: of an application); False at the limits, without a slot."""
        of_owner = self._active[owner]
        if self._active.total() >= self._total or (owner is not None and of_owner >= self._per_owner):
            yield False
            return
        self._active[owner] += 1
        try:
            yield True
        finally:
            self._active -= Counter({owner: 1})  # drops entries that reach zero
