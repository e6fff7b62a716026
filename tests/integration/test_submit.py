"""Submit: what is planned is sent once, and what the answer, or its absence, does."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from embedded.stack import Stack
from moorage import metrics
from moorage.errors import MoorageError, ResourceExhausted
from moorage.model import Step
from tasks.predictions import recover, submit
from tasks.step import commit_step
from tests.integration.core import LEASED_BY, World, database_of, prediction, together, world
from tests.integration.studio import Studio, entry, free, open_studio, ordered, tries
from worker import lease_heartbeat, step_runner


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return database_of(stack, template_database, "submit")


@pytest.fixture
def studio() -> Iterator[Studio]:
    with open_studio() as made:
        yield made


@pytest.fixture
def at(stack: Stack, url: str, studio: Studio) -> Iterator[World]:
    with world(
        stack,
        url,
        replicate_api_url=studio.url,
        fal_key="id:secret",
        fal_queue_url=studio.url,
        openai_api_key="sk-secret",
        openai_api_url=studio.url,
        egress_allow=(studio.address,),
        in_flight="replicate=3",
        max_errors=3,
    ) as made:
        yield made


def wait_of(at: World, prediction_id) -> float:
    """Return in how many seconds a prediction is looked at again."""
    return at.one("SELECT extract(epoch FROM run_at - moment())::float FROM predictions WHERE id = %s", prediction_id)


def look_of(at: World, prediction_id) -> float:
    """Return how many seconds after its submission a prediction is looked at again; what the step took counts too."""
    sql = "SELECT extract(epoch FROM run_at - submitted_at)::float FROM predictions WHERE id = %s"
    return at.one(sql, prediction_id)


def make_due(at: World, prediction_id) -> None:
    at.conn.execute("UPDATE predictions SET run_at = moment() WHERE id = %s", (prediction_id,))


def aged(at: World, prediction_id, seconds: float) -> None:
    """Have a submission be older than it is, and due."""
    at.conn.execute(
        "UPDATE predictions SET submitted_at = moment() - make_interval(secs => %s), run_at = moment() WHERE id = %s",
        (seconds, prediction_id),
    )


def hook(at: World, studio: Studio, external_id: str, status: str = "succeeded", output=None, number: int = -1):
    """Insert a delivery that came to the webhook address of an order."""
    delivery_id = at.delivered(prediction(external_id, status, output))
    at.conn.execute("UPDATE deliveries SET key_sha256 = %s WHERE id = %s", (studio.key_sha256(number), delivery_id))
    return delivery_id


def test_what_is_planned_runs_after_its_submission(at: World, studio: Studio) -> None:
    """The application asks once; from here on moorage alone remembers."""
    made = ordered(at, entry(seconds=60.0))

    at.step("submit", made.prediction_id)

    row = at.row("predictions", made.prediction_id)
    assert (row["state"], row["external_id"], row["attempt"], row["crashes"]) == ("running", "p1", 0, 0)
    assert at.edges("prediction", row["id"]) == [
        (None, "planned"),
        ("planned", "submitting"),
        ("submitting", "running"),
    ]
    assert 30 < wait_of(at, row["id"]) <= 60
    (sent,) = studio.orders
    assert sent["webhook"].startswith("http://127.0.0.1:8000/webhooks/replicate?key=")
    assert row["key_sha256"] == studio.key_sha256()


def test_the_key_itself_is_stored_nowhere(at: World, studio: Studio) -> None:
    """Who reads the database must not be able to speak for the provider."""
    made = ordered(at)
    at.step("submit", made.prediction_id)

    key = studio.orders[0]["webhook"].partition("key=")[2]

    for table in ("predictions", "jobs", "events"):
        assert at.one(f"SELECT count(*) FROM {table} t WHERE t::text LIKE '%%' || %s || '%%'", key) == 0


def test_deliveries_that_were_faster_than_the_answer_are_woken(at: World, studio: Studio) -> None:
    """A webhook without the key may come before the id is known; it must not wait its minutes out."""
    made = ordered(at)
    early = at.delivered(prediction("p1", "succeeded", [studio.picture()]))
    at.step("ingest", early)

    wakes = at.step("submit", made.prediction_id)

    assert [(wake.step, wake.row_id) for wake in wakes] == [("ingest", early)]
    at.step("ingest", early)
    assert at.state("jobs", made.job_id) == "keeping"


def test_a_429_moves_the_time_and_costs_no_attempt(at: World, studio: Studio) -> None:
    """A provider that is busy for an hour must not use up the twelve errors."""
    made = ordered(at)
    studio.script = [(429, {"Retry-After": "70"})] * 5

    for _ in range(5):
        make_due(at, made.prediction_id)
        at.step("submit", made.prediction_id)

    row = at.row("predictions", made.prediction_id)
    assert (row["state"], row["attempt"], row["crashes"], row["key_sha256"]) == ("planned", 0, 0, None)
    assert 40 < wait_of(at, row["id"]) < 85  # 70 and up to a fifth more


@pytest.mark.parametrize(("pause", "seconds"), [("7", 5.0), ("3600", 7200.0)])
def test_a_429_that_outlasts_its_entry_or_its_job_lets_the_next_entry_start(
    at: World, studio: Studio, pause: str, seconds: float
) -> None:
    """Nobody waits an hour for a busy provider while another would take the order."""
    made = ordered(at, entry(seconds=seconds), entry("fal"))
    studio.script = [(429, {"Retry-After": pause})]

    at.step("submit", made.prediction_id)

    first, second = tries(at, made.job_id)
    assert (first["state"], first["category"]) == ("failed", "PROVIDER_FAILED")
    assert (second["state"], second["entry"]) == ("planned", 1)
    assert at.letters() == []


def test_a_429_is_waited_out_where_no_other_entry_follows(at: World, studio: Studio) -> None:
    """There is nobody else to ask, and the job has time."""
    made = ordered(at, entry(seconds=5.0))
    studio.script = [(429, {"Retry-After": "60"})]

    at.step("submit", made.prediction_id)

    assert at.state("predictions", made.prediction_id) == "planned"


def test_no_connection_lets_the_next_entry_start_when_the_entrys_time_is_over(at: World) -> None:
    """Twelve tries with their pauses take a quarter of an hour; the chain is there to be faster."""
    at.deps.providers["replicate"]._api_url = "http://127.0.0.1:9"  # type: ignore[attr-defined]  # nobody listens
    made = ordered(at, entry(seconds=60.0), entry("fal"))
    at.conn.execute(
        "UPDATE predictions SET created_at = moment() - interval '61 s' WHERE id = %s", (made.prediction_id,)
    )

    at.step("submit", made.prediction_id)

    assert [(row["state"], row["entry"]) for row in tries(at, made.job_id)] == [("failed", 0), ("planned", 1)]


def test_no_connection_is_tried_again_and_given_up_after_the_limit(at: World, studio: Studio) -> None:
    """Nothing was made, so nothing is uncertain; a chain with another provider must not wait for ever."""
    deaf = at.deps.providers["replicate"]
    deaf._api_url = "http://127.0.0.1:9"  # type: ignore[attr-defined]  # the discard port: nobody listens
    made = ordered(at, entry(), entry("fal"))

    for errors in (1, 2):
        make_due(at, made.prediction_id)
        at.step("submit", made.prediction_id)
        row = at.row("predictions", made.prediction_id)
        assert (row["state"], row["attempt"] - row["crashes"]) == ("planned", errors)
    make_due(at, made.prediction_id)
    wakes = at.step("submit", made.prediction_id)

    first, second = tries(at, made.job_id)
    assert (first["state"], first["category"]) == ("failed", "PROVIDER_FAILED")
    assert (second["provider"], second["state"], second["entry"]) == ("fal", "planned", 1)
    assert [(wake.step, wake.row_id) for wake in wakes] == [("submit", second["id"])]
    assert at.letters() == []


@pytest.mark.parametrize(("status", "category"), [(422, "PROVIDER_FAILED"), (402, "BILLING_FAILED")])
def test_a_refusal_ends_the_try_and_starts_the_next_entry(at: World, studio: Studio, status, category) -> None:
    """A refused try is a state, not a dead letter; money is told apart from a wrong input."""
    made = ordered(at, entry(), entry("fal"))
    studio.script = [(status, {})]

    at.step("submit", made.prediction_id)

    first, second = tries(at, made.job_id)
    assert (first["state"], first["category"]) == ("failed", category)
    assert (second["state"], second["entry"]) == ("planned", 1)
    assert at.letters() == []
    assert at.state("jobs", made.job_id) == "open"


def test_the_last_entrys_refusal_fails_the_job(at: World, studio: Studio) -> None:
    """Nothing waits without an end."""
    made = ordered(at)
    studio.script = [(422, {})]

    at.step("submit", made.prediction_id)

    assert at.state("jobs", made.job_id) == "failed"


def test_at_most_so_many_are_at_work_however_many_workers_race(at: World, studio: Studio) -> None:
    """Eight workers that each count before they write would all find room."""
    made = [ordered(at).prediction_id for _ in range(12)]

    def worker(mine: list) -> None:
        with at.beside() as deps:
            for prediction_id in mine:
                step_runner._claim_and_run(deps, "submit", prediction_id, f"node@test/{uuid4()}")

    together(*(lambda n=n: worker(made[n:] + made[:n]) for n in range(8)))

    states = [at.state("predictions", prediction_id) for prediction_id in made]
    assert (states.count("running"), states.count("planned")) == (3, 9)
    assert len(studio.orders) == 3
    assert {at.row("predictions", one)["attempt"] for one in made} == {0}


def test_what_applications_started_themselves_takes_no_room(at: World, studio: Studio) -> None:
    """It may run for as long as it likes; orders would wait for it until their jobs' deadlines."""
    for _ in range(3):
        at.registered()
    made = ordered(at)

    at.step("submit", made.prediction_id)

    assert at.state("predictions", made.prediction_id) == "running"


