"""The end of a job: settled exactly once, by whoever ends its last output."""

from collections.abc import Callable, Iterator
from uuid import UUID

import pytest

from embedded.stack import Stack
from moorage import ids
from moorage.retry_policy import DeadLetterDecision
from tasks.jobs import replay
from tasks.outputs import keep
from tests.integration.core import World, database_of, kept, prediction, together, world
from worker import failures


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return database_of(stack, template_database, "settle")


@pytest.fixture
def at(stack: Stack, url: str) -> Iterator[World]:
    with world(stack, url) as made:
        yield made


def job_with(at: World, outputs: int, **asked: object) -> UUID:
    return at.keeping([at.source.url(f"/never/{ids.uuid7()}") for _ in range(outputs)], **asked).job_id


def keeper(at: World, output_id: UUID) -> Callable[..., None]:
    """Return the last transaction of a keep, its lease taken beforehand."""
    lease, row = at.claimed_output(output_id), at.row("outputs", output_id)
    output = keep.outputs.get(at.conn, output_id)

    def record(deps) -> None:
        facts = kept(row["job_id"], row["idx"], lease)
        deps.database.run(lambda conn: keep._record(conn, deps, lease, output, facts))

    return record


def burier(at: World, output_id: UUID) -> Callable[..., None]:
    lease = at.claimed_output(output_id)
    why = DeadLetterDecision("DOWNLOAD_FAILED", "OutputGone", "gone", retryable=True)
    return lambda deps: deps.database.run(lambda conn: failures.dead_letter_row(conn, deps, lease, "keep", why, {}))


