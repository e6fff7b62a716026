"""Webhooks out: an application is told of every end of its jobs, signed; what it never took is a dead letter."""

import base64
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from jsonschema import Draft202012Validator
from pydantic import SecretStr
from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError

from embedded.stack import Stack
from moorage.errors import Refused
from moorage.model import Wake
from moorage.retry_policy import NOTIFICATION_WAITS
from tasks import notifications
from tasks.jobs import replay
from tasks.sweeps import dispatch
from tests.integration.core import World, database_of, png, prediction, together, world
from tests.support.application import Application, listening
from web import openapi

OLD, NEW = ("whsec_" + base64.b64encode(name * 3).decode() for name in (b"an old secret", b"the newer one"))


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return database_of(stack, template_database, "notify")


@pytest.fixture
def app() -> Iterator[Application]:
    with listening() as made:
        yield made


@pytest.fixture
def at(stack: Stack, url: str, app: Application) -> Iterator[World]:
    secrets = (SecretStr(OLD), SecretStr(NEW))
    with world(stack, url, notify_urls=(app.url,), notify_secret=secrets) as made:
        yield made


def notifications_of(at: World, job_id: UUID) -> list[dict[str, Any]]:
    return at.conn.execute("SELECT * FROM notifications WHERE job_id = %s ORDER BY event_id", (job_id,)).fetchall()


def ended(at: World, **asked: Any) -> tuple[UUID, UUID]:
    """Return a succeeded job and its notification, which waits."""
    made = at.keeping([at.source.picture()], **asked)
    at.keep_all(made.job_id)
    (notification,) = notifications_of(at, made.job_id)
    return made.job_id, notification["id"]


def tell(at: World, notification_id: UUID) -> str:
    """Carry the step out, due at once, and return the state of the notification."""
    at.conn.execute(
        "UPDATE notifications SET run_at = moment() WHERE id = %s AND run_at IS NOT NULL", (notification_id,)
    )
    at.step("notify", notification_id)
    return at.state("notifications", notification_id)


def test_an_application_is_told_of_the_end_of_its_job(at: World, app: Application) -> None:
    """Instead of asking every second; with all that it would have asked for."""
    job_id, notification_id = ended(at, project_id="p1", scene=3)

    assert tell(at, notification_id) == "sent"

    (heard,) = app.heard
    assert heard.path == "/hooks"
    assert heard.headers["webhook-id"] == str(notification_id)
    assert heard.headers["content-type"] == "application/json"
    assert heard.body["type"] == "job.succeeded"
    data = heard.body["data"]
    wanted = {"job_id": str(job_id), "owner": "ann", "state": "succeeded", "render_id": str(job_id), "errors": [],
              "project_id": "p1", "scene": 3, "metadata": {}, "reopened": 0,
              "sequence": notifications_of(at, job_id)[0]["event_id"],
              "category": None, "reason": None}  # fmt: skip
    (variant,) = data.pop("variants")
    assert data == wanted
    assert variant["url"] == f"{at.deps.asset_base}/{at.row('outputs', at.outputs(job_id)[0])['key']}"
    assert variant["is_placeholder"] is False
    assert at.edges("notification", notification_id) == [(None, "waiting"), ("waiting", "sent")]


@pytest.mark.parametrize("secret", [OLD, NEW])
def test_each_secret_verifies_a_notice_with_the_reference_library(at: World, app: Application, secret: str) -> None:
    """While a secret is exchanged the application knows the old one, the new one, or both."""
    tell(at, ended(at)[1])

    heard = app.heard[0]
    assert Webhook(secret).verify(heard.raw, heard.headers) == heard.body
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(heard.raw + b" ", heard.headers)


def test_a_failed_job_is_told_with_its_errors(at: World, app: Application) -> None:
    """What could not be kept has a reason, and the application shows it."""
    made = at.keeping([at.source.broken(410)])
    at.keep_all(made.job_id)
    (notification,) = notifications_of(at, made.job_id)

    tell(at, notification["id"])

    event = app.heard[0].body
    assert event["type"] == "job.failed"
    assert (event["data"]["state"], event["data"]["render_id"], event["data"]["variants"]) == ("failed", None, [])
    assert event["data"]["errors"][0]["type"] == "DOWNLOAD_FAILED"


def test_a_notification_is_as_the_openapi_document_describes_it(at: World, app: Application) -> None:
    """That schema is written by hand: a field of one side only would mislead every receiver."""
    made = at.keeping([at.source.picture(), at.source.broken()])
    at.keep_all(made.job_id)
    (notification,) = notifications_of(at, made.job_id)

    tell(at, notification["id"])

    body = app.heard[0].body
    schema = {**openapi.build_document(), "$ref": "#/components/schemas/Notification"}
    assert [error.message for error in Draft202012Validator(schema).iter_errors(body)] == []
    assert (body["type"], len(body["data"]["variants"]), len(body["data"]["errors"])) == ("job.partial", 1, 1)


