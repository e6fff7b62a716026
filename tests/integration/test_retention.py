"""Retention against a real PostgreSQL: what is old goes whole, the rest stays, and the audit has nothing to say."""

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest

from db import leases, owner_limits, projects, renders, storage_use
from db.connection import Connection, connect
from db.reports import metrics
from embedded.stack import Stack
from moorage.errors import Refused
from moorage.ids import uuid7
from moorage.model import ProjectKey
from moorage.setting_types import RETENTION_DAYS
from tasks.audit import run as audit
from tasks.jobs import replay
from tasks.outputs import discard
from tasks.step import Deps
from tasks.sweeps import reconcile, retention
from tests.integration import command_line as cli
from tests.integration import kept_world as world
from tests.support.exposition import read_series

CORRUPT = "data:image/png;base64,iVBORw0KGgoAAAA="
FOR_EVER = dict.fromkeys(RETENTION_DAYS, 0.0)


@pytest.fixture
def later(deps: Deps, conn: Connection) -> Callable[[int], None]:
    """Let days pass for whoever connects from now on."""

    def shift(days: int) -> None:
        name = conn.info.dbname
        conn.execute(f"ALTER DATABASE {name} SET moorage.clock_shift = '{days} days'".encode())
        deps.database.close()

    return shift


def run(deps: Deps, **days: float) -> dict[str, int]:
    """Run retention with these settings, all others for ever, after the sweep of spooled files; returns what went."""
    discard.delete_spooled_inputs(deps)
    settings = deps.settings.model_copy(update={"retention_days": FOR_EVER | days})
    done = retention.delete_expired(replace(deps, settings=settings), "tests")
    return {what: count for what, count in done.items() if count}


def findings(deps: Deps) -> list[audit.Finding]:
    """Return what breaks a rule; the bucket is shared with other tests, so that objects do not count."""
    found = audit.run_audit(deps, deep=True, second_look_seconds=0.0).findings
    # Days pass at once here and nobody works meanwhile, so that what waits is overdue.
    return [finding for finding in found if finding.subject != "object" and finding.check.code != "overdue"]


def discard_all(deps: Deps) -> None:
    """Do what the discard step does for every output that is to be discarded."""
    for row_id in deps.database.run(lambda conn: leases.wake_due(conn, "discard", limit=100, queue_is_empty=True)):
        lease = deps.database.run(
            lambda conn, row_id=row_id: leases.claim(
                conn, "discard", row_id, leased_by="node/task", lease_seconds=30, max_crashes=5
            )
        )
        assert lease is not None
        discard.run(deps, lease, world.Calm())


def values(conn: Connection, sql: str) -> list[Any]:
    return [next(iter(row.values())) for row in conn.execute(sql.encode()).fetchall()]


def rows(conn: Connection) -> dict[str, int]:
    """Return how many rows there are, of tables that are not empty."""
    tables = values(conn, "SELECT relname FROM pg_stat_user_tables WHERE schemaname = 'public' ORDER BY 1")
    counted = {table: values(conn, f"SELECT count(*) FROM {table}")[0] for table in tables}
    del counted["schema_migrations"]
    return {table: count for table, count in counted.items() if count}


def letters(deps: Deps) -> list[UUID]:
    return deps.database.run(lambda conn: values(conn, "SELECT id FROM dead_letters ORDER BY id"))


def test_an_old_render_is_deleted_with_its_files(deps: Deps, conn: Connection, later: Callable[[int], None]) -> None:
    """Readers, the document and storage must all forget it; the tombstone keeps the rules true meanwhile."""
    job_id = world.kept(deps, "abc", [world.picture("red"), world.picture("blue")], project_id="p", scene=1)
    conn.execute("""UPDATE projects SET document = '{"scenes": [{"id": 1}]}'""")
    reconcile.reconcile(deps, "tests", len, {"documents"})
    stored = values(conn, "SELECT key FROM outputs") + values(conn, "SELECT thumb_key FROM outputs")
    shown = deps.database.run(lambda c: projects.get(c, ProjectKey("tests", "p")))
    later(31)

    done = run(deps, renders=30)
    between = findings(deps)
    discard_all(deps)

    assert shown is not None
    assert len(shown["document"]["scenes"][0]["imageUrls"]) == 2
    assert done == {"renders": 1}
    assert deps.database.run(lambda c: renders.list_variants(c, job_id)) == []
    assert values(conn, "SELECT document->'scenes'->0->'imageUrls' FROM projects") == [[]]
    assert [deps.storage.head(deps.storage.public_bucket, key) for key in stored] == [None] * 4
    assert between == findings(deps) == []
    assert values(conn, "SELECT state FROM outputs") == ["discarded", "discarded"]


