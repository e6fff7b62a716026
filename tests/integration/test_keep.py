"""Keep: one output under one lease, downloaded, validated, stored and recorded."""

import contextlib
import hashlib
import importlib
import io
import sys
import threading
import time
import types
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import pytest
from PIL import Image, ImageFile

from cli.console import Progress
from db import outputs
from db.connection import Connection, Row, connect
from embedded.stack import Stack
from media import png
from moorage import time_limit
from moorage.errors import DatabaseUnavailable, StepInterrupted, StorageUnavailable
from moorage.model import Wake
from storage.s3 import ObjectStore
from tasks.jobs import replay
from tasks.outputs import keep
from tests.integration.core import Held, World, database_of, prediction, together, world
from worker import shutdown, step_runner


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return database_of(stack, template_database, "keep")


@pytest.fixture
def at(stack: Stack, url: str) -> Iterator[World]:
    with world(stack, url) as made:
        yield made


@pytest.fixture
def stoppable() -> Iterator[None]:
    """Let a test stop the worker; afterwards it goes on."""
    yield
    shutdown._shared[:] = bytes(8)


def picture(format_name: str) -> bytes:
    out = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").save(out, format_name)
    return out.getvalue()


def downloads(at: World) -> int:
    return sum(path.startswith("/files/") for path in at.source.asked)


