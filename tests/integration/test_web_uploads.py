"""Input files over HTTP: stored privately, without metadata, and decoded in a separate process."""

import asyncio
import contextlib
import hashlib
import http.client
import io
import json
import time
from collections.abc import Iterator
from urllib.parse import urlsplit
from uuid import UUID

import pytest
from PIL import Image

from db.connection import Connection
from embedded.stack import Stack
from moorage import ids
from storage import keys
from tasks import erasure, erasure_request
from tasks.step import Deps
from tests.integration import command_line as cli
from tests.integration import web_process as wp
from tests.integration.upload_front import PLACE, form, picture, read, send, stored
from web.http.problems import Problem
from web.services.database import DatabaseThreads
from web.services.upload_spool import UploadSpool

S3 = ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "S3_PUBLIC_BUCKET", "S3_PRIVATE_BUCKET")
MAX_BYTES = 200_000


@pytest.fixture(scope="module")
def deps(stack: Stack, url: str) -> Iterator[Deps]:
    made = cli.deps(stack, url, buckets_of="uploads")
    yield made
    made.database.close()


@pytest.fixture(scope="module")
def environment(stack: Stack, url: str, deps: Deps) -> dict[str, str]:
    return {name: value for name, value in cli.environment(stack, url, buckets_of="uploads").items() if name in S3}


@pytest.fixture(scope="module")
def front(url: str, environment: dict[str, str]) -> Iterator[wp.Front]:
    with wp.running(url, MOORAGE_UPLOAD_MAX_BYTES=str(MAX_BYTES), **environment) as process:
        yield process


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_image_is_stored_upright_and_without_its_location(
    front: wp.Front, deps: Deps, mine: Connection, kind: str
) -> None:
    """A model's provider, or anyone with the URL, must not learn where a user lives."""
    answer = send(front, picture(kind, orientation=6))

    assert answer.status == 201, answer.fields
    facts = answer.fields
    assert (facts["width_px"], facts["height_px"], facts["format"]) == (24, 40, kind.lower())
    assert (facts["owner"], facts["media"], facts["content_type"]) == ("ada", "image", f"image/{kind.lower()}")
    status, data = read(facts["url"])
    assert status == 200
    assert (len(data), hashlib.sha256(data).hexdigest()) == (facts["bytes"], facts["sha256"])
    assert PLACE not in data
    with Image.open(io.BytesIO(data)) as seen:
        assert (seen.size, dict(seen.getexif())) == ((24, 40), {})
    row = mine.execute("SELECT * FROM uploads WHERE id = %s", [facts["upload_id"]]).fetchone()
    assert row is not None
    assert row["key"] == f"ada/inputs/{facts['upload_id']}.{'jpg' if kind == 'JPEG' else kind.lower()}"
    stat = deps.storage.head(deps.storage.private_bucket, row["key"])
    assert stat is not None
    assert (stat.sha256, stat.size_bytes) == (row["sha256"], row["bytes"])
    with deps.storage.open_object(deps.storage.private_bucket, row["key"]) as opened:
        assert opened.content_type == row["content_type"]


def test_the_signed_url_is_valid_for_five_minutes_and_required(front: wp.Front) -> None:
    """An input file is private: only a signature gives access, and not for long."""
    answer = send(front, picture())

    signed = answer.fields["url"]
    assert "X-Amz-Expires=300" in signed
    assert answer.fields["url_seconds"] == 300
    assert read(signed.partition("?")[0])[0] in (401, 403, 404)
    assert read(signed.replace("X-Amz-Expires=300", "X-Amz-Expires=9000"))[0] == 403
    again = front.get(f"/v1/uploads/{answer.fields['upload_id']}")
    assert again.status == 200
    assert {**again.fields, "url": None} == {**answer.fields, "url": None}
    assert answer.headers["location"] == f"/v1/uploads/{answer.fields['upload_id']}"


def test_a_form_may_have_the_owner_before_or_after_the_file(front: wp.Front) -> None:
    """Browsers send fields in the order of the form."""
    owner, file = ('name="owner"', b"bob"), ('name="file"; filename="../../etc/passwd.exe"', picture("PNG"))

    for parts in ([owner, file], [file, owner]):
        body, headers = form(parts)
        answer = front.ask("POST", "/v1/uploads", body, {**wp.BEARER, **headers})

        assert answer.status == 201, answer.fields
        assert (answer.fields["owner"], answer.fields["format"]) == ("bob", "png")


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([('name="file"; filename="a"', b"x"), ('name="file"; filename="b"', b"x")], 422),
        ([('name="owner"', b"bob")], 422),
        ([('name="owner"', b"bob"), ('name="owner"', b"eve")], 422),
        ([('name="owner"', b"\xff")], 422),
        ([('name="file"; filename="a"', picture("PNG"))], 422),  # whose?
        ([('name="who"', b"bob"), ('name="file"; filename="a"', picture("PNG"))], 422),
        ([('filename="a"', picture("PNG"))], 400),
        ([('name*=a; name*0=b; filename="a"', picture("PNG"))], 400),
        ([('name="file"; filename*=a; filename*0=b', picture("PNG"))], 400),
        ([('name="owner"', b"bob"), ('name="file"; filename="a"', bytes(MAX_BYTES + 1))], 413),
    ],
)
def test_an_unexpected_form_is_rejected(
    front: wp.Front, deps: Deps, parts: list[tuple[str, bytes]], status: int
) -> None:
    """Nothing of it is stored."""
    before = stored(deps)
    body, headers = form(parts)

    answer = front.ask("POST", "/v1/uploads", body, {**wp.BEARER, **headers})

    assert answer.status == status, answer.fields
    assert stored(deps) == before


