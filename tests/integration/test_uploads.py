"""Uploads beside real storage: crashes, the orphan sweep, the audit, storage used, and references in a job's input."""

import contextlib
import hashlib
import http.client
import io
import socket
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
from PIL import Image

from db import storage_use
from db import uploads as rows
from db.connection import Connection
from db.uploads import Upload
from embedded.stack import Stack
from media import confined, decoder_process
from moorage import ids
from moorage.errors import InvalidMedia, MoorageError, StorageUnavailable, Transient
from storage import keys
from tasks import uploads
from tasks.audit import advice, run
from tasks.predictions import references
from tasks.predictions.references import ReferenceGone
from tasks.step import Deps
from tasks.sweeps import orphans
from tests.integration import command_line as cli
from tests.integration import kept_world as world
from tests.integration import web_process as wp

BUCKETS = "uploadrows"
S3 = ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "S3_PUBLIC_BUCKET", "S3_PRIVATE_BUCKET")


@pytest.fixture
def deps(stack: Stack, database_url: str) -> Iterator[Deps]:
    """Give a worker's dependencies with buckets of these tests' own, empty; whatever lies there is old enough."""
    made = cli.deps(stack, database_url, buckets_of=BUCKETS)
    for bucket in (made.storage.public_bucket, made.storage.private_bucket):
        for listed in list(made.storage.list_objects(bucket, "")):
            made.storage.delete(bucket, listed.key)
    yield replace(made, settings=made.settings.with_constants(orphan_age_seconds=0.001))
    made.database.close()


@pytest.fixture
def environment(stack: Stack, database_url: str) -> dict[str, str]:
    whole = cli.environment(stack, database_url, buckets_of=BUCKETS)
    return {name: value for name, value in whole.items() if name in S3}


def picture() -> bytes:
    out = io.BytesIO()
    Image.effect_noise((40, 24), 60).convert("RGB").save(out, "PNG")
    return out.getvalue()


def taken(deps: Deps, owner: str = "ada", data: bytes | None = None) -> Upload:
    """Store and record a picture."""
    upload = uploads.require_recent(put(deps, owner, data))
    deps.database.run(lambda conn: rows.add(conn, upload))
    return upload


def put(deps: Deps, owner: str = "ada", data: bytes | None = None) -> uploads.StoredUpload:
    with tempfile.TemporaryFile() as file:
        file.write(data or picture())
        file.flush()
        limits = uploads.upload_limits(deps.limits, deps.settings)
        return uploads.sanitize_and_store(deps.storage, file, upload_id=ids.uuid7(), owner=owner, limits=limits)


def private(deps: Deps) -> set[str]:
    return {listed.key for listed in deps.storage.list_objects(deps.storage.private_bucket, "")}


@pytest.mark.parametrize("point", ["uploads.before_put", "uploads.after_put", "uploads.after_record"])
def test_a_crash_leaves_a_whole_upload_or_an_orphan_that_the_sweep_takes(
    database_url: str, environment: dict[str, str], conn: Connection, deps: Deps, point: str
) -> None:
    """A row without an object would be a broken picture; an object without a row is what the sweep is for."""
    with (
        contextlib.suppress(OSError, http.client.HTTPException),
        wp.running(database_url, MOORAGE_FAILPOINT=point, **environment) as doomed,
    ):
        doomed.ask("POST", "/v1/uploads?owner=ada", picture(), wp.BEARER)
        pytest.fail("it did not crash")

    recorded = {row["key"] for row in conn.execute("SELECT key FROM uploads").fetchall()}
    left = {key for key in private(deps) if keys.is_upload_key(key)}
    assert (len(left), len(recorded)) == {
        "uploads.before_put": (0, 0), "uploads.after_put": (1, 0), "uploads.after_record": (1, 1),
    }[point]  # fmt: skip
    orphans.scan_orphans(deps, delete=True)
    assert {key for key in private(deps) if keys.is_upload_key(key)} == recorded


