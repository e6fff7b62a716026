"""Reads that take several statements and still show one moment."""

from collections.abc import Callable
from typing import Final, TypeVar

from db.connect import Connection, Database

T = TypeVar("T")

# Else a job could be shown as settled with the outputs of a moment before.
ONE_MOMENT: Final = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"


def read(database: Database, work: Callable[[Connection], T]) -> T:
    """Return what `work` reads, all of it as of one moment."""

    def at_one_moment(conn: Connection) -> T:
        conn.execute(ONE_MOMENT)
        return work(conn)

    return database.run(at_one_moment)