@pytest.mark.parametrize("count", [40, pytest.param(200, marks=pytest.mark.prove)])
def test_two_outputs_that_end_at_the_same_moment_settle_their_job(at: World, count: int) -> None:
    """Many times: with lock and count in one statement, nobody settles."""
    jobs = [job_with(at, 2) for _ in range(count)]

    with at.beside() as one, at.beside() as other:
        for number, job_id in enumerate(jobs):
            first, second = at.outputs(job_id)
            ends = keeper(at, first), (burier if number % 4 == 0 else keeper)(at, second)
            together(lambda ends=ends: ends[0](one), lambda ends=ends: ends[1](other))

    states = at.conn.execute("SELECT state, count(*) AS n FROM jobs GROUP BY state").fetchall()
    assert {row["state"]: row["n"] for row in states} == {"succeeded": count * 3 // 4, "partial": count // 4}
    twice = (
        "SELECT count(*) FROM (SELECT 1 FROM events WHERE subject = 'job' AND from_state = 'keeping' GROUP BY job_id"
    )
    assert at.one(f"{twice} HAVING count(*) > 1) AS doubled") == 0
    assert at.one("SELECT count(*) FROM render_variants") == count * 7 // 4


def test_a_partial_job_publishes_what_was_kept(at: World) -> None:
    """By default a lost file does not cost its siblings."""
    job_id = job_with(at, 3)
    first, second, third = at.outputs(job_id)

    burier(at, first)(at.deps)
    for output_id in (second, third):
        keeper(at, output_id)(at.deps)

    assert at.state("jobs", job_id) == "partial"
    assert at.row("renders", job_id)["cover_idx"] == 1
    assert at.one("SELECT array_agg(idx ORDER BY idx) FROM render_variants WHERE render_id = %s", job_id) == [1, 2]


def test_a_job_without_any_file_fails_and_has_no_render(at: World) -> None:
    """Never a render with zero variants."""
    job_id = job_with(at, 2)

    for output_id in at.outputs(job_id):
        burier(at, output_id)(at.deps)

    assert at.state("jobs", job_id) == "failed"
    assert at.one("SELECT count(*) FROM renders") == 0


def test_policy_discard_publishes_nothing_and_deletes_what_was_kept(at: World) -> None:
    """All or nothing, where the application wants it so."""
    made = at.keeping([at.source.picture(), at.source.broken()], partial="discard")
    first, second = at.outputs(made.job_id)
    at.step("keep", first)
    key = at.row("outputs", first)["key"]
    assert at.deps.storage.head(at.deps.storage.public_bucket, key) is not None

    (wake,) = at.step("keep", second)
    assert (wake.step, wake.row_id) == ("discard", first)
    at.step("discard", first)

    assert at.state("jobs", made.job_id) == "failed"
    assert at.state("outputs", first) == "discarded"
    assert at.deps.storage.head(at.deps.storage.public_bucket, key) is None
    assert at.one("SELECT count(*) FROM renders") == 0


def test_poison_while_discarding_leaves_the_settled_job_alone(at: World) -> None:
    """Terminal is final: what happens to a leftover object is not the job's business."""
    made = at.keeping([at.source.picture(), at.source.broken()], partial="discard")
    at.keep_all(made.job_id)
    before, first = at.row("jobs", made.job_id), at.outputs(made.job_id)[0]
    at.conn.execute("UPDATE outputs SET crashes = 5, attempt = 5 WHERE id = %s", (first,))

    at.step("discard", first)

    assert at.state("outputs", first) == "discarded"
    assert at.row("jobs", made.job_id) == before
    assert [letter["category"] for letter in at.letters(first)] == ["POISON"]


def test_the_failure_of_a_published_job_reopened_keeps_its_render(at: World) -> None:
    """A later settle only adds."""
    made = at.keeping([at.source.picture(), at.source.broken()])
    at.keep_all(made.job_id)
    (letter,) = at.letters()
    at.deps.database.run(lambda conn: replay.replay_dead_letter(conn, letter["id"], "cli"))
    second = at.outputs(made.job_id)[1]

    at.step("keep", second)

    assert at.state("jobs", made.job_id) == "partial"
    assert at.one("SELECT count(*) FROM render_variants WHERE render_id = %s", made.job_id) == 1
    assert at.row("jobs", made.job_id)["reopened"] == 1


def test_a_second_success_of_another_prediction_is_late(at: World) -> None:
    """The first terminal success is the chosen one; the other's file is in reserve."""
    made = at.registered("p1")
    at.conn.execute(
        "INSERT INTO predictions (id, job_id, seq, provider, external_id, state, deadline_at, run_at)"
        " VALUES (%s, %s, 1, 'replicate', 'p2', 'running', moment() + '1 hour', moment() + '1 hour')",
        (ids.uuid7(), made.job_id),
    )
    at.step("ingest", at.delivered(prediction("p1", "succeeded", [at.source.picture()])))

    late = at.delivered(prediction("p2", "succeeded", [at.source.picture()]))
    at.step("ingest", late)

    assert [at.row("outputs", one)["deferred_at"] is None for one in at.outputs(made.job_id)] == [True, False]
    assert at.row("jobs", made.job_id)["chosen_id"] == made.prediction_id
    assert "late" in at.row("deliveries", late)["reason"]


def beside(at: World, job_id: UUID, external_id: str) -> None:
    """Give a job another prediction that runs."""
    at.conn.execute(
        "INSERT INTO predictions (id, job_id, seq, provider, external_id, state, deadline_at, run_at)"
        " VALUES (%s, %s, 1, 'replicate', %s, 'running', moment() + '1 hour', moment() + '1 hour')",
        (ids.uuid7(), job_id, external_id),
    )


@pytest.mark.parametrize("partial", ["keep", "discard"])
def test_dead_files_of_an_earlier_prediction_do_not_count(at: World, partial: str) -> None:
    """They made a later complete success partial, or had it discarded by policy."""
    job_id = job_with(at, 1, partial=partial)
    beside(at, job_id, f"later-{partial}")
    (dead,) = at.outputs(job_id)
    burier(at, dead)(at.deps)
    assert at.state("jobs", job_id) == "open"

    at.step("ingest", at.delivered(prediction(f"later-{partial}", "succeeded", [at.source.picture()])))
    (fresh,) = (output_id for output_id in at.outputs(job_id) if output_id != dead)
    at.step("keep", fresh)

    assert at.state("jobs", job_id) == "succeeded"
    assert at.one("SELECT array_agg(output_id) FROM render_variants WHERE render_id = %s", job_id) == [fresh]
