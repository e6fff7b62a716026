"""Upgrade of a database of the first schema, with rows in every state: it equals a fresh one, and work continues."""

import base64
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import SecretStr

from db import leases, migrate
from db.connection import Connection, connect
from embedded.stack import Stack
from moorage.errors import ConfigError
from moorage.model import WorkTable
from storage import buckets
from tasks.audit import run as audit
from tasks.jobs import replay
from tests.integration import old_database
from tests.integration.core import World, world
from tests.integration.studio import Studio, open_studio
from tests.support.application import Application, listening

# Everything that pg_catalog says of a schema, but for the order of columns.
CATALOG = {
    "columns": """
SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod) AS type, a.attnotnull, a.attgenerated,
       pg_get_expr(d.adbin, d.adrelid) AS "default", col.collname
  FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
  LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
  LEFT JOIN pg_collation col ON col.oid = a.attcollation
 WHERE c.relnamespace = 'public'::regnamespace AND a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'v', 'S')
""",
    "constraints": """
SELECT conrelid::regclass::text AS relname, conname, pg_get_constraintdef(oid) AS definition
  FROM pg_constraint WHERE connamespace = 'public'::regnamespace
""",
    "indexes": "SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
    "views": "SELECT viewname, definition FROM pg_views WHERE schemaname = 'public'",
    "functions": "SELECT proname, prosrc, provolatile FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
}


def catalog(conn: Connection) -> dict[str, set[tuple[Any, ...]]]:
    return {name: {tuple(row.values()) for row in conn.execute(sql).fetchall()} for name, sql in CATALOG.items()}


@pytest.fixture
def old_url(stack: Stack) -> Iterator[str]:
    yield stack.postgres.create_database("moorage_upgrade")
    stack.postgres.drop_database("moorage_upgrade")


@pytest.fixture
def old(old_url: str) -> Iterator[Connection]:
    """Return a connection to a database of the first schema, whose processes have stopped."""
    with connect(old_url) as conn:
        old_database.create(conn)
        yield conn


@pytest.fixture
def studio() -> Iterator[Studio]:
    with open_studio() as made:
        yield made


@pytest.fixture
def app() -> Iterator[Application]:
    with listening() as made:
        yield made


@pytest.fixture
def at(stack: Stack, old_url: str, old: Connection, studio: Studio, app: Application) -> Iterator[World]:
    """Give the upgraded database to the steps of today."""
    migrate.migrate(old)
    secret = SecretStr("whsec_" + base64.b64encode(b"an application's secret").decode())
    with world(
        stack, old_url, replicate_api_url=studio.url, egress_allow=(studio.address,), notify_urls=(app.url,),
        notify_secret=(secret,), s3_public_bucket="upgrade-public", s3_private_bucket="upgrade-private",
    ) as made:  # fmt: skip
        buckets.ensure_buckets(made.deps.storage, made.deps.settings)
        old_database.store_objects(made.deps.storage)
        yield made


def counts(conn: Connection, sql: str) -> dict[Any, int]:
    """Return the two columns of a query as a mapping."""
    return dict(tuple(row.values()) for row in conn.execute(sql.encode()).fetchall())


def test_an_upgraded_schema_is_that_of_a_fresh_database(stack: Stack, old: Connection, template_database: str) -> None:
    """A statement planned against one would else fail on the other."""
    migrate.migrate(old)
    url = stack.postgres.create_database("moorage_upgrade_fresh", template=template_database)
    with connect(url) as fresh:
        expected = catalog(fresh)

    assert catalog(old) == expected


def test_the_old_rows_are_in_every_state(old: Connection) -> None:
    """What is not there is not upgraded by the tests below."""
    states = {
        "deliveries": {"new", "unmatched", "applied", "ignored", "dead"},
        "jobs": {"open", "keeping", "succeeded", "partial", "failed", "cancelled"},
        "predictions": {
            "planned", "submitting", "running", "abandoned", "succeeded", "failed", "cancelled", "lost"
        },
        "outputs": {"waiting", "discarding", "kept", "dead", "discarded"},
        "notices": {"waiting", "sent", "dead"},
        "dead_letters": {"open", "replayed", "discarded"},
    }  # fmt: skip

    found = {table: set(counts(old, f"SELECT state, 1 FROM {table}")) for table in states}

    assert found == states


