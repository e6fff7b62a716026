"""The HTTP API of operators: the status, lists, one record, and actions with their actor."""

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import pytest

from db import api_tokens
from db.connection import Connection, fetch_all
from embedded.stack import Stack
from tasks.step import Deps
from tests.integration import command_line as cli
from tests.integration import kept_world as world
from tests.integration import web_process as wp
from tests.integration.test_operator_actions import ADD_LETTERS, events

LISTS = ("deliveries", "predictions", "outputs", "dead-letters", "notifications")
SECRETS = {
    "MOORAGE_NOTIFY_URL": "https://ops.example/hooks?key=notify-url-secret",
    "MOORAGE_NOTIFY_SECRET": cli.SECRET,
    "REPLICATE_API_TOKEN": "r8_replicate-token-secret",
    "MOORAGE_OWNER_TOKEN_SECRET": "owner-token-secret-0123456789abcdef",
}


@pytest.fixture(scope="module")
def deps(stack: Stack, url: str) -> Iterator[Deps]:
    made = cli.deps(stack, url)
    yield made
    made.database.close()


@pytest.fixture(scope="module")
def front(stack: Stack, url: str) -> Iterator[wp.Front]:
    env = cli.environment(stack, url)
    servers = {name: value for name, value in env.items() if name.startswith(("AWS_", "S3_", "CELERY_"))}
    nowhere = cli.nowhere()
    servers |= {"REPLICATE_API_URL": f"http://{nowhere}", "MOORAGE_EGRESS_ALLOW": nowhere}
    with wp.running(url, **{**servers, **SECRETS}) as process:
        yield process


@pytest.fixture
def ann(mine: Connection) -> dict[str, str]:
    """Return the headers of an admin called ann."""
    return {"authorization": f"Bearer {api_tokens.create(mine, 'ann', 'admin')[1]}"}


@pytest.fixture
def viewer(mine: Connection) -> dict[str, str]:
    return {"authorization": f"Bearer {api_tokens.create(mine, 'bob', 'viewer')[1]}"}


@pytest.fixture
def letters(mine: Connection) -> Iterator[Connection]:
    """Return a connection to a database with 3 open dead letters of a cause A, and one of B."""
    mine.execute("DELETE FROM dead_letters; DELETE FROM events WHERE subject IN ('dead_letter', 'pause')")
    mine.execute(ADD_LETTERS, {"error": "A", "count": 3})
    mine.execute(ADD_LETTERS, {"error": "B", "count": 1})
    yield mine
    mine.execute("DELETE FROM dead_letters")


def send(front: wp.Front, path: str, headers: dict[str, str], body: Any, method: str = "POST") -> wp.Answer:
    content = None if body is None else json.dumps(body).encode()
    return front.ask(method, f"/v1{path}", content, {**headers, "content-type": "application/json"})


def states(conn: Connection) -> list[tuple[str, str | None]]:
    rows = fetch_all(conn, "SELECT state, closed_by FROM dead_letters ORDER BY state, error, id", {})
    return [(row["state"], row["closed_by"]) for row in rows]


def test_the_status_says_what_is_wrong_and_what_to_do(
    front: wp.Front, stack: Stack, url: str, deps: Deps, letters: Connection, viewer: dict[str, str]
) -> None:
    """As `moorage status --json`, for a monitor or a page without a shell."""
    status = front.ask("GET", "/v1/status", headers=viewer)

    assert status.status == 200, status.fields
    found = {problem["code"]: problem for problem in status.fields["problems"]}
    assert (status.fields["postgresql"], status.fields["broker"], status.fields["storage"]) == ("ok", "ok", "ok")
    assert "dead_letters" in found
    assert found["dead_letters"]["runbook"] == "open-dead-letters"
    assert found["sweep_late"]["severity"] == "critical"
    assert {provider["provider"] for provider in status.fields["providers"]} >= {"replicate", "fal"}
    assert status.fields["dead_letters"][0]["value"] == 4
    printed = json.loads(cli.run(cli.environment(stack, url), "status", "--json").stdout)
    assert set(status.fields) == set(printed)


