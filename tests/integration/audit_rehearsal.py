"""One database without rules in which damage is done and audited inside a transaction that is taken back."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

from db.audit import checks as rules
from db.connection import Connection, Database
from tasks.audit.findings import Finding, Tally
from tasks.audit.rows import RowScan
from tasks.step import Deps

T = TypeVar("T")


class Rehearsed(Database):
    """A database whose transactions are savepoints of one that is never committed."""

    def __init__(self, conn: Connection) -> None:
        super().__init__("")
        self._conn = conn

    def run(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a savepoint."""
        with self._conn.transaction():
            return work(self._conn)


@contextlib.contextmanager
def damaged(deps: Deps, sql: str) -> Iterator[Deps]:
    """Give the damaged database, and take the damage back."""
    conn = deps.database.connection()
    with conn.transaction(force_rollback=True):
        conn.execute(sql.encode())
        yield replace(deps, database=Rehearsed(conn))


def found(deps: Deps, *scopes: str) -> list[Finding]:
    """Return what the audit of all rows, or of some, finds at its first look, down to the bytes; not in storage."""
    tally = Tally()
    for name in scopes or rules.PAGES:
        RowScan(deps, name, deep=True).check_page(tally, "")
    return tally.findings
