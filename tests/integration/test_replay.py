"""Replays: the one door out of a terminal state."""

from collections.abc import Iterator
from uuid import UUID

import pytest

from db.dead_letters import DeadLetterFilter
from embedded.stack import Stack
from moorage.errors import Refused
from moorage.model import Wake
from tasks import bulk_dead_letters as bulk
from tasks.jobs import replay
from tasks.sweeps import reconcile
from tests.integration.core import World, database_of, png, prediction, together, world


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return database_of(stack, template_database, "replay")


@pytest.fixture
def at(stack: Stack, url: str) -> Iterator[World]:
    with world(stack, url) as made:
        yield made


def again(at: World, letter_id):
    return at.deps.database.run(lambda conn: replay.replay_dead_letter(conn, letter_id, "cli"))


def test_a_replayed_output_completes_its_published_job(at: World) -> None:
    """The render stays readable meanwhile, and only grows."""
    made = at.keeping([at.source.picture(), at.source.broken()])
    at.keep_all(made.job_id)
    second, (letter,) = at.outputs(made.job_id)[1], at.letters()
    path = at.row("outputs", second)["source"].removeprefix(at.source.url(""))
    at.source.files[path] = (200, png(7))

    wake = again(at, letter["id"])
    assert wake == Wake("keep", second)
    assert at.one("SELECT count(*) FROM variants WHERE render_id = %s", made.job_id) == 1
    at.step("keep", second)

    assert at.state("jobs", made.job_id) == "succeeded"
    assert at.one("SELECT count(*) FROM variants WHERE render_id = %s", made.job_id) == 2
    assert [row["state"] for row in at.letters()] == ["replayed"]
    assert at.row("jobs", made.job_id)["reopened"] == 1


def test_a_replay_that_fails_again_opens_a_new_dead_letter(at: World) -> None:
    """At most one is open a row, and there is always one when we gave up."""
    made = at.keeping([at.source.broken()])
    at.keep_all(made.job_id)

    again(at, at.letters()[0]["id"])
    at.keep_all(made.job_id)

    assert [row["state"] for row in at.letters()] == ["replayed", "open"]
    assert at.state("jobs", made.job_id) == "failed"


def test_two_replays_at_once_give_one_life(at: World) -> None:
    """Two operators press the same key."""
    made = at.keeping([at.source.broken()])
    at.keep_all(made.job_id)
    (letter,) = at.letters()
    refused = []

    def press() -> None:
        with at.beside() as deps:
            try:
                deps.database.run(lambda conn: replay.replay_dead_letter(conn, letter["id"], "cli"))
            except Refused as error:
                refused.append(error)

    together(press, press)

    assert len(refused) == 1
    assert at.state("jobs", made.job_id) == "keeping"
    assert at.row("jobs", made.job_id)["reopened"] == 1
    at.keep_all(made.job_id)


def test_a_discarded_dead_letter_is_not_replayed(at: World) -> None:
    """Discarded is final; nothing of a refused replay stays behind."""
    made = at.keeping([at.source.broken()])
    at.keep_all(made.job_id)
    (letter,) = at.letters()
    at.deps.database.run(lambda conn: replay.discard_dead_letter(conn, letter["id"], "cli"))

    with pytest.raises(Refused):
        again(at, letter["id"])

    assert at.state("outputs", at.outputs(made.job_id)[0]) == "dead"
    assert at.state("jobs", made.job_id) == "failed"


def test_a_replayed_delivery_is_read_again(at: World) -> None:
    """After a parser was mended, or a prediction registered late."""
    delivery = at.delivered(prediction("p1", "succeeded", [at.source.picture()]))
    at.step("ingest", delivery)
    with at.later("25 hours") as then:
        then.step("ingest", delivery)
    made = at.registered("p1")

    wake = again(at, at.letters(delivery)[0]["id"])
    at.step("ingest", delivery)

    assert wake == Wake("ingest", delivery)
    assert at.state("deliveries", delivery) == "applied"
    assert at.state("jobs", made.job_id) == "keeping"


def test_a_job_whose_files_were_discarded_is_not_half_replayed(at: World) -> None:
    """All or nothing: what was kept is deleted, so one file more cannot make it whole."""
    made = at.keeping([at.source.picture(), at.source.broken()], partial="discard")
    at.keep_all(made.job_id)
    (letter,) = at.letters()

    with pytest.raises(Refused, match="discarded"):
        again(at, letter["id"])

    assert at.state("jobs", made.job_id) == "failed"


def both_broken(at: World, seeds: tuple[int, ...]) -> tuple[UUID, list[UUID]]:
    """Return a failed job that publishes all files or none, and its dead letters; files of seeds are back."""
    urls = [at.source.broken(404), at.source.broken(404)]
    made = at.keeping(urls, partial="discard")
    at.keep_all(made.job_id)
    assert at.state("jobs", made.job_id) == "failed"
    for seed, url in zip(seeds, urls, strict=False):
        at.source.files[url.removeprefix(at.source.url(""))] = (200, png(seed))
    return made.job_id, [letter["id"] for letter in at.letters()]