def test_lists_have_filters_and_pages(front: wp.Front, deps: Deps, viewer: dict[str, str]) -> None:
    """Each kind of row, newest first; a filter that does not exist is refused, not ignored."""
    for name in ("a", "b", "c"):
        world.kept(deps, f"list-{name}", ["https://evil.example/x.png"], owner=f"lister-{name}")

    for kind in LISTS:
        page = front.ask("GET", f"/v1/{kind}?limit=2", headers=viewer)
        assert page.status == 200, page.fields
        field = kind.replace("-", "_")
        owned = front.ask("GET", f"/v1/{kind}?owner=lister-b", headers=viewer).fields[field]
        assert len(owned) == (0 if kind == "notifications" else 1)
        if page.fields["next"] is not None:
            more = front.ask("GET", f"/v1/{kind}?limit=2&before={page.fields['next']}", headers=viewer).fields[field]
            assert more
            assert not {json.dumps(row) for row in more} & {json.dumps(row) for row in page.fields[field]}
        assert front.ask("GET", f"/v1/{kind}?stat=open", headers=viewer).status == 422
        assert front.ask("GET", f"/v1/{kind}?state=none", headers=viewer).status == 422
    dead = front.ask("GET", "/v1/outputs?state=dead&provider=replicate", headers=viewer).fields["outputs"]
    category = dead[0]["category"]
    assert len(dead) == 3
    assert front.ask("GET", f"/v1/outputs?category={category}", headers=viewer).fields["outputs"] == dead
    assert front.ask("GET", "/v1/outputs?category=TIMED_OUT", headers=viewer).fields["outputs"] == []
    for query in ("provider=replicat", "provider=replicat&owner=lister-a"):
        unknown = front.ask("GET", f"/v1/outputs?{query}", headers=viewer)
        assert (unknown.status, unknown.fields["detail"]) == (
            422, "no row names the provider replicat; configured: direct, fal, openai, replicate, standard",
        )  # fmt: skip
    assert front.ask("GET", "/v1/outputs?provider=fal", headers=viewer).fields["outputs"] == []
    later = front.ask("GET", "/v1/outputs?since=2100-01-01T00:00:00Z", headers=viewer)
    assert (later.status, later.fields) == (200, {"outputs": [], "next": None})


def test_a_cursor_of_another_list_is_a_conflict(front: wp.Front, deps: Deps, viewer: dict[str, str]) -> None:
    """It is no row of this one, as after a deletion: begin with the first page."""
    job_id = world.kept(deps, "cursor", ["https://evil.example/x.png"], owner="cursor")

    answer = front.ask("GET", f"/v1/outputs?owner=cursor&before={job_id}", headers=viewer)

    assert answer.status == 409
    assert "is no row of this list, or was deleted: begin with the first page" in answer.fields["detail"]


def test_rows_of_a_provider_that_is_no_longer_configured_are_found(
    front: wp.Front, deps: Deps, mine: Connection, viewer: dict[str, str]
) -> None:
    job_id = world.kept(deps, "former", ["https://evil.example/x.png"])
    mine.execute("UPDATE predictions SET provider = 'former' WHERE job_id = %s", [job_id])

    for query, count in (("provider=former", 1), ("provider=former&owner=nobody", 0)):
        found = front.ask("GET", f"/v1/predictions?{query}", headers=viewer)
        assert (found.status, len(found.fields["predictions"])) == (200, count)


def test_ids_and_filter_exclude_each_other(front: wp.Front, ann: dict[str, str]) -> None:
    for body in ({}, {"ids": [str(uuid4())], "filter": {}}):
        refused = send(front, "/dead-letters/replay", ann, body)
        assert (refused.status, refused.fields["detail"]) == (422, "exactly one of `ids` and `filter` is required")


@pytest.mark.parametrize(
    ("time", "status"),
    [
        ("2100-01-01T00:00:00+23:59", 200),  # PostgreSQL reads no offset of 16 hours or more
        ("2100-01-01T00:00:00-19:59", 200),
        ("0001-01-01T00:00:00+01:00", 422),  # a year before 1, in UTC
        ("9999-12-31T23:59:59-01:00", 422),
        ("2100-01-01T00:00:00", 422),
        (4102444800, 422),
        (0, 422),
        (1.5, 422),
        (True, 422),
        ("4102444800", 422),
    ],
)
def test_a_time_is_a_date_with_an_offset(front: wp.Front, viewer: dict[str, str], time: Any, status: int) -> None:
    """In queries and bodies; a number would be read as seconds or as milliseconds."""
    for name in ("since", "until"):
        body = {"filter": {"step": "keep", name: time}, "dry_run": True}
        sent = json.dumps(body).encode(), {**wp.BEARER, "content-type": "application/json"}
        read = front.ask("GET", f"/v1/outputs?{urlencode({name: time})}", headers=viewer)
        acted = front.ask("POST", "/v1/dead-letters/replay", *sent)

        assert (read.status, acted.status) == (status, status), (read.fields, acted.fields)


