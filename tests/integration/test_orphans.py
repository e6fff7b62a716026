"""The orphan sweep against real PostgreSQL and storage: it takes what belongs to nobody, and nothing else."""

import hashlib
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from uuid import UUID

import pytest

from db import leases, outputs
from db.connection import Connection, Database, connect
from embedded.stack import Stack
from moorage import ids
from moorage.errors import StorageRefused
from moorage.model import Lease, Media, StoredOutput
from storage import buckets, keys, s3
from tasks.predictions import ingest
from tasks.step import Deps
from tasks.sweeps import orphans
from tasks.sweeps.orphans import OrphanReport
from tests.integration import command_line as cli
from tests.integration import kept_world as world

BUCKETS = {"s3_public_bucket": "orphans-public", "s3_private_bucket": "orphans-private"}
DATA = b"nobody's bytes"
DIGEST = hashlib.sha256(DATA).hexdigest()
SHA = "ab" * 32


@pytest.fixture
def deps(stack: Stack, database_url: str) -> Iterator[Deps]:
    """Give a worker's dependencies with buckets of these tests' own, empty; whatever lies there is old enough."""
    made = cli.deps(stack, database_url)
    settings = made.settings.model_copy(update=BUCKETS).with_constants(orphan_age_seconds=0.001)
    blobs = s3.ObjectStore(settings)
    buckets.ensure_buckets(blobs, settings)
    for bucket in BUCKETS.values():
        for listed in list(blobs.list_objects(bucket, "")):
            blobs.delete(bucket, listed.key)
    yield replace(made, settings=settings, storage=blobs)
    made.database.close()


def configured(deps: Deps, **settings: object) -> Deps:
    return replace(deps, settings=deps.settings.model_copy(update=settings))


def put(deps: Deps, key: str, bucket: str | None = None) -> str:
    """Store an object of old."""
    where = bucket or deps.storage.public_bucket
    deps.storage.put(where, key, DATA, size=len(DATA), sha256=DIGEST, content_type="image/png")
    return key


def an_orphan(deps: Deps, number: int = 0) -> str:
    """Store an object of a job that is gone."""
    return put(deps, keys.build_original_key(UUID(int=number + 1), 0, SHA, uuid.uuid4(), "png"))


def public(deps: Deps) -> set[str]:
    return {listed.key for listed in deps.storage.list_objects(deps.storage.public_bucket, "")}


def private(deps: Deps) -> set[str]:
    return {listed.key for listed in deps.storage.list_objects(deps.storage.private_bucket, "")}


def a_leased_output(deps: Deps) -> Lease:
    cli.register_one(deps, "abc")
    wake = world.deliver(deps, {"id": "abc", "status": "succeeded", "output": [world.picture()]})
    wakes = ingest.run(deps, world.claim(deps, wake), world.Calm())
    return world.claim(deps, wakes[0])


def key_of(deps: Deps, lease: Lease) -> str:
    """Upload what the holder of a lease would, and return its key."""
    output = deps.database.run(lambda conn: outputs.get(conn, lease.row_id))
    assert output is not None
    return put(deps, keys.build_original_key(output.job_id, output.idx, SHA, lease.token, "png"))


def delete(deps: Deps) -> OrphanReport:
    return orphans.scan_orphans(deps, delete=True)


def test_an_object_of_a_live_lease_is_never_taken(deps: Deps, conn: Connection) -> None:
    """A worker that is slow, or whose lease is late, may record its key at any moment."""
    lease = a_leased_output(deps)
    key = key_of(deps, lease)
    conn.execute("UPDATE outputs SET leased_until = moment() - interval '1 day'")

    report = delete(deps)

    assert report.objects == {"leased": 1}
    assert public(deps) == {key}


def test_an_object_whose_lease_ended_without_a_record_is_quarantined(deps: Deps) -> None:
    """A killed worker's upload is nobody's: its token is used up."""
    lease = a_leased_output(deps)
    key = key_of(deps, lease)
    deps.database.run(lambda conn: leases.release_held_by(conn, lease.leased_by, "killed"))
    world.claim(deps, world.Wake("keep", lease.row_id))  # the next attempt has another token

    report = delete(deps)

    assert report.objects == {"orphan": 1}
    assert public(deps) == set()
    assert {key for key in private(deps) if not key.startswith("inputs/")} == {f"quarantine/{key}"}
    with deps.storage.open_object(deps.storage.private_bucket, keys.build_quarantine_key(key)) as opened:
        assert opened.read() == DATA


def test_a_young_object_is_left_alone(deps: Deps) -> None:
    """Between upload and record lies a moment in which every object looks like an orphan."""
    key = an_orphan(deps)

    report = delete(replace(deps, settings=deps.settings.with_constants(orphan_age_seconds=3600.0)))

    assert (report.looked_at, report.objects) == (1, {})
    assert public(deps) == {key}


