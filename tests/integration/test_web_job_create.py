"""Job requests over HTTP, with granian and PostgreSQL."""

import concurrent.futures
import http.client
import json
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from db import uploads
from db.connection import connect
from moorage import ids
from moorage.model import Media
from tests.integration import receiver_process as rp
from tests.integration import web_process as wp

ENTRY = {"provider": "replicate", "model": "acme/picture"}
# Nothing answers there: an input is then accepted unchecked.
AWAY = {"REPLICATE_API_TOKEN": "r8_test", "REPLICATE_API_URL": "http://127.0.0.1:9"}
AWAY["MOORAGE_EGRESS_ALLOW"] = "127.0.0.1:9"


@pytest.fixture(scope="module")
def front(url: str) -> Iterator[wp.Front]:
    with wp.running(url, **AWAY) as process:
        yield process


def order(front: wp.Front, *, key: str | None = None, **fields: Any) -> wp.Answer:
    body = {"owner": "ada", "chain": [ENTRY], "input": {"prompt": "a harbour"}, **fields}
    return send(front, json.dumps(body).encode(), key=key)


def send(front: wp.Front, body: bytes, *, key: str | None = None) -> wp.Answer:
    headers = {**wp.BEARER, "content-type": "application/json"}
    return front.ask("POST", "/v1/jobs", body, headers | ({"idempotency-key": key} if key else {}))


def counts(url: str) -> dict[str, Any]:
    (row,) = rp.rows(
        url,
        "SELECT (SELECT count(*) FROM jobs) AS jobs, (SELECT count(*) FROM predictions) AS predictions,"
        " (SELECT count(*) FROM projects) AS projects, (SELECT count(*) FROM events) AS events",
    )
    return row


def test_a_request_creates_a_job_and_its_first_prediction(front: wp.Front, url: str) -> None:
    """Everything in the request is in the rows before anything is sent; the submit step finds it due."""
    chain = [
        {**ENTRY, "seconds": 30},
        {"provider": "replicate", "model": "acme/other", "map": {"text": "prompt", "n": "variants", "look": "style"}},
        {"provider": "replicate", "model": "acme/third", "input": {"q": 1.5}, "map": {"seed": "seed"}},
    ]
    said = {"mode": "restyle", "room_type": "kitchen", "style": "warm", "prompt": "a café", "variants": 3}

    made = order(
        front, chain=chain, input={"prompt": "p", "seed": 2**53 + 1}, project_id="p1", scene=4, policy="discard",
        placeholder=True, deadline_seconds=90.5, **said,
    )  # fmt: skip

    (job,) = rp.rows(url, f"SELECT *, deadline_at - created_at AS life FROM jobs WHERE id = '{made.fields['job_id']}'")
    (prediction,) = rp.rows(url, f"SELECT *, run_at <= moment() AS due FROM predictions WHERE job_id = '{job['id']}'")
    assert made.status == 202
    assert made.headers["location"] == f"/v1/jobs/{job['id']}"
    assert made.headers["cache-control"] == "no-store"
    assert made.fields["prediction_id"] == str(prediction["id"])
    assert (made.fields["state"], made.fields["is_new"]) == ("open", True)
    assert {name: job[name] for name in said} == said
    assert (job["owner"], job["kind"], job["project_id"], job["scene"]) == ("ada", "image", "p1", 4)
    assert (job["partial"], job["placeholder"], job["idempotency_key"]) == ("discard", True, None)
    assert round(job["life"].total_seconds(), 1) == 90.5
    assert job["fallback_chain"] == [
        {"provider": "replicate", "model": "acme/picture", "input": {"prompt": "p", "seed": 2**53 + 1}, "seconds": 30},
        {"provider": "replicate", "model": "acme/other", "input": {"text": "p", "n": 3, "look": "warm"}, "seconds": 60},
        {"provider": "replicate", "model": "acme/third", "input": {"q": 1.5, "seed": 2**53 + 1}, "seconds": 60},
    ]
    assert (prediction["state"], prediction["entry"], prediction["seq"]) == ("planned", 0, 0)
    assert (prediction["provider"], prediction["model"], prediction["due"]) == ("replicate", "acme/picture", True)