def test_one_record_is_shown_by_any_id(front: wp.Front, deps: Deps, viewer: dict[str, str]) -> None:
    """Whatever stands in a log line is enough; nothing of a signed URL is repeated."""
    job_id = world.kept(deps, "shown-1", ["https://evil.example/x.png?signature=url-secret"])

    by_job = front.ask("GET", f"/v1/show/{job_id}", headers=viewer)
    by_name = front.ask("GET", "/v1/show/shown-1", headers=viewer)
    by_row = front.ask("GET", f"/v1/show/{by_job.fields['predictions'][0]['id']}", headers=viewer)

    assert by_job.status == by_name.status == by_row.status == 200, by_job.fields
    assert [shown.fields["subject"] for shown in (by_job, by_name, by_row)] == ["job", "job", "prediction"]
    assert by_job.fields["outputs"][0]["url"] == "https://evil.example/x.png"
    assert [row["state"] for row in by_job.fields["dead_letters"]] == ["open"]
    assert by_job.fields["events"]
    assert "moorage dead replay" in by_job.fields["next"][0]
    assert "url-secret" not in json.dumps([by_job.fields, by_row.fields])
    for unknown in (str(uuid4()), "nothing", "%00", "x" * 600):
        assert front.ask("GET", f"/v1/show/{unknown}", headers=viewer).status == 404


def test_a_dry_run_counts_and_changes_nothing(front: wp.Front, letters: Connection, ann: dict[str, str]) -> None:
    """What would be replayed, and what of it is about to expire, is asked first."""
    plan = send(front, "/dead-letters/replay", ann, {"filter": {"error": "A"}, "dry_run": True})

    assert plan.status == 200, plan.fields
    counts = {name: plan.fields[name] for name in ("matched", "expiring", "expired", "done", "remaining")}
    assert counts == {"matched": 3, "expiring": 0, "expired": 0, "done": 0, "remaining": 3}
    assert states(letters) == [("open", None)] * 4


def test_dead_letters_are_discarded_by_filter_and_by_id(
    front: wp.Front, letters: Connection, ann: dict[str, str]
) -> None:
    """By the token's name, in the row and in the event."""
    last = fetch_all(letters, "SELECT id FROM dead_letters WHERE error = 'B'", {})[0]["id"]

    by_filter = send(front, "/dead-letters/discard", ann, {"filter": {"error": "A"}})
    by_id = send(front, "/dead-letters/discard", ann, {"ids": [str(last), str(uuid4())]})

    assert (by_filter.fields["done"], by_filter.fields["remaining"], by_filter.fields["next"]) == (3, 0, None)
    assert (by_id.fields["done"], len(by_id.fields["refused"])) == (1, 1)
    assert states(letters) == [("discarded", "api ann")] * 4
    assert events(letters, "dead_letter") == [("open", "discarded", None, "api ann")] * 4


def test_a_replay_wakes_the_row(front: wp.Front, deps: Deps, letters: Connection, ann: dict[str, str]) -> None:
    """It is processed at once, by the path of a first attempt."""
    job_id = world.kept(deps, "replayed-1", ["https://evil.example/x.png"])

    done = send(front, "/dead-letters/replay", ann, {"filter": {"job_id": str(job_id)}})

    assert (done.fields["done"], done.fields["refused"]) == (1, [])
    rows = fetch_all(letters, "SELECT state FROM outputs WHERE job_id = %(id)s", {"id": job_id})
    assert rows == [{"state": "waiting"}]


