"""Files that are neither images nor videos: kept byte for byte, listed beside the images, and only ever downloaded."""

import dataclasses
import json
import tempfile
import urllib.request
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest

from db import uploads as rows
from db.uploads import Upload
from embedded.stack import Stack
from media.limits import Limits
from moorage import ids
from moorage.errors import InvalidMedia
from moorage.formats import ACCEPT, FORMATS
from simulation.provider import pictures
from tasks import uploads
from tasks.audit import run as audit
from tasks.jobs import replay
from tests.integration import command_line as cli
from tests.integration import web_process as wp
from tests.integration.core import World, database_of, png, world
from tests.integration.test_page import cookie
from tests.support import kinds

pytest.importorskip("av", reason="the `video` extra is not installed")
S3 = ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
TYPES = {"json": "application/json; charset=utf-8", "txt": "text/plain"}
SCENES = {"document": {"scenes": [{"id": "hall"}]}}


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return database_of(stack, template_database, "kinds")


@pytest.fixture
def at(stack: Stack, url: str) -> Iterator[World]:
    with world(stack, url) as made:
        yield made


@pytest.fixture(scope="module")
def front(stack: Stack, url: str) -> Iterator[wp.Front]:
    storage = {name: value for name, value in cli.environment(stack, url).items() if name in S3}
    with wp.running(url, MOORAGE_ASSETS="stream", **storage) as process:
        yield process


def urls(at: World, files: dict[str, bytes]) -> list[str]:
    return [at.source.file(f"out.{name}", data, TYPES.get(name)) for name, data in files.items()]


def findings(at: World) -> list[Any]:
    found = audit.run_audit(at.deps, deep=True, second_look_seconds=0.0).findings
    return [finding for finding in found if finding.rule in (3, 4, 5, 9)]  # deliveries of this world are shortened


def image_urls(at: World, project_id: str) -> list[str]:
    return at.one("SELECT document #> '{scenes,0,imageUrls}' FROM projects WHERE id = %s", project_id)  # type: ignore[no-any-return]


def fetch(front: wp.Front, render_id: UUID, name: str) -> tuple[int, dict[str, str], bytes]:
    return front.call("GET", f"/v1/assets/renders/{render_id}/{name}", None, {})


def test_every_kind_is_kept_and_listed_beside_the_images(at: World, front: wp.Front) -> None:
    """A model that answers with sound and an image lost the sound; a drawing must never run as a page."""
    at.conn.execute(
        "INSERT INTO projects (id, owner, document) VALUES ('house', 'ann', %s)", [json.dumps(SCENES["document"])]
    )
    files = {**kinds.build_files(), **kinds.build_encoded_files(), "png": png(7)}
    made = at.keeping(urls(at, files), project_id="house", scene="hall")
    at.keep_all(made.job_id)

    assert at.state("jobs", made.job_id) == "succeeded"
    variants = at.conn.execute("SELECT * FROM variants WHERE render_id = %s ORDER BY idx", [made.job_id]).fetchall()
    assert [row["format"] for row in variants] == list(files)
    for row, data in zip(variants, files.values(), strict=True):
        with urllib.request.urlopen(at.deps.storage.build_asset_url(row["key"])) as reply:
            assert reply.read() == data
            assert reply.headers["Content-Type"] == row["content_type"]
            assert reply.headers["Content-Disposition"] == ("attachment" if row["media"] == "file" else None)
        status, headers, body = fetch(front, made.job_id, row["key"].rpartition("/")[2])
        assert (status, body, headers["x-content-type-options"]) == (200, data, "nosniff")
        assert headers.get("content-disposition") == ("attachment" if row["media"] == "file" else None)
    shown = [row for row in variants if row["media"] != "file"]
    assert [row["format"] for row in shown] == ["mov", "mkv", "png"]
    assert [row["idx"] for row in variants if row["is_cover"]] == [shown[0]["idx"]]
    assert image_urls(at, "house") == [f"{at.deps.asset_base}/{row['key']}" for row in shown]
    status, headers, body = fetch(front, made.job_id, "0")
    assert (status, body, headers["content-type"]) == (200, files["mov"], "video/quicktime")
    assert "immutable" not in headers["cache-control"]
    assert fetch(front, made.job_id, "0.svg")[2] == files["svg"]
    assert findings(at) == []


