"""The repair of what an audit found: done through steps and sweeps, told, and seen to hold by a second audit."""

import dataclasses
import secrets
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest

from db.audit.check import Check
from embedded.stack import Stack
from moorage.model import Wake
from tasks.audit import advice, repair, run
from tests.integration import kept_world
from tests.integration.core import World, database_of, prediction, world

JOBS_OVERDUE = Check(2, "jobs", "overdue")
KEYS = {
    **dict.fromkeys(
        ("deliveries", "jobs", "predictions", "outputs", "renders", "dead_letters", "events", "projects"), "id::text"
    ),
    "render_variants": "render_id || ' ' || idx",
    "placements": "render_id || ' ' || idx",
}


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return database_of(stack, template_database, "repair")


@pytest.fixture
def at(stack: Stack, url: str) -> Iterator[World]:
    with world(stack, url) as made:
        yield made


def findings(at: World) -> list[run.Finding]:
    """Return what is wrong with rows; the bucket is shared with other tests, whose objects do not count."""
    return [f for f in run.run_audit(at.deps, deep=True, second_look_seconds=0.0).findings if f.subject != "object"]


def repaired(at: World, found: list[run.Finding]) -> tuple[list[tuple[str, bool, str]], list[Wake]]:
    sent: list[Wake] = []

    def send(wakes: list[Wake]) -> int:
        sent.extend(wakes)
        return len(wakes)

    before = everything(at)
    done = [
        (str(one.finding.check), one.is_done, one.message)
        for one in repair.repair_findings(at.deps, found, actor="cli", send=send)
    ]
    assert before - everything(at) == set(), "a repair deletes nothing"
    return done, sent


def everything(at: World) -> set[tuple[str, str]]:
    """Return every row, by table and primary key, and every object of this module's database."""
    rows = at.conn.execute(b" UNION ALL ".join(
        f"SELECT '{table}' AS place, {key} AS name FROM {table}".encode() for table, key in KEYS.items()
    )).fetchall()  # fmt: skip
    keys = at.conn.execute("SELECT key FROM outputs WHERE key IS NOT NULL UNION ALL SELECT thumb_key FROM outputs")
    named = {row["key"] for row in keys.fetchall()}
    listed = {item.key for item in at.deps.storage.list_objects(at.deps.storage.public_bucket, "renders/")}
    return {(row["place"], row["name"]) for row in rows} | {("objects", key) for key in named & listed}


def waiting(at: World, urls: list[str], **asked: Any) -> tuple[UUID, list[UUID]]:
    """Return a job and its outputs, which wait."""
    external_id = secrets.token_hex(8)
    made = at.registered(external_id, **asked)
    at.step("ingest", kept_world.deliver(at.deps, prediction(external_id, "succeeded", urls)).row_id)
    return made.job_id, at.outputs(made.job_id)


def kept(at: World, url: str) -> dict[str, Any]:
    """Return the row of a file that was kept."""
    job_id, (output_id,) = waiting(at, [url])
    at.keep_all(job_id)
    return at.row("outputs", output_id)


def damage(at: World, key: str, how: str) -> bytes:
    """Take an object away or put other bytes in its place; returns what it was."""
    blobs = at.deps.storage
    with blobs.open_object(blobs.public_bucket, key) as opened:
        body = opened.read()
    blobs.delete(blobs.public_bucket, key)
    if how == "flipped":
        other = body[:-1] + bytes([body[-1] ^ 1])
        digest = kept_world.hashlib.sha256(other).hexdigest()
        blobs.put(blobs.public_bucket, key, other, size=len(other), sha256=digest, content_type="image/png")
    return body


@pytest.mark.parametrize("how", ["missing", "flipped"])
@pytest.mark.parametrize("column", ["key", "thumb_key"])
def test_an_object_is_fetched_again_byte_for_byte(at: World, column: str, how: str) -> None:
    """The only thing that a lost bucket leaves behind is the provider, for as long as the URL lives."""
    row = kept(at, at.source.picture(7))
    body = damage(at, row[column], how)

    found = findings(at)
    done, _ = repaired(at, found)

    assert [finding.id for finding in found] == [str(row["id"])]
    assert [one for _, one, _ in done] == [True]
    with at.deps.storage.open_object(at.deps.storage.public_bucket, row[column]) as opened:
        assert opened.read() == body
    assert findings(at) == []


