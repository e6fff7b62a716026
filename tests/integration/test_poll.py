"""Poll: predictions whose webhook did not come, and those whose time is up."""

from collections.abc import Iterator

import pytest

from embedded.stack import Stack
from tasks.jobs import replay
from tests.integration.core import World, database_of, prediction, together, world


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return database_of(stack, template_database, "poll")


@pytest.fixture
def at(stack: Stack, url: str) -> Iterator[World]:
    with world(stack, url) as made:
        yield made


def make_due(at: World, prediction_id) -> None:
    at.conn.execute("UPDATE predictions SET run_at = moment() WHERE id = %s", (prediction_id,))


def test_a_prediction_is_not_polled_before_its_time(at: World) -> None:
    """Webhooks come first; a poll costs the provider's patience."""
    made = at.registered("p1")

    at.step("poll", made.prediction_id)

    assert at.source.asked == []


def test_a_poll_brings_the_files_of_a_webhook_that_never_came(at: World) -> None:
    """Providers lose webhooks."""
    made = at.registered("p1")
    at.source.predictions["p1"] = prediction("p1", "succeeded", [at.source.picture(), at.source.picture()])
    make_due(at, made.prediction_id)

    wakes = at.step("poll", made.prediction_id)

    assert [wake.row_id for wake in wakes] == at.outputs(made.job_id)
    assert at.row("predictions", made.prediction_id)["ended_by"] == "poll"


def test_a_running_prediction_is_polled_again_on_the_providers_clock(at: World) -> None:
    """A poll that finds nothing is no error and costs no attempt."""
    made = at.registered("p1")
    at.source.predictions["p1"] = prediction("p1", "processing")
    make_due(at, made.prediction_id)

    at.step("poll", made.prediction_id)

    row = at.row("predictions", made.prediction_id)
    wait = at.one("SELECT extract(epoch FROM run_at - moment())::float FROM predictions WHERE external_id = 'p1'")
    assert (row["state"], row["polls"], row["attempt"], row["crashes"]) == ("running", 1, 0, 0)
    assert row["lease_token"] is None
    assert 60 < wait <= 90


def test_an_api_that_is_down_ends_nothing(at: World) -> None:
    """An unanswered question is no answer."""
    made = at.registered("p1")
    at.source.predictions["p1"] = 503
    for _ in range(15):
        make_due(at, made.prediction_id)
        at.step("poll", made.prediction_id)

    assert at.state("predictions", made.prediction_id) == "running"
    assert at.row("predictions", made.prediction_id)["polls"] == 15


def test_a_prediction_the_provider_does_not_know_is_lost(at: World) -> None:
    """Deleted there, not only too new to be found: its files will never come, and an operator is informed."""
    made = at.registered("p1")
    states = []
    for _ in range(2):
        make_due(at, made.prediction_id)
        at.step("poll", made.prediction_id)
        states.append(at.state("predictions", made.prediction_id))

    assert states == ["running", "lost"]
    assert at.state("jobs", made.job_id) == "failed"
    assert [letter["subject_id"] for letter in at.letters()] == [made.prediction_id]


def test_a_passed_deadline_is_polled_once_before_anything_is_called_lost(at: World) -> None:
    """The answer may lie there, unheard."""
    made = at.registered("p1")
    at.source.predictions["p1"] = prediction("p1", "succeeded", [at.source.picture()])

    with at.later("61 minutes") as then:
        then.step("poll", made.prediction_id)

        assert then.state("jobs", made.job_id) == "keeping"


def test_our_deadline_abandons_and_a_late_success_still_counts(at: World) -> None:
    """The files are paid for: they are kept as long as they live."""
    made = at.registered("p1")
    at.source.predictions["p1"] = prediction("p1", "processing")

    with at.later("61 minutes") as then:
        then.step("poll", made.prediction_id)
        assert then.state("predictions", made.prediction_id) == "abandoned"
        assert then.row("jobs", made.job_id)["category"] == "TIMED_OUT"
        then.step("ingest", then.delivered(prediction("p1", "succeeded", [at.source.picture()])))
        then.keep_all(made.job_id)

        assert then.state("jobs", made.job_id) == "succeeded"
        assert then.row("jobs", made.job_id)["reopened"] == 1
        assert then.letters() == []


def test_an_abandoned_prediction_is_polled_further(at: World) -> None:
    """Its webhook may be lost, and the URLs of its files live from its end on, not from the end of our wait."""
    made = at.registered("p1")
    at.source.predictions["p1"] = prediction("p1", "processing")
    waits = "SELECT extract(epoch FROM run_at - moment())::float FROM predictions WHERE external_id = 'p1'"

    with at.later("61 minutes") as then:
        then.step("poll", made.prediction_id)
        assert (then.state("predictions", made.prediction_id), then.state("jobs", made.job_id)) == (
            "abandoned",
            "failed",
        )
        assert 60 < then.one(waits) <= 300
    with at.later("67 minutes") as then:
        then.step("poll", made.prediction_id)
        assert then.state("predictions", made.prediction_id) == "abandoned"
        assert 60 < then.one(waits) <= 300
    at.source.predictions["p1"] = prediction("p1", "succeeded", [at.source.picture()])
    with at.later("73 minutes") as then:
        then.step("poll", made.prediction_id)
        then.keep_all(made.job_id)

        assert (then.state("jobs", made.job_id), then.row("jobs", made.job_id)["reopened"]) == ("succeeded", 1)
        assert then.letters() == []


