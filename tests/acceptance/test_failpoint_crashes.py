"""A SIGKILL at every failpoint on the way of a webhook, in the running system: what was accepted is kept, once."""

import contextlib
import hashlib
from pathlib import Path

import pytest
from PIL import Image

from db.connection import connect
from tests.acceptance.world import until
from tests.support import fork_server

ROOT = Path(__file__).resolve().parent.parent.parent

# The script of the job that comes past each point, and how it is registered.
OK = ({"outputs": 2}, {})
SILENT = ({"outputs": 2, "webhook": "missing"}, {})
TROUBLED = ({"outputs": 2, "faults": {"0": "500_twice"}}, {})
HALF = ({"outputs": 2, "faults": {"0": "web_page"}}, {"policy": "discard"})  # the good file is deleted again
POINTS = {
    "ingest.before_claim": OK,
    "ingest.after_claim": OK,
    "ingest.before_commit": OK,
    "ingest.after_commit": OK,
    "keep.before_claim": OK,
    "keep.after_claim": OK,
    "keep.before_download": OK,
    "keep.after_download": OK,
    "keep.before_upload": OK,
    "storage.before_put": OK,
    "storage.after_put": OK,
    "keep.after_upload": OK,
    "keep.after_thumbnail": OK,
    "quarantine.before_put": HALF,
    "quarantine.after_put": HALF,
    "quarantine.after_record": HALF,
    "keep.before_commit": OK,
    "keep.after_commit": OK,
    "settle.before_publish": OK,
    "settle.after_publish": OK,
    "publish.before_keep": OK,
    "publish.after_keep": OK,
    "dispatch.after_tick": OK,
    "dispatch.after_commit": OK,
    "reconcile.after_tick": OK,
    "reconcile.after_timeline": OK,
    "reconcile.after_release": OK,
    "drain.after_tick": OK,
    "discard.after_tick": OK,
    "dispatch.before_finish": OK,
    "dispatch.after_finish": OK,
    "reconcile.before_finish": OK,
    "reconcile.after_finish": OK,
    "drain.before_finish": OK,
    "drain.after_finish": OK,
    "discard.before_finish": OK,
    "discard.after_finish": OK,
    "failure.before_commit": HALF,
    "failure.after_commit": TROUBLED,
    "breaker.before_commit": TROUBLED,
    "breaker.after_commit": TROUBLED,
    "poll.before_claim": SILENT,
    "poll.after_claim": SILENT,
    "poll.before_request": SILENT,
    "poll.after_answer": SILENT,
    "poll.before_commit": SILENT,
    "poll.after_commit": SILENT,
    "publish.before_poll": SILENT,
    "publish.after_poll": SILENT,
    "discard.before_claim": HALF,
    "discard.after_claim": HALF,
    "discard.before_delete": HALF,
    "storage.before_delete": HALF,
    "storage.after_delete": HALF,
    "discard.after_delete": HALF,
    "discard.before_commit": HALF,
    "discard.after_commit": HALF,
    "publish.before_discard": HALF,
    "publish.after_discard": HALF,
}
# `make test` crashes at these: each step and each kind of sweep before, between and behind its commits. `make prove`
# crashes at all.
SHORT = {
    "ingest.after_claim",
    "ingest.after_commit",
    "keep.before_claim",
    "keep.before_commit",
    "keep.after_commit",
    "storage.after_put",
    "quarantine.after_put",
    "settle.after_publish",
    "publish.after_keep",
    "dispatch.after_tick",
    "dispatch.before_finish",
    "reconcile.after_timeline",
    "failure.after_commit",
    "breaker.after_commit",
    "poll.after_answer",
    "poll.after_commit",
    "storage.after_delete",
    "discard.after_commit",
    "drain.after_finish",
    "receive.before_commit",
    "receive.after_commit",
    "publish.after_ingest",
    "register.after_commit",
}


def cases(points):
    """Return the points as parameters; what is not in the short form is marked."""
    return [pytest.param(point, marks=() if point in SHORT else pytest.mark.prove) for point in points]


# Points of the receiver, which its supervisor starts again; the provider sends again what was not answered.
RECEIVER = (
    "receive.before_commit",
    "receive.after_commit",
    "publish.before_ingest",
    "publish.after_ingest",
    "register.before_commit",
    "register.after_commit",
)


@pytest.mark.parametrize("point", cases(POINTS))
def test_a_crash_of_a_worker_loses_and_doubles_nothing(world, point):
    """Wherever a worker dies, the row says what is left to do, and another does it."""
    script, registered = POINTS[point]
    before = crashes(world, point)
    world.arm(point)

    asked = world.ask(script, **registered)
    with made_due(world, point) as make_due:
        until(lambda: make_due() or not world.is_armed(point), f"a crash at {point}")
    world.await_end(asked)

    if POINTS[point] is HALF:
        check_discarded(world, asked)
    else:
        assert world.job(asked)["state"] == "succeeded"
        world.check(asked)
    if before is not None:
        until(lambda: crashes(world, point) > before, "the crash stands in a row")
        is_batch = point.startswith("ingest.")  # each delivery that was claimed with it counts the crash
        assert is_batch or crashes(world, point) == before + 1
    if POINTS[point] not in (HALF, TROUBLED):
        counted = [(row["attempt"], row["crashes"]) for row in world.outputs(asked)]
        assert all(attempts == died + 1 for attempts, died in counted), "a kill cost two attempts"


