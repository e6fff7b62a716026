"""Ingest: deliveries applied to predictions, in any order, once."""

import threading
from collections.abc import Iterator

import pytest

from db import deliveries
from db.connection import connect
from embedded.stack import Stack
from moorage.errors import LeaseLost
from moorage.model import Wake
from tasks.predictions import ingest
from tests.integration.core import LEASED_BY, Held, World, database_of, prediction, together, wait_until, world


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return database_of(stack, template_database, "ingest")


@pytest.fixture
def at(stack: Stack, url: str) -> Iterator[World]:
    with world(stack, url) as made:
        yield made


def test_a_success_becomes_waiting_outputs_in_document_order(at: World) -> None:
    """The order of a render's variants is the provider's."""
    made = at.registered("p1")
    urls = [at.source.picture(n) for n in range(3)]

    wakes = at.step("ingest", at.delivered(prediction("p1", "succeeded", urls)))

    rows = [at.row("outputs", output_id) for output_id in at.outputs(made.job_id)]
    assert [(r["source"], r["path"], r["state"]) for r in rows] == [
        (url, f"output[{n}]", "waiting") for n, url in enumerate(urls)
    ]
    assert wakes == [Wake("keep", r["id"]) for r in rows]
    assert at.state("jobs", made.job_id) == "keeping"
    assert at.row("jobs", made.job_id)["chosen_id"] == made.prediction_id


def test_two_webhooks_for_one_completion_make_one_set_of_outputs(at: World) -> None:
    """Providers send twice, with different ids; files must not be doubled."""
    made, urls = at.registered("p1"), [at.source.picture()]
    first, second = (at.delivered(prediction("p1", "succeeded", urls)) for _ in range(2))

    at.step("ingest", first)
    at.step("ingest", second)

    assert len(at.outputs(made.job_id)) == 1
    assert (at.state("deliveries", first), at.state("deliveries", second)) == ("applied", "ignored")
    assert "duplicate" in at.row("deliveries", second)["reason"]


def test_processing_after_succeeded_changes_nothing(at: World) -> None:
    """Webhooks arrive out of order; a status only moves forward."""
    made = at.registered("p1")
    at.step("ingest", at.delivered(prediction("p1", "succeeded", [at.source.picture()])))
    before = at.row("predictions", made.prediction_id)

    late = at.delivered(prediction("p1", "processing"))
    at.step("ingest", late)

    assert at.state("deliveries", late) == "ignored"
    assert "backwards" in at.row("deliveries", late)["reason"]
    assert at.row("predictions", made.prediction_id) == before


def test_a_later_answer_renews_the_url_of_a_waiting_output(at: World) -> None:
    """A fresh URL saves a file whose first URL died."""
    made, fresh = at.keeping([at.source.broken()]), at.source.picture()
    external_id = at.row("predictions", made.prediction_id)["external_id"]

    renewing = at.delivered(prediction(external_id, "succeeded", [fresh, at.source.picture()]))
    at.step("ingest", renewing)

    (output_id,) = at.outputs(made.job_id)
    assert at.row("outputs", output_id)["source"] == fresh
    assert at.state("deliveries", renewing) == "applied"


@pytest.mark.parametrize("body", [b"\xff\xfe", b"not json", b"[]", b'{"id": 5}', b"[" * 200_000])
def test_a_body_that_cannot_be_understood_is_a_dead_letter(at: World, body: bytes) -> None:
    """It was answered 2xx, so it must not vanish."""
    delivery = at.delivered(body)

    at.step("ingest", delivery)

    (letter,) = at.letters(delivery)
    assert (letter["category"], letter["error"], letter["state"]) == ("VALIDATION_FAILED", "MalformedPayload", "open")
    assert at.state("deliveries", delivery) == "dead"
    assert at.row("deliveries", delivery)["body"] == body


def test_a_failure_with_nul_in_its_error_is_recorded(at: World) -> None:
    """PostgreSQL takes no NUL in text; the reason is kept escaped and the worker lives."""
    made = at.registered("p1")

    at.step("ingest", at.delivered(prediction("p1", "failed", error="bad \x00 \ud800 prompt")))

    job = at.row("jobs", made.job_id)
    assert (job["state"], job["category"]) == ("failed", "PROVIDER_FAILED")
    assert "\\x00" in job["reason"]


def test_a_success_without_files_fails_the_job_after_one_poll(at: World) -> None:
    """Nobody must wait for files that do not exist."""
    made = at.registered("p1")
    at.source.predictions["p1"] = prediction("p1", "succeeded", [])

    (wake,) = at.step("ingest", at.delivered(prediction("p1", "succeeded", [])))
    assert at.state("predictions", made.prediction_id) == "running"
    at.step(wake.step, wake.row_id)

    assert at.source.asked == ["/v1/predictions/p1"]
    assert at.state("predictions", made.prediction_id) == "failed"
    assert "NO_OUTPUT" in at.row("jobs", made.job_id)["reason"]