def test_a_truncated_form_is_rejected(front: wp.Front) -> None:
    """Half a file must not be stored as a complete one."""
    body, headers = form([('name="owner"', b"bob"), ('name="file"; filename="a"', picture("PNG"))])

    answer = front.ask("POST", "/v1/uploads", body[:-15], {**wp.BEARER, **headers})

    assert answer.status == 400


@pytest.mark.parametrize("parameters", ["", "; x*=a; x*0=b; boundary=b0undary", "; boundary*0=b0; boundary*=undary"])
def test_a_form_without_a_readable_boundary_is_rejected(front: wp.Front, parameters: str) -> None:
    """Contradictory continuations of a parameter (RFC 2231) were a 500."""
    body, _ = form([('name="owner"', b"bob"), ('name="file"; filename="a"', picture("PNG"))])

    answer = front.ask("POST", "/v1/uploads", body, {**wp.BEARER, "content-type": f"multipart/form-data{parameters}"})

    assert answer.status == 400


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "empty"),
        (b"<html>hello", "a web page"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "svg is not accepted"),
        (picture()[:-200], "the JPEG is truncated"),
        (picture("PNG")[:300], "the PNG is truncated"),
    ],
)
def test_an_incomplete_image_is_rejected_whatever_its_declared_type(
    front: wp.Front, deps: Deps, body: bytes, says: str
) -> None:
    """The declared type is untrusted; the model gets the bytes."""
    before = stored(deps)

    answer = send(front, body, content_type="image/jpeg")

    assert answer.status == 422
    assert says in answer.fields["detail"]
    assert stored(deps) == before


def test_a_file_over_the_limit_is_rejected_with_and_without_content_length(front: wp.Front) -> None:
    """A client must not fill the disk of the process that receives webhooks."""
    announced = send(front, bytes(MAX_BYTES + 1))
    connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=60)
    with contextlib.closing(connection):
        connection.request(
            "POST", "/v1/uploads?owner=ada", body=iter([bytes(MAX_BYTES), bytes(10)]), headers=wp.BEARER,
            encode_chunked=True,
        )  # fmt: skip
        chunked = connection.getresponse()

        assert (announced.status, chunked.status) == (413, 413)
        assert "MOORAGE_UPLOAD_MAX_BYTES" in json.loads(chunked.read())["detail"]


def test_an_image_with_too_many_pixels_is_rejected_before_decoding(url: str, environment: dict[str, str]) -> None:
    """A small file can contain more pixels than fit into memory."""
    with wp.running(url, MOORAGE_IMAGE_MAX_PIXELS="10000", **environment) as small:
        answer = send(small, picture(size=(200, 60)))

    assert answer.status == 422
    assert "12000 pixels" in answer.fields["detail"]


def test_webhooks_are_received_while_files_are_processed(front: wp.Front) -> None:
    """The API may share its process with the receiver, which must respond within seconds."""
    body = picture("PNG", size=(200, 200))
    connections = [http.client.HTTPConnection("127.0.0.1", front.port, timeout=60) for _ in range(4)]
    for connection in connections:
        connection.request("POST", "/v1/uploads?owner=ada", body, wp.BEARER)
    started = time.monotonic()

    status = front.call("GET", "/readyz")[0]

    assert (status, time.monotonic() - started < 15) == (200, True)
    for connection in connections:
        with contextlib.closing(connection):
            assert connection.getresponse().status == 201


def test_an_upload_without_an_owner_or_with_an_unknown_parameter_is_rejected(front: wp.Front) -> None:
    """A file without an owner could not be used."""
    assert send(front, picture(), "/v1/uploads").status == 422
    assert send(front, picture(), "/v1/uploads?owner=").status == 422
    assert send(front, picture(), "/v1/uploads?owner=a&owner=b").status == 422
    assert send(front, picture(), "/v1/uploads?name=a").status == 422
    assert front.ask("POST", "/v1/uploads?owner=ada", picture()).status == 401