def test_a_young_render_and_one_whose_job_is_open_again_stay(
    deps: Deps, conn: Connection, later: Callable[[int], None]
) -> None:
    """A job that works on a file for its render must find the render."""
    reopened = world.kept(deps, "old", [world.picture(), CORRUPT])
    letter = letters(deps)[0]
    deps.database.run(lambda c: replay.replay_dead_letter(c, letter, "tests"))
    later(31)
    world.kept(deps, "young")

    assert run(deps, renders=30) == {}
    assert values(conn, f"SELECT state FROM jobs WHERE id = '{reopened}'") == ["keeping"]


def test_a_job_that_somebody_holds_is_left_for_the_next_night(
    deps: Deps, database_url: str, later: Callable[[int], None]
) -> None:
    """A sweep that waits for locks holds up what it waits behind."""
    world.kept(deps, "abc")
    later(31)

    with connect(database_url) as holder, holder.transaction():
        holder.execute("SELECT id FROM jobs FOR UPDATE")
        while_held = run(deps, renders=30)

    assert while_held == {}
    assert run(deps, renders=30) == {"renders": 1}


def test_nothing_is_added_to_a_deleted_render(deps: Deps, conn: Connection, later: Callable[[int], None]) -> None:
    """A file kept for a render that nobody can read would lie in storage for ever."""
    world.kept(deps, "abc", [world.picture(), CORRUPT])
    letter = letters(deps)[0]
    later(31)

    run(deps, renders=30)

    with pytest.raises(Refused, match="render was deleted"):
        deps.database.run(lambda c: replay.replay_dead_letter(c, letter, "tests"))
    assert values(conn, "SELECT state FROM dead_letters") == ["discarded"]
    assert findings(deps) == []


def test_raw_bodies_go_and_their_digests_stay(deps: Deps, conn: Connection, later: Callable[[int], None]) -> None:
    """Bodies hold prompts and signed URLs; that they came, and what they were, stays provable."""
    world.kept(deps, "abc")
    world.deliver(deps, {"id": "abc", "status": "processing"})  # not yet applied
    later(31)

    done = run(deps, bodies=30)

    assert done == {"bodies": 1}
    left = conn.execute("SELECT state, body IS NULL AS is_gone, body_sha256 FROM deliveries ORDER BY state").fetchall()
    assert [(row["state"], row["is_gone"]) for row in left] == [("applied", True), ("new", False)]
    assert all(row["body_sha256"] for row in left)
    assert findings(deps) == []


def test_what_failed_can_be_replayed_for_a_month_and_then_says_why_not(
    deps: Deps, conn: Connection, later: Callable[[int], None]
) -> None:
    """A replay after retention must be refused with the reason, not fail in a worker."""
    world.work(deps, world.deliver(deps, b"not json"))
    world.kept(deps, "abc", [CORRUPT])
    delivery, output = letters(deps)
    later(29)
    early = run(deps, bodies=30)
    later(31)

    done = run(deps, bodies=30)

    assert early == {"quarantine": 1}  # after a week
    assert done == {"bodies": 1, "failed_bodies": 1, "failed_sources": 1}
    with pytest.raises(Refused, match="or its body was purged"):
        deps.database.run(lambda c: replay.replay_dead_letter(c, delivery, "tests"))
    with pytest.raises(Refused, match="or its source was purged"):
        deps.database.run(lambda c: replay.replay_dead_letter(c, output, "tests"))
    letters_left = conn.execute("SELECT DISTINCT state, retryable FROM dead_letters").fetchall()
    assert letters_left == [{"state": "open", "retryable": False}]
    assert findings(deps) == []