def test_a_job_that_ends_twice_is_told_twice_in_sequence(at: World, app: Application) -> None:
    """A replay completes what was partial; the higher number is the newer truth."""
    made = at.keeping([at.source.picture(), at.source.broken()])
    at.keep_all(made.job_id)
    second = at.outputs(made.job_id)[1]
    at.source.files[at.row("outputs", second)["source"].removeprefix(at.source.url(""))] = (200, png(7))
    (letter,) = at.letters()
    at.deps.database.run(lambda conn: replay.replay_dead_letter(conn, letter["id"], "cli"))
    at.step("keep", second)

    first, again = notifications_of(at, made.job_id)
    for notification in (again, first):  # in any order
        assert tell(at, notification["id"]) == "sent"

    assert [one.body["type"] for one in app.heard] == ["job.succeeded", "job.partial"]
    newer, older = (one.body["data"] for one in app.heard)
    assert newer["sequence"] > older["sequence"]
    assert (older["state"], older["reopened"]) == ("succeeded", 1)  # as it stands when it is sent


def test_nobody_is_told_who_did_not_ask_for_it(at: World) -> None:
    """Without an address there is nobody to tell, and no row that waits."""
    made = at.changed(notify_urls=()).keeping([at.source.picture()])
    at.keep_all(made.job_id)

    assert at.state("jobs", made.job_id) == "succeeded"
    assert notifications_of(at, made.job_id) == []


@pytest.mark.parametrize("status", [500, 503, 429, 404, 401, 302])
def test_what_is_not_taken_is_sent_again_under_the_same_id(at: World, app: Application, status: int) -> None:
    """The application restarts, or its address was wrong for a minute; it knows a repetition by its id."""
    _, notification_id = ended(at)
    app.answers = [(status, {"Location": app.url + "/elsewhere"})]

    assert tell(at, notification_id) == "waiting"
    assert str(status) in at.row("notifications", notification_id)["reason"]
    assert tell(at, notification_id) == "sent"

    first, second = app.heard
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert {one.path for one in app.heard} == {"/hooks"}  # no redirect was followed
    assert at.row("notifications", notification_id)["reason"] is None


def test_retry_after_is_honoured(at: World, app: Application) -> None:
    """Who asks for time is given it."""
    _, notification_id = ended(at)
    app.answers = [(429, {"Retry-After": "1800"})]

    tell(at, notification_id)

    wait = at.one("SELECT extract(epoch FROM run_at - moment()) FROM notifications WHERE id = %s", notification_id)
    assert 1700 < wait <= 1800


def test_the_beginning_of_an_error_is_recorded(at: World, app: Application) -> None:
    """Who looks for the cause reads what the application said, on one line; no more than 200 bytes."""
    _, notification_id = ended(at)
    app.answers, app.error_body = [(500, {})], b"Traceback:\n  \x1b[1mKeyError\n" + b"x" * 500

    assert tell(at, notification_id) == "waiting"

    reason = at.row("notifications", notification_id)["reason"]
    assert reason.startswith(r"the application at 127.0.0.1 returned 500: Traceback: \x1b[1mKeyError xxx")
    assert len(reason) < 250


def test_410_ends_it_at_once(at: World, app: Application) -> None:
    """The application says that it wants to hear no more; a person reads why."""
    job_id, notification_id = ended(at)
    app.answers = [(410, {})]

    assert tell(at, notification_id) == "dead"

    (letter,) = at.letters(notification_id)
    assert (letter["subject"], letter["step"], letter["category"]) == ("notification", "notify", "NOTIFY_FAILED")
    assert (letter["job_id"], letter["retryable"], letter["facts"]["status"]) == (job_id, True, 410)
    assert at.state("jobs", job_id) == "succeeded"


def test_what_is_never_taken_is_a_dead_letter_that_can_be_replayed(at: World, app: Application) -> None:
    """An application that was away for three days is told of all it missed by one command."""
    _, notification_id = ended(at)
    app.answers = [(500, {})] * (len(NOTIFICATION_WAITS) + 1)
    for _ in NOTIFICATION_WAITS:
        assert tell(at, notification_id) == "waiting"
    tell(at, notification_id)
    (letter,) = at.letters(notification_id)
    assert at.state("notifications", notification_id) == "dead"

    wake = at.deps.database.run(lambda conn: replay.replay_dead_letter(conn, letter["id"], "cli"))

    assert wake == Wake("notify", notification_id)
    assert tell(at, notification_id) == "sent"
    assert {one.headers["webhook-id"] for one in app.heard} == {str(notification_id)}
    with pytest.raises(Refused):
        at.deps.database.run(lambda conn: replay.replay_dead_letter(conn, letter["id"], "cli"))