def test_an_entry_without_a_limit_gives_a_synchronous_provider_its_full_time(url: str) -> None:
    """OpenAI needs two minutes for a good picture: one that is cut off after one is paid for and not seen."""
    openai = {"provider": "openai", "model": "gpt-image-1"}
    chain = [openai, {**openai, "seconds": 45}, ENTRY]
    with wp.running(url, **AWAY, OPENAI_API_KEY="sk-test") as front:
        image, video = order(front, chain=chain), order(front, chain=chain, kind="video")

    def limits(made: wp.Answer) -> list[float]:
        (job,) = rp.rows(url, f"SELECT fallback_chain FROM jobs WHERE id = '{made.fields['job_id']}'")
        return [entry["seconds"] for entry in job["fallback_chain"]]

    assert limits(image) == [180, 45, 60]
    assert limits(video) == [600, 45, 600]


def test_the_prompt_of_a_job_is_that_of_its_first_input_unless_it_has_its_own(front: wp.Front, url: str) -> None:
    for fields, expected in (
        ({}, "a harbour"),
        ({"prompt": "own"}, "own"),
        ({"chain": [{**ENTRY, "input": {"prompt": "of the entry"}}]}, "of the entry"),
        ({"input": {"prompt": ["no", "text"]}}, None),
        ({"input": {"text": "without"}}, None),
    ):
        made = order(front, **fields)
        query = f"SELECT prompt FROM jobs WHERE id = '{made.fields['job_id']}'"
        assert rp.rows(url, query) == [{"prompt": expected}]


def test_an_unavailable_provider_is_no_reason_to_reject(front: wp.Front) -> None:
    """The schema was not available: the request is accepted, and the response states that it was not checked."""
    made = order(front)

    assert made.status == 202
    assert made.fields["checked"] is False
    assert made.fields["unchecked"][0].startswith("chain[0]: ")


def test_an_equal_request_with_the_same_key_is_the_same_job(front: wp.Front, url: str) -> None:
    """An application that lost the response repeats the request, with its fields in any order."""
    first = order(front, key="again", project_id="p2")
    body = {"input": {"prompt": "a harbour"}, "project_id": "p2", "chain": [ENTRY], "owner": "ada"}
    second = send(front, json.dumps(body, indent=2).encode(), key="again")

    assert (first.status, second.status) == (202, 200)
    assert second.fields["is_new"] is False
    assert {second.fields[name] for name in ("job_id", "prediction_id")} == {
        first.fields[name] for name in ("job_id", "prediction_id")
    }
    assert second.headers["location"] == first.headers["location"]


def test_another_request_with_the_same_key_is_rejected_and_names_the_first_job(front: wp.Front, url: str) -> None:
    """Silently returning the first would lose the second."""
    first = order(front, key="other")
    before = counts(url)

    refused = order(front, key="other", prompt="something else", project_id="never")

    assert refused.status == 409
    assert refused.headers["content-type"] == "application/problem+json"
    assert first.fields["job_id"] in refused.fields["detail"]
    assert counts(url) == before


def test_keys_are_scoped_by_owner(front: wp.Front) -> None:
    """Two owners may number their requests alike."""
    assert order(front, key="mine").fields["job_id"] != order(front, key="mine", owner="bob").fields["job_id"]


def test_thirty_equal_concurrent_requests_create_one_job(front: wp.Front, url: str) -> None:
    """Impatient clients retry while the first request is still in progress."""
    with concurrent.futures.ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda _: order(front, key="burst", project_id="burst"), range(30)))

    assert sorted(answer.status for answer in answers) == [200] * 29 + [202]
    assert len({answer.fields["job_id"] for answer in answers}) == 1
    assert rp.rows(url, "SELECT count(*) AS n FROM jobs WHERE idempotency_key = 'burst'") == [{"n": 1}]


def test_of_thirty_different_concurrent_requests_with_one_key_one_is_accepted(front: wp.Front, url: str) -> None:
    """The others get its id, whichever was first; none creates its project."""
    with concurrent.futures.ThreadPoolExecutor(30) as pool:
        answers = list(pool.map(lambda n: order(front, key="race", project_id=f"race-{n}"), range(30)))

    (made,) = [answer for answer in answers if answer.status == 202]
    assert {answer.status for answer in answers} == {202, 409}
    assert all(made.fields["job_id"] in answer.fields["detail"] for answer in answers if answer.status == 409)
    assert rp.rows(url, "SELECT count(*) AS n FROM projects WHERE id LIKE 'race-%'") == [{"n": 1}]