def test_finished_rows_go_whole(deps: Deps, conn: Connection, later: Callable[[int], None]) -> None:
    """Rows without their events, or events without their rows, are what the audit calls damage."""
    world.kept(deps, "none", [CORRUPT])
    world.work(deps, world.deliver(deps, b"not json"))
    for letter in letters(deps):
        deps.database.run(lambda c, letter=letter: replay.discard_dead_letter(c, letter, "tests"))
    later(91)

    done = run(deps, rows=90)

    assert done == {"quarantine": 1, "deliveries": 2, "jobs": 1}
    assert rows(conn) == {}


def test_what_a_person_is_waited_for_stays(deps: Deps, conn: Connection, later: Callable[[int], None]) -> None:
    """An open dead letter is never ended by time: that would be silence."""
    world.kept(deps, "none", [CORRUPT])
    world.work(deps, world.deliver(deps, b"not json"))
    before = rows(conn)
    later(91)

    done = run(deps, rows=90)

    assert done == {"quarantine": 1, "deliveries": 1}  # the webhook that was applied
    assert rows(conn) | {"deliveries": 2, "events": 0} == before | {"events": 0}
    assert findings(deps) == []


def test_what_is_kept_stays_though_its_webhooks_go(deps: Deps, conn: Connection, later: Callable[[int], None]) -> None:
    """Rows of finished work go; the render, its files and their history do not."""
    job_id = world.kept(deps, "abc", [world.picture(), CORRUPT], project_id="p", scene=1)
    letter = letters(deps)[0]
    wake = deps.database.run(lambda c: replay.replay_dead_letter(c, letter, "tests"))
    assert wake is not None
    world.work(deps, wake)
    later(91)

    done = run(deps, rows=90)

    # the letter that was replayed; its file died again
    assert done == {"quarantine": 1, "deliveries": 1, "dead_letters": 1}
    assert len(deps.database.run(lambda c: renders.list_variants(c, job_id))) == 1
    assert values(conn, "SELECT state FROM dead_letters") == ["open"]
    assert findings(deps) == []


def test_a_notice_goes_when_it_was_sent_and_stays_while_it_waits(
    deps: Deps, conn: Connection, later: Callable[[int], None]
) -> None:
    """The application may be away for longer than rows are kept: what it was not told of is still to be told."""
    telling = replace(deps, settings=deps.settings.model_copy(update={"notify_urls": ("http://127.0.0.1:9",)}))
    sent, waits = (world.kept(telling, name, [world.picture()]) for name in ("sent", "waits"))
    conn.execute(
        "UPDATE notifications SET state = 'sent', run_at = NULL, ended_at = moment() WHERE job_id = %s", [sent]
    )
    conn.execute(
        "INSERT INTO events (subject, subject_id, job_id, from_state, to_state, actor)"
        " SELECT 'notification', id, job_id, 'waiting', 'sent', 'test' FROM notifications WHERE job_id = %s",
        [sent],
    )

    later(31)
    done = run(deps, rows=30)

    assert done["notifications"] == 1
    assert values(conn, "SELECT job_id FROM notifications") == [waits]
    assert findings(deps) == []


def test_a_deleted_render_goes_in_the_end(deps: Deps, conn: Connection, later: Callable[[int], None]) -> None:
    """A tombstone is for the time in which somebody may still ask what became of it."""
    world.kept(deps, "abc", [world.picture("red"), world.picture("blue")], project_id="p", scene=1)
    later(31)
    run(deps, renders=30)
    later(130)
    before_discard = run(deps, rows=90)
    discard_all(deps)

    done = run(deps, rows=90)

    assert before_discard == {"deliveries": 1}  # its objects still lie there: the rows name them
    assert done == {"jobs": 1}
    assert rows(conn) == {"projects": 1}
    assert findings(deps) == []


