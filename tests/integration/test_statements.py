"""Every SQL statement is planned against the real schema; a wrong column fails in a millisecond."""

import importlib
import pkgutil
import re
from collections.abc import Iterator

import psycopg
import pytest

import db
import receiver
import simulation
from db.connection import Connection, connect
from embedded.stack import Stack

SQL = re.compile(r"^\s*(SELECT|INSERT|UPDATE|DELETE|WITH)\b")
NAMED = re.compile(r"%\((\w+)\)[sb]")
ROOMS = (db, receiver, simulation)  # all that hold SQL
# Planned by the server only when they run: no table, or a lock.
SWEEPS = ("DUE", "list_due", "RELEASE_EXPIRED", "list_overwritten", "SPOOLED")
RETENTION = ("list_old_renders", "IN_BATCHES", "OLD_FAILED_JOBS", "OLD_DELETED_JOBS")


@pytest.fixture(scope="module")
def planner(stack: Stack, template_database: str) -> Iterator[Connection]:
    made = connect(stack.postgres.create_database("moorage_statements", template=template_database))
    yield made
    made.close()


def statements() -> Iterator[tuple[str, str]]:
    for module in (m for room in ROOMS for m in pkgutil.walk_packages(room.__path__, f"{room.__name__}.")):
        loaded = importlib.import_module(module.name)
        for name, value in vars(loaded).items():
            made = getattr(value, "sql", None) if getattr(value, "__module__", None) == module.name else None
            if not name.isupper() and made is None:
                continue
            found = made or value
            found = found if isinstance(found, dict) else {"": found}
            for key, text in found.items():
                text = text[0] if isinstance(text, tuple) else text
                if isinstance(text, str) and SQL.match(text):
                    yield f"{module.name.removeprefix('db.')}.{name}{f'[{key}]' if key else ''}", text


def plan(conn: Connection, sql: str, options: str = "GENERIC_PLAN") -> str:
    names: list[str] = []

    def number(match: re.Match[str]) -> str:
        if match.group(1) not in names:
            names.append(match.group(1))
        return f"${names.index(match.group(1)) + 1}"

    text = NAMED.sub(number, sql).replace("%%", "%")
    with psycopg.ClientCursor(conn) as cursor:
        cursor.execute(f"EXPLAIN ({options}) {text}".encode())
        return "\n".join(str(row["QUERY PLAN"]) for row in cursor.fetchall())


@pytest.mark.parametrize(("name", "sql"), [pytest.param(n, s, id=n) for n, s in statements()])
def test_a_statement_fits_the_schema(planner: Connection, name: str, sql: str) -> None:
    """A column that does not exist must not wait for a night shift to be found."""
    assert plan(planner, sql)


@pytest.mark.parametrize(
    ("name", "sql"), [pytest.param(n, s, id=n) for n, s in statements() if n.split(".")[1].split("[")[0] in SWEEPS]
)
def test_a_sweep_reads_an_index(planner: Connection, name: str, sql: str) -> None:
    """With moment() as a filter a sweep over 200,000 rows was 50 times slower than as an index condition."""
    planner.execute("SET enable_seqscan = off")

    text = plan(planner, sql)

    assert "Index" in text
    time_filters = [line for line in text.splitlines() if "Filter:" in line and "run_at <=" in line]
    assert time_filters == [], f"{name}: {time_filters}"
    if "leased_until" in sql and "RELEASE" in name:
        assert re.search(r"Index Cond: .*leased_until", text), text


@pytest.mark.parametrize(
    ("name", "sql"), [pytest.param(n, s, id=n) for n, s in statements() if n.split(".")[1].split("[")[0] in RETENTION]
)
def test_retention_finds_what_is_old_by_an_index(planner: Connection, name: str, sql: str) -> None:
    """Each night over all that was ever kept: what is not old yet must cost nothing."""
    planner.execute("SET enable_seqscan = off")

    text = plan(planner, sql)

    assert re.search(r"Index Cond: .*_at < \(moment\(\)", text), f"{name}: {text}"
