"""POST /v1/keep, `metadata`, `wait` and X-Request-Id, over HTTP."""

import concurrent.futures
import http.client
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration import receiver_process as rp
from tests.integration import web_process as wp

JSON = {**wp.BEARER, "content-type": "application/json"}
URLS = ["https://files.example/a.png", "https://replicate.delivery/x/b.png"]


@pytest.fixture(scope="module")
def front(url: str) -> Iterator[wp.Front]:
    with wp.running(url, MOORAGE_EGRESS_ALLOW="127.0.0.1:8443") as process:
        yield process


def keep(front: wp.Front, fields: dict[str, Any], **headers: str) -> wp.Answer:
    sent = {**JSON, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return front.ask("POST", "/v1/keep", json.dumps(fields).encode(), sent)


def test_urls_become_the_outputs_of_a_job_that_is_being_kept(front: wp.Front, url: str) -> None:
    """The order is that of the request; a URL of a provider expires when its files do."""
    made = keep(front, {"owner": "ada", "urls": URLS, "prompt": "a café", "metadata": {"order": "4711"}})

    job = front.get(made.headers["location"]).fields
    rows = rp.rows(url, f"SELECT source, expires_at FROM outputs WHERE job_id = '{made.fields['job_id']}' ORDER BY idx")
    assert (made.status, made.fields["state"], made.fields["is_new"]) == (202, "keeping", True)
    assert (job["state"], job["kind"], job["prompt"], job["metadata"]) == (
        "keeping",
        "mixed",
        "a café",
        {"order": "4711"},
    )
    assert [row["source"] for row in rows] == URLS
    assert [row["expires_at"] is not None for row in rows] == [False, True]


def test_an_idempotency_key_creates_one_job(front: wp.Front) -> None:
    """An application that lost the response repeats the request, also while the first one still runs."""
    body = {"owner": "ada", "urls": URLS[:1]}
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: keep(front, body, idempotency_key="keep-once"), range(8)))

    other = keep(front, {**body, "prompt": "another"}, idempotency_key="keep-once")
    assert sorted(answer.status for answer in answers) == [200] * 7 + [202]
    assert len({answer.fields["job_id"] for answer in answers}) == 1
    assert other.status == 409


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("http://files.example/a.png", "http: is not allowed"),
        ("ftp://files.example/a.png", "neither https: nor http:"),
        ("https://user:pw@files.example/a.png", "user name or password"),
        ("https://files.example:8443/a.png", None),
        ("/etc/passwd", "neither https: nor http:"),
        ("https://127.0.0.1/a.png", "loopback"),
        ("https://2130706433/a.png", "loopback"),
        ("https://localhost/a.png", "loopback"),
        ("https://a.localhost./a.png", "loopback"),
        ("https://[::1]/a.png", "loopback"),
        ("https://10.0.0.1/a.png", "private"),
        ("https://169.254.169.254/a.png", "metadata"),
        (f"https://{'a' * 64}.example/a.png", "no host name"),
        ("https://a..example/a.png", "no host name"),
        ("https://8.8.8.8/a.png", None),
        ("https://127.0.0.1:8443/a.png", None),
    ],
)
def test_a_url_that_cannot_be_downloaded_is_named(front: wp.Front, target: str, message: str | None) -> None:
    """Nothing is stored of a request with one invalid URL."""
    made = keep(front, {"owner": "ada", "urls": [URLS[0], target]})

    if message is None:
        assert made.status == 202
    else:
        assert (made.status, made.fields["errors"][0]["field"]) == (422, "urls[1]")
        assert message in made.fields["detail"]


def test_hosts_can_be_limited(url: str) -> None:
    """MOORAGE_KEEP_HOSTS narrows the endpoint to the application's own providers."""
    with wp.running(url, MOORAGE_KEEP_HOSTS="*.example.org") as front:
        allowed = keep(front, {"owner": "ada", "urls": ["https://cdn.example.org/a.png"]})
        refused = keep(front, {"owner": "ada", "urls": URLS})

    assert (allowed.status, refused.status) == (202, 422)
    assert "add it to MOORAGE_KEEP_HOSTS" in refused.fields["detail"]


def test_metadata_is_bounded_and_part_of_every_kind_of_job(front: wp.Front) -> None:
    """16 keys, 500 characters a value; registrations have it, too."""
    many = front.register(external_id="meta_many", metadata={f"k{n}": "v" for n in range(17)})
    long = front.register(external_id="meta_long", metadata={"k": "v" * 501})
    number = front.register(external_id="meta_number", metadata={"k": 1})
    fine = front.register(external_id="meta_fine", metadata={"k": "v" * 500})

    assert [answer.status for answer in (many, long, number, fine)] == [422, 422, 422, 201]
    assert front.get(fine.headers["location"]).fields["metadata"] == {"k": "v" * 500}


def test_wait_returns_when_the_job_settles(front: wp.Front, url: str) -> None:
    """A request with `wait` is answered by the end of the job, not by its own limit."""
    made = front.register(external_id="wait_for_it")
    path = made.headers["location"]
    assert front.get(f"{path}?wait=0.2").fields["state"] == "open"

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(front.get, f"{path}?wait=60")
        cancel = threading.Timer(0.5, lambda: front.ask("POST", f"{path}/cancel", b"", wp.BEARER))
        cancel.start()
        answer = waiting.result(50)

    assert (answer.status, answer.fields["state"]) == (200, "cancelled")
    assert front.get(f"{path}?wait=61").status == 422


def test_jobs_are_listed_by_kind(front: wp.Front) -> None:
    video = front.register(external_id="kind_video", kind="video", owner="kim")
    front.register(external_id="kind_image", owner="kim")

    listed = front.get("/v1/jobs?owner=kim&kind=video").fields["jobs"]

    assert [job["job_id"] for job in listed] == [video.fields["job_id"]]


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs/nothing", "/v1/nothing"])
def test_a_request_has_an_id(front: wp.Front, path: str) -> None:
    """The client's, if it is usable; problems repeat it."""
    named = front.ask("GET", path, headers={**wp.BEARER, "x-request-id": "req-4711"})
    unusual = front.ask("GET", path, headers={**wp.BEARER, "x-request-id": "a b"})
    unnamed = front.get(path)

    assert named.headers["x-request-id"] == "req-4711"
    assert len(unnamed.headers["x-request-id"]) == len(unusual.headers["x-request-id"]) == 36
    if named.status != 200:
        assert named.fields["request_id"] == "req-4711"


@pytest.mark.parametrize(("point", "status"), [("keep_job.before_commit", 202), ("keep_job.after_commit", 200)])
def test_a_crash_at_the_commit_loses_no_file(url: str, point: str, status: int) -> None:
    """The client repeats the request with its key and finds the job, once committed; its files need no wake."""
    body = {"owner": "ada", "urls": URLS}
    with (
        wp.running(url, MOORAGE_FAILPOINT=point) as front,
        pytest.raises((http.client.HTTPException, OSError)),
    ):
        keep(front, body, idempotency_key=point)

    with wp.running(url) as front:
        again = keep(front, body, idempotency_key=point)

    due = f"SELECT count(*) AS n FROM outputs WHERE run_at <= moment() AND job_id = '{again.fields.get('job_id')}'"
    assert again.status == status
    assert rp.rows(url, due) == [{"n": 2}]