def test_a_try_whose_stop_was_for_nothing_is_not_stopped_when_it_is_sent_again(at: World, studio: Studio) -> None:
    """The success it was to make way for brought no file; the job waits for this one now."""
    made = ordered(at)
    at.conn.execute("UPDATE predictions SET cancel_reason = 'another was chosen' WHERE id = %s", (made.prediction_id,))

    at.step("submit", made.prediction_id)

    assert at.row("predictions", made.prediction_id)["cancel_reason"] is None
    assert wait_of(at, made.prediction_id) > 1


def test_an_end_makes_room_for_the_next(at: World, studio: Studio) -> None:
    """Who found no room comes again by itself."""
    made = [ordered(at).prediction_id for _ in range(4)]
    for prediction_id in made:
        at.step("submit", prediction_id)
    at.step("ingest", at.delivered(prediction("p1", "failed")))

    assert wait_of(at, made[3]) < 2
    make_due(at, made[3])
    at.step("submit", made[3])

    assert at.state("predictions", made[3]) == "running"


def test_a_lost_answer_is_found_in_the_list_by_its_key(at: World, studio: Studio) -> None:
    """It was made and is paid for: sending it again would make it twice."""
    made = ordered(at)
    other = ordered(at)
    studio.script = [(500, {})]
    at.step("submit", made.prediction_id)
    at.step("submit", other.prediction_id)
    assert at.row("predictions", made.prediction_id)["submit_uncertain"]
    assert 5 <= look_of(at, made.prediction_id) < 14
    aged(at, made.prediction_id, 5)

    at.step("submit", made.prediction_id)

    row = at.row("predictions", made.prediction_id)
    assert (row["state"], row["external_id"]) == ("running", "p1")
    assert len(studio.orders) == 2