@pytest.mark.parametrize("owner", ["../..", "..", "a/b", "quarantine", "renders", "Zoë & 猫", "%2e%2e", "x" * 200])
def test_every_owner_name_maps_to_its_own_folder(front: wp.Front, mine: Connection, deps: Deps, owner: str) -> None:
    """Names come from applications: none may reach another's folder, or one that a sweep empties."""
    body, headers = form([('name="owner"', owner.encode()), ('name="file"; filename="a"', picture("PNG"))])

    answer = front.ask("POST", "/v1/uploads", body, {**wp.BEARER, **headers})

    assert answer.status == 201, answer.fields
    row = mine.execute("SELECT key, owner FROM uploads WHERE id = %s", [answer.fields["upload_id"]]).fetchone()
    assert row is not None
    assert row["owner"] == owner
    assert keys.is_upload_key(row["key"])
    assert answer.fields["upload_id"] in row["key"]
    assert read(answer.fields["url"])[0] == 200
    assert row["key"] in stored(deps)


def test_a_deleted_upload_loses_its_object(front: wp.Front, mine: Connection, deps: Deps) -> None:
    """A user who deletes a photo expects it to be removed now."""
    made = send(front, picture()).fields
    path = f"/v1/uploads/{made['upload_id']}"
    (row,) = mine.execute("SELECT key FROM uploads WHERE id = %s", [made["upload_id"]]).fetchall()
    assert row["key"] in stored(deps)

    statuses = [front.ask("DELETE", path, headers=wp.BEARER).status for _ in range(2)]

    assert statuses == [204, 204]
    assert row["key"] not in stored(deps)
    assert read(made["url"])[0] == 404
    assert front.get(path).status == 404
    assert front.ask("DELETE", f"/v1/uploads/{ids.uuid7()}", headers=wp.BEARER).status == 404
    assert front.get("/v1/uploads/..%2f..").status == 404


def test_an_owner_sees_and_deletes_only_its_own(front: wp.Front) -> None:
    """A guessed id must reveal nothing, and an owner token must not write into another's folder."""
    made = send(front, picture()).fields
    asked = b'{"owner": "eve", "scopes": ["upload", "delete"]}'
    token = front.ask("POST", "/v1/owner-tokens", asked, {**wp.BEARER, "content-type": "application/json"}).fields[
        "token"
    ]
    eve = {"authorization": f"Bearer {token}"}
    path = f"/v1/uploads/{made['upload_id']}"

    assert front.ask("GET", path, headers=eve).status == 404
    assert front.ask("DELETE", path, headers=eve).status == 404
    assert front.ask("POST", "/v1/uploads?owner=ada", picture(), eve).status == 403
    mine = front.ask("POST", "/v1/uploads", picture(), eve)
    assert (mine.status, mine.fields["owner"]) == (201, "eve")
    assert front.ask("GET", f"/v1/uploads/{mine.fields['upload_id']}", headers=eve).status == 200
    assert front.get(path).status == 200


def test_unavailable_storage_is_a_503_and_not_a_rejection(url: str, environment: dict[str, str]) -> None:
    """503 asks for a retry; 422 would make a user look for an error in a valid image."""
    broken = {**environment, "AWS_ENDPOINT_URL_S3": f"http://{cli.nowhere()}"}
    with wp.running(url, **broken) as alone:
        answer = send(alone, picture())

    assert answer.status == 503
    assert answer.headers["retry-after"] == "1"


def test_no_public_url_leads_to_an_upload(front: wp.Front) -> None:
    """Published files are public: private ones have signed URLs only."""
    upload_id = send(front, picture()).fields["upload_id"]

    for path in (
        f"/v1/assets/renders/{upload_id}/0",
        f"/v1/assets/ada/inputs/{upload_id}.jpg",
        f"/v1/assets/renders/..%2fada%2finputs/{upload_id}.jpg",
        f"/v1/assets/renders/../ada/inputs/{upload_id}.jpg",
    ):
        assert front.call("GET", path)[0] == 404, path


def test_signed_urls_use_the_public_host_of_storage(url: str, environment: dict[str, str]) -> None:
    """Inside a compose network storage has a name that no browser can resolve."""
    with wp.running(url, S3_PUBLIC_ENDPOINT_URL="https://files.example", **environment) as process:
        answer = send(process, picture())

    assert urlsplit(answer.fields["url"]).netloc == "files.example"


def test_an_upload_does_not_outlive_the_erasure_of_its_owner(deps: Deps, url: str, mine: Connection) -> None:
    """It takes minutes on a slow line; recorded at its end, it was kept, with the name of the owner in its key."""
    started, owner = ids.uuid7(), "gone for good"
    finished = erasure.continue_erasure(deps, erasure_request.request_erasure(deps.database, owner), "tests")

    async def store(upload_id: UUID) -> None:
        threads = DatabaseThreads(url)
        spool = UploadSpool(deps.settings, threads)
        try:
            file = spool.create_file()
            await file.write(picture())
            await spool.store(file, owner, upload_id)
        finally:
            spool.close()
            await threads.close()

    with pytest.raises(Problem, match="revoked"):
        asyncio.run(store(started))
    assert finished is not None
    assert not [key for key in stored(deps) if "gone" in key]
    assert not mine.execute("SELECT FROM uploads WHERE owner = %s", (owner,)).fetchall()
    asyncio.run(store(ids.uuid7()))  # the name may be in use again
