"""Quarantine: what is refused after its download is stored, and a replay reads it without asking the provider."""

import dataclasses
import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from PIL import Image

from db import quarantine
from embedded.stack import Stack
from moorage import failpoints
from moorage.errors import ObjectRefused, StorageRefused
from moorage.ids import uuid7
from moorage.model import JobDescription
from moorage.provider_types import OutputFile
from storage import keys, s3
from tasks.audit import run as audit
from tasks.jobs import create, replay
from tasks.outputs import discard, keep
from tasks.step import Deps
from tasks.sweeps import orphans, retention
from tests.integration.core import World, database_of, png, world


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return database_of(stack, template_database, "quarantine")


@pytest.fixture
def at(stack: Stack, url: str) -> Iterator[World]:
    with world(stack, url) as made:
        yield made


@pytest.fixture(autouse=True)
def pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restore Pillow's own limit, which small limits of these tests lower for the process."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)


def limited(at: World, **limits: Any) -> World:
    """Return this world with other limits."""
    return dataclasses.replace(
        at, deps=dataclasses.replace(at.deps, limits=dataclasses.replace(at.deps.limits, **limits))
    )


def small(at: World) -> World:
    """Return this world with a limit of pixels that every picture of these tests exceeds."""
    return limited(at, image_max_pixels=100)


def refused(at: World, data: bytes) -> tuple[Any, dict[str, Any]]:
    """Keep a file under the small limits; return its job and the row of its output, dead."""
    made = at.keeping([at.source.broken(200, data)])
    small(at).keep_all(made.job_id)
    row = at.row("outputs", at.outputs(made.job_id)[0])
    assert row["state"] == "dead"
    return made, row


def stored(deps: Deps, key: str) -> bytes:
    with deps.storage.open_object(deps.storage.private_bucket, key) as opened:
        return opened.read()


def again(at: World, output_id: Any) -> None:
    """Replay the open dead letter of an output, and take its wake."""
    (letter,) = [letter for letter in at.letters(output_id) if letter["state"] == "open"]
    at.deps.database.run(lambda conn: replay.replay_dead_letter(conn, letter["id"], "cli"))
    at.step("keep", output_id)


def downloads(at: World) -> int:
    return sum(path.startswith("/files/") for path in at.source.asked)