def test_looks_come_after_5_15_and_60_seconds(at: World, studio: Studio) -> None:
    """A list lags behind: one look too early must not pass for an answer."""
    made = ordered(at)
    studio.script, studio.is_listed = [(500, {})], False
    labels = {"step": "submit", "outcome": "retry", "category": "PROVIDER_FAILED"}
    counted = metrics.WORK.get_sample_value("moorage_attempts_total", labels) or 0.0
    at.step("submit", made.prediction_id)
    assert metrics.WORK.get_sample_value("moorage_attempts_total", labels) == counted + 1

    looks = []
    for age in (3, 5, 15):
        aged(at, made.prediction_id, age)
        at.step("submit", made.prediction_id)
        looks.append(look_of(at, made.prediction_id))

    assert all(due - 0.1 < look < due + 9 for due, look in zip((5, 15, 60), looks, strict=True)), looks
    assert (studio.looks, at.row("predictions", made.prediction_id)["polls"]) == (2, 2)
    assert at.state("predictions", made.prediction_id) == "submitting"


def test_a_clock_that_was_set_back_does_not_put_off_the_look(at: World, studio: Studio) -> None:
    """It would come when the clock has caught up, an hour later."""
    made = ordered(at)
    studio.script = [(500, {})]
    at.step("submit", made.prediction_id)
    aged(at, made.prediction_id, -3600)
    studio.is_listed = False

    at.step("submit", made.prediction_id)
    assert 30 < wait_of(at, made.prediction_id) <= 60
    studio.is_listed = True
    make_due(at, made.prediction_id)
    at.step("submit", made.prediction_id)

    assert at.state("predictions", made.prediction_id) == "running"