def test_all_files_of_a_job_that_publishes_all_or_none_are_replayed_together(at: World) -> None:
    """One by one, the first was kept and then deleted for the others' sake, and theirs were refused."""
    job_id, (first, second) = both_broken(at, (1, 2))

    again(at, first)
    assert [letter["state"] for letter in at.letters()] == ["replayed", "replayed"]
    assert at.one("SELECT count(*) FROM outputs WHERE state = 'waiting' AND run_at <= moment()") == 2
    at.keep_all(job_id)

    assert at.state("jobs", job_id) == "succeeded"
    assert at.one("SELECT count(*) FROM variants WHERE render_id = %s", job_id) == 2
    assert second not in {letter["id"] for letter in at.letters() if letter["state"] == "open"}


def test_files_that_are_replayed_together_are_counted_and_woken(at: World) -> None:
    """A replay of many names each; a retry of the job does."""
    job_id, _ = both_broken(at, ())

    page = bulk.apply_to_page(at.deps.database, DeadLetterFilter(), "replay", "cli")
    at.keep_all(job_id)
    retried = replay.retry_job(at.deps.database, at.deps.settings, job_id, "ann")

    assert (page.done, page.refused) == (2, [])
    assert {wake.row_id for wake in page.wakes} == set(at.outputs(job_id))
    assert (retried.replayed, {wake.row_id for wake in retried.wakes}) == (2, set(at.outputs(job_id)))


def test_a_file_is_not_replayed_if_another_cannot_be(at: World) -> None:
    """It would be stored, and deleted at once."""
    job_id, (first, second) = both_broken(at, (1, 2))
    at.deps.database.run(lambda conn: replay.discard_dead_letter(conn, second, "cli"))

    with pytest.raises(Refused, match="or cannot be replayed"):
        again(at, first)

    assert at.state("jobs", job_id) == "failed"


def test_a_file_of_a_foreign_host_that_is_refused_again_makes_its_job_no_less(at: World) -> None:
    """It is not the provider's: its job succeeded without it, and is told so again, not that it is partial."""
    made = at.keeping([at.source.picture(), "https://foreign.example/x.png"])
    at.keep_all(made.job_id)
    _, foreign = at.outputs(made.job_id)
    assert at.state("jobs", made.job_id) == "succeeded"

    again(at, at.letters(foreign)[0]["id"])
    assert at.state("jobs", made.job_id) == "keeping"
    at.step("keep", foreign)

    assert at.state("jobs", made.job_id) == "succeeded"
    row, letter = at.row("outputs", foreign), at.letters(foreign)[-1]
    assert (row["state"], row["category"]) == ("dead", "FOREIGN_HOST")
    assert (letter["state"], letter["category"]) == ("open", "DOWNLOAD_FAILED")


@pytest.mark.parametrize("waits_for", ["answer", "breaker"])
@pytest.mark.parametrize("partial", ["keep", "discard"])
def test_a_file_of_a_foreign_host_that_is_deferred_makes_its_job_no_less(
    at: World, partial: str, waits_for: str
) -> None:
    """Its host was allowed, and is unavailable: with `discard` the published files were deleted."""
    made = at.keeping([at.source.picture(), "https://foreign.example/x.png"], partial=partial)
    at.keep_all(made.job_id)
    _, foreign = at.outputs(made.job_id)
    at.conn.execute("UPDATE outputs SET source = %s WHERE id = %s", (at.source.broken(503), foreign))
    at.conn.execute("DELETE FROM target_attempts")
    again(at, at.letters(foreign)[0]["id"])
    assert at.state("jobs", made.job_id) == "keeping"

    if waits_for == "breaker":
        breaker = "SELECT 'host ' || source_host(source), moment() - interval '901 s', moment(), 'down' FROM outputs"
        at.conn.execute(
            f"INSERT INTO breakers (target, opened_at, probe_at, reason) {breaker} WHERE id = %s", [foreign]
        )
        at.conn.execute("UPDATE jobs SET run_at = moment()")
        reconcile.reconcile(at.deps, "sweeper", len, ["jobs"])
    for _ in range(at.deps.policy.max_errors if waits_for == "answer" else 0):
        at.conn.execute("DELETE FROM target_attempts")
        at.conn.execute("UPDATE outputs SET run_at = moment() WHERE id = %s", (foreign,))
        at.step("keep", foreign)

    row, letters = at.row("outputs", foreign), [(letter["state"], letter["category"]) for letter in at.letters(foreign)]
    given_up = partial == "discard"
    assert (at.state("jobs", made.job_id), row["category"]) == ("succeeded", "FOREIGN_HOST")
    assert (row["state"], row["deferred_at"] is None) == ("dead" if given_up else "waiting", False)
    assert letters == [("replayed", "DOWNLOAD_FAILED"), *[("open", "DOWNLOAD_FAILED")] * given_up]
    assert at.one("SELECT count(*) FROM predictions") == 1
    assert at.one("SELECT count(*) FROM variants WHERE render_id = %s", made.job_id) == 1


def test_a_replay_counts_from_nothing(at: World) -> None:
    """The same path as a first attempt: poison is given its five lives again."""
    made = at.keeping([at.source.picture()])
    (output_id,) = at.outputs(made.job_id)
    at.conn.execute("UPDATE outputs SET crashes = 5, attempt = 9 WHERE id = %s", (output_id,))
    at.step("keep", output_id)
    (letter,) = at.letters(output_id)
    assert letter["category"] == "POISON"

    again(at, letter["id"])
    at.step("keep", output_id)

    row = at.row("outputs", output_id)
    assert (row["state"], row["attempt"], row["crashes"]) == ("kept", 1, 0)