DEEP: Any = "x"
for _ in range(40):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("fields", "field", "says"),
    [
        ({"chain": []}, "chain", "at least 1"),
        ({"chain": [ENTRY] * 9}, "chain", "at most 8"),
        ({"chain": "acme/picture"}, "chain", "is not a list"),
        ({"chain": ["acme/picture"]}, "chain[0]", "is not an object"),
        ({"chain": [ENTRY, {"provider": "replicate"}]}, "chain[1].model", "is required"),
        ({"chain": [{**ENTRY, "provider": "replikate"}]}, "chain[0].provider", "use one of fal, openai"),
        ({"chain": [{**ENTRY, "provider": "standard"}]}, "chain[0].provider", "accepts no submissions"),
        ({"chain": [{**ENTRY, "provider": "openai"}]}, "chain[0].provider", "set OPENAI_API_KEY"),
        ({"chain": [{**ENTRY, "seconds": 0.5}]}, "chain[0].seconds", "greater than or equal to 1"),
        ({"chain": [{**ENTRY, "modle": "x"}]}, "chain[0].modle", "did you mean model?"),
        ({"chain": [{**ENTRY, "input": {}}]}, "chain[0].input", "is empty"),
        ({"chain": [{**ENTRY, "input": ["a"]}]}, "chain[0].input", "is not an object"),
        (
            {"chain": [{**ENTRY, "map": {"look": "style"}}]},
            "chain[0].map.look",
            "does not have: it has prompt",
        ),
        ({"input": {}}, "input", "is empty"),
        ({"input": "a harbour"}, "input", "is not an object"),
        ({"input": None}, "chain[0].input", "is required"),
        ({"input": {"a": {"b": ["x", "a\0b"]}}}, "input.a.b[1]", "NUL"),
        ({"input": {"a\0": 1}}, "input", "cannot be stored"),
        ({"input": {"a": DEEP}}, f"input.a{'[0]' * 32}", "deep"),
        ({"input": {"image": {"upload": "7"}}}, "input.image", "upload"),
        ({"input": {"images": [{"variant": 7}]}}, "input.images[0]", "variant"),
        ({"kind": "audio"}, "kind", "'image' or 'video'"),
        ({"owner": ""}, "owner", "is empty"),
        ({"variants": 0}, "variants", "greater than or equal to 1"),
        ({"placeholder": "yes"}, "placeholder", "boolean"),
        ({"scene": 3}, "scene", "project_id"),
        ({"deadline_seconds": 0}, "deadline_seconds", "greater than or equal to 1"),
        ({"callback": "x"}, "callback", "is not a field"),
    ],
    ids=lambda value: None if isinstance(value, dict) else str(value)[:40],
)
def test_an_invalid_field_is_named_and_nothing_is_stored(
    front: wp.Front, url: str, fields: dict[str, Any], field: str, says: str
) -> None:
    """The client learns which field to change, and how."""
    before = counts(url)

    refused = order(front, **fields)

    assert refused.status == 422, refused.fields
    (error,) = refused.fields["errors"]
    assert error["field"] == field
    assert says in error["message"]
    assert counts(url) == before


@pytest.mark.parametrize("key", ["", "x" * 256, "caf\xe9", "a\tb"])
def test_an_invalid_key_is_rejected(front: wp.Front, key: str) -> None:
    """A truncated or lost key would create a second job."""
    headers = {**wp.BEARER, "content-type": "application/json", "idempotency-key": key}

    refused = front.ask("POST", "/v1/jobs", b"{}", headers)

    assert refused.status == 422
    assert refused.fields["errors"][0]["field"] == "Idempotency-Key"


def test_an_infinite_number_is_rejected(front: wp.Front) -> None:
    """1e999 is JSON, but cannot be stored."""
    body = b'{"owner": "ada", "chain": [{"provider": "replicate", "model": "m/n"}], "input": {"scale": 1e999}}'

    refused = send(front, body)

    assert refused.status == 422
    assert refused.fields["errors"][0]["field"] == "input.scale"