def test_a_key_recorded_between_listing_and_deletion_stays(deps: Deps, database_url: str) -> None:
    """The check waits for the row's lock and then reads again: a snapshot from before would lose a kept file."""
    lease = a_leased_output(deps)
    key = key_of(deps, lease)
    media = Media("video", "mp4", "video/mp4", "mp4")
    kept = StoredOutput(media, len(DATA), SHA, key, thumb=None, thumb_key=None, thumb_missing="no poster")
    reports: list[OrphanReport] = []
    other = replace(deps, database=Database(database_url))

    def sweep() -> None:
        reports.append(delete(other))
        other.database.close()

    worker, watcher = connect(database_url), connect(database_url)
    with worker, watcher:
        worker.execute("BEGIN")
        outputs.end_kept(worker, lease, kept)
        thread = threading.Thread(target=sweep)
        thread.start()
        until_somebody_waits_for_a_lock(watcher)
        worker.execute("COMMIT")
        thread.join(60)

    assert reports[0].objects == {}
    assert public(deps) == {key}


def until_somebody_waits_for_a_lock(conn: Connection) -> None:
    deadline = time.monotonic() + 60
    waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    while not conn.execute(waiting).fetchall():
        assert time.monotonic() < deadline, "the sweep did not wait for the row's lock"
        time.sleep(0.02)


def test_what_a_row_names_stays(deps: Deps) -> None:
    """Originals, thumbnails and input files of live work are what the sweep is there to leave alone."""
    world.kept(deps, "abc", [world.picture("red"), world.picture("blue")])
    spooled = put(deps, keys.build_input_key(ids.uuid7(), "png"), deps.storage.private_bucket)
    deps.database.run(
        lambda conn: conn.execute("UPDATE outputs SET source_kind = 'object', source = %s WHERE idx = 0", [spooled])
    )
    before = public(deps), private(deps)

    report = delete(deps)

    assert report.looked_at == 5
    assert report.objects == {}
    assert (public(deps), private(deps)) == before


def test_an_input_file_that_no_output_names_is_taken(deps: Deps) -> None:
    """Somebody spooled a file and died before the job was made."""
    key = put(deps, keys.build_input_key(ids.uuid7(), "png"), deps.storage.private_bucket)

    delete(deps)

    assert private(deps) == {keys.build_quarantine_key(key)}


ALIEN = ("renders2/x.png", "renders", "inputs-of-old/x.png", "moorage-readable.txt", "quarantine2/renders/x")
UNREADABLE = ("renders/readme.txt", "renders/0198/0-ab.png", "inputs/holiday.png", "quarantine/readme.txt")


def test_only_our_own_prefixes_are_looked_at(deps: Deps) -> None:
    """Buckets are shared with an application: one object too many is somebody's data."""
    for key in (*ALIEN, *UNREADABLE):
        put(deps, key, deps.storage.private_bucket)
        if not key.startswith("quarantine/"):
            put(deps, key)
    before = public(deps), private(deps)

    report = delete(configured(deps, quarantine_seconds=0.001))

    assert (public(deps), private(deps)) == before
    assert {seen.key for seen in report.listed} == set(UNREADABLE)
    assert report.objects == {"unreadable": 7}


def test_a_dry_run_touches_nothing(deps: Deps, conn: Connection) -> None:
    """What is looked at before it is dared must be the truth, and free."""
    key = an_orphan(deps)

    report = orphans.scan_orphans(deps, delete=False)

    assert [(seen.key, seen.reason) for seen in report.listed] == [(key, "orphan")]
    assert report.bytes == {"orphan": len(DATA)}
    assert (public(deps), private(deps)) == ({key}, set())
    assert conn.execute("SELECT count(*) AS n FROM cursors").fetchall() == [{"n": 0}]


def test_the_cap_ends_a_run_and_the_next_goes_on_behind_it(deps: Deps, conn: Connection) -> None:
    """A huge bucket is walked over several nights, and a mistake costs the cap at most."""
    stored = [an_orphan(deps, number) for number in range(5)]
    capped = replace(deps, settings=deps.settings.with_constants(orphans_per_run=2))

    first = orphans.sweep_orphans(capped)
    taken_first = set(stored) - public(deps)
    early = put(deps, keys.build_original_key(UUID(int=0), 0, SHA, uuid.uuid4(), "png"))
    second = orphans.sweep_orphans(capped)
    third = orphans.sweep_orphans(capped)
    seen_third = public(deps)
    orphans.sweep_orphans(capped)

    assert (first["orphan"], first["at_end"]) == (2, False)
    assert taken_first == set(stored[:2])
    assert (second["orphan"], second["at_end"]) == (2, False)
    assert (third["orphan"], third["at_end"]) == (1, True)
    assert seen_third == {early}  # it lies before the place where the second run began
    assert public(deps) == set()
    assert conn.execute("SELECT count(*) AS n FROM cursors").fetchall() == [{"n": 0}]


