"""The lists of operators: each filter, the pages, and what a page costs in a large history."""

import contextlib
from collections.abc import Iterator
from typing import Any, get_args

import psycopg
import pytest

from bench import history
from db.connection import Connection, Row, connect
from db.reports import lists
from db.reports.lists import ListKind
from embedded.stack import Stack
from moorage.errors import Refused
from moorage.ids import uuid7

KINDS: tuple[ListKind, ...] = get_args(ListKind)

RARE = """
INSERT INTO notifications (id, event_id, job_id, type, state, run_at, created_at, ended_at)
SELECT id, row_number() OVER (ORDER BY id), id, 'job.succeeded', 'sent', NULL, created_at, settled_at FROM jobs
 WHERE settled_at IS NOT NULL;
WITH old AS (SELECT id FROM jobs WHERE settled_at IS NOT NULL ORDER BY id LIMIT 3)
UPDATE notifications SET state = 'dead', category = 'NOTIFY_FAILED' WHERE id IN (SELECT id FROM old);
WITH old AS (SELECT id FROM predictions WHERE ended_at IS NOT NULL ORDER BY id LIMIT 3)
UPDATE predictions SET state = 'lost', category = 'TIMED_OUT', provider = 'openai' WHERE id IN (SELECT id FROM old);
WITH old AS (SELECT id FROM deliveries ORDER BY id LIMIT 3)
UPDATE deliveries SET state = 'dead', provider = 'openai' WHERE id IN (SELECT id FROM old);
UPDATE outputs SET category = 'VALIDATION_FAILED'
 WHERE id IN (SELECT id FROM outputs WHERE state = 'dead' ORDER BY id LIMIT 3);
VACUUM ANALYZE;
"""

# Filters that match few rows, all of them old: a list that reads the newest rows first would read the whole table.
FILTERS: dict[ListKind, list[dict[str, Any]]] = {
    "deliveries": [{}, {"state": "dead"}, {"state": "applied"}, {"state": "new"}, {"provider": "openai"}],
    "jobs": [{}, {"state": "cancelled"}, {"state": "open"}, {"category": "TIMED_OUT"}],
    "predictions": [{}, {"state": "lost"}, {"state": "running"}, {"provider": "openai"}, {"category": "TIMED_OUT"}],
    "outputs": [{}, {"state": "discarded"}, {"state": "waiting"}, {"category": "VALIDATION_FAILED"}],
    "dead_letters": [{}, {"state": "open"}, {"state": "replayed"}, {"category": "POISON"}],
    "notifications": [{}, {"state": "dead"}, {"state": "waiting"}, {"category": "NOTIFY_FAILED"}],
}
EVERY: list[dict[str, Any]] = [
    *({"owner": owner} for owner in (history.OWNER, history.FORMER_OWNER, "stranger")),
    {"project_id": "none"},
]
PAGES = 1000  # of 8 kB; the smallest of the tables has more


def fill(stack: Stack, template_database: str, name: str, outputs: int) -> Connection:
    conn = connect(stack.postgres.create_database(name, template=template_database))
    history.fill(conn, outputs)
    for sql in RARE.split(";\n"):
        if sql.strip():
            conn.execute(sql.encode())
    return conn


@pytest.fixture(scope="module")
def small(stack: Stack, template_database: str) -> Iterator[Connection]:
    with contextlib.closing(fill(stack, template_database, "operator_lists", 1600)) as conn:
        yield conn


def read_all(conn: Connection, kind: ListKind, limit: int, **filters: Any) -> list[Row]:
    """Return all pages of a list."""
    rows = page = lists.list_page(conn, kind, filters, limit=limit)
    while len(page) == limit:
        page = lists.list_page(conn, kind, filters, before=page[-1]["id"], limit=limit)
        rows = rows + page
    return rows


