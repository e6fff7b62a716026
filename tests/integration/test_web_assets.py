"""Files under permanent URLs: redirected to storage, or streamed from a real one."""

import urllib.request
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import pytest

from db.connection import Connection
from embedded.stack import Stack
from storage import urls
from tasks.step import Deps
from tests.integration import command_line as cli
from tests.integration import kept_world as world
from tests.integration import receiver_process as rp
from tests.integration import web_process as wp

NOBODY = "01890000-0000-7000-8000-000000000001"
S3 = ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "S3_PUBLIC_BUCKET", "S3_PRIVATE_BUCKET")


@pytest.fixture(scope="module")
def deps(stack: Stack, url: str) -> Iterator[Deps]:
    made = cli.deps(stack, url)
    yield made
    made.database.close()


@pytest.fixture(scope="module")
def storage(stack: Stack, url: str) -> dict[str, str]:
    return {name: value for name, value in cli.environment(stack, url).items() if name in S3}


@pytest.fixture(scope="module")
def redirecting(url: str, storage: dict[str, str]) -> Iterator[wp.Front]:
    with wp.running(url, **storage) as process:
        yield process


@pytest.fixture(scope="module")
def streaming(url: str, storage: dict[str, str]) -> Iterator[wp.Front]:
    with wp.running(url, MOORAGE_ASSETS="stream", **storage) as process:
        yield process


@pytest.fixture(scope="module")
def signing(url: str, storage: dict[str, str]) -> Iterator[wp.Front]:
    with wp.running(url, MOORAGE_ASSETS="signed", **storage) as process:
        yield process


@pytest.fixture(scope="module")
def render_id(deps: Deps) -> UUID:
    return world.kept(deps, "assets")


@pytest.fixture
def row(mine: Connection, render_id: UUID) -> dict[str, Any]:
    found = mine.execute("SELECT * FROM outputs WHERE job_id = %s", [render_id]).fetchone()
    assert found is not None
    return found


def fetch(front: wp.Front, path: str, method: str = "GET", **headers: str) -> rp.Reply:
    """Request a file without a token."""
    return front.call(method, f"/v1/assets/renders/{path}", None, {n.replace("_", "-"): v for n, v in headers.items()})


def content(deps: Deps, key: str) -> bytes:
    with deps.storage.open_object(deps.storage.public_bucket, key) as opened:
        return opened.read()


def test_a_file_is_redirected_to_storage(
    redirecting: wp.Front, deps: Deps, render_id: UUID, row: dict[str, Any]
) -> None:
    """The default: the bytes never pass through the API, and URLs in pages survive a move of the storage."""
    for name, key in (("0.png", row["key"]), ("0", row["key"]), ("0_thumb.webp", row["thumb_key"])):
        status, headers, body = fetch(redirecting, f"{render_id}/{name}")

        assert (status, body) == (302, b"")
        assert headers["location"] == deps.storage.build_asset_url(key)
        assert headers["access-control-allow-origin"] == "*"
        assert "immutable" not in headers["cache-control"]  # a deleted render's address must stop to answer
    assert redirecting.call("GET", f"/api/v1/assets/renders/{render_id}/0")[0] == 302


def test_a_file_is_streamed_unchanged(streaming: wp.Front, deps: Deps, render_id: UUID, row: dict[str, Any]) -> None:
    """Byte for byte, cacheable forever: the bytes of a published idx never change."""
    original = fetch(streaming, f"{render_id}/0.png")
    thumbnail = fetch(streaming, f"{render_id}/0_thumb.webp")
    head = fetch(streaming, f"{render_id}/0.png", "HEAD")

    assert (original[0], original[2]) == (200, content(deps, row["key"]))
    assert original[1]["cache-control"] == "public, max-age=31536000, immutable"
    assert original[1]["etag"] == f'"{row["sha256"]}"'
    assert original[1]["content-type"] == "image/png"
    assert original[1]["x-content-type-options"] == "nosniff"
    assert original[1]["access-control-allow-origin"] == "*"
    assert (thumbnail[0], thumbnail[2]) == (200, content(deps, row["thumb_key"]))
    assert (thumbnail[1]["cache-control"], thumbnail[1]["content-type"]) == ("public, max-age=86400", "image/webp")
    assert thumbnail[1]["etag"] == f'"{row["thumb_sha256"]}"'
    assert (head[0], head[2], head[1]["content-length"]) == (200, b"", str(row["bytes"]))


def test_a_file_is_redirected_to_a_signed_url(
    signing: wp.Front, deps: Deps, render_id: UUID, row: dict[str, Any]
) -> None:
    """For stores without public buckets: the URL works for anyone, and longer than a cache holds the redirect."""
    for name, key in (("0.png", row["key"]), ("0_thumb.webp", row["thumb_key"])):
        status, headers, _ = fetch(signing, f"{render_id}/{name}")

        assert (status, headers["cache-control"]) == (302, "public, max-age=300")
        assert parse_qs(urlsplit(headers["location"]).query)["X-Amz-Expires"] == ["600"]
        with urllib.request.urlopen(headers["location"], timeout=60) as response:
            assert response.read() == content(deps, key)


def test_without_a_public_bucket_urls_lead_to_the_api(
    signing: wp.Front, streaming: wp.Front, deps: Deps, render_id: UUID, row: dict[str, Any]
) -> None:
    """The URLs in documents, notifications and responses must work although nobody can read the bucket."""
    settings = deps.settings.model_copy(update={"assets": "signed", "public_url": "https://moorage.example"})
    url = urls.build_asset_url(urls.get_asset_base_url(settings), row["key"])
    assert url == f"https://moorage.example/v1/assets/{row['key']}"
    path = urlsplit(url).path
    variant = signing.get(f"/v1/renders/{render_id}").fields["variants"][0]

    assert urlsplit(variant["url"]).path == path
    assert signing.call("GET", path)[0] == 302
    for key in (row["key"], row["thumb_key"]):
        assert streaming.call("GET", f"/v1/assets/{key}")[2] == content(deps, key)
    assert signing.call("GET", path.replace(row["sha256"][:16], "0" * 16))[0] == 404


