"""Registration over HTTP, with granian and PostgreSQL."""

import concurrent.futures
import contextlib
import json
from collections.abc import Iterator

import psycopg
import pytest
import redis

from embedded.stack import Stack
from tests.integration import receiver_process as rp
from tests.integration import web_process as wp


@pytest.fixture(scope="module")
def front(url: str) -> Iterator[wp.Front]:
    with wp.running(url, MOORAGE_PARTIAL="discard", FAL_USER_ID="user") as process:
        yield process


def test_a_registration_creates_a_job_with_all_its_fields(front: wp.Front, url: str) -> None:
    """Everything in the request is in the rows, exactly."""
    scene = 2**53 + 1
    said = {"mode": "restyle", "room_type": "kitchen", "style": "warm", "prompt": "a café \U0001f3e0"}

    made = front.register(
        external_id="reg_all", kind="video", model="m/v", project_id="p1", scene=scene, deadline_seconds=90.5, **said
    )

    (job,) = rp.rows(url, f"SELECT *, deadline_at - created_at AS life FROM jobs WHERE id = '{made.fields['job_id']}'")
    (prediction,) = rp.rows(url, "SELECT * FROM predictions WHERE external_id = 'reg_all'")
    assert made.status == 201
    assert made.headers["location"] == f"/v1/jobs/{job['id']}"
    assert made.headers["cache-control"] == "no-store"
    assert made.fields == {
        "job_id": str(job["id"]),
        "prediction_id": str(prediction["id"]),
        "provider": "replicate",
        "external_id": "reg_all",
        "state": "open",
        "is_new": True,
    }
    assert {name: job[name] for name in said} == said
    assert (job["owner"], job["kind"], job["project_id"], job["scene"]) == ("ada", "video", "p1", scene)
    assert job["partial"] == "discard"
    assert round(job["life"].total_seconds(), 1) == 90.5
    assert (prediction["state"], prediction["model"]) == ("running", "m/v")


def test_a_second_registration_finds_the_first(front: wp.Front, url: str) -> None:
    """An application that lost the response retries; it must not get a second job."""
    first = front.register(external_id="reg_twice", policy="keep")
    second = front.register(external_id="reg_twice", policy="discard", owner="bob")

    assert (first.status, second.status) == (201, 200)
    assert second.fields == {**first.fields, "is_new": False}
    assert second.headers["location"] == first.headers["location"]
    assert rp.rows(url, f"SELECT owner, partial FROM jobs WHERE id = '{first.fields['job_id']}'") == [
        {"owner": "ada", "partial": "keep"}
    ]


def test_the_location_has_the_prefix_of_the_request(front: wp.Front) -> None:
    """A proxy may forward /api only: a Location without it would be unreachable."""
    body = json.dumps({"provider": "replicate", "owner": "ada", "external_id": "reg_prefix"}).encode()

    made = front.ask("POST", "/api/v1/predictions", body, {**wp.BEARER, "content-type": "application/json"})

    assert made.status == 201
    assert front.get(made.headers["location"]).fields["job_id"] == made.fields["job_id"]
    assert made.headers["location"].startswith("/api/v1/jobs/")


def test_thirty_equal_concurrent_registrations_create_one_job(front: wp.Front, url: str) -> None:
    """More than there are connections: all succeed, and one job is created."""
    with concurrent.futures.ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda _: front.register(external_id="reg_race", project_id="race"), range(30)))

    assert sorted(answer.status for answer in answers) == [200] * 29 + [201]
    assert len({answer.fields["job_id"] for answer in answers}) == 1
    assert len(rp.rows(url, "SELECT id FROM jobs WHERE project_id = 'race'")) == 1


def leave_unmatched(front: wp.Front, url: str, external_id: str) -> rp.Reply:
    """Send a webhook for an unregistered prediction, and leave it as ingest does."""
    reply = front.post(f'{{"id": "{external_id}"}}'.encode(), webhook_id=external_id, path="/api/v1/webhooks/replicate")
    with psycopg.connect(url) as conn:
        conn.execute(
            "UPDATE deliveries SET state = 'unmatched', external_id = webhook_id,"
            " unmatched_until = moment() + interval '1 day', run_at = moment() + interval '5 minutes'"
            " WHERE webhook_id = %s",
            [external_id],
        )
    return reply


def test_a_webhook_to_the_same_port_is_recorded_and_due_once_it_is_registered(front: wp.Front, url: str) -> None:
    """The receiver runs beside the API; an unavailable broker does not change the response."""
    recorded = leave_unmatched(front, url, "reg_early")

    made = front.register(external_id="reg_early")

    (row,) = rp.rows(url, "SELECT body, run_at <= moment() AS is_due FROM deliveries WHERE webhook_id = 'reg_early'")
    assert recorded[0] == 202
    assert made.status == 201
    assert bytes(row["body"]) == b'{"id": "reg_early"}'
    assert row["is_due"]
    rp.until(lambda: "wake.dropped" in front.log())