def test_the_waits_of_a_notification_grow_over_72_hours(at: World) -> None:
    """An application may be away over a weekend; one that is away for good is not asked a thousand times."""
    _, notification_id = ended(at)
    away = at.changed({"wait_base_seconds": 2.0}, notify_urls=("http://127.0.0.1:9/hooks",))

    waits = []
    while at.state("notifications", notification_id) == "waiting":
        tell(away, notification_id)
        wait = at.one(
            "SELECT extract(epoch FROM run_at - moment())::float8 FROM notifications WHERE id = %s", notification_id
        )
        waits += [wait] * (wait is not None)

    assert waits == sorted(waits)
    assert 72 <= sum(waits) / 3600 + 0.01 <= 72 * 1.1 + 0.01
    assert [letter["category"] for letter in at.letters(notification_id)] == ["NOTIFY_FAILED"]


def test_an_application_that_is_away_costs_an_attempt(at: World, app: Application) -> None:
    """No connection is a failure like any other: it is told which."""
    _, notification_id = ended(at)
    away = at.changed(notify_urls=("http://127.0.0.1:9/hooks",))

    assert tell(away, notification_id) == "waiting"

    assert "did not answer" in at.row("notifications", notification_id)["reason"]
    assert app.heard == []


def test_an_answer_that_never_ends_is_cut_off(at: World, app: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then passes every time-out of a socket, and would hold a worker for ever."""
    _, notification_id = ended(at)
    monkeypatch.setattr(notifications, "TIMEOUT_SECONDS", 0.5)
    app.drips = True

    assert tell(at, notification_id) == "waiting"

    assert "within 0.5 s" in at.row("notifications", notification_id)["reason"]


def test_an_address_that_was_taken_away_is_said(at: World) -> None:
    """What waits for nobody must not wait for ever."""
    _, notification_id = ended(at)

    assert tell(at.changed(notify_urls=()), notification_id) == "dead"

    assert "MOORAGE_NOTIFY_URL" in at.letters(notification_id)[0]["reason"]


def test_workers_that_die_of_it_make_it_a_dead_letter(at: World, app: Application) -> None:
    """Poison, as everywhere."""
    _, notification_id = ended(at)
    at.conn.execute("UPDATE notifications SET crashes = 5, attempt = 5 WHERE id = %s", (notification_id,))

    assert tell(at, notification_id) == "dead"

    assert at.letters(notification_id)[0]["category"] == "POISON"
    assert app.heard == []


def test_a_worker_whose_lease_was_lost_does_not_record(at: World, app: Application) -> None:
    """The next one tells again, under the same id, and records."""
    _, notification_id = ended(at)
    app.before_answer = lambda: at.conn.execute(
        "UPDATE notifications SET lease_token = gen_random_uuid() WHERE id = %s", (notification_id,)
    )

    assert tell(at, notification_id) == "waiting"

    assert at.edges("notification", notification_id) == [(None, "waiting")]


def test_a_doubled_wake_tells_once(at: World, app: Application) -> None:
    """Wakes come doubled; the claim lets one through."""
    _, notification_id = ended(at)

    with at.beside() as one, at.beside() as other:
        steps = [World(deps, at.conn, at.source, at.database_url) for deps in (one, other)]
        together(*(lambda it=it: it.step("notify", notification_id) for it in steps))

    assert len(app.heard) == 1
    assert at.state("notifications", notification_id) == "sent"


def test_dispatch_finds_a_notice_that_nobody_woke(at: World) -> None:
    """The end of a job sends no wake of its own: the second that dispatch takes is soon enough."""
    _, notification_id = ended(at)
    sent: list[Wake] = []

    dispatch.dispatch_due(at.deps, lambda _: 0, lambda wakes: sent.extend(wakes) or len(wakes))

    assert Wake("notify", notification_id) in sent


def test_a_failure_of_a_prediction_is_told_as_the_end_of_its_job(at: World, app: Application) -> None:
    """Every way in which a job ends passes the same statement."""
    made = at.registered("p9")
    at.step("ingest", at.delivered(prediction("p9", "failed", error="NSFW")))
    (notification,) = notifications_of(at, made.job_id)

    tell(at, notification["id"])

    event = app.heard[0].body
    assert (event["type"], event["data"]["category"]) == ("job.failed", "PROVIDER_FAILED")
    assert "NSFW" in event["data"]["reason"]


def test_a_job_names_one_of_the_allowed_urls(at: World, app: Application) -> None:
    """The first one is the default; a URL that was removed since is refused, not replaced."""
    other = f"{app.url}/other"
    both = at.changed(notify_urls=(app.url, other))
    made = both.keeping([both.source.picture()], notify_url=other)
    both.keep_all(made.job_id)
    (notification,) = notifications_of(both, made.job_id)

    assert tell(at, notification["id"]) == "dead"
    assert at.row("notifications", notification["id"])["reason"].endswith("its URL for this job was removed")
    assert app.heard == []