def test_a_cached_file_is_not_sent_again(streaming: wp.Front, render_id: UUID, row: dict[str, Any]) -> None:
    """A cache sends the ETag it has."""
    etag = f'"{row["sha256"]}"'

    known = fetch(streaming, f"{render_id}/0.png", if_none_match=f'"other", W/{etag}')
    other = fetch(streaming, f"{render_id}/0.png", if_none_match='"other"')

    assert (known[0], known[2], known[1]["etag"]) == (304, b"", etag)
    assert known[1]["cache-control"] == "public, max-age=31536000, immutable"
    assert other[0] == 200


def test_a_range_of_a_file_is_streamed(streaming: wp.Front, deps: Deps, render_id: UUID, row: dict[str, Any]) -> None:
    """A video player seeks; a range of another version would corrupt the file."""
    whole, size = content(deps, row["key"]), row["bytes"]
    name = f"{render_id}/0.png"

    part = fetch(streaming, name, range="bytes=2-5")
    end = fetch(streaming, name, range="bytes=-4")
    behind = fetch(streaming, name, range=f"bytes={size}-")
    same = fetch(streaming, name, range="bytes=2-5", if_range=f'"{row["sha256"]}"')
    changed = fetch(streaming, name, range="bytes=2-5", if_range='"other"')

    assert (part[0], part[2], part[1]["content-range"]) == (206, whole[2:6], f"bytes 2-5/{size}")
    assert (end[0], end[2], end[1]["content-length"]) == (206, whole[-4:], "4")
    assert (behind[0], behind[1]["content-range"]) == (416, f"bytes */{size}")
    assert (same[0], same[2]) == (206, whole[2:6])
    assert (changed[0], changed[2]) == (200, whole)


@pytest.mark.parametrize("kind", ["redirecting", "streaming"])
def test_nothing_else_is_found(request: pytest.FixtureRequest, kind: str, render_id: UUID) -> None:
    """Without a token only published files are served, under their own names."""
    front: wp.Front = request.getfixturevalue(kind)
    names = [
        "0.jpg",
        "0.png.png",
        "1.png",
        "00.png",
        "-1",
        "0_thumb",
        "0_thumb.png",
        "0.",
        "9999999999",
        "%30.png/",
        "",
    ]
    tricks = ["..%2f0.png", "0.png%00", "../0.png", "%2e%2e/jobs", "0%0a", "%D9%A0"]
    for name in names + tricks:
        status, headers, _ = fetch(front, f"{render_id}/{name}")
        assert (name, status, headers["content-type"]) == (name, 404, "application/problem+json")

    assert fetch(front, f"{NOBODY}/0.png")[0] == 404
    assert fetch(front, f"{render_id.hex}/0.png")[0] == 404
    for path in ("/v1/assets/", "/v1/assets/../jobs", "/v1/assets/inputs/x.png", "/v1/assets/%2e%2e/renders"):
        assert front.call("GET", path)[0] == 404
    assert front.call("GET", "/v1/assetsx")[0] == 401


def test_a_deleted_render_has_no_files(redirecting: wp.Front, streaming: wp.Front, deps: Deps) -> None:
    """At once, also while its objects are still in storage."""
    gone = world.kept(deps, "assets_gone")
    before = [fetch(front, f"{gone}/0.png")[0] for front in (redirecting, streaming)]
    redirecting.ask("DELETE", f"/v1/renders/{gone}", headers=wp.BEARER)

    after = [fetch(front, f"{gone}/0.png")[0] for front in (redirecting, streaming)]

    assert (before, after) == ([302, 200], [404, 404])


def test_a_page_of_another_origin_may_request_ranges(redirecting: wp.Front, render_id: UUID) -> None:
    """A browser sends a preflight request before a conditional request across origins."""
    status, headers, _ = fetch(redirecting, f"{render_id}/0.png", "OPTIONS", origin="https://app.example")
    refused = redirecting.call("DELETE", f"/v1/assets/renders/{render_id}/0.png")

    assert (status, headers["access-control-allow-origin"]) == (204, "*")
    assert "If-None-Match" in headers["access-control-allow-headers"]
    assert refused[0] == 405


def test_disconnected_clients_release_their_slots(
    streaming: wp.Front, deps: Deps, mine: Connection, render_id: UUID
) -> None:
    """More of them than the limit: the next request must still succeed."""
    for _ in range(70):
        with streaming.connect() as conn:
            conn.sendall(f"GET /v1/assets/renders/{render_id}/0.png HTTP/1.1\r\nHost: moorage\r\n\r\n".encode())

    rp.until(lambda: fetch(streaming, f"{render_id}/0.png")[0] == 200)


def test_unavailable_storage_is_a_503(url: str, storage: dict[str, str], render_id: UUID) -> None:
    """A file that is unavailable for a minute must not be cached as deleted."""
    away = {**storage, "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:9"}
    with wp.running(url, MOORAGE_ASSETS="stream", **away) as front:
        status, headers, _ = fetch(front, f"{render_id}/0.png")

    assert (status, headers["cache-control"], headers["retry-after"]) == (503, "no-store", "1")
    assert headers["access-control-allow-origin"] == "*"