def test_a_crash_while_an_upload_is_deleted_leaves_its_object_to_the_sweep(
    database_url: str, environment: dict[str, str], conn: Connection, deps: Deps
) -> None:
    """The row goes first: nobody is given an address of a file that is going."""
    upload = taken(deps)
    with (
        contextlib.suppress(OSError, http.client.HTTPException),
        wp.running(database_url, MOORAGE_FAILPOINT="storage.before_delete", **environment) as doomed,
    ):
        doomed.ask("DELETE", f"/v1/uploads/{upload.id}", headers=wp.BEARER)
        # The answer may be sent first where deletion is left to its thread; the process dies all the same.

    assert conn.execute("SELECT key FROM uploads WHERE deleted_at IS NULL").fetchall() == []
    assert upload.key in private(deps)
    orphans.scan_orphans(deps, delete=True)
    assert private(deps) & {upload.key} == set()


def test_the_sweep_takes_uploads_without_a_row_and_leaves_all_others(deps: Deps) -> None:
    """Also those of owners who are called as a prefix of ours is, and nothing that somebody else put there."""
    named = {taken(deps, owner).key for owner in ("ada", "quarantine", "renders", "../..", "Zoë")}
    lost = {put(deps, owner).upload.key for owner in ("ada", "inputs", "quarantine", "z")}
    strange = "backups/2026/dump.sql"
    deps.storage.put(deps.storage.private_bucket, strange, b"x", size=1, sha256=X, content_type="text/plain")

    dry = orphans.scan_orphans(deps, delete=False)
    assert {seen.key for seen in dry.listed if seen.reason == "orphan"} == lost
    report = orphans.scan_orphans(deps, delete=True)

    assert report.objects["orphan"] == len(lost)
    assert private(deps) == named | {strange} | {keys.build_quarantine_key(key) for key in lost}


X = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"  # sha256 of b"x"


def test_the_quarantine_of_uploads_is_emptied_and_owners_of_that_name_are_left_alone(deps: Deps) -> None:
    """An owner called quarantine must not lose its files after a week."""
    kept = taken(deps, "quarantine").key
    put(deps, "ada")
    orphans.scan_orphans(deps, delete=True)
    later = replace(deps, settings=deps.settings.model_copy(update={"quarantine_seconds": 0.001}))

    orphans.scan_orphans(later, delete=True)

    assert private(deps) == {kept}


@pytest.mark.parametrize("deep", [False, True])
def test_the_audit_names_uploads_whose_object_is_missing_or_changed(deps: Deps, deep: bool) -> None:
    """Rule 4 holds for input files too: a job that names one would fail, and nobody would know why."""
    whole, missing, other = taken(deps), taken(deps, "bob"), taken(deps, "eve")
    assert run.run_audit(deps, deep=deep, second_look_seconds=0.0).findings == []
    deps.storage.delete(deps.storage.private_bucket, missing.key)
    put_over(deps, other.key, b"x" * other.bytes if deep else b"x")

    report = run.run_audit(deps, deep=deep, second_look_seconds=0.0)

    found = {(finding.rule, finding.id, finding.check.code) for finding in report.findings}
    assert found == {(4, str(missing.id), "missing"), (4, str(other.id), "digest" if deep else "size")}
    assert all("upload it again" in advice.get_advice(finding) for finding in report.findings)
    assert report.checked["uploads"] == 2
    assert str(whole.id) not in {finding.id for finding in report.findings}


def put_over(deps: Deps, key: str, data: bytes) -> None:
    digest = hashlib.sha256(data).hexdigest()
    deps.storage.put(deps.storage.private_bucket, key, data, size=len(data), sha256=digest, content_type="image/png")


def test_the_audit_notes_an_object_that_no_row_names(deps: Deps) -> None:
    """A note while the sweep has not had its turn."""
    lost = put(deps).upload.key

    report = run.run_audit(deps, second_look_seconds=0.0)

    assert [(note.rule, note.id) for note in report.notes] == [(5, lost)]