def test_a_dry_run_counts_what_a_run_takes(
    stack: Stack, database_url: str, deps: Deps, conn: Connection, later: Callable[[int], None]
) -> None:
    """The number must be known before it is dared."""
    world.kept(deps, "abc", [world.picture(), CORRUPT])
    world.kept(deps, "none", [CORRUPT])
    world.work(deps, world.deliver(deps, b"not json"))
    for letter in letters(deps):
        deps.database.run(lambda c, letter=letter: replay.discard_dead_letter(c, letter, "tests"))
    later(91)
    discard.delete_spooled_inputs(deps)
    env = cli.environment(stack, database_url, MOORAGE_RETENTION_DAYS="renders=60,rows=90")
    before = rows(conn)

    looked = cli.run(env, "retention")
    untouched = rows(conn)
    counted = retention.count_expired(
        replace(
            deps,
            settings=deps.settings.model_copy(update={"retention_days": {**RETENTION_DAYS, "renders": 60.0}}),
        )
    )
    applied = cli.run(env, "retention", "--apply", "--json")

    assert looked.returncode == applied.returncode == 0, looked.stderr + applied.stderr
    assert "raw bodies of dead deliveries" in looked.stdout
    assert untouched == before
    assert counted == {
        "renders": 1, "bodies": 2, "failed_bodies": 1, "failed_sources": 0, "deliveries": 3, "dead_letters": 0,
        "notifications": 0, "jobs": 1, "quarantine": 2, "uploads": 0, "deleted_uploads": 0, "open_dead_letters": 0,
    }  # fmt: skip
    assert json.loads(applied.stdout) == {"applied": True, "counts": counted}


def test_a_crash_between_batches_leaves_nothing_half_done(
    stack: Stack, database_url: str, deps: Deps, conn: Connection, later: Callable[[int], None]
) -> None:
    """Each batch is a transaction: the next run takes what is left."""
    world.kept(deps, "abc")
    world.kept(deps, "def")
    later(31)
    env = cli.environment(
        stack, database_url, MOORAGE_RETENTION_DAYS="renders=30", MOORAGE_FAILPOINT="retention.after_batch"
    )

    killed = cli.run(env, "retention", "--apply")
    between = findings(deps)
    done = run(deps, renders=30, bodies=30)

    assert killed.returncode == -9
    assert between == findings(deps) == []
    assert done == {"bodies": 2}  # the renders went in the batch before the crash


