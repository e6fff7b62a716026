"""Limits of owners: what is above them is refused or waits, however many requests arrive at once."""

import concurrent.futures
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from db import owner_limits, uploads
from db.connection import Database, connect
from moorage import ids
from moorage.errors import OwnerLimitReached
from moorage.model import Media
from tests.integration import receiver_process as rp
from tests.integration import web_process as wp
from tests.integration.core import together

AWAY = {"REPLICATE_API_TOKEN": "r8_test", "REPLICATE_API_URL": "http://127.0.0.1:9", "REPLICATE_MODELS": "acme/picture"}
LIMITS = {"in_flight": 4, "open_jobs": 20, "stored_bytes": 1000}
JOB = {"chain": [{"provider": "replicate", "model": "acme/picture"}], "input": {"prompt": "a harbour"}}


@pytest.fixture(scope="module")
def front(url: str) -> Iterator[wp.Front]:
    limits = ",".join(f"{name}={limit}" for name, limit in LIMITS.items())
    with wp.running(url, **AWAY, MOORAGE_EGRESS_ALLOW="127.0.0.1:9", MOORAGE_OWNER_LIMITS=limits) as process:
        yield process


def request(front: wp.Front, owner: str, bearer: dict[str, str] = wp.BEARER, **headers: str) -> wp.Answer:
    sent = {**bearer, "content-type": "application/json", **headers}
    return front.ask("POST", "/v1/jobs", json.dumps({"owner": owner, **JOB}).encode(), sent)


def owner_token(front: wp.Front, owner: str, **given: Any) -> dict[str, str]:
    body = json.dumps({"owner": owner, **given}).encode()
    made = front.ask("POST", "/v1/owner-tokens", body, {**wp.BEARER, "content-type": "application/json"})
    return {"authorization": f"Bearer {made.fields['token']}"}


def execute(url: str, sql: str, *args: Any) -> None:
    with connect(url) as conn:
        conn.execute(sql, args)


def add_jobs(url: str, owner: str, count: int, state: str = "failed", minutes: int = 1) -> None:
    """Insert jobs that were created some minutes ago."""
    with connect(url) as conn:
        for _ in range(count):
            conn.execute(
                "INSERT INTO jobs (id, owner, kind, state, category, created_at, deadline_at, run_at, settled_at)"
                " SELECT %s, %s, 'image', s, CASE s WHEN 'failed' THEN 'TIMED_OUT' END,"
                " moment() - make_interval(mins => %s), moment(), CASE s WHEN 'open' THEN moment() + '1 h' END,"
                " CASE s WHEN 'failed' THEN moment() END FROM (SELECT %s::text AS s) x",
                (ids.uuid7(), owner, minutes, state),
            )


def test_of_fifty_requests_at_once_as_many_pass_as_are_allowed(front: wp.Front, url: str) -> None:
    """Each would count the jobs that the others have not inserted yet."""
    with concurrent.futures.ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: request(front, "crowd"), range(50)))

    assert Counter(answer.status for answer in answers) == {202: 20, 429: 30}
    assert rp.rows(url, "SELECT count(*) AS n FROM jobs WHERE owner = 'crowd'") == [{"n": 20}]
    refused = next(answer for answer in answers if answer.status == 429)
    assert refused.headers["retry-after"] == "10"
    assert refused.fields["detail"] == "a limit of this owner is reached: 20 jobs are open, of at most 20"


def test_an_owner_token_has_120_jobs_an_hour_where_nothing_else_is_set(front: wp.Front, url: str) -> None:
    """A browser is not an application: what it holds may be copied. Who waits for Retry-After is not refused again."""
    add_jobs(url, "browser", 119, minutes=20)
    add_jobs(url, "browser", 5, minutes=61)
    token = owner_token(front, "browser", scopes=["jobs"])
    first, second = request(front, "browser", token), request(front, "browser", token)

    assert (first.status, second.status) == (202, 429)
    assert 39 * 60 < int(second.headers["retry-after"]) <= 40 * 60
    assert "120 jobs were created or retried in the last hour, of at most 120" in second.fields["detail"]
    assert request(front, "browser").status == 202


def test_a_known_request_is_answered_at_the_limit(front: wp.Front, url: str) -> None:
    """It creates nothing, and its application must learn what became of it."""
    request(front, "again", **{"idempotency-key": "k"})
    add_jobs(url, "again", 30, state="open")

    assert request(front, "again", **{"idempotency-key": "k"}).status == 200
    assert request(front, "again", **{"idempotency-key": "other"}).status == 429


def test_keep_and_retry_are_limited_and_a_registration_is_not(front: wp.Front, url: str) -> None:
    """What an application started elsewhere would be lost."""
    add_jobs(url, "kinds", 30, state="open")
    add_jobs(url, "kinds", 1, state="failed")
    (failed,) = rp.rows(url, "SELECT id FROM jobs WHERE owner = 'kinds' AND state = 'failed'")
    headers = {**wp.BEARER, "content-type": "application/json"}
    body = json.dumps({"owner": "kinds", "urls": ["https://example.org/a.png"]}).encode()

    assert front.ask("POST", "/v1/keep", body, headers).status == 429
    assert front.ask("POST", f"/v1/jobs/{failed['id']}/retry", b"", wp.BEARER).status == 429
    assert front.register(owner="kinds", external_id="elsewhere").status == 201