def test_storage_used_counts_uploads_with_their_owner(deps: Deps, conn: Connection) -> None:
    """Input files are most of what a busy owner stores."""
    sizes = [taken(deps).bytes, taken(deps).bytes]
    taken(deps, "bob")

    while deps.database.run(storage_use.count_next_page):
        pass

    row = conn.execute("SELECT objects, bytes FROM storage_use WHERE bucket = 'private' AND owner = 'ada'").fetchone()
    assert row == {"objects": 2, "bytes": sum(sizes)}


def test_references_become_addresses_that_can_be_read(deps: Deps) -> None:
    """A provider reads them ten minutes long, without a key of ours."""
    upload = taken(deps, "tests")
    render_id = world.kept(deps)
    value = {
        "image": {"upload": str(upload.id)},
        "more": [{"variant": f"{render_id}/0"}, {"upload": "x", "other": 1}, 7, None],
        "prompt": "a house",
    }

    made = references.resolve_references(deps, "tests", value)

    assert made["prompt"] == "a house"
    assert made["more"][1:] == value["more"][1:]
    for url in (made["image"], made["more"][0]):
        assert "X-Amz-Expires=600" in url
        with urllib.request.urlopen(url, timeout=60) as answer, Image.open(io.BytesIO(answer.read())) as seen:
            assert seen.format == "PNG"
    assert value["image"] == {"upload": str(upload.id)}
    assert references.resolve_references(deps, "tests", {"prompt": 1}) == {"prompt": 1}


