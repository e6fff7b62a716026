"""The audit beside a real bucket: what is missing, changed or owned by nobody is named."""

import hashlib
import tracemalloc
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from db.connection import Connection
from embedded.stack import Stack
from moorage.ids import uuid7
from moorage.model import Wake
from storage import keys
from storage.s3 import ListedObject
from tasks.audit import objects
from tasks.audit import run as audit
from tasks.audit.findings import MAX_LISTED
from tasks.predictions import ingest
from tasks.step import Deps
from tests.integration import command_line as cli
from tests.integration import kept_world as world


@pytest.fixture
def deps(stack: Stack, database_url: str) -> Iterator[Deps]:
    made = cli.deps(stack, database_url, buckets_of="audit")
    yield made
    made.database.close()
    for bucket in (made.storage.public_bucket, made.storage.private_bucket):
        for listed in made.storage.list_objects(bucket, ""):
            made.storage.delete(bucket, listed.key)


def run(deps: Deps, *, deep: bool = False, sample: int = 50) -> list[tuple[str, str]]:
    found = audit.run_audit(deps, deep=deep, second_look_seconds=0.0, sample=sample).findings
    return [(str(finding.check), finding.id) for finding in found]


def put(deps: Deps, key: str, body: bytes) -> None:
    digest = hashlib.sha256(body).hexdigest()
    bucket = deps.storage.private_bucket if key.startswith(keys.INPUT_PREFIX) else deps.storage.public_bucket
    deps.storage.put(bucket, key, body, size=len(body), sha256=digest, content_type="image/png")


def test_objects_that_are_right_give_nothing(deps: Deps, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many jobs, so that the walk goes over several pages of rows."""
    monkeypatch.setattr(objects, "PAGE", 1)
    for number in range(5):
        world.kept(deps, f"job{number}", [world.picture("red"), world.picture("blue")])

    report = audit.run_audit(deps, deep=True, second_look_seconds=0.0)

    assert report.findings == []
    assert report.notes == []
    assert report.checked["objects"] == 20


@pytest.mark.parametrize("column", ["key", "thumb_key"])
@pytest.mark.parametrize("damage", ["missing", "longer", "flipped"])
def test_a_damaged_object_is_named(deps: Deps, conn: Connection, column: str, damage: str) -> None:
    """Rule 4: for every variant the object and the thumbnail exist and are what was recorded."""
    world.kept(deps, "other")
    world.kept(deps, "abc")
    row = conn.execute(f"SELECT id, {column} AS key FROM outputs ORDER BY id DESC LIMIT 1".encode()).fetchone()
    assert row is not None
    with deps.storage.open_object(deps.storage.public_bucket, row["key"]) as opened:
        body = opened.read()

    if damage == "missing":
        deps.storage.delete(deps.storage.public_bucket, row["key"])
    else:
        put(deps, row["key"], body + b"x" if damage == "longer" else body[:-1] + bytes([body[-1] ^ 1]))

    seen = {"missing": "4 objects missing", "longer": "4 objects size", "flipped": "4 objects digest"}[damage]
    assert run(deps, deep=True) == [(seen, str(row["id"]))]
    assert run(deps, sample=0) == ([] if damage == "flipped" else [(seen, str(row["id"]))])
    assert ("4 sample digest", str(row["id"])) in run(deps) or damage == "missing"


@pytest.mark.parametrize(
    "key",
    [
        keys.build_original_key(uuid7(), 0, "a" * 64, uuid7(), "png"),
        keys.build_input_key(uuid7(), "png"),
        "renders/zzz",
    ],
    ids=["original", "input", "no key of ours"],
)
def test_an_object_that_nobody_names_is_noted_while_young_and_found_when_old(
    deps: Deps, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """Rule 5: a killed worker's upload may lie about for a while, and not for ever."""
    world.kept(deps, "abc")
    put(deps, key, b"nobody's")

    young = audit.run_audit(deps, second_look_seconds=0.0)
    monkeypatch.setattr(objects, "SWEPT_WITHIN", timedelta(days=-2))
    old = run(deps)

    assert young.findings == []
    assert [note.id for note in young.notes] == [key]
    place = "inputs" if key.startswith(keys.INPUT_PREFIX) else "objects"
    assert old == [(f"5 {place} unnamed", key)]


def test_an_upload_in_flight_is_no_orphan(deps: Deps, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow video is uploaded under a live lease, however old the object gets."""
    monkeypatch.setattr(objects, "SWEPT_WITHIN", timedelta(days=-2))
    job_id = cli.register_one(deps, "abc").job_id
    wake = world.deliver(deps, {"id": "abc", "status": "succeeded", "output": [world.picture()]})
    wakes: list[Wake] = ingest.run(deps, world.claim(deps, wake), world.Calm())
    lease = world.claim(deps, wakes[0])
    put(deps, keys.build_original_key(job_id, 0, "a" * 64, lease.token, "png"), b"half way")

    report = audit.run_audit(deps, second_look_seconds=0.0)

    assert report.findings == []
    assert len(report.notes) == 1


def test_memory_does_not_grow_with_the_bucket(deps: Deps, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket of millions is audited beside a worker; what no row names is the longest list there is."""
    few, many = peak_of_an_audit(deps, monkeypatch, 2_000), peak_of_an_audit(deps, monkeypatch, 20_000)

    assert many < few + 2_000_000  # held at once, 18,000 more would take 4 MB


def peak_of_an_audit(deps: Deps, monkeypatch: pytest.MonkeyPatch, objects: int) -> int:
    """Return the most bytes that Python held while so many objects were looked at."""

    def listing(bucket: str, prefix: str, start_after: str = "") -> Iterator[ListedObject]:
        for number in range(objects if prefix == keys.RENDER_PREFIX else 0):
            yield ListedObject(f"renders/{number:032x}/0-nobody.png", 1, datetime.now(UTC))

    monkeypatch.setattr(deps.storage, "list_objects", listing)
    tracemalloc.start()
    try:
        report = audit.run_audit(deps, second_look_seconds=0.0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert report.checked["objects"] == objects
    assert len(report.notes) == MAX_LISTED
    return peak


def test_what_storage_loses_is_told_by_the_command(deps: Deps, stack: Stack, database_url: str) -> None:
    """A program reads the exit status; a person reads what is wrong."""
    world.kept(deps, "abc")
    env = cli.environment(stack, database_url, buckets_of="audit")
    clean = cli.run(env, "audit", "--second-look", "0")
    for listed in deps.storage.list_objects(deps.storage.public_bucket, keys.RENDER_PREFIX):
        deps.storage.delete(deps.storage.public_bucket, listed.key)

    broken = cli.run(env, "audit", "--second-look", "0")

    assert (clean.returncode, broken.returncode) == (0, 1), clean.stdout + clean.stderr
    assert "no finding" in clean.stdout
    assert "2 findings" in broken.stdout
    assert "is missing" in broken.stdout