def test_a_dead_url_is_renewed_by_a_poll(at: World) -> None:
    """URLs die within the hour; the provider's files often live longer."""
    row = kept(at, at.source.picture(3))
    (path,) = at.source.files
    external_id = at.one("SELECT external_id FROM predictions WHERE id = %s", row["prediction_id"])
    _, body = at.source.files[path]
    at.source.files[path] = (403, b"")
    at.source.files["/files/fresh.png"] = (200, body)
    at.source.predictions[external_id] = prediction(external_id, "succeeded", [at.source.url("/files/fresh.png")])
    damage(at, row["key"], "missing")

    done, _ = repaired(at, findings(at))

    assert [one for _, one, _ in done] == [True]
    assert findings(at) == []


@pytest.mark.parametrize("source", [(404, b""), (200, b"GIF89a, but no picture")], ids=["gone", "changed"])
def test_other_bytes_are_never_stored_under_a_recorded_key(at: World, source: tuple[int, bytes]) -> None:
    """A published file never changes its bytes; what cannot be had any more is said and left."""
    row = kept(at, at.source.picture(9))
    (path,) = at.source.files
    at.source.files[path] = source
    damage(at, row["key"], "missing")

    done, _ = repaired(at, findings(at))

    assert [(check, one) for check, one, _ in done] == [("4 objects missing", False)]
    assert done[0][2].startswith(("it failed: OutputGone: ", "it failed: DigestMismatch: "))
    assert at.deps.storage.head(at.deps.storage.public_bucket, row["key"]) is None
    assert [str(finding.check) for finding in findings(at)] == ["4 objects missing"]


def test_a_larger_object_in_the_place_of_a_file_is_replaced(at: World) -> None:
    """It ended the repair of all: no file of its size may be read."""
    row = kept(at, at.source.picture(4))
    damage(at, row["key"], "missing")
    blobs, other = at.deps.storage, bytes(5000)
    digest = kept_world.hashlib.sha256(other).hexdigest()
    blobs.put(blobs.public_bucket, row["key"], other, size=len(other), sha256=digest, content_type="image/png")
    limits = dataclasses.replace(at.deps.limits, image_max_bytes=2000, video_max_bytes=2000)
    at = dataclasses.replace(at, deps=dataclasses.replace(at.deps, limits=limits))

    done, _ = repaired(at, findings(at))

    assert [one for _, one, _ in done] == [True]
    assert findings(at) == []


def test_limits_that_were_lowered_since_end_no_repair(at: World) -> None:
    """A file that is kept has its recorded digest: limits are for files that nobody knows."""
    rows = [kept(at, at.source.picture(seed)) for seed in (1, 2)]
    damage(at, rows[0]["key"], "missing")
    damage(at, rows[1]["thumb_key"], "missing")
    limits = {"image_max_bytes": 10, "video_max_bytes": 10, "image_max_pixels": 2, "animation_max_pixels": 2}
    limited = dataclasses.replace(at.deps, limits=dataclasses.replace(at.deps.limits, **limits))

    done, _ = repaired(dataclasses.replace(at, deps=limited), findings(at))

    assert [one for _, one, _ in done] == [True, True]
    assert findings(at) == []


def test_a_finding_whose_job_is_gone_ends_no_repair(at: World) -> None:
    """Retention deleted it between the audit and the repair."""
    waiting(at, [at.source.picture()])
    at.conn.execute("UPDATE outputs SET run_at = moment() - interval '1 h'")
    (overdue,) = findings(at)
    gone = dataclasses.replace(overdue, subject="job", id=str(UUID(int=7)), check=JOBS_OVERDUE)

    done, _ = repaired(at, [gone, overdue])

    assert [one for _, one, _ in done] == [False, True]


def test_what_is_overdue_is_woken(at: World) -> None:
    """A wake that was lost while no sweep ran is given again."""
    job_id, outputs = waiting(at, [at.source.picture()])
    at.conn.execute("UPDATE outputs SET run_at = moment() - interval '1 h', woken_at = moment()")

    done, sent = repaired(at, findings(at))

    assert done == [("2 outputs overdue", True, "woken")]
    assert sent == [Wake("keep", outputs[0])]
    at.keep_all(job_id)
    assert findings(at) == []


