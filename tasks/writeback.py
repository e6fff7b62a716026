"""The last write of a step: tried until PostgreSQL answers, and believed only as far as the row tells."""

import time
from collections.abc import Callable
from typing import Final, TypeVar

from db import leases
from db.connect import CommitUncertain, Connection
from moorage import logs
from moorage.errors import DatabaseUnavailable
from moorage.model import Lease
from tasks.deps import Deps, Pulse

T = TypeVar("T")
log = logs.get(__name__)

PATIENCE_SECONDS: Final = 420.0  # below Celery's hard limit of 600 s, less a download


def write_back(deps: Deps, lease: Lease, pulse: Pulse, work: Callable[[Connection], T]) -> T | None:
    """
    Run the transaction that ends a step, while PostgreSQL is away again each second.

    After an error in COMMIT the row decides: token still there means it did not happen, gone means it did (or that
    another worker owns the row: then there is nothing to write either). None is returned then: the wakes are lost, and
    dispatch sends them again.

    Raises:
        LeaseLost: the row carries another token.
        HandBack: the worker stops.
        DatabaseUnavailable: PostgreSQL stayed away for seven minutes.
    """
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    uncertain = False
    while True:
        try:
            if uncertain and not deps.database.run(lambda conn: leases.holds(conn, lease)):
                return None
            return deps.database.run(work)
        except DatabaseUnavailable as error:
            uncertain = uncertain or isinstance(error, CommitUncertain)
            log.warning("writeback.waiting", error=str(error), uncertain=uncertain)
            if time.monotonic() > give_up_at:
                raise
        time.sleep(1.0)
        pulse()