def test_files_the_provider_removed_are_a_lost_prediction(at: World) -> None:
    """Files existed and we did not get them: somebody must hear of it."""
    made = at.registered("p1")

    at.step("ingest", at.delivered(prediction("p1", "succeeded", None, data_removed=True)))

    assert at.state("predictions", made.prediction_id) == "lost"
    assert [letter["subject"] for letter in at.letters()] == ["prediction"]


def test_an_output_on_a_foreign_host_is_dead_and_its_sibling_goes_on(at: World) -> None:
    """A provider's answer must not make us fetch from anywhere."""
    made = at.keeping(["https://evil.example/x.png", at.source.picture()])

    at.keep_all(made.job_id)

    first, second = at.outputs(made.job_id)
    assert at.state("outputs", first) == "dead"
    assert "evil.example" in at.letters(first)[0]["reason"]
    assert at.state("outputs", second) == "kept"
    assert at.state("jobs", made.job_id) == "succeeded"


def test_a_job_whose_files_are_all_refused_settles_at_once(at: World) -> None:
    """No output is left to settle the job: the ingest has to."""
    made = at.keeping(["https://evil.example/x.png", "https://evil.example/y.png"])

    assert at.state("jobs", made.job_id) == "failed"
    assert at.edges("job", made.job_id)[-2:] == [("open", "keeping"), ("keeping", "failed")]


def test_a_delivery_before_its_registration_waits_for_it(at: World) -> None:
    """A quick provider's webhook overtakes the application's registration."""
    delivery = at.delivered(prediction("p1", "succeeded", [at.source.picture()]))
    at.step("ingest", delivery)
    assert at.state("deliveries", delivery) == "unmatched"

    made = at.registered("p1")

    assert made.wakes == [Wake("ingest", delivery)]
    at.step("ingest", delivery)
    assert at.state("deliveries", delivery) == "applied"
    assert len(at.outputs(made.job_id)) == 1


def test_looking_for_a_registration_is_no_error(at: World) -> None:
    """A delivery that waited for an hour must not be given up at its first real failure."""
    delivery = at.delivered(prediction("p1", "succeeded", [at.source.picture()]))
    for _ in range(15):
        at.step("ingest", delivery)
        at.conn.execute("UPDATE deliveries SET run_at = moment() WHERE id = %s", (delivery,))

    lease = at.claim("deliveries", delivery, ("unmatched",))

    assert lease is not None
    assert lease.errors == 0


def test_the_looks_for_a_registration_grow_apart(at: World) -> None:
    """From 1 s to 5 min: soon for a race, seldom for a stranger."""
    delivery = at.delivered(prediction("p1", "succeeded", []))
    before = at.one("SELECT moment()")
    at.step("ingest", delivery)
    wait = "SELECT extract(epoch FROM run_at - moment())::float FROM deliveries WHERE id = %s"
    assert at.row("deliveries", delivery)["run_at"] > before
    assert at.one(wait, delivery) <= 1.5

    with at.later("20 minutes") as then:
        then.step("ingest", delivery)

        assert 200 < then.one(wait, delivery) <= 300


def test_a_delivery_nobody_registers_ends_as_a_dead_letter(at: World) -> None:
    """Every wait ends."""
    delivery = at.delivered(prediction("p1", "succeeded", []))
    at.step("ingest", delivery)

    with at.later("25 hours") as then:
        then.step("ingest", delivery)

        assert then.state("deliveries", delivery) == "dead"
        assert [letter["category"] for letter in then.letters(delivery)] == ["UNKNOWN_PREDICTION"]


def test_adoption_makes_a_job_for_an_unregistered_prediction(at: World) -> None:
    """Where it is asked for, nothing has to be registered."""
    adopting = at.changed(adopt=True)
    first, second = (at.delivered(prediction("p9", "succeeded", [at.source.picture()])) for _ in range(2))

    adopting.step("ingest", first)
    adopting.step("ingest", second)

    assert at.one("SELECT count(*) FROM jobs") == 1
    assert at.one("SELECT owner FROM jobs") == "adopted"
    assert at.one("SELECT count(*) FROM outputs") == 1