def test_a_retry_counts_as_a_job(front: wp.Front, url: str) -> None:
    """Each is submitted again: one failed job was as many as its owner liked."""
    token = owner_token(front, "retrier", scopes=["jobs"])
    job_id = request(front, "retrier", token).fields["job_id"]
    add_jobs(url, "retrier", 117, minutes=20)

    def retry() -> wp.Answer:
        ended = "state = 'failed', category = 'TIMED_OUT', run_at = NULL"
        execute(
            url,
            f"WITH p AS (UPDATE predictions SET {ended}, ended_by = 'us', ended_at = moment()"
            f" WHERE job_id = %s AND state = 'planned') UPDATE jobs SET {ended}, settled_at = moment() WHERE id = %s",
            *[job_id] * 2,
        )
        return front.ask("POST", f"/v1/jobs/{job_id}/retry", b"", token)

    first, second, third = retry(), retry(), retry()

    assert (first.status, second.status, third.status) == (202, 202, 429)
    assert 39 * 60 < int(third.headers["retry-after"]) <= 40 * 60
    used = front.ask("GET", "/v1/usage", headers=token).fields["jobs_per_hour"]
    assert used == {"used": 120, "limit": 120}


def test_retries_on_the_page_are_limited(front: wp.Front, url: str) -> None:
    """A button is the easiest way to spend money."""
    add_jobs(url, "clicker", 30, state="open")
    add_jobs(url, "clicker", 1, state="failed")
    (failed,) = rp.rows(url, "SELECT id FROM jobs WHERE owner = 'clicker' AND state = 'failed'")
    begun = front.ask("POST", "/v1/session", None, owner_token(front, "clicker", scopes=["jobs"]))
    session = {"cookie": begun.headers["set-cookie"].split(";")[0], "sec-fetch-site": "same-origin"}

    status, headers, _ = front.call("POST", f"/page/jobs/{failed['id']}/retry", b"", session)

    assert (status, headers["location"]) == (303, "/?result=limited")
    assert b"a limit of your account" in front.call("GET", headers["location"], None, session)[2]


def test_uploads_at_once_store_no_more_than_is_allowed(url: str) -> None:
    """Each row is compared with what the others have added."""

    def add() -> None:
        database = Database(url)
        try:
            database.run(store)
        except OwnerLimitReached:
            pass
        finally:
            database.close()

    def store(conn: Any) -> None:
        owner_limits.require(conn, "uploader", LIMITS, stored_bytes=90)
        upload_id, media = ids.uuid7(), Media("image", "png", "image/png", "png", 4, 4, 1)
        uploads.add(conn, uploads.Upload(upload_id, "uploader", f"uploads/{upload_id}.png", media, 90, "a" * 64))

    together(*[add] * 20)

    assert rp.rows(url, "SELECT count(*) AS n FROM uploads WHERE owner = 'uploader'") == [{"n": 11}]


def test_an_upload_above_the_limit_is_refused(front: wp.Front) -> None:
    """Before its bytes are stored."""
    answer = front.ask("POST", "/v1/uploads?owner=big", b"x" * 1001, {**wp.BEARER, "content-type": "image/png"})

    assert (answer.status, answer.headers["retry-after"]) == (429, "3600")


def test_stored_bytes_are_those_of_the_last_count_and_later_ones(url: str) -> None:
    """The sweep counts once an hour."""
    for n, (age, size) in enumerate([("2 h", 7), ("1 min", 11)]):
        execute(
            url,
            "INSERT INTO uploads (id, owner, key, media, format, content_type, bytes, sha256, created_at)"
            " VALUES (%s, 'counted', %s, 'image', 'png', 'image/png', %s, repeat('a', 64), moment() - %s::interval)",
            ids.uuid7(), f"uploads/counted-{n}", size, age,
        )  # fmt: skip
    with connect(url) as conn:
        assert owner_limits.read(conn, "counted")["stored_bytes"] == 18
    execute(
        url,
        "INSERT INTO storage_use (bucket, owner, bytes, rank, computed_at)"
        " VALUES ('private', 'counted', 5, 1, moment() - interval '1 h'),"
        " ('public', 'counted', 100, 2, moment() - interval '1 h')",
    )
    with connect(url) as conn:
        assert owner_limits.read(conn, "counted")["stored_bytes"] == 116
        assert owner_limits.read(conn, "nobody")["stored_bytes"] == 0
        conn.execute("UPDATE storage_use SET rank = rank + 1")  # the owner of the first rank was erased
        assert owner_limits.read(conn, "counted")["stored_bytes"] == 116


def test_usage_shows_use_and_limits(front: wp.Front, url: str) -> None:
    """An owner sees its own; an application names one."""
    add_jobs(url, "shown", 2, state="open")
    add_jobs(url, "shown", 1, state="failed")
    token = owner_token(front, "shown")

    own = front.ask("GET", "/v1/usage", headers=token)
    named = front.get("/v1/usage?owner=shown")

    used = {"in_flight": 0, "open_jobs": 2, "jobs_per_hour": 3, "stored_bytes": 0}
    assert named.fields == {"owner": "shown", **{x: {"used": used[x], "limit": LIMITS.get(x)} for x in used}}
    assert own.fields == {**named.fields, "jobs_per_hour": {"used": 3, "limit": 120}}
    assert front.get("/v1/usage").status == 422
    assert front.ask("GET", "/v1/usage?owner=other", headers=token).status == 403