def test_the_phases_of_a_step_have_a_limit_each(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A video that took five minutes to download, and more to store, was ended as a crash, and at last as POISON."""
    seen: list[object] = []
    opened = keep.open_source

    def limit(seconds: float) -> contextlib.nullcontext[None]:
        seen.append(seconds)
        return contextlib.nullcontext()

    monkeypatch.setattr(time_limit, "apply_limit", limit)
    monkeypatch.setattr(keep, "open_source", lambda *args: seen.append("open") or opened(*args))
    monkeypatch.setattr(keep, "failpoint", lambda name: seen.append(name.removeprefix("keep.")))
    (output_id,) = at.outputs(at.keeping([at.source.picture(5)]).job_id)

    at.step("keep", output_id)

    assert at.row("outputs", output_id)["state"] == "kept"
    assert seen[:7] == ["before_download", 600.0, "open", 600.0, "after_download", 600.0, "before_upload"]


def test_a_kept_file_is_stored_byte_for_byte_and_published(at: World) -> None:
    """The promise."""
    made = at.keeping([at.source.picture(5)])
    (output_id,) = at.outputs(made.job_id)

    at.step("keep", output_id)

    row, bucket = at.row("outputs", output_id), at.deps.storage.public_bucket
    with at.deps.storage.open_object(bucket, row["key"]) as opened:
        stored = opened.read()
    assert [stored] == [body for _, body in at.source.files.values()]
    assert (row["sha256"], row["bytes"]) == (hashlib.sha256(stored).hexdigest(), len(stored))
    thumb = at.deps.storage.head(bucket, row["thumb_key"])
    assert (thumb.sha256, thumb.size_bytes) == (row["thumb_sha256"], row["thumb_bytes"])
    assert (row["lease_token"], row["attempt"], row["crashes"]) == (None, 1, 0)
    assert at.state("jobs", made.job_id) == "succeeded"
    assert at.one("SELECT count(*) FROM variants WHERE render_id = %s", made.job_id) == 1


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "WEBP"])
def test_a_picture_costs_one_download_one_decoding_and_two_uploads(
    at: World, monkeypatch: pytest.MonkeyPatch, format_name: str
) -> None:
    """Each request, and each further reading of the pixels, costs milliseconds of every picture."""
    at.deps.storage.check_connection()  # what a process asks once
    assert at.deps.storage.proof == "sha256"
    made = at.keeping([at.source.file(f"a.{format_name.lower()}", picture(format_name))])
    (output_id,) = at.outputs(made.job_id)
    requests: list[str] = []
    decoded: list[str | None] = []
    client = at.deps.storage.clients.authenticated()

    def note(request: Any, **_: Any) -> None:
        requests.append(request.method)

    client.meta.events.register("before-send.s3", note)
    load = ImageFile.ImageFile.load_prepare
    monkeypatch.setattr(
        ImageFile.ImageFile, "load_prepare", lambda image: (decoded.append(image.format), load(image))[1]
    )
    monkeypatch.setattr(png, "check_pixels", lambda *_, **__: decoded.append("inflated"))

    at.step("keep", output_id)

    client.meta.events.unregister("before-send.s3", note)  # others use it, too
    assert at.state("outputs", output_id) == "kept"
    assert (requests, downloads(at), decoded) == (["PUT", "PUT"], 1, [format_name])


@pytest.mark.parametrize("fails", ["original", "thumbnail"])
def test_a_file_whose_upload_fails_is_not_recorded_and_is_tried_again(
    at: World, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """Both objects are sent at once: neither outcome may hide the other."""
    made = at.keeping([at.source.picture(9)])
    (output_id,) = at.outputs(made.job_id)
    put, begun = ObjectStore.put, threading.Barrier(2)

    def fail_one(store: ObjectStore, bucket: str, key: str, *args: Any, **given: Any) -> None:
        begun.wait(60)  # both are under way
        if ("thumb" in key) == (fails == "thumbnail"):
            raise StorageUnavailable("no connection")
        put(store, bucket, key, *args, **given)

    with monkeypatch.context() as patched:
        patched.setattr(ObjectStore, "put", fail_one)
        at.step("keep", output_id)
    row, bucket = at.row("outputs", output_id), at.deps.storage.public_bucket
    left = [item.key for item in at.deps.storage.list_objects(bucket, f"renders/{made.job_id}/")]
    at.conn.execute("UPDATE outputs SET run_at = moment() WHERE id = %s", (output_id,))
    at.step("keep", output_id)

    assert (row["state"], row["key"], row["lease_token"]) == ("waiting", None, None)
    assert len(left) == 1
    assert at.state("outputs", output_id) == "kept"
    assert at.row("outputs", output_id)["key"] not in left


def test_a_doubled_wake_is_an_empty_claim(at: World) -> None:
    """Doubling all wakes costs nothing else."""
    made = at.keeping([at.source.picture()])
    (output_id,) = at.outputs(made.job_id)

    def take() -> None:
        with at.beside() as deps:
            World(deps, at.conn, at.source, at.database_url).step("keep", output_id)

    together(*[take] * 6)

    assert downloads(at) == 1
    assert at.row("outputs", output_id)["attempt"] == 1


def test_a_lost_lease_records_nothing(at: World) -> None:
    """A worker that woke up too late must not overwrite its successor."""
    made = at.keeping([at.source.picture()])
    (output_id,) = at.outputs(made.job_id)
    successor = []

    def take_over(_path: str) -> None:
        if not successor:
            at.conn.execute("UPDATE outputs SET lease_token = NULL, leased_by = NULL, leased_until = NULL")
            successor.append(at.claimed_output(output_id))

    at.source.before_file = take_over
    at.step("keep", output_id)

    row = at.row("outputs", output_id)
    assert (row["state"], row["lease_token"], row["key"]) == ("waiting", successor[0].token, None)
    assert at.state("jobs", made.job_id) == "keeping"
    assert at.letters() == []


def test_a_lost_lease_buries_nothing(at: World) -> None:
    """Giving up is a write too."""
    made = at.keeping([at.source.broken()])
    (output_id,) = at.outputs(made.job_id)
    thief = uuid4()
    at.source.before_file = lambda _path: at.conn.execute("UPDATE outputs SET lease_token = %s", (thief,))

    at.step("keep", output_id)

    row = at.row("outputs", output_id)
    assert (row["state"], row["lease_token"]) == ("waiting", thief)
    assert at.letters() == []


def test_a_dead_url_is_asked_for_once_and_the_fresh_one_kept(at: World) -> None:
    """Signed URLs die before their files."""
    made = at.keeping([at.source.broken(403)])
    external_id = at.row("predictions", made.prediction_id)["external_id"]
    at.source.predictions[external_id] = prediction(external_id, "succeeded", [at.source.picture()])

    at.keep_all(made.job_id)

    assert at.state("jobs", made.job_id) == "succeeded"


def test_a_url_that_stays_dead_is_a_dead_letter(at: World) -> None:
    """Asked once, and no more."""
    made = at.keeping([at.source.broken(410)])
    (output_id,) = at.outputs(made.job_id)
    row = at.row("outputs", output_id)
    external_id = at.row("predictions", made.prediction_id)["external_id"]
    at.source.predictions[external_id] = prediction(external_id, "succeeded", [row["source"]])

    at.step("keep", output_id)

    (letter,) = at.letters(output_id)
    assert (letter["error"], letter["category"], letter["retryable"]) == ("OutputGone", "DOWNLOAD_FAILED", True)
    assert [path for path in at.source.asked if path.startswith("/v1/")] == [f"/v1/predictions/{external_id}"]


def test_a_provider_that_is_away_was_not_asked_for_a_fresh_url(at: World) -> None:
    """Its outage must not cost the file: the question is put again later."""
    made = at.keeping([at.source.broken(404)])
    (output_id,) = at.outputs(made.job_id)
    external_id = at.row("predictions", made.prediction_id)["external_id"]
    at.source.predictions[external_id] = 503
    at.step("keep", output_id)
    assert at.state("outputs", output_id) == "waiting"

    at.source.predictions[external_id] = prediction(external_id, "succeeded", [at.source.picture()])
    at.conn.execute("UPDATE outputs SET run_at = moment()")
    at.step("keep", output_id)

    assert at.state("outputs", output_id) == "kept"


def test_a_job_waits_for_twelve_errors_of_a_server(at: World) -> None:
    """Then it ends as if the file was given up; attempts go on (test_deferral.py)."""
    made = at.keeping([at.source.broken(500)])
    (output_id,) = at.outputs(made.job_id)

    states = []
    for _ in range(15):
        at.conn.execute("UPDATE outputs SET run_at = moment() WHERE run_at IS NOT NULL")
        at.step("keep", output_id)
        states.append(at.state("jobs", made.job_id))

    assert states == ["keeping"] * 11 + ["failed"] * 4
    assert downloads(at) == 15
    assert at.one("SELECT count(*) FROM events WHERE kind = 'source_unavailable'") == 15
    assert (at.state("outputs", output_id), at.letters(output_id)) == ("waiting", [])


def test_a_clock_that_jumps_past_the_expiry_ends_nothing(at: World) -> None:
    """The URL lives: one failure while the clock is wrong is an attempt like any other."""
    url, picture = at.source.broken(500), at.source.picture()
    made = at.keeping([url])
    (output_id,) = at.outputs(made.job_id)

    with at.later("2 hours") as then:
        then.step("keep", output_id)
    waiting = at.state("outputs", output_id)
    at.conn.execute("UPDATE outputs SET run_at = moment()")
    at.source.files[urlsplit(url).path] = at.source.files[urlsplit(picture).path]
    at.step("keep", output_id)

    assert waiting == "waiting"
    assert at.state("outputs", output_id) == "kept"


def test_an_expired_source_is_given_up_after_three_attempts_over_ten_minutes(at: World) -> None:
    """A URL may outlive its announcement, and its expiry may be the mistake of a clock."""
    made = at.keeping([at.source.broken(500)])
    (output_id,) = at.outputs(made.job_id)

    states = []
    for minutes in (50, 121, 122, 127, 128, 133):
        with at.later(f"{minutes} minutes") as then:
            then.conn.execute("UPDATE outputs SET run_at = moment() WHERE state = 'waiting'")
            then.step("keep", output_id)
            states.append(at.state("outputs", output_id))

    (letter,) = at.letters(output_id)
    assert states == ["waiting"] * 5 + ["dead"]
    assert downloads(at) == 6
    assert "expired" in letter["reason"]
    assert at.row("outputs", output_id)["source_expired"]


def test_a_replayed_output_begins_anew_past_its_expiry(at: World) -> None:
    """Attempts before the replay are no proof against it: otherwise its first failure would end it."""
    made = at.keeping([at.source.broken(500)])
    (output_id,) = at.outputs(made.job_id)
    for minutes in (121, 130, 140):
        with at.later(f"{minutes} minutes") as then:
            then.conn.execute("UPDATE outputs SET run_at = moment() WHERE state = 'waiting'")
            then.step("keep", output_id)
    given_up = at.state("outputs", output_id)

    with at.later("150 minutes") as then:
        replay.replay_dead_letter(then.conn, at.letters(output_id)[0]["id"], "test")
        then.step("keep", output_id)

    assert given_up == "dead"
    assert at.state("outputs", output_id) == "waiting"


def test_a_web_page_for_a_picture_is_a_dead_letter_and_its_sibling_is_kept(at: World) -> None:
    """Providers answer 200 with an apology."""
    made = at.keeping([at.source.broken(200, b"<!DOCTYPE html><html>sorry</html>"), at.source.picture()])

    at.keep_all(made.job_id)

    (letter,) = at.letters()
    assert (letter["category"], letter["error"]) == ("VALIDATION_FAILED", "InvalidMedia")
    assert at.state("jobs", made.job_id) == "partial"


def test_five_dead_workers_make_an_output_poison(at: World) -> None:
    """At the claim itself, before any code that could crash."""
    made = at.keeping([at.source.picture()])
    (output_id,) = at.outputs(made.job_id)
    for _ in range(5):
        at.claimed_output(output_id)
        at.conn.execute("UPDATE outputs SET lease_token = NULL, leased_by = NULL, leased_until = NULL")

    assert at.claim("outputs", output_id, ("waiting",)) is None
    at.step("keep", output_id)

    assert downloads(at) == 0
    assert [letter["category"] for letter in at.letters(output_id)] == ["POISON"]
    assert at.state("jobs", made.job_id) == "failed"


def test_a_stopping_worker_hands_its_work_back_uncounted(at: World, stoppable: None) -> None:
    """A deployment is no failure."""
    (output_id,) = at.outputs(at.keeping([at.source.picture()]).job_id)
    shutdown.begin_shutdown(0)

    at.step("keep", output_id)

    row = at.row("outputs", output_id)
    assert (row["state"], row["lease_token"], row["attempt"], row["crashes"]) == ("waiting", None, 0, 0)
    assert at.one("SELECT run_at <= moment() FROM outputs")
    assert at.one("SELECT count(*) FROM events WHERE subject_id = %s AND kind = 'worker_stopping'", output_id) == 1


def test_a_stopping_worker_whose_lease_is_lost_stops_quietly(at: World, stoppable: None) -> None:
    """Its successor works; there is nothing to hand back."""
    lease = leased(at)
    at.conn.execute("UPDATE outputs SET lease_token = %s", (uuid4(),))

    step_runner._return_row(at.deps, lease, StepInterrupted("the worker is stopping"), Held())

    assert at.row("outputs", lease.row_id)["attempt"] == 1


def test_a_step_that_postgresql_failed_is_handed_back_uncounted(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five outages are no five crashes: they would make a good file POISON."""
    lease = leased(at)

    def work(*_: object) -> list[Wake]:
        raise DatabaseUnavailable("PostgreSQL went away")

    monkeypatch.setitem(step_runner.STEPS, "keep", work)
    step_runner._run_claimed(at.deps, "keep", lease, Held())

    row = at.row("outputs", lease.row_id)
    assert (row["lease_token"], row["attempt"], row["crashes"]) == (None, 0, 0)


def test_a_bug_in_a_step_is_a_counted_failure_with_its_traceback(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """No worker is lost to it, and the dead letter says where it was."""
    made = at.keeping([at.source.picture()])
    (output_id,) = at.outputs(made.job_id)
    at.conn.execute("UPDATE outputs SET attempt = 11")
    lease = at.claimed_output(output_id)

    def work(*_: object) -> list[Wake]:
        raise ZeroDivisionError("a bug")

    monkeypatch.setitem(step_runner.STEPS, "keep", work)
    step_runner._run_claimed(at.deps, "keep", lease, Held())

    (letter,) = at.letters(output_id)
    assert (letter["category"], letter["error"]) == ("INTERNAL", "UnexpectedError")
    assert "ZeroDivisionError" in letter["facts"]["traceback"]


def leased(at: World):
    """Return the lease of an output that waits."""
    made = at.keeping([at.source.picture()])
    return at.claimed_output(at.outputs(made.job_id)[0])


def test_postgresql_that_goes_away_while_recording_is_waited_for(at: World, stack: Stack) -> None:
    """What is downloaded and stored is not thrown away."""
    made = at.keeping([at.source.picture()])
    (output_id,) = at.outputs(made.job_id)
    name, pid, admin = at.conn.info.dbname, at.conn.info.backend_pid, connect(stack.postgres.url())
    opening = threading.Timer(1.5, admin.execute, (f"ALTER DATABASE {name} ALLOW_CONNECTIONS true",))

    def shut(_path: str) -> None:
        admin.execute(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> %s"
        admin.execute(others, (name, pid))
        opening.start()

    at.source.before_file = shut
    at.step("keep", output_id)
    opening.join()
    admin.close()

    row = at.row("outputs", output_id)
    assert (row["state"], row["attempt"], row["crashes"]) == ("kept", 1, 0)


def test_the_command_reads_files_after_the_end_of_their_job(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job ended between its two reads: it printed the file as waiting, and status 1."""
    job_id = at.keeping([at.source.picture()]).job_id
    (output_id,) = at.outputs(job_id)
    read = outputs.list_by_job

    def read_before_the_end(conn: Connection, id_: UUID) -> list[Row]:
        rows = read(conn, id_)
        at.step("keep", output_id)
        return rows

    monkeypatch.setattr(outputs, "list_by_job", read_before_the_end)
    monkeypatch.setitem(sys.modules, "worker.celery", types.SimpleNamespace(app=None))  # it reads the environment
    monkeypatch.delitem(sys.modules, "cli.commands.keep", raising=False)
    command = importlib.import_module("cli.commands.keep")
    with at.beside() as deps, Progress("waiting") as progress:
        rows = command._wait_until_settled(deps, job_id, time.monotonic() + 60, progress)

    assert [row["state"] for row in rows or []] == ["kept"]