def test_old_texts_become_columns(old: Connection) -> None:
    """They are read once; after that no behaviour depends on them."""
    migrate.migrate(old)

    assert counts(old, "SELECT state, count(*) FROM predictions WHERE submit_uncertain GROUP BY state") == {
        "submitting": 2, "abandoned": 1, "failed": 1,
    }  # fmt: skip
    assert counts(old, "SELECT category, count(*) FROM outputs WHERE source_expired GROUP BY category") == {
        "DOWNLOAD_FAILED": 1
    }
    assert counts(old, "SELECT kind, count(*) FROM events WHERE subject = 'output' AND kind <> '' GROUP BY kind") == {
        "worker_died": 1, "lease_expired": 1, "worker_stopping": 1, "storage_failed": 1, "disk_failed": 1,
        "source_unavailable": 1, "source_interrupted": 1,
    }  # fmt: skip
    released = old.execute("SELECT reason, lease FROM events WHERE lease IS NOT NULL").fetchall()
    assert len(released) == 2
    assert all(f"lease {event['lease']}" in event["reason"] for event in released)
    assert counts(old, "SELECT subject, count(*) FROM events WHERE subject LIKE 'noti%' GROUP BY subject").keys() == {
        "notification"
    }


def test_old_error_types_get_their_new_names(old: Connection) -> None:
    """`moorage dead` counts dead letters by them."""
    before = counts(old, "SELECT error, count(*) FROM dead_letters GROUP BY error")

    migrate.migrate(old)

    after = counts(old, "SELECT error, count(*) FROM dead_letters GROUP BY error")
    assert {"Unreadable", "NotifyRefused"} <= before.keys()
    assert (after["MalformedPayload"], after["NotificationRefused"]) == (before["Unreadable"], before["NotifyRefused"])
    assert after.keys().isdisjoint({"Unreadable", "NotifyRefused"})


def test_an_upgraded_database_breaks_no_rule(at: World) -> None:
    """The audit compares rows, histories and objects."""
    report = audit.run_audit(at.deps, deep=True, second_look_seconds=0.0)

    assert report.findings == []
    assert report.checked["notifications"] == 17


def test_an_upgraded_uncertain_submission_is_found_in_the_list(at: World, studio: Studio) -> None:
    """To submit it again would pay twice."""
    (row,) = at.conn.execute(
        "SELECT id FROM predictions WHERE submit_uncertain AND state = 'submitting' AND seq = 0"
    ).fetchall()
    webhook = f"http://moorage.example/webhooks/replicate?key={old_database.UNCERTAIN_KEY}"
    listed = {"id": "found", "status": "starting", "input": {}, "webhook": webhook}
    studio.made.append({**listed, "created_at": datetime.now(UTC).isoformat()})
    at.conn.execute(
        "UPDATE predictions SET submitted_at = moment() - interval '9 s', run_at = moment() WHERE id = %s", (row["id"],)
    )

    at.step("submit", row["id"])

    found = at.row("predictions", row["id"])
    assert (found["state"], found["external_id"]) == ("running", "found")
    assert studio.orders == []


def test_an_upgraded_submission_is_repeated_once_only(at: World) -> None:
    """The predecessor's column says so, not its reason."""
    (row,) = at.conn.execute(
        "SELECT id, job_id FROM predictions WHERE submit_uncertain AND state = 'submitting' AND seq = 1"
    ).fetchall()
    at.conn.execute(
        "UPDATE predictions SET submitted_at = moment() - interval '60 s', run_at = moment() WHERE id = %s",
        (row["id"],),
    )

    at.step("submit", row["id"])

    tried = at.conn.execute("SELECT entry FROM predictions WHERE job_id = %s ORDER BY seq", (row["job_id"],)).fetchall()
    assert [one["entry"] for one in tried] == [0, 0, 1]


def test_upgraded_notifications_are_sent_and_replayed(at: World, app: Application) -> None:
    """Those that wait, and one that was given up."""
    (letter,) = at.conn.execute("SELECT id FROM dead_letters WHERE subject = 'notification'").fetchall()
    replay.replay_dead_letter(at.conn, letter["id"], "cli")
    waiting = at.conn.execute("SELECT id FROM notifications WHERE state = 'waiting'").fetchall()
    at.conn.execute("UPDATE notifications SET run_at = moment() WHERE state = 'waiting'")

    for row in waiting:
        at.step("notify", row["id"])

    assert len(app.heard) == len(waiting) == 16
    assert counts(at.conn, "SELECT state, count(*) FROM notifications GROUP BY state") == {"sent": 17}