# A tick without work ends before these points: what makes its sweep due.
DECOY = """INSERT INTO deliveries (id, provider, webhook_id, body, body_sha256, state, external_id, unmatched_until)
           VALUES (gen_random_uuid(), 'replicate', 'decoy', '{"id": "decoy", "status": "processing"}', '', 'unmatched',
                   'decoy', moment() + interval '1 hour') RETURNING id"""
OF_DECOY = "webhook_id = 'decoy' AND lease_token IS NULL RETURNING id"
DUE = {
    "dispatch": f"UPDATE deliveries SET run_at = moment() WHERE {OF_DECOY}",
    "reconcile": f"""UPDATE deliveries
                       SET lease_token = id, leased_by = 'decoy', leased_until = moment() + interval '1 hour'
                     WHERE {OF_DECOY}""",
    "discard": """UPDATE outputs SET source_kind = 'object', source = 'inputs/decoy'
                   WHERE id = (SELECT id FROM outputs WHERE ended_at IS NOT NULL AND state <> 'dead' LIMIT 1)
                 RETURNING id""",
}


@contextlib.contextmanager
def made_due(world, point):
    """Give what makes the sweep of a point due, again and again; falsy."""
    sql = DUE.get(point.split(".", maxsplit=1)[0])
    if sql is None or point.endswith(".after_tick"):
        yield lambda: False
        return
    world.rows(DECOY)
    try:
        yield lambda: bool(world.rows(sql)) and False
    finally:
        world.rows("DELETE FROM deliveries WHERE webhook_id = 'decoy' RETURNING id")


def check_discarded(world, asked):
    """The kept file of a job that keeps all or nothing is gone from storage, its row says so."""
    assert world.job(asked)["state"] == "failed"
    bad, good = world.outputs(asked)
    assert (bad["state"], good["state"]) == ("dead", "discarded")
    listed = world.blobs.list_objects(world.blobs.public_bucket, f"renders/{asked.job_id}/")
    assert not {item.key for item in listed} & {good["key"], good["thumb_key"]}
    with world.blobs.open_object(world.blobs.private_bucket, bad["quarantine_key"]) as opened:
        assert hashlib.sha256(opened.read()).hexdigest() == bad["quarantine_sha256"]
    assert world.rows("SELECT 1 FROM renders WHERE id = %(id)s", id=asked.job_id) == []
    assert len(world.letters(asked)) == 1


def crashes(world, point):
    """Return how many crashes stand in the rows of a point's step; None where the row is not leased at it."""
    tables = {"ingest": "deliveries", "poll": "predictions", "keep": "outputs", "settle": "outputs"}
    table = tables.get(point.split(".", maxsplit=1)[0])
    behind = ("ingest.after_commit", "poll.after_commit", "keep.after_commit")
    if table is None or point in behind or point.endswith(".before_claim"):
        return None
    # A row that is worked on counts one more until it is written back; others than this test's may be.
    return world.one(f"SELECT sum(crashes - (lease_token IS NOT NULL)::int)::int AS n FROM {table}")["n"] or 0


@pytest.mark.parametrize("point", cases(RECEIVER))
def test_a_crash_of_the_receiver_loses_and_doubles_nothing(world, point):
    """What was answered 2xx is recorded, and what was not comes again."""
    if point.startswith("register."):
        made = world.standin.create_prediction({"standin": {"duration_s": 0.3, "formats": ["png"]}}, world.hook)
        world.arm(point)
        with pytest.raises(OSError, match="onnection"):  # requests' errors are OSErrors
            world.register(made["id"])
    else:
        asked = crashed(world, point, lambda: world.ask({"duration_s": 1.0, "webhook_life_s": 20.0}))
    until(lambda: not world.is_armed(point), f"a crash at {point}")

    mended(world)
    if point.startswith("register."):  # the application asks again; once it was committed, it finds its job
        asked = world.register(made["id"], status=200 if point == "register.after_commit" else 201)

    world.await_end(asked)
    assert world.job(asked)["state"] == "succeeded"
    world.check(asked)


def crashed(world, point, begin):
    """Return the job that brought a crash at a point armed behind its beginning; where it was over before, another."""
    for _ in range(5):
        asked = begin()
        world.arm(point)
        until(
            lambda asked=asked: not world.is_armed(point) or world.job(asked)["run_at"] is None, f"a crash at {point}"
        )
        if not world.is_armed(point):
            return asked
        world.disarm(point)
    pytest.fail(f"five jobs were over before {point} was armed")


def mended(world):
    """Start again what died at a failpoint; a receiver whose child was killed ends by itself first."""
    receiver = world.local.processes["receiver"]
    until(lambda: not receiver.is_running or answers(world), "the end of the receiver, or that it lives")
    world.mend()


def answers(world):
    return world.local.processes["receiver"].is_running and world.is_serving()