def test_an_acknowledgement_needs_a_note(front: wp.Front, letters: Connection, ann: dict[str, str]) -> None:
    """Without it the next one on call knows as little as before."""
    without = send(front, "/dead-letters/acknowledge", ann, {"filter": {}})
    done = send(front, "/dead-letters/acknowledge", ann, {"filter": {"error": "A"}, "note": "known"})

    assert without.status == 422
    assert done.fields["done"] == 3
    shown = front.ask("GET", "/v1/dead-letters?state=open", headers=ann).fields["dead_letters"]
    notes = [(row["note"], row["acknowledged_by"]) for row in shown if row["error"] == "A"]
    assert notes == [("known", "api ann")] * 3


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"ids": [], "filter": {}},
        {"ids": []},
        {"ids": ["x"]},
        {"filter": {"provder": "x"}},
        {"filter": {}, "ids": [str(uuid4())]},
    ],
)
def test_an_unclear_selection_is_refused(front: wp.Front, letters: Connection, ann: dict[str, str], body: Any) -> None:
    """A slip must not discard everything."""
    refused = send(front, "/dead-letters/discard", ann, body)

    assert refused.status == 422, refused.fields
    assert states(letters) == [("open", None)] * 4


def test_a_pause_is_begun_once_and_ended(front: wp.Front, letters: Connection, ann: dict[str, str]) -> None:
    """With who and why; a misspelt target is named."""
    began = send(front, "/pauses", ann, {"target": "keep", "reason": "maintenance"})
    again = send(front, "/pauses", wp.BEARER, {"target": "keep"})
    wrong = send(front, "/pauses", ann, {"target": "kepp"})
    ended = send(front, "/pauses/keep", ann, None, "DELETE")
    nothing = send(front, "/pauses/keep", ann, None, "DELETE")

    assert (began.status, again.status, wrong.status, ended.status, nothing.status) == (201, 200, 422, 200, 404)
    assert (again.fields["paused_by"], again.fields["reason"]) == ("api ann", "maintenance")
    assert "use one of keep, direct" in wrong.fields["detail"]
    assert [event[1:] for event in events(letters, "pause")] == [
        ("paused", "keep: maintenance", "api ann"),
        ("resumed", "keep: maintenance", "api ann"),
    ]


def test_a_notification_is_sent_again_once(front: wp.Front, deps: Deps, mine: Connection, ann: dict[str, str]) -> None:
    """The second call finds it waiting."""
    job_id, notification_id = world.kept(deps, "notified-1"), uuid4()
    mine.execute(
        "INSERT INTO notifications (id, event_id, job_id, type, state, run_at, ended_at)"
        " VALUES (%s, 1, %s, 'job.succeeded', 'sent', NULL, moment())",
        [notification_id, job_id],
    )

    first = send(front, f"/notifications/{notification_id}/resend", ann, None)
    second = send(front, f"/notifications/{notification_id}/resend", ann, None)

    assert (first.status, second.status) == (202, 409)
    assert first.fields == {"notification_id": str(notification_id), "state": "waiting"}


def test_a_provider_that_cannot_be_asked_is_named(front: wp.Front, ann: dict[str, str]) -> None:
    """Recovery reads its list: fal has none, and replicate does not answer here."""
    for provider, word in (("fal", "no list"), ("replicate", "replicate")):
        refused = send(front, "/recoveries", ann, {"provider": provider})
        assert refused.status == 409, refused.fields
        assert word in refused.fields["detail"].lower()
    assert send(front, "/recoveries", ann, {"provider": "none"}).status == 422


def test_no_answer_contains_a_secret(
    front: wp.Front, letters: Connection, ann: dict[str, str], viewer: dict[str, str]
) -> None:
    """A viewer's token is given away easily: nothing that it reads, or that is refused, opens another door."""
    secrets = [wp.TOKEN, cli.SECRET.removeprefix("whsec_"), "notify-url-secret", "-token-secret"]
    letter_id = fetch_all(letters, "SELECT id FROM dead_letters LIMIT 1", {})[0]["id"]
    paths = [*LISTS, "status", "tokens", "jobs", "renders", f"dead-letters/{letter_id}", f"show/{letter_id}"]

    answers = [front.ask("GET", f"/v1/{path}", headers=headers) for path in paths for headers in (ann, viewer)]
    answers += [send(front, "/recoveries", ann, {"provider": name}) for name in ("fal", "replicate")]
    told = json.dumps([[answer.headers, answer.fields] for answer in answers])

    assert [answer.status for answer in answers[:-2]] == [200] * len(paths) * 2
    assert [secret for secret in secrets if secret in told] == []