def test_a_render_of_sound_alone_has_no_cover_until_an_image_is_added(at: World, front: wp.Front) -> None:
    """Nothing of it can be shown, everything can be played."""
    broken = at.source.file("out.png", b"<html>busy</html>")
    made = at.keeping([at.source.file("out.wav", kinds.build_wav()), broken])
    at.keep_all(made.job_id)

    assert at.one("SELECT cover_idx FROM renders WHERE id = %s", made.job_id) is None
    assert at.one("SELECT count(*) FROM variants WHERE is_cover IS NOT FALSE") == 0
    page = front.call("GET", "/", None, cookie(front, "ann"))[2].decode()
    assert '<audio src="' in page
    assert "WAV, 0:01, 48 kB" in page
    assert fetch(front, made.job_id, "0")[1]["content-type"] == "audio/wav"
    assert findings(at) == []

    at.source.files[broken.removeprefix(at.source.url(""))] = (200, png(3))
    (letter,) = at.letters()
    at.deps.database.run(lambda conn: replay.replay_dead_letter(conn, letter["id"], "test"))
    at.keep_all(made.job_id)

    assert at.one("SELECT cover_idx FROM renders WHERE id = %s", made.job_id) == 1
    assert fetch(front, made.job_id, "0")[1]["content-type"] == "image/png"
    assert findings(at) == []


@pytest.mark.parametrize("name", ["out.png", "out.mp4", "out.glb", "out.json", "out"])
def test_pages_and_errors_with_status_200_are_refused(at: World, name: str) -> None:
    """A login page in the place of a file would be published as the result."""
    bodies = {b"<!doctype html><title>Sign in</title>": "text/html", b'{"detail": "not found"}': "application/json"}
    made = at.keeping([at.source.file(name, body, content_type) for body, content_type in bodies.items()])
    at.keep_all(made.job_id)

    assert at.state("jobs", made.job_id) == "failed"
    assert {letter["category"] for letter in at.letters()} == {"VALIDATION_FAILED"}


def test_a_damaged_file_of_any_kind_is_in_quarantine(at: World) -> None:
    """Cut in half, or with zeros in its header; only plain text has no end that could be missing."""
    files = {**kinds.build_files(), **kinds.build_encoded_files(), "webm": kinds.encode_video("webm", "libvpx")}
    files |= {name: pictures.generate(name, 1).data for name in ("png", "jpeg", "webp", "gif", "avif", "mp4")}
    damaged = [(name, data[:8] + bytes(64) + data[72:]) for name, data in files.items()]
    damaged += [(name, data[: len(data) // 2]) for name, data in files.items() if name != "txt"]
    named = [at.source.file(f"{n}.{name}", data, TYPES.get(name)) for n, (name, data) in enumerate(damaged)]
    made = at.keeping(named)
    at.keep_all(made.job_id)

    assert set(files) == set(FORMATS)
    stored = {row["source"]: row for row in (at.row("outputs", one) for one in at.outputs(made.job_id))}
    for url, (name, data) in zip(named, damaged, strict=True):
        assert (stored[url]["state"], stored[url]["category"]) == ("dead", "VALIDATION_FAILED"), name
        with at.deps.storage.open_object(at.deps.storage.private_bucket, stored[url]["quarantine_key"]) as opened:
            assert opened.read() == data, name


def test_a_format_that_is_not_accepted_is_a_dead_letter(at: World) -> None:
    """MOORAGE_ACCEPT; a change and a replay bring it back from quarantine, text without a signature, too."""
    names = {"a.glb": kinds.build_glb(), "b.json": kinds.JSON}
    made = at.keeping([at.source.file(name, data, "application/json") for name, data in names.items()])
    dataclasses.replace(at, deps=dataclasses.replace(at.deps, limits=Limits(accept=("png",)))).keep_all(made.job_id)

    letters = at.letters()
    assert {letter["reason"] for letter in letters} == {
        f"the format {name} is not accepted (MOORAGE_ACCEPT)" for name in ("glb", "json")
    }
    at.source.files.clear()
    for letter in letters:
        at.deps.database.run(lambda conn, row=letter: replay.replay_dead_letter(conn, row["id"], "test"))
    at.keep_all(made.job_id)
    assert at.state("jobs", made.job_id) == "succeeded"


def test_uploads_have_a_list_of_their_own(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user sends is restricted: its metadata is removed where that is possible."""
    monkeypatch.setattr(uploads, "CPU_SECONDS", 120)  # by the clock, too: half a minute is short on a busy machine
    monkeypatch.setattr(uploads, "CLOCK_SECONDS", 150)

    def store(data: bytes, accept: tuple[str, ...] = ACCEPT) -> Upload:
        limits = uploads.upload_limits(at.deps.limits, at.deps.settings.model_copy(update={"accept": accept}))
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.flush()
            return uploads.sanitize_and_store(
                at.deps.storage, file, upload_id=ids.uuid7(), owner="ada", limits=limits
            ).upload

    with pytest.raises(InvalidMedia, match="the format wav is not accepted"):
        store(kinds.build_wav())
    kept = store(kinds.build_wav(), ("upload:wav", "upload:mov"))

    assert (kept.media.media, kept.media.format, kept.bytes) == ("file", "wav", len(kinds.build_wav()))
    at.deps.database.run(lambda conn: rows.add(conn, kept))
    assert store(kinds.encode_video("mov", "mpeg4"), ("upload:mov",)).media.format == "mov"