def test_a_crash_while_a_dropped_message_is_buried_buries_it_once(world):
    """The message is acknowledged after its dead letter is committed, so it comes again."""
    world.arm("drain.before_ack")

    world.push_unknown_task("crash.in.drain")

    buried = "SELECT id FROM dead_letters WHERE subject = 'message' AND facts ->> 'task' = 'crash.in.drain'"
    until(lambda: not world.is_armed("drain.before_ack"), "a crash in the drain")
    until(lambda: world.rows(buried), "its dead letter")
    assert len(world.rows(buried)) == 1


def test_a_crash_while_an_input_is_deleted_deletes_it_in_the_end(world, tmp_path):
    """A local file is lent to us: its copy goes when the job is settled, also when the one that deletes it dies."""
    file = tmp_path / "lent.png"
    Image.new("RGB", (64, 48), "teal").save(file)
    world.arm("discard.after_spooled")

    done = run(world, "keep", str(file))

    assert done.returncode == 0, done.stderr
    until(lambda: not world.is_armed("discard.after_spooled"), "a crash while an input is deleted")
    lent = "SELECT source FROM outputs WHERE source_kind = 'object' AND source IS NOT NULL AND state {} 'dead'"
    until(lambda: world.rows(lent.format("<>")) == [], "no row names an input any more, but those that can be replayed")
    replayable = {row["source"] for row in world.rows(lent.format("="))}

    def is_no_copy_left():
        listed = world.blobs.list_objects(world.blobs.private_bucket, "inputs/")
        return {item.key for item in listed} <= replayable

    until(is_no_copy_left, "no copy is left")


def test_a_recovery_that_dies_is_run_again(world):
    """After a day without webhooks a person recovers; half a recovery must not stand in the way of the next."""
    made = world.standin.create_prediction({"standin": {"duration_s": 0.1, "webhook": "missing"}}, world.hook)
    until(lambda: world.standin.get_prediction(made["id"])["status"] == "succeeded", "the prediction ended")
    world.arm("recover.after_commit")

    assert run(world, "recover", "replicate", "--since", "1h", "--yes").returncode == -9
    done = run(world, "recover", "replicate", "--since", "1h", "--yes")

    assert done.returncode == 0, done.stderr
    asked = world.register(made["id"], status=200)  # it is known
    world.await_end(asked)
    assert world.job(asked)["state"] == "succeeded"
    world.check(asked)


def test_a_crash_before_a_repair_is_recorded_delays_it_only(world):
    """The job that was to be looked at is still due."""
    world.arm("reconcile.before_commit")
    script, registered = SILENT
    asked = world.ask(script, **registered)

    world.rows("UPDATE jobs SET run_at = moment() WHERE id = %(id)s RETURNING id", id=asked.job_id)
    until(lambda: not world.is_armed("reconcile.before_commit"), "a crash before a repair is recorded")

    world.await_end(asked)
    assert world.job(asked)["state"] == "succeeded"
    world.check(asked)


def test_a_crash_behind_a_repair_leaves_it_done(world):
    """The next sweep goes on with what else there is to do."""
    script, registered = OK
    asked = world.ask(script, **registered, project_id="crash", scene="s1")
    world.await_end(asked)
    world.arm("reconcile.after_commit")

    stale = "UPDATE projects SET document = %(document)s::jsonb WHERE id = 'crash' RETURNING id"
    assert world.rows(stale, document='{"scenes": [{"id": "s1", "imageUrls": ["stale"]}]}')
    until(lambda: not world.is_armed("reconcile.after_commit"), "a crash behind a repair")

    urls = [world.blobs.build_asset_url(row["key"]) for row in world.outputs(asked)]
    document = "SELECT document FROM projects WHERE id = 'crash'"
    until(lambda: world.one(document)["document"]["scenes"][0]["imageUrls"] == urls, "the document is mended")


@pytest.mark.parametrize(("point", "is_done"), [("migrate.before_commit", False), ("migrate.after_commit", True)])
def test_a_crash_in_a_migration_leaves_no_half_schema(world, point, is_done):
    """The next start begins where the last one stopped, and ends at the same schema."""
    name = "half_migrated"
    url = world.local.stack.postgres.create_database(name)
    world.arm(point)

    assert migrate(world, url).returncode == -9
    conn = connect(url)
    assert conn.execute("SELECT to_regclass('jobs') IS NOT NULL AS is_there").fetchone() == {"is_there": is_done}
    conn.close()

    done = migrate(world, url)
    assert done.returncode == 0, done.stderr
    world.local.stack.postgres.drop_database(name)


def test_after_all_these_crashes_the_audit_finds_nothing(world):
    """Whatever one of them had left half done would break a rule: rows, histories and bytes are looked at."""
    done = run(world, "audit", "--deep")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "no finding" in done.stdout


def migrate(world, url):
    return run(world, "migrate", DATABASE_URL=url)


def run(world, *command, **settings):
    environment = {**world.local.environment(), **settings}
    return fork_server.run(["-m", "cli.main", *command], cwd=ROOT, env=environment, timeout=200)