@pytest.mark.parametrize("kind", KINDS)
def test_pages_contain_every_row_once(small: Connection, kind: ListKind) -> None:
    """A row that is on no page is one that an operator never finds."""
    total = small.execute(f"SELECT count(*) AS count FROM {kind}".encode()).fetchall()[0]["count"]

    ids = [row["id"] for row in read_all(small, kind, 97)]

    assert len(ids) == total > 0
    assert ids == sorted(set(ids), reverse=True)
    owned = [row["id"] for row in read_all(small, kind, 97) if row["owner"] == "zoe"]
    assert sorted(row["id"] for row in read_all(small, kind, 7, owner="zoe")) == sorted(owned)


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_after_a_deleted_row_is_not_the_end(small: Connection, kind: ListKind) -> None:
    """Retention deletes the oldest rows while somebody reads; an empty page would say that there are no more."""
    whole = lists.list_page(small, kind, {"owner": history.OWNER}, limit=10_000)

    with small.transaction(force_rollback=True):
        small.execute("SET LOCAL session_replication_role = replica")  # the row alone, without what refers to it
        small.execute(f"DELETE FROM {kind} WHERE id = %s".encode(), [whole[0]["id"]])
        if kind == "jobs":  # sorted by the id that the cursor is
            rest = lists.list_page(small, kind, {"owner": history.OWNER}, before=whole[0]["id"], limit=10_000)
            assert [row["id"] for row in rest] == [row["id"] for row in whole[1:]]
        else:
            with pytest.raises(Refused, match="deleted: begin with the first page"):
                lists.list_page(small, kind, {"owner": history.OWNER}, before=whole[0]["id"], limit=10_000)
    assert lists.list_page(small, kind, {"owner": history.OWNER}, before=whole[-1]["id"], limit=10_000) == []


@pytest.mark.parametrize("kind", KINDS)
def test_each_filter_selects_what_it_says(small: Connection, kind: ListKind) -> None:
    """Filters are combined by AND; one that is not applied shows rows of somebody else."""
    # Ids of the filled tables are random: the few that look older than their rows are not found by time.
    rows = [row for row in read_all(small, kind, 10_000) if row["id"].version == 7 or row["id"].int > uuid7().int]
    time = "received_at" if kind == "deliveries" else "created_at"
    middle = rows[len(rows) // 2][time]

    whole = {row["id"] for row in rows}
    for name in ("state", "provider", "owner", "project_id", "category", "job_id"):
        for value in {row.get(name) for row in rows if row.get(name) is not None}:
            expected = {row["id"] for row in rows if row[name] == value}
            found = {row["id"] for row in lists.list_page(small, kind, {name: value}, limit=10_000)}
            assert found & whole == expected
            if name == "job_id":
                break
    later = {row["id"] for row in lists.list_page(small, kind, {"since": middle}, limit=10_000)}
    assert later & whole == {row["id"] for row in rows if row[time] >= middle}
    earlier = lists.list_page(small, kind, {"until": middle, "owner": "zoe"}, limit=10_000)
    assert {row["id"] for row in earlier} & whole == {r["id"] for r in rows if r[time] < middle and r["owner"] == "zoe"}


def pages_read(conn: Connection, kind: ListKind, filters: dict[str, Any]) -> int:
    """Return how many pages of 8 kB a list reads."""
    with psycopg.ClientCursor(conn) as cursor:
        args = {**lists.NO_FILTER, **filters, "before": None, "limit": 51, "low": None, "high": None}
        sql = (lists.LISTS_BY_OWNER if "owner" in filters else lists.LISTS)[kind]
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}".encode(), args)
        plan = cursor.fetchall()[0]["QUERY PLAN"][0]["Plan"]
    return int(plan["Shared Hit Blocks"]) + int(plan["Shared Read Blocks"])


@pytest.mark.prove
def test_a_page_costs_what_it_shows(stack: Stack, template_database: str) -> None:
    """Lists are read when something is wrong; in a history of millions of rows they must not make it worse."""
    with contextlib.closing(fill(stack, template_database, "operator_lists_large", 400_000)) as conn:
        read = {(k, str(f)): pages_read(conn, k, f) for k in KINDS for f in [*FILTERS[k], *EVERY]}
        sizes = {k: conn.execute(f"SELECT pg_relation_size('{k}') / 8192 AS n".encode()).fetchall() for k in KINDS}

    assert {name: pages for name, pages in read.items() if pages > PAGES and name[0] != "dead_letters"} == {}
    assert min(rows[0]["n"] for kind, rows in sizes.items() if kind != "dead_letters") > PAGES