def test_an_entry_is_tried_twice_at_most_when_nobody_knows(at: World, studio: Studio) -> None:
    """The list says that nothing was made, so once more is cheap; twice more would be a habit."""
    made = ordered(at, entry(), entry("fal"))
    studio.script, studio.is_listed = [(500, {}), (500, {})], False

    for number in (0, 1):
        one = tries(at, made.job_id)[number]
        at.step("submit", one["id"])
        aged(at, one["id"], 60)
        at.step("submit", one["id"])

    first, second, third = tries(at, made.job_id)
    assert [row["state"] for row in (first, second, third)] == ["abandoned", "abandoned", "planned"]
    assert [row["entry"] for row in (first, second, third)] == [0, 0, 1]
    assert [row["submit_uncertain"] for row in (first, second, third)] == [True, True, False]
    assert first["reason"] == "submit uncertain: not in the list of replicate after 60 s"


@pytest.mark.parametrize("is_listed", [True, False])
def test_a_list_cannot_tell_that_what_was_sent_without_a_webhook_was_not_made(
    at: World, studio: Studio, monkeypatch: pytest.MonkeyPatch, is_listed: bool
) -> None:
    """It has no key to be found by: the same entry, sent once more, would be paid for twice."""
    monkeypatch.setattr(at.deps.providers["replicate"], "can_call", lambda _url: False)
    made = ordered(at, entry(), entry("fal"))
    studio.script, studio.is_listed = [(500, {})], is_listed
    at.step("submit", made.prediction_id)
    aged(at, made.prediction_id, 60)

    at.step("submit", made.prediction_id)

    assert [(row["state"], row["entry"]) for row in tries(at, made.job_id)] == [("abandoned", 0), ("planned", 1)]
    assert "without a webhook" in tries(at, made.job_id)[0]["reason"]
    assert len(studio.orders) == 1