def test_a_waiting_webhook_is_woken_by_its_registration(stack: Stack, url: str) -> None:
    """A late registration should not also wait for dispatch."""
    broker = redis.Redis.from_url(stack.valkey.url(database=9))
    with contextlib.closing(broker), wp.running(url, CELERY_BROKER_URL=stack.valkey.url(database=9)) as front:
        leave_unmatched(front, url, "reg_woken")
        rp.until(lambda: broker.llen("quick") == 1)  # the receiver's own wake
        broker.delete("quick")

        front.register(external_id="reg_woken")

        (row,) = rp.rows(url, "SELECT id FROM deliveries WHERE webhook_id = 'reg_woken'")
        rp.until(lambda: broker.llen("quick") == 1)
        headers = json.loads(broker.lindex("quick", 0))["headers"]
        assert (headers["task"], headers["argsrepr"]) == ("moorage.ingest", f"['{row['id']}']")


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"provider": "replikate"}, "provider", "use one of fal, openai, replicate, standard"),
        ({"provider": "standard"}, "provider", "STANDARD_WEBHOOK_SECRET"),
        ({"provider": "fal"}, "model", "must name"),
        ({"metadata": {"": "x"}}, "metadata", "has a name that is empty"),
        ({"metadata": {"a\0": "x"}}, "metadata", "has a name that contains a NUL character"),
        ({"external_id": ""}, "external_id", "is empty"),
        ({"external_id": "x" * 501}, "external_id", "at most 500"),
        ({"owner": "a\0b"}, "owner", "NUL"),
        ({"owner": None}, "owner", "string"),
        ({"owner": 7}, "owner", "string"),
        ({"prompt": "\ud800"}, "prompt", "surrogate"),
        ({"prompt": "x" * 20_001}, "prompt", "at most 20000"),
        ({"kind": "audio"}, "kind", "'image' or 'video'"),
        ({"policy": "drop"}, "policy", "'keep' or 'discard'"),
        ({"scene": 3}, "scene", "project_id"),
        ({"scene": True, "project_id": "p"}, "scene", "neither a string nor a number"),
        ({"scene": {"id": 3}, "project_id": "p"}, "scene", "neither a string nor a number"),
        ({"scene": 10**100, "project_id": "p"}, "scene", "out of range"),
        ({"project_id": "a/b"}, "project_id", "slash"),
        ({"project_id": "\0"}, "project_id", "NUL"),
        ({"deadline_seconds": 0}, "deadline_seconds", "greater than or equal to 1"),
        ({"deadline_seconds": "90"}, "deadline_seconds", "number"),
        ({"roomtype": "kitchen"}, "roomtype", "did you mean room_type?"),
        ({"id": "reg_bad"}, "id", "valid fields: owner, mode"),
        ({"\ud800": 1}, "\\ud800", "is not a field"),
    ],
)
def test_an_invalid_field_is_named_and_nothing_is_stored(
    front: wp.Front, url: str, fields: dict[str, object], field: str, says: str
) -> None:
    """The client learns which field to change, and how."""
    refused = front.register(**{"external_id": "reg_bad", **fields})

    (error,) = refused.fields["errors"]
    assert refused.status == 422
    assert refused.headers["content-type"] == "application/problem+json"
    assert error["field"] == field
    assert says in error["message"]
    assert rp.rows(url, "SELECT id FROM predictions WHERE external_id = 'reg_bad' OR length(external_id) > 99") == []


def test_all_invalid_fields_are_named_at_once(front: wp.Front) -> None:
    """One field per request would be a guessing game."""
    refused = front.post_json(b'{"kind": "audio", "scene": "s", "colour": "red"}')

    named = {error["field"] for error in refused.fields["errors"]}
    assert named == {"provider", "external_id", "owner", "kind", "scene", "colour"}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe{}", 400),
        (b'{"owner": NaN}', 400),
        (b'{"owner": "a", "owner": "b"}', 400),
        (b'{"scene": ' + b"9" * 5000 + b"}", 400),
        (b'{"scene": ' + b"[" * 500_000, 400),
        (b"[]", 422),
        (b"null", 422),
        (b'"' + b" " * 2**20 + b'"', 413),
    ],
    ids=["empty", "cut", "not-utf8", "nan", "twice", "long-number", "brackets", "array", "null", "large"],
)
def test_a_body_that_is_not_an_object_is_rejected(front: wp.Front, body: bytes, status: int) -> None:
    """No request causes a 500, and the process survives."""
    refused = front.post_json(body)

    assert refused.status == status
    assert refused.fields["status"] == status
    assert "recursion" not in refused.fields["detail"]
    assert front.register(external_id="reg_after").status in (200, 201)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/predictions?x=1", 422),
        ("PUT", "/v1/projects/p?owner=bob", 422),
        ("POST", "/v1/owner-tokens?x=1", 422),
        ("GET", "/v1/show/00000000?x=1", 422),
        ("GET", "/v1/assets/renders/00000000-0000-0000-0000-000000000000/0?x=1", 404),
    ],
)
def test_an_unknown_name_in_the_query_is_rejected(front: wp.Front, method: str, path: str, status: int) -> None:
    """`?owner=bob` was ignored where the owner is a field; others may add names to the links of files."""
    body = b"{}" if method != "GET" else None
    refused = front.ask(method, path, body, {**wp.BEARER, "content-type": "application/json"})

    assert refused.status == status
    if status == 422:
        assert refused.fields["errors"][0]["message"] == "is not a field: none is accepted here"


def test_a_large_body_is_rejected_before_it_is_complete(front: wp.Front) -> None:
    """A chunked body declares no length: it must be stopped while it arrives."""
    with front.connect() as conn:
        head = f"POST /v1/predictions HTTP/1.1\r\nHost: moorage\r\nAuthorization: Bearer {wp.TOKEN}\r\n"
        conn.sendall(head.encode() + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(17):
            conn.sendall(b"10000\r\n" + b" " * 65536 + b"\r\n")

        assert rp.read_reply(conn).startswith(b"413 ")


def test_another_media_type_is_rejected(front: wp.Front) -> None:
    """The error names the right type; a charset parameter is accepted."""
    refused = front.post_json(b"owner=ada", content_type="application/x-www-form-urlencoded")
    taken = front.post_json(b"{}", content_type="Application/JSON; charset=utf-8")

    assert refused.status == 415
    assert taken.status == 422