def test_a_refused_file_is_stored_byte_for_byte_with_its_facts(at: World) -> None:
    """The provider deletes it within the hour."""
    data = png(3)

    made, row = refused(at, data)

    (letter,) = at.letters(row["id"])
    assert stored(at.deps, row["quarantine_key"]) == data
    assert (row["quarantine_bytes"], row["quarantine_sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    parsed = keys.parse_render_key(row["quarantine_key"].removeprefix(keys.QUARANTINE_PREFIX))
    assert isinstance(parsed, keys.RenderKey)
    assert (parsed.render_id, parsed.idx) == (made.job_id, 0)
    assert row["quarantine_key"].endswith(".bin")
    assert (letter["category"], letter["error"]) == ("VALIDATION_FAILED", "InvalidMedia")
    assert letter["facts"]["quarantine_key"] == row["quarantine_key"]
    assert letter["facts"]["sha256"] == row["quarantine_sha256"]
    assert (letter["facts"]["format"], letter["facts"]["limit"]) == ("png", 100)


def test_a_raised_limit_and_a_replay_bring_the_file_back(at: World) -> None:
    """After the provider deleted it; nobody is asked for it."""
    data = png(4)
    made, row = refused(at, data)
    at.source.files.clear()
    before = len(at.source.asked)

    again(at, row["id"])

    kept = at.row("outputs", row["id"])
    assert len(at.source.asked) == before
    assert (kept["state"], kept["sha256"]) == ("kept", hashlib.sha256(data).hexdigest())
    assert (kept["quarantine_key"], kept["quarantined_at"]) == (None, None)
    assert at.state("jobs", made.job_id) == "succeeded"
    assert at.letters(row["id"])[0]["state"] == "replayed"


def inject(monkeypatch: pytest.MonkeyPatch, on_failpoint: Callable[[str], None]) -> None:
    """Call a function at every failpoint that is passed."""
    monkeypatch.setattr(failpoints, "_SPEC", "@")
    monkeypatch.setattr(failpoints, "_disarm", lambda file: on_failpoint(file.name))


def raise_once(monkeypatch: pytest.MonkeyPatch, name: str, error: Exception, nth: int = 1) -> None:
    """Raise an error when a failpoint is passed for the nth time."""
    left = [nth]

    def on_failpoint(passed: str) -> None:
        left[0] -= passed == name
        if passed == name and left[0] == 0:
            raise error

    inject(monkeypatch, on_failpoint)


def test_an_expired_source_does_not_end_a_replay(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The URL is of no use any more, the bytes are; an unexpected error is retried."""
    _, row = refused(at, png(5))
    raise_once(monkeypatch, "keep.before_commit", RuntimeError("a bug"))

    with at.later("3 hours") as then:
        again(then, row["id"])
        assert then.state("outputs", row["id"]) == "waiting"
        then.conn.execute("UPDATE outputs SET run_at = moment()")
        then.step("keep", row["id"])

        assert then.state("outputs", row["id"]) == "kept"


def waiting_output(at: World, data: bytes) -> Any:
    return at.outputs(at.keeping([at.source.broken(200, data)]).job_id)[0]


def reset(at: World, output_id: Any) -> None:
    at.conn.execute(
        f"UPDATE outputs SET run_at = moment(), attempt = 0, crashes = 0, {quarantine.RELEASE} WHERE id = %s",
        (output_id,),
    )


def is_in_quarantine(at: World, output_id: Any, data: bytes) -> bool:
    row = at.row("outputs", output_id)
    return row["quarantine_key"] is not None and stored(at.deps, row["quarantine_key"]) == data


def test_an_exception_at_any_failpoint_leaves_the_bytes_in_quarantine(
    at: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a bug breaks behind the download, the bytes are not lost with the URL."""
    data, passed = png(6), list[str]()
    inject(monkeypatch, passed.append)
    at.step("keep", waiting_output(at, data))
    behind = passed[passed.index("keep.after_download") : passed.index("keep.after_commit")]
    assert {"keep.before_upload", "storage.after_put", "keep.before_commit", "settle.after_publish"} <= {*behind}
    output_id = waiting_output(at, data)

    for number, name in enumerate(behind):
        reset(at, output_id)
        raise_once(monkeypatch, name, RuntimeError("a bug"), behind[: number + 1].count(name))
        at.step("keep", output_id)

        assert at.state("outputs", output_id) == "waiting", name
        assert is_in_quarantine(at, output_id, data), name
    at.conn.execute("UPDATE outputs SET run_at = moment() WHERE id = %s", (output_id,))
    at.step("keep", output_id)
    assert at.state("outputs", output_id) == "kept"


STEP = ("tasks/outputs/keep.py", "media/validate.py")
TRACED = (*STEP, "media/images.py", "storage/s3.py", "db/outputs.py")
ROOT = str(Path(keep.__file__).parents[2])


def trace_lines(files: tuple[str, ...], on_line: Callable[[str], None]) -> Callable[..., Any]:
    """Return a trace function that calls a function before each line of some files."""

    def trace(frame: FrameType, event: str, _arg: Any) -> Any:
        file = frame.f_code.co_filename.removeprefix(f"{ROOT}/")
        if file not in files:
            return None
        if event == "line":
            on_line(f"{file}:{frame.f_lineno}")
        return trace

    return trace


def step_traced(at: World, output_id: Any, files: tuple[str, ...], on_line: Callable[[str], None]) -> None:
    before = sys.gettrace()
    sys.settrace(trace_lines(files, on_line))
    try:
        at.step("keep", output_id)
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("files", [STEP, pytest.param(TRACED, marks=pytest.mark.prove)], ids=["step", "all"])
def test_an_exception_before_any_line_behind_the_download_leaves_the_bytes_in_quarantine(
    at: World, files: tuple[str, ...]
) -> None:
    """The lines of the step itself, each once; the long form adds the decoder, storage and the last statement."""
    data, lines = png(7), list[str]()
    source, first = inspect.getsourcelines(keep._keep)
    begin = f"tasks/outputs/keep.py:{first + next(n for n, line in enumerate(source) if 'after_download' in line)}"
    output_id = waiting_output(at, data)
    step_traced(at, output_id, files, lines.append)
    behind = [*dict.fromkeys(lines[lines.index(begin) :])]
    assert {line.partition(":")[0] for line in behind} == {*files}

    for line in behind:
        if at.state("outputs", output_id) != "waiting":  # kept: behind the commit; dead: the decoder's border met it
            output_id = waiting_output(at, data)
        reset(at, output_id)
        begun = []

        def on_line(reached: str, line: str = line, begun: list[str] = begun) -> None:
            begun += [reached] if reached == begin else []
            if begun and reached == line:
                raise RuntimeError("a bug")

        step_traced(at, output_id, files, on_line)

        assert at.state("outputs", output_id) == "kept" or is_in_quarantine(at, output_id, data), line


def test_a_file_above_the_byte_limit_is_not_stored_and_its_dead_letter_says_so(at: World) -> None:
    """The one exception: until its URL dies, the file can be had with a higher limit."""
    made = at.keeping([at.source.broken(200, png(8))])
    (output_id,) = at.outputs(made.job_id)
    expires_at = at.row("outputs", output_id)["expires_at"]

    limited(at, image_max_bytes=50, video_max_bytes=50).keep_all(made.job_id)

    (letter,) = at.letters(output_id)
    assert (letter["category"], letter["error"]) == ("DOWNLOAD_FAILED", "FileTooLarge")
    assert f"nothing was stored, its URL lives until {expires_at:%Y-%m-%d %H:%M:%S} UTC" in letter["reason"]
    assert letter["facts"]["expires_at"] == expires_at.isoformat()
    assert at.row("outputs", output_id)["quarantine_key"] is None


def test_a_lowered_limit_does_not_end_a_quarantine(at: World) -> None:
    """It is stored, whatever the limit is now."""
    data = png(9)
    _, row = refused(at, data)

    again(limited(at, image_max_bytes=50, video_max_bytes=50), row["id"])

    assert "nothing was stored" not in at.letters(row["id"])[-1]["reason"]
    assert is_in_quarantine(at, row["id"], data)


class RefusingStore(s3.ObjectStore):
    """A store that refuses what is put into quarantine."""

    error: Exception

    def put(self, bucket: str, key: str, *args: Any, **kwargs: Any) -> None:
        if key.startswith(keys.QUARANTINE_PREFIX):
            raise self.error
        super().put(bucket, key, *args, **kwargs)


def refusing(at: World, error: Exception) -> World:
    store = RefusingStore(at.deps.settings)
    store.error = error
    return dataclasses.replace(at, deps=dataclasses.replace(at.deps, storage=store))


def test_a_refusal_waits_until_its_bytes_are_stored(at: World) -> None:
    """A dead letter without the bytes would be the loss; our own refusal is no error of the file."""
    data = png(10)
    output_id = waiting_output(at, data)

    small(refusing(at, StorageRefused("403 AccessDenied"))).step("keep", output_id)

    row = at.row("outputs", output_id)
    assert (row["state"], row["attempt"], row["quarantine_key"]) == ("waiting", 0, None)
    at.conn.execute("UPDATE outputs SET run_at = moment() WHERE id = %s", (output_id,))
    small(at).step("keep", output_id)
    assert at.state("outputs", output_id) == "dead"
    assert is_in_quarantine(at, output_id, data)


def test_a_store_that_never_accepts_the_object_is_named_in_the_dead_letter(at: World) -> None:
    """Nothing is left to wait for."""
    output_id = waiting_output(at, png(11))

    small(refusing(at, ObjectRefused("413 EntityTooLarge"))).step("keep", output_id)

    (letter,) = at.letters(output_id)
    assert (letter["error"], letter["facts"]["not_stored"]) == ("InvalidMedia", "413 EntityTooLarge")


def test_a_lost_lease_puts_nothing_into_a_row(at: World) -> None:
    """Its successor owns the row; the object is deleted when its quarantine has ended."""
    output_id = waiting_output(at, png(12))
    taken = "UPDATE outputs SET lease_token = gen_random_uuid() WHERE id = %s"
    at.source.before_file = lambda _path: at.conn.execute(taken, (output_id,))

    small(at).step("keep", output_id)

    row = at.row("outputs", output_id)
    assert (row["state"], row["quarantine_key"], at.letters(output_id)) == ("waiting", None, [])


def test_a_file_that_kills_its_workers_is_in_quarantine_before_it_is_poison(at: World) -> None:
    """A killed process raises no exception: the second worker stores the bytes before it decodes them."""
    data = png(13)
    output_id = waiting_output(at, data)
    at.claimed_output(output_id)
    at.conn.execute("UPDATE outputs SET lease_token = NULL, leased_by = NULL, leased_until = NULL")

    class Killed(BaseException):
        """What a worker does not survive."""

    def kill(*_: Any) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("media.validate.validate_file", kill)
        with pytest.raises(Killed):
            at.step("keep", output_id)

    assert is_in_quarantine(at, output_id, data)
    at.conn.execute("UPDATE outputs SET crashes = 5, lease_token = NULL, leased_by = NULL, leased_until = NULL")
    at.step("keep", output_id)
    (letter,) = at.letters(output_id)
    assert letter["category"] == "POISON"
    assert letter["facts"]["quarantine_key"] == at.row("outputs", output_id)["quarantine_key"]
    at.source.files.clear()
    again(at, output_id)
    assert at.state("outputs", output_id) == "kept"


def test_a_missing_object_is_forgotten_and_the_source_is_asked(at: World) -> None:
    """Somebody emptied the bucket: the URL may still live."""
    _, row = refused(at, png(14))
    at.deps.storage.delete(at.deps.storage.private_bucket, row["quarantine_key"])

    again(at, row["id"])

    assert downloads(at) == 2
    assert at.state("outputs", row["id"]) == "kept"


def test_a_missing_bucket_makes_no_row_forget_its_object(at: World) -> None:
    """Its 404 is an error of our own: once it is back, the object is."""
    _, row = refused(at, png(15))
    elsewhere = s3.ObjectStore(at.deps.settings.model_copy(update={"s3_private_bucket": "not-there"}))
    at.source.files.clear()

    again(dataclasses.replace(at, deps=dataclasses.replace(at.deps, storage=elsewhere)), row["id"])

    assert (at.state("outputs", row["id"]), at.row("outputs", row["id"])["attempt"]) == ("waiting", 0)
    assert at.row("outputs", row["id"])["quarantine_key"] == row["quarantine_key"]
    at.conn.execute("UPDATE outputs SET run_at = moment() WHERE id = %s", (row["id"],))
    at.step("keep", row["id"])
    assert at.state("outputs", row["id"]) == "kept"


def altered(at: World, row: dict[str, Any], data: bytes = png(17)) -> None:
    """Put other bytes in the place of a file in quarantine."""
    blobs, digest = at.deps.storage, hashlib.sha256(data).hexdigest()
    blobs.put(
        blobs.private_bucket, row["quarantine_key"], data, size=len(data), sha256=digest, content_type="image/png"
    )


def test_an_altered_object_is_replaced_by_the_file_of_its_source(at: World) -> None:
    """Its digest was recorded when it was stored: other bytes are no proof of what was generated."""
    made, row = refused(at, png(16))
    altered(at, row)

    again(at, row["id"])

    after = at.row("outputs", row["id"])
    assert (after["state"], after["quarantine_key"], after["sha256"]) == ("kept", None, row["quarantine_sha256"])
    assert at.state("jobs", made.job_id) == "succeeded"
    assert downloads(at) == 2


def test_an_altered_object_can_be_restored_once_its_source_is_gone(at: World) -> None:
    """It was forgotten before the source was asked: when the provider had deleted the file, nothing was left of it."""
    data = png(16)
    made, row = refused(at, data)
    altered(at, row)
    (path,) = at.source.files
    at.source.files[path] = (503, b"")

    again(at, row["id"])
    waiting = at.row("outputs", row["id"])
    at.source.files[path] = (404, b"")
    at.conn.execute("UPDATE outputs SET run_at = moment() WHERE id = %s", (row["id"],))
    at.step("keep", row["id"])

    assert (waiting["state"], waiting["attempt"], waiting["quarantine_key"]) == ("waiting", 1, row["quarantine_key"])
    letter = at.letters(row["id"])[-1]
    assert (letter["category"], letter["error"], letter["retryable"]) == ("STORAGE_FAILED", "ObjectAltered", True)
    assert letter["facts"]["quarantine_key"] == row["quarantine_key"]
    assert "404" in letter["facts"]["download"]
    altered(at, row, data)  # restored
    again(at, row["id"])
    assert at.row("outputs", row["id"])["sha256"] == row["quarantine_sha256"]
    assert at.state("jobs", made.job_id) == "succeeded"


def test_an_altered_object_gives_way_to_a_refused_file_but_not_to_an_error_page(at: World) -> None:
    """The new bytes are the only ones of the file; a page is none, and the object may still be restored."""
    _, row = refused(at, png(16))
    altered(at, row)
    (path,) = at.source.files
    at.source.files[path] = (200, b"<!DOCTYPE html><html>gone</html>")

    again(small(at), row["id"])
    page = at.row("outputs", row["id"])
    at.source.files[path] = (200, png(16))
    again(small(at), row["id"])

    assert (page["state"], page["quarantine_key"]) == ("dead", row["quarantine_key"])
    assert at.row("outputs", row["id"])["quarantine_key"] != row["quarantine_key"]
    assert is_in_quarantine(at, row["id"], png(16))


def test_an_altered_object_without_a_source_is_a_dead_letter(at: World) -> None:
    """It was tried again every five seconds without an end, and its job never settled."""
    made, row = refused(at, png(16))
    at.conn.execute("UPDATE outputs SET source = NULL")
    altered(at, row)

    again(at, row["id"])

    letter = at.letters(row["id"])[-1]
    assert (letter["state"], letter["category"], letter["retryable"]) == ("open", "STORAGE_FAILED", True)
    assert row["quarantine_sha256"] in letter["reason"]
    assert at.row("outputs", row["id"])["quarantine_key"] == row["quarantine_key"]  # it can be restored
    assert at.state("jobs", made.job_id) == "failed"


def test_an_error_page_gives_way_to_the_file(at: World) -> None:
    """What the server sent in place of the file cannot become one; a replay finds what it sends now."""
    made, row = refused(at, b"<!DOCTYPE html><html>sorry</html>")
    (path,) = at.source.files
    at.source.files[path] = (200, png(15))

    again(at, row["id"])

    assert at.state("outputs", row["id"]) == "kept"
    assert at.state("jobs", made.job_id) == "succeeded"


def test_a_file_does_not_give_way_to_an_error_page(at: World) -> None:
    """The server answers 200 with a page, long after it deleted the file."""
    data = png(16)
    _, row = refused(at, data)
    (path,) = at.source.files
    at.source.files[path] = (200, b"<!DOCTYPE html><html>gone</html>")

    again(small(at), row["id"])

    letter = at.letters(row["id"])[-1]
    assert is_in_quarantine(at, row["id"], data)
    assert "pixels" in letter["reason"]
    assert "a web page" in letter["facts"]["download"]
    assert at.row("outputs", row["id"])["quarantined_at"] > row["quarantined_at"]


def test_an_error_page_in_quarantine_gives_way_to_a_refused_file(at: World) -> None:
    """Of the two the file is worth keeping."""
    _, row = refused(at, b"<!DOCTYPE html><html>sorry</html>")
    (path,) = at.source.files
    at.source.files[path] = (200, png(17))

    again(small(at), row["id"])

    assert at.state("outputs", row["id"]) == "dead"
    assert is_in_quarantine(at, row["id"], png(17))


def spool(at: World, data: bytes) -> str:
    """Store a file as `moorage keep FILE` does; return its key."""
    key, sha256 = keys.build_input_key(uuid7(), "png"), hashlib.sha256(data).hexdigest()
    bucket = at.deps.storage.private_bucket
    at.deps.storage.put(bucket, key, data, size=len(data), sha256=sha256, content_type="image/png")
    return key


@pytest.mark.parametrize("source", ["inline", "object"])
def test_bytes_that_were_never_downloaded_are_in_quarantine_too(at: World, source: str) -> None:
    """Whatever the source is: there is one place to look."""
    data = png(18)
    output_id = waiting_output(at, data)
    if source == "inline":
        at.conn.execute("UPDATE outputs SET source_kind = 'inline', source = NULL, source_data = %s", (data,))
    else:
        at.conn.execute("UPDATE outputs SET source_kind = 'object', source = %s", (spool(at, data),))

    small(at).step("keep", output_id)

    assert is_in_quarantine(at, output_id, data)


def test_an_empty_file_is_refused_without_an_object(at: World) -> None:
    """There is nothing to keep of it."""
    output_id = waiting_output(at, b"x")
    at.conn.execute("UPDATE outputs SET source_kind = 'inline', source = NULL, source_data = ''")

    at.step("keep", output_id)

    assert (at.state("outputs", output_id), at.row("outputs", output_id)["quarantine_key"]) == ("dead", None)


def kept_file(at: World, data: bytes) -> Any:
    """Return the output of `moorage keep FILE`, refused, and the key of the file."""
    key = spool(at, data)
    description, files = JobDescription(owner="ann", kind="mixed"), [OutputFile("file[0]", object_key=key)]
    job_id = create.create_keep_job(
        at.deps.database, at.deps.settings, at.deps.providers, description, files, actor="cli", notify=False
    ).job_id
    small(at).keep_all(job_id)
    assert at.state("jobs", job_id) == "failed"
    return at.outputs(job_id)[0], key


def test_the_copy_of_a_local_file_stays_while_its_dead_letter_is_open(at: World) -> None:
    """It is the source: without it no replay is possible when the quarantine has ended."""
    output_id, key = kept_file(at, png(19))

    assert discard.delete_spooled_inputs(at.deps) == 0
    retention.delete_expired(at.changed(quarantine_seconds=0.001).deps, "cli")
    again(at, output_id)

    assert at.state("outputs", output_id) == "kept"
    assert discard.delete_spooled_inputs(at.deps) == 1
    assert at.deps.storage.head(at.deps.storage.private_bucket, key) is None


def test_the_copy_of_a_local_file_goes_when_its_dead_letter_is_discarded(at: World) -> None:
    """A local file is lent to us."""
    output_id, key = kept_file(at, png(20))
    (letter,) = at.letters(output_id)
    at.deps.database.run(lambda conn: replay.discard_dead_letter(conn, letter["id"], "cli"))

    assert discard.delete_spooled_inputs(at.deps) == 1
    assert at.deps.storage.head(at.deps.storage.private_bucket, key) is None


# --- sweeps and audit


def swept(at: World, **settings: Any) -> None:
    deps = at.changed(**settings).deps
    orphans.scan_orphans(deps, delete=True)


def test_a_named_object_stays_however_old_it_is(at: World) -> None:
    """A row that was refused again holds it longer."""
    _, row = refused(at, png(20))

    swept(at, quarantine_seconds=0.001)

    assert is_in_quarantine(at, row["id"], png(20))


def test_retention_releases_it_and_the_orphan_sweep_deletes_it(at: World) -> None:
    """Rows first: an object is never missing from a row that names it."""
    _, row = refused(at, png(21))
    old = at.changed(quarantine_seconds=0.001).deps
    assert retention.count_expired(old)["quarantine"] == 1

    assert retention.delete_expired(old, "cli")["quarantine"] == 1

    after = at.row("outputs", row["id"])
    assert (after["quarantine_key"], after["quarantined_at"], after["state"]) == (None, None, "dead")
    assert at.deps.storage.head(at.deps.storage.private_bucket, row["quarantine_key"]) is not None
    swept(at, quarantine_seconds=0.001)
    assert at.deps.storage.head(at.deps.storage.private_bucket, row["quarantine_key"]) is None


def test_retention_leaves_what_is_about_to_be_read_and_what_is_young(at: World) -> None:
    """A replayed output reads it in a moment."""
    _, row = refused(at, png(22))
    assert retention.delete_expired(at.deps, "cli")["quarantine"] == 0
    (letter,) = at.letters(row["id"])
    at.deps.database.run(lambda conn: replay.replay_dead_letter(conn, letter["id"], "cli"))

    assert retention.delete_expired(at.changed(quarantine_seconds=0.001).deps, "cli")["quarantine"] == 0

    at.step("keep", row["id"])
    assert at.state("outputs", row["id"]) == "kept"


def test_an_object_of_a_live_lease_is_left(at: World) -> None:
    """Stored, and not yet named: the worker is about to name it."""
    output_id = waiting_output(at, png(23))
    lease = at.claimed_output(output_id)
    row = at.row("outputs", output_id)
    key = keys.build_refused_key(row["job_id"], 0, "a" * 64, lease.token)
    sha256 = hashlib.sha256(b"x").hexdigest()
    at.deps.storage.put(at.deps.storage.private_bucket, key, b"x", size=1, sha256=sha256, content_type="text/plain")

    swept(at, quarantine_seconds=0.001)
    assert at.deps.storage.head(at.deps.storage.private_bucket, key) is not None

    at.conn.execute("UPDATE outputs SET lease_token = NULL, leased_by = NULL, leased_until = NULL, crashes = 0")
    swept(at, quarantine_seconds=0.001)
    assert at.deps.storage.head(at.deps.storage.private_bucket, key) is None


def audited(at: World, **changes: Any) -> list[tuple[str, str]]:
    report = audit.run_audit(at.changed(**changes).deps, second_look_seconds=0.0, deep=True)
    return [(str(finding.check), finding.id) for finding in report.findings if "quarantine" in str(finding.check)]


def test_the_audit_knows_quarantine(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing, of another size, with other bytes, or left by the sweep."""
    _, row = refused(at, png(24))
    key, private = row["quarantine_key"], at.deps.storage.private_bucket

    def put(data: bytes) -> None:
        sha256 = hashlib.sha256(data).hexdigest()
        at.deps.storage.put(private, key, data, size=len(data), sha256=sha256, content_type="text/plain")

    assert audited(at) == []
    put(b"short")
    assert audited(at) == [("4 quarantine size", str(row["id"]))]
    put(bytes(row["quarantine_bytes"]))
    assert audited(at) == [("4 quarantine digest", str(row["id"]))]
    at.deps.storage.delete(private, key)
    assert audited(at) == [("4 quarantine missing", str(row["id"]))]
    put(png(24))
    at.conn.execute(f"UPDATE outputs SET {quarantine.RELEASE} WHERE id = %s", (row["id"],))
    assert audited(at) == []
    monkeypatch.setattr("tasks.audit.objects.SWEPT_WITHIN", timedelta(days=-8))
    assert ("5 quarantine unnamed", key) in audited(at)


def test_storage_use_counts_quarantine(at: World) -> None:
    """It costs its owner's space."""
    _, row = refused(at, png(25))

    counted = retention.count_storage_use(at.deps)

    assert counted["private"] == {"objects": 1, "bytes": row["quarantine_bytes"]}