def test_upgraded_work_goes_on(at: World) -> None:
    """An unmatched delivery is applied, files are kept, a placeholder is published."""
    at.registered("strange")
    for row in at.conn.execute("SELECT id FROM deliveries WHERE state IN ('new', 'unmatched')").fetchall():
        at.step("ingest", row["id"])
    for row in at.conn.execute("SELECT id FROM outputs WHERE state = 'waiting' AND source_kind <> 'url'").fetchall():
        at.step("keep", row["id"])
    for row in at.conn.execute("SELECT id FROM outputs WHERE state = 'discarding'").fetchall():
        at.step("discard", row["id"])

    assert counts(at.conn, "SELECT state, count(*) FROM outputs WHERE source_kind <> 'url' GROUP BY state") == {
        "kept": 11, "discarded": 3,
    }  # fmt: skip
    assert audit.run_audit(at.deps, deep=True, second_look_seconds=0.0).findings == []


HELD: list[tuple[WorkTable | str, str]] = [
    ("deliveries", "new"), ("predictions", "running"), ("outputs", "waiting"), ("notices", "waiting"),
]  # fmt: skip


@pytest.mark.parametrize(("table", "state"), HELD)
def test_a_worker_of_the_old_version_is_named_and_nothing_is_renamed(old: Connection, table: str, state: str) -> None:
    """It would fail at its next statement, and its work would be a crash."""
    lease = f"""
UPDATE {table} SET lease_token = gen_random_uuid(), leased_by = 'keep1@host/task 7',
       leased_until = moment() + make_interval(secs => %s) WHERE state = '{state}'
"""
    old.execute(lease.encode(), (30,))

    with pytest.raises(ConfigError, match="leased by keep1@host of the previous version: stop its processes"):
        migrate.migrate(old)

    assert migrate.get_schema_version(old) == 1
    assert old.execute("SELECT to_regclass('notices')::text AS name").fetchone() == {"name": "notices"}
    old.execute(lease.encode(), (-1,))  # it was killed: its lease has ended
    assert migrate.migrate(old) == [path.stem for _, path in migrate.list_migrations()]
    assert not any(
        old.execute(f"SELECT 1 FROM {name} WHERE leased_until > moment()".encode()).fetchone()
        for name in leases.SUBJECT
    )


@pytest.fixture
def at_11(old: Connection) -> Connection:
    """Return a connection to a database of schema 11, before projects had owners."""
    old_database.migrate_to(old, 11)
    return old


@pytest.mark.parametrize(
    ("table", "state"),
    [("deliveries", "new"), ("predictions", "running"), ("outputs", "waiting"), ("notifications", "waiting")],
)
def test_a_later_migration_that_is_not_additive_is_refused_too(at_11: Connection, table: str, state: str) -> None:
    """An old worker would place its file in a project without an owner, and be refused after the download."""
    lease = f"""
UPDATE {table} SET lease_token = gen_random_uuid(), leased_by = 'keep1@host/task 7',
       leased_until = moment() + make_interval(secs => %s) WHERE state = '{state}'
"""
    at_11.execute(lease.encode(), (30,))

    with pytest.raises(ConfigError, match=r"0012_.* leased by keep1@host of the previous version: stop its processes"):
        migrate.migrate(at_11)

    assert migrate.get_schema_version(at_11) == 11
    at_11.execute(lease.encode(), (-1,))
    assert len(migrate.migrate(at_11)) == migrate.SCHEMA_VERSION - 11


def test_a_migration_that_only_adds_is_applied_beside_old_workers(at_11: Connection) -> None:
    """A rolling upgrade: versions may run side by side."""
    migrate.migrate(at_11)
    at_11.execute("DELETE FROM schema_migrations WHERE version = 22")
    at_11.execute("ALTER TABLE work_totals DROP COLUMN changed_at")
    at_11.execute(
        "UPDATE outputs SET lease_token = gen_random_uuid(), leased_by = 'keep1@host/task 7',"
        " leased_until = moment() + interval '30 s' WHERE state = 'waiting'"
    )

    assert migrate.migrate(at_11) == ["0022_work_totals_changed_at"]