def test_an_abandoned_prediction_that_cannot_be_polled_is_due_at_the_end_of_its_output_life(
    at: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only its webhook can report it."""
    monkeypatch.setattr(at.deps.providers["replicate"], "_api", None)
    made = at.registered("p1")
    at.conn.execute("UPDATE predictions SET deadline_at = moment(), run_at = moment()")

    at.step("poll", made.prediction_id)

    row = at.row("predictions", made.prediction_id)
    assert row["state"] == "abandoned"
    assert abs((row["run_at"] - row["output_until"]).total_seconds()) < 1


def lost(at: World, external_id: str = "p1"):
    """Return a registration whose prediction was abandoned and then lost."""
    made = at.registered(external_id)
    at.source.predictions[external_id] = prediction(external_id, "processing")
    with at.later("61 minutes") as then:
        then.step("poll", made.prediction_id)
    with at.later("122 minutes") as then:
        then.step("poll", made.prediction_id)
    assert at.state("predictions", made.prediction_id) == "lost"
    return made


def test_silence_until_the_end_of_the_output_life_is_a_dead_letter(at: World) -> None:
    """Every wait ends, and says so."""
    made = lost(at)

    (letter,) = at.letters(made.prediction_id)
    assert (letter["category"], letter["retryable"], letter["state"]) == ("TIMED_OUT", True, "open")


def test_a_success_after_the_loss_closes_the_dead_letter(at: World) -> None:
    """Nobody needs to act on what mended itself."""
    made = lost(at)

    at.step("ingest", at.delivered(prediction("p1", "succeeded", [at.source.picture()])))
    at.keep_all(made.job_id)

    assert at.state("jobs", made.job_id) == "succeeded"
    assert [letter["state"] for letter in at.letters()] == ["replayed"]


def test_a_replayed_prediction_is_waited_for_again(at: World) -> None:
    """A replay takes the same path as a first attempt: it is not abandoned at its first poll."""
    made = lost(at)
    (letter,) = at.letters()

    at.deps.database.run(lambda conn: replay.replay_dead_letter(conn, letter["id"], "cli"))
    with at.later("123 minutes") as then:
        then.conn.execute("UPDATE predictions SET deadline_at = moment() + '15 min', run_at = moment()")
        then.step("poll", made.prediction_id)

        assert then.state("predictions", made.prediction_id) == "running"
        assert then.state("jobs", made.job_id) == "open"


def test_webhook_and_poll_at_once_end_a_prediction_once(at: World) -> None:
    """Both hold the same answer; files must not be doubled, and neither may hang."""
    for n in range(30):
        name, urls = f"w{n}", [at.source.picture(), at.source.picture()]
        made = at.registered(name)
        at.source.predictions[name] = prediction(name, "succeeded", urls)
        make_due(at, made.prediction_id)
        delivery = at.delivered(prediction(name, "succeeded", urls))

        def ingest(delivery=delivery) -> None:
            with at.beside() as deps:
                World(deps, at.conn, at.source, at.database_url).step("ingest", delivery)

        together(ingest, lambda made=made: at.step("poll", made.prediction_id))

        assert len(at.outputs(made.job_id)) == 2
        row = at.row("predictions", made.prediction_id)
        assert (row["state"], row["lease_token"]) == ("succeeded", None)
        assert at.edges("prediction", made.prediction_id) == [(None, "running"), ("running", "succeeded")]
        assert at.state("deliveries", delivery) in ("applied", "ignored")


def test_a_prediction_that_its_provider_forgot_is_no_lost_webhook(at: World) -> None:
    """Nor is it one of the polls that an alert counts."""
    made = at.registered("p1")
    make_due(at, made.prediction_id)
    at.conn.execute("UPDATE predictions SET polls = 1")
    at.source.predictions["p1"] = 404

    at.step("poll", made.prediction_id)

    row = at.row("predictions", made.prediction_id)
    assert (row["state"], row["ended_by"]) == ("lost", "us")


def test_a_poll_under_a_lost_lease_changes_nothing(at: World) -> None:
    """A worker that slept while its answer grew old must not speak."""
    made = at.registered("p1")
    make_due(at, made.prediction_id)

    def steal(_path: str) -> None:
        at.conn.execute("UPDATE predictions SET lease_token = gen_random_uuid() WHERE id = %s", (made.prediction_id,))

    at.conn.execute("UPDATE predictions SET polls = 1")
    at.source.predictions["p1"] = 404
    answer = at.source.answer
    at.source.answer = lambda path: (steal(path), answer(path))[1]  # type: ignore[method-assign]
    at.step("poll", made.prediction_id)

    assert at.state("predictions", made.prediction_id) == "running"
    assert at.letters() == []


def test_poison_at_the_claim_loses_the_prediction(at: World) -> None:
    """Five dead workers are enough."""
    made = at.registered("p1")
    at.conn.execute("UPDATE predictions SET crashes = 5, attempt = 5, run_at = moment()")

    at.step("poll", made.prediction_id)

    assert at.source.asked == []
    assert at.state("jobs", made.job_id) == "failed"
    assert [letter["category"] for letter in at.letters(made.prediction_id)] == ["POISON"]