def test_storage_used_is_counted_by_owner(deps: Deps, conn: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who fills the bucket is the first question when the bill comes."""
    world.kept(deps, "abc", [world.picture("red"), world.picture("blue")])
    conn.execute("UPDATE jobs SET owner = 'big'")
    world.kept(deps, "small")
    retention.count_storage_use(deps)
    told = conn.execute(
        "SELECT owner, objects, bytes FROM storage_use WHERE bucket = 'public' ORDER BY rank"
    ).fetchall()
    monkeypatch.setattr(storage_use, "MAX_OWNERS", 1)

    result = retention.count_storage_use(deps)

    size = values(conn, "SELECT sum(bytes + thumb_bytes)::bigint FROM outputs")[0]
    assert [(row["owner"], row["objects"]) for row in told] == [("big", 4), ("tests", 2)]
    assert sum(row["bytes"] for row in told) == size
    assert [(row["owner"], row["objects"]) for row in deps.database.run(storage_use.list_largest)] == [
        ("big", 4),
        ("(others)", 2),
    ]
    assert result == {"public": {"objects": 6, "bytes": size}}
    gauges = {gauge.name: read_series(gauge) for gauge in metrics.collect_gauges(conn)}
    assert gauges["moorage_storage_objects"][("big", "public")] == 4


def test_a_count_goes_on_where_it_was_interrupted(
    deps: Deps, conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that is killed in the middle adds no page twice, and the published numbers stay until the end."""
    world.kept(deps, "abc", [world.picture("red"), world.picture("blue"), world.picture("green")])
    retention.count_storage_use(deps)
    first = conn.execute("SELECT owner, objects, bytes, rank FROM storage_use").fetchall()
    monkeypatch.setattr(storage_use, "PAGE", 1)

    assert deps.database.run(storage_use.count_next_page)
    assert deps.database.run(storage_use.count_next_page)
    between = conn.execute("SELECT owner, objects, bytes, rank FROM storage_use").fetchall()
    retention.count_storage_use(deps)

    assert conn.execute("SELECT owner, objects, bytes, rank FROM storage_use").fetchall() == between == first
    assert first[0]["objects"] == 6


def test_a_file_stored_during_the_count_is_in_its_owners_use(deps: Deps, conn: Connection) -> None:
    """It would be in no sum until the next count ends, an hour later: the owner would pass its limit."""
    world.kept(deps, "abc", [world.picture("red")])
    conn.execute("UPDATE outputs SET ended_at = ended_at - interval '1 min'")
    retention.count_storage_use(deps)
    size = "SELECT sum(bytes + thumb_bytes)::bigint FROM outputs"
    assert owner_limits.read(conn, "tests")["stored_bytes"] == values(conn, size)[0]

    conn.execute("UPDATE outputs SET state = 'waiting', ended_at = NULL, run_at = moment()")
    assert deps.database.run(storage_use.count_next_page)  # the page of the waiting output
    conn.execute("UPDATE outputs SET state = 'kept', ended_at = moment(), run_at = NULL, bytes = 5000")
    retention.count_storage_use(deps)

    assert owner_limits.read(conn, "tests")["stored_bytes"] >= values(conn, size)[0]


def test_a_count_that_an_older_version_began_is_finished(deps: Deps, conn: Connection) -> None:
    """Its cursor does not say when."""
    world.kept(deps, "abc", [world.picture("red")])
    assert deps.database.run(storage_use.count_next_page)
    conn.execute("UPDATE cursors SET place = 'outputs, uploads' WHERE sweep = 'usage'")

    assert not deps.database.run(storage_use.count_next_page)

    assert values(conn, "SELECT computed_at > moment() - interval '1 min' FROM storage_use") == [True]


def test_an_input_file_counts_in_the_private_bucket(deps: Deps, conn: Connection) -> None:
    """What waits to be kept takes space too."""
    cli.register_one(deps, "abc")
    wake = world.deliver(deps, {"id": "abc", "status": "succeeded", "output": [world.picture()]})
    world.work(deps, wake)
    conn.execute("UPDATE outputs SET source_kind = 'object', source = 'inputs/x.png'")

    result = retention.count_storage_use(deps)

    assert result["private"]["objects"] == 1
    assert result["private"]["bytes"] == values(conn, "SELECT bytes FROM outputs")[0]


def test_an_open_dead_letter_expires_once_its_bytes_are_gone(
    deps: Deps, conn: Connection, later: Callable[[int], None]
) -> None:
    """Nobody decides after months; but while a replay is possible the file is not given up."""
    world.kept(deps, "abc", [world.picture(), CORRUPT])  # published, with a refused file in quarantine
    world.work(deps, world.deliver(deps, b"not json"))  # a dead delivery, with its body
    later(91)
    in_time = run(replace(deps, settings=deps.settings.model_copy(update={"quarantine_seconds": 1e9})), dead_letters=90)

    done = run(deps, dead_letters=90, bodies=90)

    assert in_time == {}
    assert done["open_dead_letters"] == 2
    assert values(conn, "SELECT DISTINCT state FROM dead_letters") == ["discarded"]
    assert findings(deps) == []


def test_an_open_dead_letter_keeps_no_job_and_no_delivery(
    deps: Deps, conn: Connection, later: Callable[[int], None]
) -> None:
    """Rows went only when somebody had closed each of their dead letters."""
    world.kept(deps, "none", [CORRUPT])
    world.work(deps, world.deliver(deps, b"not json"))
    later(91)
    with_bytes = run(replace(deps, settings=deps.settings.model_copy(update={"quarantine_seconds": 1e9})), rows=90)

    done = run(deps, rows=90, bodies=90)

    assert with_bytes == {"deliveries": 1}  # the one that was applied
    assert done == {"quarantine": 1, "failed_bodies": 1, "failed_sources": 1, "deliveries": 1, "jobs": 1}
    assert rows(conn) == {}


@pytest.mark.parametrize("state", ["open", "keeping"])
def test_an_old_render_stays_while_a_live_job_names_it(
    deps: Deps, conn: Connection, later: Callable[[int], None], state: str
) -> None:
    """Also one whose files are being stored: if none can be, its next entry reads the picture."""
    render_id = world.kept(deps, "abc", [world.picture("red")])
    job_id = cli.register_one(deps, "def", deadline_seconds=604_800 * 10).job_id
    conn.execute(
        "UPDATE jobs j SET fallback_chain = %s, state = %s, chosen_id = CASE %s WHEN 'keeping' THEN p.id END"
        " FROM predictions p WHERE p.job_id = j.id AND j.id = %s",
        [json.dumps([{"input": {"image": {"render": str(render_id), "index": 0}}}]), state, state, job_id],
    )
    later(31)

    assert run(deps, renders=30) == {}
    assert deps.database.run(lambda c: renders.list_variants(c, render_id)) != []


@pytest.mark.parametrize("state", ["open", "keeping"])
def test_an_upload_expires_unless_a_live_job_names_it(
    deps: Deps, conn: Connection, later: Callable[[int], None], state: str
) -> None:
    """Inputs are files of users, as renders are."""
    used, unused = uuid7(), uuid7()
    for upload_id in (used, unused):
        key = f"tests/inputs/{upload_id}.png"
        deps.storage.put(
            deps.storage.private_bucket, key, io.BytesIO(b"x"), size=1, content_type="image/png",
            sha256=hashlib.sha256(b"x").hexdigest(),
        )  # fmt: skip
        conn.execute(
            "INSERT INTO uploads (id, owner, key, media, format, content_type, bytes, sha256)"
            " VALUES (%s, 'tests', %s, 'image', 'png', 'image/png', 1, repeat('0', 64))",
            [upload_id, key],
        )
    cli.register_one(deps, "abc", deadline_seconds=604_800 * 10)
    conn.execute(
        "UPDATE jobs j SET fallback_chain = %s, state = %s, chosen_id = CASE %s WHEN 'keeping' THEN p.id END"
        " FROM predictions p WHERE p.job_id = j.id",
        [json.dumps([{"input": {"image": {"upload": str(used)}}}]), state, state],
    )
    later(31)

    done = run(deps, renders=30)
    kept = values(conn, "SELECT id FROM uploads WHERE deleted_at IS NULL")
    later(140)
    dropped = run(deps, rows=90)

    assert (done, kept) == ({"uploads": 1}, [used])
    assert deps.storage.head(deps.storage.private_bucket, f"tests/inputs/{unused}.png") is None
    assert deps.storage.head(deps.storage.private_bucket, f"tests/inputs/{used}.png") is not None
    assert dropped["deleted_uploads"] == 1


def test_a_crash_after_marking_uploads_leaves_orphans(
    stack: Stack, database_url: str, deps: Deps, conn: Connection, later: Callable[[int], None]
) -> None:
    """The row goes first: no row ever names a missing object, and the orphan sweep finds the rest."""
    conn.execute(
        "INSERT INTO uploads (id, owner, key, media, format, content_type, bytes, sha256) VALUES"
        " (gen_random_uuid(), 'tests', 'tests/inputs/x.png', 'image', 'png', 'image/png', 1, repeat('0', 64))"
    )
    later(31)
    env = cli.environment(
        stack, database_url, MOORAGE_RETENTION_DAYS="renders=30", MOORAGE_FAILPOINT="retention.after_uploads"
    )

    killed = cli.run(env, "retention", "--apply")

    assert killed.returncode == -9
    assert values(conn, "SELECT deleted_at IS NOT NULL FROM uploads") == [True]
    assert findings(deps) == []