@pytest.mark.parametrize("has_webhook", [True, False])
def test_a_result_waits_for_locks_unless_the_list_has_it_too(
    at: World, studio: Studio, monkeypatch: pytest.MonkeyPatch, has_webhook: bool
) -> None:
    """Without a webhook the list does not tell whose it is: the id is in the response alone."""
    monkeypatch.setattr(at.deps.providers["replicate"], "can_call", lambda _url: has_webhook)
    commits: list[bool] = []

    def spy(*args: Any, is_repeatable: bool = True, **more: Any) -> Any:
        commits.append(is_repeatable)
        return commit_step(*args, is_repeatable=is_repeatable, **more)

    monkeypatch.setattr(submit, "commit_step", spy)

    at.step("submit", ordered(at).prediction_id)

    assert commits == [True, has_webhook]


@pytest.mark.parametrize(
    ("model", "is_known", "entries"),
    [
        (None, False, [0, 1]),  # it may be ours: its webhook was dropped, or PUBLIC_URL was http: then
        ("acme/pictures", False, [0, 1]),
        ("Acme/Pictures", False, [0, 1]),
        ("acme/films", False, [0, 0]),
        ("acme/pictures", True, [0, 0]),
    ],
)
def test_what_the_list_has_without_a_webhook_may_be_the_lost_try(
    at: World, studio: Studio, model: str | None, is_known: bool, entries: list[int]
) -> None:
    """Unless it is of another model, or of a row that is known."""
    made = ordered(at, entry(), entry("fal"))
    studio.script = [(500, {})]
    at.step("submit", made.prediction_id)
    studio.made[0] |= {"webhook": None, "model": model}
    if is_known:
        at.registered("p1")
    aged(at, made.prediction_id, 60)

    at.step("submit", made.prediction_id)

    assert [row["entry"] for row in tries(at, made.job_id)] == entries


def test_a_list_that_cannot_be_read_says_nothing_about_the_submission(at: World, studio: Studio) -> None:
    """An outage must not make a second one: the try is only waited for until its own time is up."""
    made = ordered(at, entry(), entry("fal"))
    studio.script, studio.list_status = [(500, {})], 503
    at.step("submit", made.prediction_id)
    aged(at, made.prediction_id, 61)
    at.step("submit", made.prediction_id)
    assert at.state("predictions", made.prediction_id) == "submitting"

    at.conn.execute("UPDATE predictions SET deadline_at = moment() WHERE id = %s", (made.prediction_id,))
    make_due(at, made.prediction_id)
    at.step("submit", made.prediction_id)

    assert [(row["state"], row["entry"]) for row in tries(at, made.job_id)] == [("abandoned", 0), ("planned", 1)]


def test_without_a_list_an_uncertain_try_is_waited_for_by_its_webhook(at: World, studio: Studio) -> None:
    """fal keeps no list, but what it took it tells of: the next entry would be made, and paid for, beside it."""
    made = ordered(at, entry("fal"), entry())
    studio.script = [(502, {})]
    at.step("submit", made.prediction_id)
    assert at.row("predictions", made.prediction_id)["submit_uncertain"]
    assert look_of(at, made.prediction_id) < 14

    aged(at, made.prediction_id, 20)
    at.step("submit", made.prediction_id)

    assert [row["state"] for row in tries(at, made.job_id)] == ["submitting"]
    assert 60 <= look_of(at, made.prediction_id) < 69
    assert len(studio.orders) == 1


def test_without_a_list_or_a_webhook_an_uncertain_try_ends_in_time(at: World, studio: Studio) -> None:
    """Whoever waits for a picture waits no longer than its entry allows."""
    made = ordered(at, entry("fal"), entry())
    studio.script = [(502, {})]
    at.step("submit", made.prediction_id)
    aged(at, made.prediction_id, 20)
    at.conn.execute("UPDATE predictions SET deadline_at = moment() WHERE id = %s", (made.prediction_id,))

    at.step("submit", made.prediction_id)

    first, second = tries(at, made.job_id)
    assert (first["state"], second["state"], second["entry"]) == ("abandoned", "planned", 1)
    assert first["reason"] == "submit uncertain: fal has no list, and no webhook was received in time"