def test_many_equal_webhooks_at_once_make_one_set_of_rows(at: World) -> None:
    """Eight workers hold eight deliveries of one completion."""
    made, urls = at.registered("p1"), [at.source.picture(n) for n in range(3)]
    sent = [at.delivered(prediction("p1", "succeeded", urls)) for _ in range(8)]

    def ingesting(delivery):
        def work() -> None:
            with at.beside() as deps:
                World(deps, at.conn, at.source, at.database_url).step("ingest", delivery)

        return work

    together(*(ingesting(delivery) for delivery in sent))

    assert len(at.outputs(made.job_id)) == 3
    states = sorted(at.state("deliveries", delivery) for delivery in sent)
    assert states == ["applied"] + ["ignored"] * 7


def test_a_lease_that_ends_while_its_row_is_locked_changes_nothing(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sweep releases it just then: what the row reports is for another worker to apply."""
    monkeypatch.setattr(ingest, "LOCK_MS", 9000)  # the machine may be slow
    made, delivery = at.registered("p1"), at.delivered(prediction("p1", "succeeded", [at.source.picture()]))
    limits = {"leased_by": LEASED_BY, "lease_seconds": 30.0, "max_crashes": 5, "max_rows": 1}
    (lease,) = deliveries.claim_due(at.deps.database, delivery, **limits)
    waiting = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    locked = threading.Event()

    def release() -> None:
        with connect(at.database_url) as sweep, sweep.transaction():
            free = "lease_token = NULL, leased_by = NULL, leased_until = NULL"
            sweep.execute(f"UPDATE deliveries SET {free} WHERE id = %s", (delivery,))
            locked.set()
            wait_until(lambda: at.conn.execute(waiting).fetchone() is not None)

    def apply() -> None:
        locked.wait(60)
        with pytest.raises(LeaseLost):
            ingest.run(at.deps, lease, Held())

    together(release, apply)

    assert (at.state("deliveries", delivery), at.outputs(made.job_id)) == ("new", [])


def test_registration_and_delivery_at_once_always_meet(at: World) -> None:
    """Whichever commits first, no delivery stays behind for long."""
    for n in range(30):
        delivery = at.delivered(prediction(f"r{n}", "processing"))

        def ingesting(delivery=delivery) -> None:
            with at.beside() as deps:
                World(deps, at.conn, at.source, at.database_url).step("ingest", delivery)

        together(ingesting, lambda n=n: at.registered(f"r{n}"))

        row = at.row("deliveries", delivery)
        due_in = at.one("SELECT extract(epoch FROM run_at - moment())::float FROM deliveries WHERE id = %s", delivery)
        assert row["state"] == "applied" or (row["state"] == "unmatched" and due_in <= 1.0)


def test_prompt_and_model_come_from_the_first_webhook_where_the_registration_had_none(at: World) -> None:
    """The application may register nothing but the id; what it states itself stays."""
    plain, stated = at.registered("p-plain"), at.registered("p-stated", prompt="mine", model="me/mine")
    for external_id in ("p-plain", "p-stated"):
        body = {**prediction(external_id, "starting"), "input": {"prompt": "a hall \x00"}, "model": "google/banana"}
        at.step("ingest", at.delivered(body))
        at.step("ingest", at.delivered({**body, "status": "processing", "input": {"prompt": "later"}}))

    rows = [
        (at.row("jobs", m.job_id)["prompt"], at.row("predictions", m.prediction_id)["model"]) for m in (plain, stated)
    ]
    assert rows == [("a hall \\x00", "google/banana"), ("mine", "me/mine")]


def test_events_of_predictions_of_others_end_as_ignored_after_ten_minutes(at: World) -> None:
    """Where an account has other uses, each would wait for a day and become a dead letter."""
    shared = at.changed(ignore_unregistered=("replicate",))
    received = [shared.delivered(prediction(name, "succeeded", [])) for name in ("others", "mine")]
    for delivery in received:
        shared.step("ingest", delivery)

    assert {shared.state("deliveries", one) for one in received} == {"unmatched"}
    left = shared.one("SELECT max(unmatched_until - received_at) < interval '11 minutes' FROM deliveries")
    assert left is True
    made = shared.registered("mine")
    shared.conn.execute("UPDATE deliveries SET run_at = moment(), unmatched_until = moment()")
    for delivery in received:
        shared.step("ingest", delivery)

    assert [shared.state("deliveries", one) for one in received] == ["ignored", "applied"]
    assert (
        "was not registered in time, as MOORAGE_IGNORE_UNREGISTERED" in shared.row("deliveries", received[0])["reason"]
    )
    assert (shared.letters(), shared.state("predictions", made.prediction_id)) == ([], "running")
    usual = at.delivered(prediction("another", "succeeded", []))
    at.step("ingest", usual)
    at.conn.execute("UPDATE deliveries SET run_at = moment(), unmatched_until = moment() WHERE id = %s", (usual,))
    at.step("ingest", usual)
    assert at.state("deliveries", usual) == "dead"
