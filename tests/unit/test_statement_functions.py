"""Functions that are a statement: what they pass to it, and what becomes of its rows."""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, cast
from uuid import UUID

import pytest

from db.connection import Connection, QueuedQuery, Row
from db.events import records
from db.statements import statement
from moorage.errors import LeaseLost
from moorage.model import Lease

LEASE = Lease("outputs", UUID(int=1), UUID(int=2), "node/task", datetime(2026, 1, 1, tzinfo=UTC), 1, 1)


class Point(NamedTuple):
    x: int
    y: int


@dataclass(frozen=True)
class Filter:
    state: str
    limit: int = 5


class Recorder:
    """Stands in for a connection: has the rows ready, and remembers what was executed and queued."""

    def __init__(self, *rows: Row) -> None:
        self.rows, self.sent, self.queued = list(rows), list[tuple[str, Any]](), list[tuple[str, Any]]()

    def execute(self, sql: str, args: Any) -> "Recorder":
        self.sent.append((sql, {name: value for name, value in args.items() if (name, value) != ("reason", None)}))
        return self

    def queue(self, sql: str, args: Any) -> QueuedQuery:
        self.queued.append((sql, {name: value for name, value in args.items() if name != "reason"}))
        return QueuedQuery(sql)

    def fetchone(self) -> Row | None:
        return next(iter(self.rows), None)

    def __iter__(self) -> Any:
        return iter(self.rows)


def on(*rows: Row) -> Any:
    return Recorder(*rows)


@statement("list")
def list_ids(conn: Connection, owner: str, ids: Sequence[int] = (), *, limit: int = 9) -> list[int]: ...


@statement("points")
def list_points(conn: Connection, filters: Mapping[str, Any], criteria: Filter, key: Point) -> list[Point]: ...


@statement("find")
def find(conn: Connection, name: str) -> int | None: ...


@statement("lock")
def lock(conn: Connection, name: str) -> int: ...


@statement("row")
def get(conn: Connection) -> Row | None: ...


@statement("pair")
def get_pair(conn: Connection) -> tuple[int, str] | None: ...


@statement("exists")
def exists(conn: Connection) -> bool: ...


@statement("queue")
def queue_name(conn: Connection, name: str) -> QueuedQuery: ...


@statement("end")
def end(conn: Connection, lease: Lease, reason: str) -> None: ...


@statement({"outputs": "of outputs", "deliveries": "of deliveries"})
def get_state(conn: Connection, table: str, row_id: int = 1) -> str | None: ...


@statement({"outputs": "renew outputs"})
def renew(conn: Connection, lease: Lease) -> bool: ...


def test_arguments_are_parameters_by_name() -> None:
    """By position, by name and by default; psycopg adapts lists to arrays, and tuples to something else."""
    conn = on({"id": 3}, {"id": 4})

    assert list_ids(conn, "zoe", (1, 2)) == [3, 4]
    assert list_ids(conn, owner="zoe", limit=2) == [3, 4]

    assert conn.sent[0] == ("list", {"owner": "zoe", "ids": [1, 2], "limit": 9})
    assert conn.sent[1] == ("list", {"owner": "zoe", "ids": [], "limit": 2})


def test_a_composed_argument_gives_its_fields() -> None:
    """A mapping, a dataclass and a named tuple."""
    conn = on({"x": 1, "y": 2})

    assert list_points(conn, {"kind": "image"}, Filter("open"), Point(7, 8)) == [Point(1, 2)]

    assert conn.sent == [("points", {"kind": "image", "state": "open", "limit": 5, "x": 7, "y": 8})]


def test_rows_become_what_the_annotation_says() -> None:
    """A value, a row, a tuple, or whether there is one."""
    assert find(on({"id": 3, "more": 4}), "a") == 3
    assert find(on(), "a") is None
    assert get(on({"id": 3})) == {"id": 3}
    assert get_pair(on({"a": 1, "b": "x"})) == (1, "x")
    assert (exists(on({"id": 1})), exists(on())) == (True, False)


def test_a_row_that_must_exist_is_missed() -> None:
    """Its absence is an error of the caller, who locked nothing."""
    assert lock(on({"id": 3}), "a") == 3

    with pytest.raises(LookupError, match="lock: there is no row"):
        lock(on(), "a")


def test_a_lost_lease_raises() -> None:
    """Another worker owns the row: nothing was written."""
    conn = on({"id": LEASE.row_id})
    end(conn, LEASE, "done")

    with pytest.raises(LeaseLost, match=f"outputs {LEASE.row_id}"):
        end(on(), LEASE, "done")

    lease = {"id": LEASE.row_id, "token": LEASE.token, "actor": "node/task"}
    assert conn.sent == [("end", {**lease, "reason": "done"})]


def test_a_queued_statement_is_not_executed() -> None:
    """It is sent with the next one, in one round trip."""
    conn = on()

    queue_name(conn, "a")

    assert (conn.sent, conn.queued) == ([], [("queue", {"name": "a"})])


def test_the_table_selects_the_statement() -> None:
    """That of the first argument, or of the lease."""
    conn = on({"state": "new"})

    assert get_state(conn, "deliveries") == "new"
    assert renew(conn, LEASE)

    assert [sql for sql, _ in conn.sent] == ["of deliveries", "renew outputs"]


def test_an_event_is_inserted_by_the_same_statement() -> None:
    """So that no state changes without one."""
    conn = on({"id": 1})

    @records("job", "'open'", "'failed'", "%(reason)s", job_id="id")
    @statement("UPDATE jobs SET state = 'failed' RETURNING id")
    def fail(conn: Connection, reason: str, actor: str) -> bool: ...

    assert fail(conn, "none", "cli")

    assert conn.sent[0][0].startswith(
        "WITH moved AS (UPDATE jobs SET state = 'failed' RETURNING id) \nINSERT INTO events"
    )


def test_only_statements_have_an_empty_body(project_root: Path) -> None:
    """mypy does not look for them in db/: such a function without the decorator would return None."""
    empty = []
    for path in sorted((project_root / "db").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and all(
                isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant) for part in node.body
            ):
                names = [cast(ast.Name, d.func).id for d in node.decorator_list if isinstance(d, ast.Call)]
                if "statement" not in names:
                    empty.append(f"{path.name}:{node.lineno} {node.name}")

    assert empty == []