def test_an_uncertain_answer_that_no_webhook_follows_ends_its_try_at_once(at: World, studio: Studio) -> None:
    """OpenAI answers with the pictures or not at all."""
    made = ordered(at, entry("openai"), entry())
    studio.script = [(502, {})]

    at.step("generate", made.prediction_id)

    assert [(row["state"], row["entry"]) for row in tries(at, made.job_id)] == [("abandoned", 0), ("planned", 1)]


@pytest.mark.parametrize(("provider", "step"), [("fal", "submit"), ("openai", "generate")])
def test_a_dead_workers_submission_without_a_list_ends_as_uncertain(
    at: World, studio: Studio, provider: str, step: Step
) -> None:
    """Sent or not: to send it again could make it twice."""
    made = ordered(at, entry(provider))
    at.conn.execute(
        "UPDATE predictions SET state = 'submitting', key_sha256 = 'x', submitted_at = moment() WHERE id = %s",
        (made.prediction_id,),
    )
    at.conn.execute("DELETE FROM events")
    aged(at, made.prediction_id, 60)

    at.step(step, made.prediction_id)

    (row,) = tries(at, made.job_id)
    assert (row["state"], row["submit_uncertain"]) == ("abandoned", True)
    assert "submit uncertain: " in row["reason"]
    assert at.state("jobs", made.job_id) == "failed"
    assert studio.orders == []


def test_a_webhook_with_the_key_is_faster_than_the_answer(at: World, studio: Studio) -> None:
    """It names the row while the request is under way; the late answer then changes nothing."""
    made = ordered(at)
    picture = studio.picture()

    def first(_hook: str) -> None:
        with at.beside() as deps:
            step_runner._claim_and_run(deps, "ingest", hook(at, studio, "p1", output=[picture]), LEASED_BY)

    studio.on_order = first
    at.step("submit", made.prediction_id)

    row = at.row("predictions", made.prediction_id)
    assert (row["state"], row["external_id"], row["crashes"]) == ("succeeded", "p1", 0)
    assert at.state("jobs", made.job_id) == "keeping"
    assert len(at.outputs(made.job_id)) == 1


@pytest.mark.parametrize("state", ["submitting", "abandoned"])
def test_a_webhook_with_the_key_counts_for_a_try_that_nobody_answered(at: World, studio: Studio, state: str) -> None:
    """It was made after all: its files are paid for, and the job still wants them."""
    made = ordered(at, entry("fal"))
    studio.script = [(502, {})]
    at.step("submit", made.prediction_id)
    if state == "abandoned":
        aged(at, made.prediction_id, 60)
        at.step("submit", made.prediction_id)
        assert at.state("jobs", made.job_id) == "failed"
    body = {"request_id": "p1", "status": "OK", "payload": {"images": [{"url": studio.picture()}]}}
    delivery_id = at.delivered(body)
    at.conn.execute(
        "UPDATE deliveries SET provider = 'fal', key_sha256 = %s WHERE id = %s", (studio.key_sha256(), delivery_id)
    )

    at.step("ingest", delivery_id)

    row = at.row("predictions", made.prediction_id)
    assert (row["state"], row["external_id"]) == ("succeeded", "p1")
    assert (state, state if state == "abandoned" else "running") in at.edges("prediction", row["id"])
    assert len(at.outputs(made.job_id)) == 1
    assert len(tries(at, made.job_id)) == 1


def test_a_key_is_good_for_one_prediction(at: World, studio: Studio) -> None:
    """A second id under the same key is judged by itself: nobody registered it."""
    made = ordered(at)
    at.step("submit", made.prediction_id)
    stranger = hook(at, studio, "p999", output=[studio.picture()])

    at.step("ingest", stranger)

    assert at.state("deliveries", stranger) == "unmatched"
    assert at.row("predictions", made.prediction_id)["external_id"] == "p1"
    assert at.outputs(made.job_id) == []