def test_a_lease_that_nobody_freed_is_freed_and_its_row_woken(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its worker is gone, and no sweep ran."""
    job_id, outputs = waiting(at, [at.source.picture()])
    at.claimed_output(outputs[0])
    at.conn.execute("UPDATE outputs SET leased_until = moment() - interval '1 h'")
    always = {k: s.replace("interval '30 s'", "interval '0 s'") for k, s in repair.leases.release_expired.sql.items()}
    monkeypatch.setattr(repair.leases.release_expired, "sql", always)  # PostgreSQL may have started just now

    done, sent = repaired(at, findings(at))

    assert [(check, one) for check, one, _ in done] == [("2 outputs held", True)]
    assert sent == [Wake("keep", outputs[0])]
    at.keep_all(job_id)
    assert findings(at) == []
    assert at.state("jobs", job_id) == "succeeded"


def test_a_repair_of_one_lease_leaves_those_of_other_rows(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another worker's lease that ended a moment ago is renewed, or released by the sweep after its time."""
    _, (first, second) = waiting(at, [at.source.picture(), at.source.picture(1)])
    for output_id, ago in ((first, "1 h"), (second, "1 s")):
        at.claim("outputs", output_id, ("waiting",))
        at.conn.execute("UPDATE outputs SET leased_until = moment() - %s::interval WHERE id = %s", (ago, output_id))
    always = {k: s.replace("interval '30 s'", "interval '0 s'") for k, s in repair.leases.release_expired.sql.items()}
    monkeypatch.setattr(repair.leases.release_expired, "sql", always)

    done, _ = repaired(at, findings(at))

    assert [(check, one) for check, one, _ in done] == [("2 outputs held", True)]
    assert at.row("outputs", first)["lease_token"] is None
    assert at.row("outputs", second)["lease_token"] is not None


def test_a_job_that_nobody_settled_is_settled(at: World) -> None:
    """Its last output ended, and the settling was lost: the sweep would count again after five minutes."""
    job_id, outputs = waiting(at, [at.source.picture()])
    with at.conn.transaction():
        at.conn.execute(
            "UPDATE outputs SET state = 'dead', category = 'POISON', run_at = NULL, ended_at = moment() WHERE id = %s",
            (outputs[0],),
        )
        at.conn.execute(
            "INSERT INTO events (subject, subject_id, job_id, from_state, to_state, actor)"
            " VALUES ('output', %s, %s, 'waiting', 'dead', 'x')",
            (outputs[0], job_id),
        )

    found = [finding for finding in findings(at) if str(finding.check) == "3 jobs unsettled"]
    done, _ = repaired(at, found)

    assert [one for _, one, _ in done] == [True]
    assert at.state("jobs", job_id) == "failed"


def test_an_open_job_past_its_deadline_is_looked_at(at: World) -> None:
    """The sweep of deadlines did not run."""
    made = at.registered()
    at.conn.execute("UPDATE jobs SET run_at = moment() - interval '1 h'")

    done, sent = repaired(at, findings(at))

    assert [(check, one) for check, one, _ in done] == [("2 jobs overdue", True)]
    assert sent == [Wake("poll", made.prediction_id)]
    assert findings(at) == []


def test_a_job_whose_check_fails_is_left_with_the_error(at: World) -> None:
    """The sweep was repeated until the job is not due, which it never was."""
    first, second = at.registered(), at.registered()
    at.conn.execute("UPDATE jobs SET run_at = moment() - interval '1 h'")
    at.conn.execute('UPDATE jobs SET fallback_chain = \'[{"provider": "replicate"}]\' WHERE id = %s', (first.job_id,))

    done, sent = repaired(at, sorted(findings(at), key=lambda finding: finding.id))

    assert [(check, one) for check, one, _ in done] == [("2 jobs overdue", False), ("2 jobs overdue", True)]
    assert "TypeError: FallbackEntry" in done[0][2]
    assert sent == [Wake("poll", second.prediction_id)]


def test_placements_and_documents_are_computed_again(at: World) -> None:
    """Nothing is lost with a placement: the job says where its files belong."""
    job_id, _ = waiting(at, [at.source.picture()], project_id="p", scene=1)
    at.keep_all(job_id)
    at.conn.execute("DELETE FROM placements")
    at.conn.execute("""UPDATE projects SET document = '{"scenes": [{"imageUrls": ["x"]}]}'""")

    found = findings(at)
    done, _ = repaired(at, found)

    assert {str(finding.check) for finding in found} == {"9 renders unplaced", "9 projects document"}
    assert all(one for _, one, _ in done)
    assert findings(at) == []


def test_what_no_repair_is_for_is_left_with_advice(at: World) -> None:
    """A faked row stays as it is: evidence is worth more than a guess."""
    kept(at, at.source.picture())
    at.conn.execute("UPDATE renders SET cover_idx = 7")

    done, sent = repaired(at, findings(at))

    assert [(check, one) for check, one, _ in done] == [("3 renders cover", False)]
    assert advice.ADVICE["cover"] in done[0][2]
    assert sent == []
    assert [str(finding.check) for finding in findings(at)] == ["3 renders cover"]
