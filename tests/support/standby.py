"""Two PostgreSQL servers with streaming replication, for tests."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from db import migrate
from db.connection import connect
from embedded.postgres import Postgres
from embedded.standby import Standby

_PASSWORD: Final = "secret-of-the-tests"


@contextlib.contextmanager
def replicated(folder: Path) -> Iterator[Standby]:
    """Run a primary with the migrated database `moorage` and give its standby."""
    primary = Postgres(folder / "primary", _PASSWORD, folder / "primary.log")
    copy = Standby(primary, folder / "standby")
    with contextlib.ExitStack() as stops:
        stops.callback(primary.stop)
        primary.start()
        with contextlib.closing(connect(primary.create_database("moorage"))) as conn:
            migrate.migrate(conn)
        stops.callback(copy.stop)
        copy.follow()
        yield copy