def test_a_number_of_many_digits_is_rejected(front: wp.Front) -> None:
    """As a float it is 0: the job would run with another number than was sent."""
    body = b'{"owner": "ada", "chain": [{"provider": "replicate", "model": "m/n"}], "input": {"scale": 1e-16383}}'

    refused = send(front, body)

    assert refused.status == 422
    assert "1e-16383" in refused.fields["detail"]


def test_megabytes_of_input_are_rejected(front: wp.Front) -> None:
    """Eight entries that share a megabyte would be eight megabytes in one row."""
    refused = order(front, chain=[ENTRY] * 8, input={"image": "data:image/png;base64," + "A" * 900_000})

    assert refused.status == 422
    assert "upload" in refused.fields["errors"][0]["message"]


@pytest.fixture
def upload_id(url: str) -> Iterator[str]:
    upload = uploads.Upload(
        ids.uuid7(),
        "ada",
        f"ada/inputs/{ids.uuid7()}.png",
        Media("image", "png", "image/png", "png", 8, 8),
        9,
        "5e" * 32,
    )
    conn = connect(url)
    uploads.add(conn, upload)
    yield str(upload.id)
    conn.close()


def test_references_to_own_files_are_stored(front: wp.Front, url: str, upload_id: str) -> None:
    """The reference is stored as it is: a URL signed now would have expired when it is needed."""
    made = order(front, input={"prompt": "p", "image": {"upload": upload_id}})

    (job,) = rp.rows(url, f"SELECT fallback_chain FROM jobs WHERE id = '{made.fields.get('job_id')}'")
    assert made.status == 202
    assert job["fallback_chain"][0]["input"] == {"prompt": "p", "image": {"upload": upload_id}}


@pytest.mark.parametrize("other", ["owner", "id", "variant"])
def test_references_to_other_files_are_rejected_alike(front: wp.Front, url: str, upload_id: str, other: str) -> None:
    """Whether an id of another owner exists is not revealed."""
    missing = "01890000-0000-7000-8000-000000000000"
    named = {"owner": {"upload": upload_id}, "id": {"upload": missing}, "variant": {"variant": f"{missing}/0"}}[other]
    before = counts(url)

    refused = order(front, owner="bob" if other == "owner" else "ada", input={"images": [1, named]})

    assert refused.status == 422
    (error,) = refused.fields["errors"]
    assert error["field"] == "input.images[1]"
    assert "does not have" in error["message"]
    assert counts(url) == before


def test_an_equal_request_is_found_after_its_file_was_deleted(front: wp.Front, url: str, upload_id: str) -> None:
    """An accepted request is not rejected later."""
    first = order(front, key="gone", input={"image": {"upload": upload_id}})
    with psycopg.connect(url) as conn:
        conn.execute("UPDATE uploads SET deleted_at = moment() WHERE id = %s", (upload_id,))

    second = order(front, key="gone", input={"image": {"upload": upload_id}})

    assert (first.status, second.status) == (202, 200)
    assert second.fields["job_id"] == first.fields["job_id"]


def test_a_project_id_of_another_owner_is_free(front: wp.Front, url: str) -> None:
    """One owner's image must not appear in another's document."""
    order(front, project_id="adas")

    made = order(front, owner="bob", project_id="adas")

    owners = rp.rows(url, "SELECT owner FROM projects WHERE id = 'adas' ORDER BY owner")
    assert made.status == 202
    assert [row["owner"] for row in owners] == ["ada", "bob"]


@pytest.mark.parametrize(("point", "status"), [("order.before_commit", 202), ("order.after_commit", 200)])
def test_a_crash_at_the_commit_loses_no_request(url: str, point: str, status: int) -> None:
    """The client retries with the same key and finds the job, once committed; it is due without a wake."""
    with (
        wp.running(url, **AWAY, MOORAGE_FAILPOINT=point) as front,
        pytest.raises((http.client.HTTPException, OSError)),
    ):
        order(front, key=point)

    with wp.running(url, **AWAY) as front:
        again = order(front, key=point)

    due = f"SELECT run_at <= moment() AS due FROM predictions WHERE job_id = '{again.fields.get('job_id')}'"
    assert again.status == status
    assert rp.rows(url, due) == [{"due": True}]