def test_files_of_some_fields_are_read_instead(deps: Deps, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a provider that takes bytes; the other fields are URLs, also of the same file."""
    reference = {"upload": str(taken(deps, "tests").id)}
    variant = {"variant": f"{world.kept(deps)}/0"}
    value = {"image": [reference, variant], "mask": reference, "image_url": reference, "prompt": "image"}

    made = references.resolve_references(deps, "tests", value, {"image", "mask", "prompt"})

    files = [*made["image"], made["mask"]]
    assert {(file.name, file.content_type) for file in files} == {("image.png", "image/png")}
    assert all(file.data.startswith(b"\x89PNG") for file in files)
    assert files[0].data == files[2].data
    assert made["image_url"].startswith("http")
    assert made["prompt"] == "image"
    monkeypatch.setattr(references, "MAX_FILE_BYTES", 10)
    with pytest.raises(ReferenceGone, match="bytes together, more than 10"):
        references.resolve_references(deps, "tests", value, {"image"})


def test_a_reference_to_what_is_gone_or_anothers_says_which(deps: Deps) -> None:
    """The job fails with the name of the file, not with an address that a provider could not read."""
    mine, deleted, render_id, nobody = taken(deps, "tests"), taken(deps, "tests"), world.kept(deps), ids.uuid7()
    deps.database.run(lambda conn: rows.mark_deleted(conn, deleted.id))
    value = [{"upload": str(one)} for one in (mine.id, deleted.id, nobody)] + [{"variant": f"{render_id}/9"}]

    with pytest.raises(ReferenceGone) as caught:
        references.resolve_references(deps, "tests", value)

    assert str(caught.value).endswith(
        f": upload {deleted.id} ([1]), upload {nobody} ([2]), variant {render_id}/9 ([3])"
    )
    assert (caught.value.category, caught.value.retryable) == ("VALIDATION_FAILED", False)
    with pytest.raises(ReferenceGone, match=str(mine.id)):
        references.resolve_references(deps, "eve", value[:1])
    with pytest.raises(ReferenceGone, match=str(render_id)):
        references.resolve_references(deps, "eve", {"a": {"variant": f"{render_id}/0"}})
    asked = references.find_references({"a": value})
    gone = deps.database.run(lambda conn: references.find_missing(conn, "tests", asked))
    assert [reference.path for reference in gone] == ["a[1]", "a[2]", "a[3]"]


@pytest.mark.parametrize("value", [{"upload": "x"}, {"upload": 3}, {"variant": str(UUID(int=1))}, {"variant": None}])
def test_a_reference_that_can_name_nothing_is_refused(value: object) -> None:
    """A provider must not be sent our words for an address."""
    with pytest.raises(ReferenceGone, match=r"^deep\[1\]\.image: "):
        references.find_references({"deep": [1, {"image": value}]})


def test_an_upload_stored_long_ago_is_not_recorded(deps: Deps) -> None:
    """The orphan sweep may have taken its object by then."""
    stored = put(deps)

    with pytest.raises(StorageUnavailable):
        uploads.require_recent(replace(stored, stored_at=stored.stored_at - uploads.MAX_RECORD_DELAY_SECONDS - 1))


@pytest.mark.parametrize(
    ("program", "kind", "says"),
    [
        ("import os; os.kill(os.getpid(), 9)", Transient, "ended by the system"),
        ("import os; os.kill(os.getpid(), 11)", InvalidMedia, "MOORAGE_DECODER_MEMORY_BYTES"),
        ("print('no facts')", InvalidMedia, "MOORAGE_DECODER_MEMORY_BYTES"),
        ("import sys; sys.exit(7)", InvalidMedia, "MOORAGE_DECODER_MEMORY_BYTES"),
    ],
)
def test_a_decoder_that_dies_or_hangs_costs_the_upload_alone(
    deps: Deps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, kind: type[MoorageError], says: str
) -> None:
    """A hostile file must not take down or hold what answers webhooks."""
    (tmp_path / "child.py").write_text(program)
    monkeypatch.setattr(decoder_process, "__file__", str(tmp_path / "child.py"))

    with pytest.raises(kind, match=says):
        put(deps)

    assert private(deps) == set()


def test_a_decoder_without_cpu_time_does_not_condemn_the_upload(
    deps: Deps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine a good file is late; it is refused for now, not for good."""
    (tmp_path / "child.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(decoder_process, "__file__", str(tmp_path / "child.py"))
    monkeypatch.setattr(uploads, "CLOCK_SECONDS", -4)

    with pytest.raises(Transient, match="too long"):
        put(deps)

    assert private(deps) == set()


def test_a_decoder_that_eats_memory_is_refused_it(deps: Deps) -> None:
    """Two at once must leave room for everything else in the process's container."""
    deps = replace(deps, limits=replace(deps.limits, decoder_memory_bytes=2**28))
    out = io.BytesIO()
    Image.new("RGB", (7900, 7900)).save(out, "PNG")

    with pytest.raises(InvalidMedia):
        put(deps, data=out.getvalue())


def test_an_upload_that_grows_beyond_the_limit_of_its_process_is_refused(
    deps: Deps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit of the size is the file's fault, unlike a full disk: sending it again does not help."""
    monkeypatch.setattr(confined, "_MAX_GROWTH", 0)

    with pytest.raises(InvalidMedia, match="too much disk space"):
        put(deps)


def test_an_upload_that_nobody_finishes_leaves_nothing(
    database_url: str, environment: dict[str, str], deps: Deps, conn: Connection
) -> None:
    """A browser that is closed in the middle must not leave half a file."""
    with wp.running(database_url, **environment) as front:
        with socket.create_connection(("127.0.0.1", front.port), timeout=10) as line:
            head = f"POST /v1/uploads?owner=ada HTTP/1.1\r\nHost: x\r\nAuthorization: {wp.BEARER['authorization']}\r\n"
            line.sendall(f"{head}Content-Length: 1000\r\n\r\nabc".encode())

        assert front.ask("POST", "/v1/uploads?owner=ada", picture(), wp.BEARER).status == 201

    recorded = {row["key"] for row in conn.execute("SELECT key FROM uploads").fetchall()}
    assert len(recorded) == 1
    assert {key for key in private(deps) if keys.is_upload_key(key)} == recorded