def test_a_run_out_of_time_goes_on_later(deps: Deps, conn: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Celery kills a task after ten minutes: the place must be saved before."""
    for number in range(3):
        an_orphan(deps, number)
    monkeypatch.setattr(orphans, "_PAGE", 1)
    monkeypatch.setattr(orphans, "SECONDS", 0.0)

    results = [orphans.sweep_orphans(deps) for _ in range(4)]

    assert [result.get("orphan", 0) for result in results[:3]] == [1, 1, 1]
    assert public(deps) == set()


def test_the_quarantine_is_emptied_after_its_time(deps: Deps) -> None:
    """A week to notice a mistake, and then the space is free."""
    an_orphan(deps)
    delete(deps)
    lying = private(deps)

    delete(deps)
    still_lying = private(deps)
    report = delete(configured(deps, quarantine_seconds=0.001))

    assert len(lying) == 1
    assert still_lying == lying
    assert report.objects == {"quarantined": 1}
    assert private(deps) == set()


def test_one_bad_object_does_not_end_a_run(deps: Deps, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object that cannot be copied would otherwise stop every night's run at the same place."""
    bad, good = an_orphan(deps, 0), an_orphan(deps, 1)
    locked = configured(deps)
    copy = locked.storage.copy

    def refusing(bucket: str, key: str, to_bucket: str, to_key: str) -> None:
        copy(bucket if key != bad else "no-such-bucket-here", key, to_bucket, to_key)

    monkeypatch.setattr(locked.storage, "copy", refusing)

    report = delete(locked)

    assert report.objects == {"failed": 1, "orphan": 1}
    assert public(deps) == {bad}
    assert private(deps) == {keys.build_quarantine_key(good)}


def test_three_bad_objects_end_one_run_and_not_each(deps: Deps, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run raised before its position was saved, so that no run came past them."""
    bad, good = {an_orphan(deps, number) for number in range(3)}, an_orphan(deps, 3)
    copy = deps.storage.copy

    def refusing(bucket: str, key: str, to_bucket: str, to_key: str) -> None:
        copy(bucket if key not in bad else "no-such-bucket-here", key, to_bucket, to_key)

    monkeypatch.setattr(deps.storage, "copy", refusing)

    with pytest.raises(StorageRefused):
        orphans.sweep_orphans(deps)
    orphans.sweep_orphans(deps)

    assert public(deps) == bad
    assert private(deps) == {keys.build_quarantine_key(good)}


@pytest.mark.parametrize(
    "point",
    [
        "orphans.before_quarantine",
        "storage.before_copy",
        "storage.after_copy",
        "orphans.after_quarantine",
        "orphans.after_delete",
    ],
)
def test_a_crash_leaves_nothing_wrong(deps: Deps, stack: Stack, database_url: str, point: str) -> None:
    """Between any two requests the object is in its place, in quarantine, or in both; never in neither."""
    key = an_orphan(deps)
    names = {"S3_PUBLIC_BUCKET": BUCKETS["s3_public_bucket"], "S3_PRIVATE_BUCKET": BUCKETS["s3_private_bucket"]}
    env = cli.environment(stack, database_url, MOORAGE_FAILPOINT=point, MOORAGE_DEV_ORPHAN_AGE_SECONDS="0.001", **names)

    killed = cli.run(env, "orphans", "--delete")
    somewhere = key in public(deps) or keys.build_quarantine_key(key) in private(deps)
    delete(deps)

    assert killed.returncode == -9
    assert somewhere
    assert (public(deps), private(deps)) == (set(), {keys.build_quarantine_key(key)})


def test_the_command_says_what_it_would_take(deps: Deps, stack: Stack, database_url: str) -> None:
    """A person looks first; only --delete changes anything."""
    key = an_orphan(deps)
    names = {"S3_PUBLIC_BUCKET": BUCKETS["s3_public_bucket"], "S3_PRIVATE_BUCKET": BUCKETS["s3_private_bucket"]}
    env = cli.environment(stack, database_url, MOORAGE_DEV_ORPHAN_AGE_SECONDS="0.001", **names)

    looked = cli.run(env, "orphans")
    found = public(deps)
    done = cli.run(env, "orphans", "--delete", "--json")

    assert looked.returncode == done.returncode == 0, looked.stderr + done.stderr
    assert key in looked.stdout
    assert "no row names it" in looked.stdout
    assert found == {key}
    assert '"deleted": true' in done.stdout
    assert public(deps) == set()