def test_a_key_of_another_provider_opens_nothing(at: World, studio: Studio) -> None:
    """Providers see their own keys only; one must not speak for another."""
    made = ordered(at, entry("fal"))
    studio.script = [(502, {})]
    at.step("submit", made.prediction_id)

    delivery_id = hook(at, studio, "p1", output=[studio.picture()])  # of replicate
    at.step("ingest", delivery_id)

    assert at.state("deliveries", delivery_id) == "unmatched"
    assert at.row("predictions", made.prediction_id)["external_id"] is None


def test_a_recovery_gives_an_uncertain_try_its_id_instead_of_a_second_job(at: World, studio: Studio) -> None:
    """A person who lists what the provider made must not have it kept twice."""
    made = ordered(at)
    studio.script = [(500, {})]
    at.step("submit", made.prediction_id)
    replicate = at.deps.providers["replicate"]
    pages = recover.scan(at.deps, replicate, datetime.now(UTC) - timedelta(minutes=1), include_foreign=True)

    done = recover.register_pages(at.deps, replicate, pages, owner="ann", actor="cli", send_wakes=len)

    row = at.row("predictions", made.prediction_id)
    assert (row["state"], row["external_id"], done["registered"]) == ("running", "p1", 0)
    assert at.one("SELECT count(*) FROM jobs") == 1


def test_a_try_nobody_ever_heard_of_ends_without_a_dead_letter(at: World, studio: Studio) -> None:
    """Nothing is missed: perhaps it was never made, and the chain has gone on long since."""
    made = ordered(at, entry("fal"))
    studio.script = [(502, {})]
    at.step("submit", made.prediction_id)
    aged(at, made.prediction_id, 60)
    at.step("submit", made.prediction_id)
    at.conn.execute("UPDATE predictions SET output_until = moment() WHERE id = %s", (made.prediction_id,))
    make_due(at, made.prediction_id)

    at.step("poll", made.prediction_id)

    (row,) = tries(at, made.job_id)
    assert (row["state"], row["reason"]) == ("failed", "submit uncertain: no webhook received")
    assert at.letters() == []


def test_a_synchronous_answer_takes_the_path_of_every_report(at: World, studio: Studio) -> None:
    """OpenAI answers with the pictures: nothing is to be awaited, they are kept as any other."""
    made = ordered(at, entry("openai"))

    passed_on = at.step("submit", made.prediction_id)
    wakes = at.step("generate", made.prediction_id)

    assert [(wake.step, wake.row_id) for wake in passed_on] == [("generate", made.prediction_id)]
    assert at.state("predictions", made.prediction_id) == "succeeded"
    assert at.state("jobs", made.job_id) == "keeping"
    assert [wake.row_id for wake in wakes] == at.outputs(made.job_id)
    at.keep_all(made.job_id)
    assert at.state("jobs", made.job_id) == "succeeded"


def test_what_its_job_no_longer_needs_is_not_submitted(at: World, studio: Studio) -> None:
    """An earlier try's late success has brought the files."""
    made = ordered(at)
    at.conn.execute(
        "UPDATE jobs SET state = 'cancelled', run_at = NULL, settled_at = moment() WHERE id = %s", (made.job_id,)
    )

    at.step("submit", made.prediction_id)

    assert at.state("predictions", made.prediction_id) == "cancelled"
    assert studio.orders == []


def test_past_the_jobs_deadline_nothing_is_submitted(at: World, studio: Studio) -> None:
    """A provider that stays full would else be asked for files nobody waits for."""
    made = ordered(at)
    at.conn.execute("UPDATE jobs SET deadline_at = moment() WHERE id = %s", (made.job_id,))

    at.step("submit", made.prediction_id)

    row = at.row("predictions", made.prediction_id)
    assert (row["state"], row["category"]) == ("failed", "TIMED_OUT")
    assert at.state("jobs", made.job_id) == "failed"


def test_an_input_whose_file_is_gone_fails_before_anything_is_sent(at: World, studio: Studio) -> None:
    """What the provider would be shown does not exist: the reason names it."""
    made = ordered(at, entry(image={"upload": str(uuid4())}))

    at.step("submit", made.prediction_id)

    row = at.row("predictions", made.prediction_id)
    assert (row["state"], row["category"]) == ("failed", "VALIDATION_FAILED")
    assert "upload" in row["reason"]
    assert studio.orders == []


def test_a_try_whose_workers_keep_dying_is_a_dead_letter_and_the_chain_goes_on(at: World, studio: Studio) -> None:
    """A row that kills its workers must not do it for ever, nor take its job with it."""
    made = ordered(at, entry(), entry("fal"))
    at.conn.execute("UPDATE predictions SET crashes = 5, attempt = 5 WHERE id = %s", (made.prediction_id,))

    at.step("submit", made.prediction_id)

    first, second = tries(at, made.job_id)
    assert (first["state"], first["category"], second["state"]) == ("lost", "POISON", "planned")
    assert [letter["step"] for letter in at.letters(first["id"])] == ["submit"]


def test_a_wake_of_another_step_makes_no_poison(at: World, studio: Studio) -> None:
    """The sweep wakes each prediction of a dead worker for a poll, also one that is still to be submitted."""
    made = ordered(at)
    at.conn.execute("UPDATE predictions SET crashes = 5, attempt = 5 WHERE id = %s", (made.prediction_id,))

    at.step("poll", made.prediction_id)

    assert (tries(at, made.job_id)[0]["state"], at.letters()) == ("planned", [])


def test_a_lease_that_ended_before_the_request_sends_nothing_twice(at: World, studio: Studio) -> None:
    """The row is being submitted by another: it is looked up, and what the first one sent is found."""
    made = ordered(at)
    lost: list[bool] = []
    studio.on_order = lambda _hook: (free(at, LEASED_BY), lost.append(True))

    at.step("submit", made.prediction_id)
    assert at.state("predictions", made.prediction_id) == "submitting"
    aged(at, made.prediction_id, 5)
    at.step("submit", made.prediction_id)

    assert lost == [True]
    assert (at.state("predictions", made.prediction_id), len(studio.orders)) == ("running", 1)


def raising(error: MoorageError) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "counted"), [(ResourceExhausted("no thread"), 0), (lease_heartbeat.RenewalFailed("a bug"), 1)]
)
def test_a_lease_that_cannot_be_renewed_is_no_uncertain_submission(
    at: World, studio: Studio, monkeypatch: pytest.MonkeyPatch, error: MoorageError, counted: int
) -> None:
    """Nothing was sent: the row must not wait to be looked up, or, without a list, be given up."""
    made = ordered(at, entry("fal"), entry())
    monkeypatch.setattr(lease_heartbeat.Heartbeat, "ensure_held", raising(error))

    at.step("submit", made.prediction_id)

    (row,) = tries(at, made.job_id)
    assert (row["state"], row["submit_uncertain"], row["attempt"] - row["crashes"]) == ("planned", False, counted)
    assert (studio.orders, at.one("SELECT count(*) FROM target_attempts")) == ([], 0)


def test_a_lease_that_is_not_renewed_begins_no_submission(
    at: World, studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its thread, the step would have to take back at once what it begins."""
    made = ordered(at)
    monkeypatch.setattr(lease_heartbeat.Heartbeat, "check", raising(ResourceExhausted("no thread")))

    at.step("submit", made.prediction_id)

    assert ("planned", "submitting") not in at.edges("prediction", made.prediction_id)
    assert (at.state("predictions", made.prediction_id), studio.orders) == ("planned", [])
