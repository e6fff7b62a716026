"""Circuit breakers of download hosts and providers' APIs, and the share that one host has of a worker."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID, uuid4

import pytest
from psycopg import errors as pg

from bench.round_trips import RoundTripCounter, run_step
from db import breakers, output_claims, submission_turns, ticks
from db.connection import Connection, Database
from embedded.stack import Stack
from moorage.errors import (
    DatabaseUnavailable,
    DownloadInterrupted,
    InvalidMedia,
    MalformedPayload,
    MoorageError,
    OutputGone,
    ProviderRefused,
    RateLimited,
    SubmitUncertain,
)
from moorage.model import Wake
from moorage.provider_types import SubmitResult
from moorage.urls import find_source_host
from tasks.breakers import is_outage, note_failure, note_success
from tasks.step import commit_step
from tasks.sweeps import dispatch, reconcile
from tests.integration import chains
from tests.integration.core import Held, World, database_of, prediction, serving, together, world

BAD = DownloadInterrupted("the server returned 503", facts={"status": 503})
API = "api replicate"


@pytest.fixture(scope="module")
def url(stack: Stack, template_database: str) -> str:
    return database_of(stack, template_database, "breakers")


@pytest.fixture
def at(stack: Stack, url: str) -> Iterator[World]:
    with world(stack, url) as made:
        yield made


def host(at: World) -> str:
    return f"host 127.0.0.1:{at.source.port}"


def fail(at: World, target: str, attempts: int, jobs: int, error: MoorageError = BAD) -> None:
    ids = [uuid4() for _ in range(jobs)]
    for number in range(attempts):
        note_failure(at.deps, target, ids[number % jobs], error)


def open_targets(at: World) -> list[str]:
    return [row["target"] for row in at.conn.execute("SELECT target FROM breakers ORDER BY 1").fetchall()]


def open_breaker(at: World, target: str) -> None:
    fail(at, target, attempts=10, jobs=3)
    assert open_targets(at) == [target]


def make_probe_due(at: World) -> None:
    at.conn.execute("UPDATE breakers SET probe_at = moment()")


def waiting(at: World, urls: list[str], expires: int | None = None, base: str = "") -> list[UUID]:
    """Return due outputs of one job, with this expiry in seconds, and at this base of their URLs."""
    ids = at.outputs(at.keeping(urls).job_id)
    at.conn.execute(
        "UPDATE outputs SET expires_at = moment() + make_interval(secs => %s), source = replace(source, %s, %s)"
        " WHERE id = ANY (%s)",
        (expires, at.source.url(""), base or at.source.url(""), ids),
    )
    return ids


def claimed(at: World, *, share: int | None = None, task: str = "1", database: Database | None = None) -> UUID | None:
    who = {"leased_by": f"node@test/{task}", "lease_seconds": 30, "max_crashes": 5, "host_share": share}
    lease, _ = output_claims.claim(database or at.deps.database, uuid4(), **who)
    return lease.row_id if lease else None


@contextmanager
def other_host(at: World) -> Iterator[str]:
    """Give the address of a second host, whose files exist."""
    with serving() as source:
        source.answer = lambda path: at.source.files[path]  # type: ignore[method-assign]
        yield f"http://127.0.0.1:{source.port}"


# --- opening and closing


@pytest.mark.parametrize(("attempts", "jobs", "opens"), [(9, 3, False), (30, 2, False), (10, 3, True)])
def test_ten_failures_of_three_jobs_open(at: World, attempts: int, jobs: int, opens: bool) -> None:
    """One job with broken files says nothing about its host."""
    fail(at, "host x", attempts, jobs)

    assert open_targets(at) == (["host x"] if opens else [])


def test_failures_of_more_than_thirty_seconds_do_not_open(at: World) -> None:
    """A few errors an hour are no outage; what is older than a minute is deleted."""
    fail(at, "host x", 9, 3)
    with at.later("31 seconds") as then:
        fail(then, "host x", 9, 3)
        assert open_targets(at) == []
    with at.later("70 seconds") as then:
        fail(then, "host x", 1, 1)
        assert at.one("SELECT count(*) FROM target_attempts") == 10


def test_one_success_prevents_it(at: World) -> None:
    """A host that serves some files is not down; other hosts' successes say nothing."""
    at.deps.database.run(lambda conn: breakers.queue_success(conn, "host x"))
    fail(at, "host x", 20, 5)
    assert open_targets(at) == []

    with at.later("41 seconds") as then:
        fail(then, "host x", 20, 5)
    fail(at, "host y", 20, 5)

    assert open_targets(at) == ["host x", "host y"]


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (DownloadInterrupted("no connection", facts={"status": None}), True),
        (DownloadInterrupted("the server returned 429", facts={"status": 429}), True),
        (BAD, True),
        (DownloadInterrupted("the server returned 408", facts={"status": 408}), False),
        (DownloadInterrupted("received 4 of 5 bytes", facts={"status": 200}), False),
        (OutputGone("the server returned 404", facts={"status": 404}), False),
        (InvalidMedia("no image"), False),
        (RateLimited("429", facts={"status": 429}), True),
        (ProviderRefused("401", facts={"status": 401}), False),
        (SubmitUncertain("did not respond"), True),
    ],
    ids=str,
)
def test_only_outages_count(error: MoorageError, counts: bool) -> None:
    """A file that is gone, or broken, says nothing about the others."""
    assert is_outage(error) == counts


def test_what_concerns_this_machine_or_one_answer_does_not_count() -> None:
    """No file descriptor, or a response without JSON, is no outage of the server; a time-out within a body is."""
    causes = [(OSError(24, "too many open files"), None), (MalformedPayload("no JSON"), None), (TimeoutError(), 200)]
    found = []
    for cause, status in causes:
        error = DownloadInterrupted("failed", facts={"status": status})
        error.__cause__ = cause
        found.append(is_outage(error))

    assert found == [False, False, True]


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("https://A.example/x", "a.example"),
        ("http://u:p@a.example:81?x=1/2", "a.example:81"),
        ("inputs/a.png", ""),
        ("https://[::1]:8/a@b", "[::1]:8"),
        ("HTTP://x", "x"),
        (" https://x/", "x"),
    ],
)
def test_the_schema_and_the_program_name_a_host_alike(at: World, address: str, name: str) -> None:
    """Else a failure would open a breaker that no claim sees."""
    assert (at.one("SELECT source_host(%s)", address), find_source_host(address)) == (name, name)


def test_a_dead_host_opens_and_its_next_good_file_closes(at: World) -> None:
    """Through the step itself: the tenth failure opens, one probe after five seconds, and its success closes."""
    rows = [row for _ in range(4) for row in waiting(at, [at.source.broken(503) for _ in range(3)])]
    for row_id in rows[:10]:
        at.step("keep", row_id)
    assert open_targets(at) == [host(at)]
    at.conn.execute("UPDATE outputs SET run_at = moment()")
    assert at.step("keep", rows[11]) == []
    assert at.one("SELECT count(*) FROM outputs WHERE attempt = 0") == 2, "the others wait uncounted"

    (good,) = waiting(at, [at.source.picture()], expires=60)
    make_probe_due(at)
    at.step("keep", rows[11])

    assert (open_targets(at), at.state("outputs", good)) == ([], "kept")
    assert claimed(at) is not None


def test_a_refused_file_closes_too(at: World) -> None:
    """The host has served it as it should."""
    (row_id,) = waiting(at, [at.source.broken(200, b"no image")])
    open_breaker(at, host(at))
    make_probe_due(at)

    at.step("keep", row_id)

    assert (at.state("outputs", row_id), open_targets(at)) == ("dead", [])


def test_while_nothing_fails_a_kept_file_costs_no_further_round_trip(at: World) -> None:
    """Its success is noted in the transaction that records it, and once in ten seconds."""
    counter = RoundTripCounter()
    for row_id in waiting(at, [at.source.picture(n) for n in range(3)]):
        run_step(at.deps, counter, "keep", row_id)

    assert counter.total() == 10
    assert at.one("SELECT count(*) FROM target_attempts") == 1


@pytest.mark.parametrize("error", [pg.DeadlockDetected, DatabaseUnavailable])
def test_a_success_is_recorded_by_the_transaction_that_commits(at: World, error: type[Exception]) -> None:
    """One that is rolled back recorded nothing: the next one, whoever repeats it, closes the breaker."""
    open_breaker(at, host(at))
    errors = [error("a fault")]

    def record(conn: Connection) -> None:
        note_success(conn, at.deps, host(at))
        if errors:
            raise errors.pop()

    commit_step(at.deps, at.claimed_output(waiting(at, [at.source.picture()])[0]), Held(), record)

    assert open_targets(at) == []
    at.deps.database.run(record)
    assert at.one("SELECT count(*) FROM target_attempts WHERE job_id IS NULL") == 1, "once in ten seconds"


# --- claims and dispatch while a breaker is open


def test_one_probe_each_five_seconds_the_most_urgent_file(at: World) -> None:
    """The others wait, and files of other hosts go on."""
    with other_host(at) as base:
        late, soon = waiting(at, [at.source.picture()], 500) + waiting(at, [at.source.picture()], 60)
        (other,) = waiting(at, [at.source.picture()], 900, base)
        open_breaker(at, host(at))
        make_probe_due(at)

        assert [claimed(at) for _ in range(3)] == [soon, other, None]
        assert at.one("SELECT probe_at > moment() + interval '4 s' FROM breakers")
        make_probe_due(at)
        assert [claimed(at) for _ in range(2)] == [late, None]


def test_two_workers_share_one_probe(at: World) -> None:
    """Breakers are rows: no process has its own."""
    waiting(at, [at.source.picture(n) for n in range(8)], 60)
    open_breaker(at, host(at))
    make_probe_due(at)
    found: list[UUID | None] = []

    def claim(number: int) -> None:
        with at.beside() as deps:
            found.append(claimed(at, task=str(number), database=deps.database))

    together(*(lambda number=number: claim(number) for number in range(4)))

    assert sum(row_id is not None for row_id in found) == 1


def test_dispatch_wakes_what_may_be_claimed(at: World) -> None:
    """Wakes for files that wait for a breaker would be empty claims, 64 at each look."""
    with other_host(at) as base:
        soon, *_ = waiting(at, [at.source.picture(n) for n in range(5)], 60)
        others = waiting(at, [at.source.picture(n) for n in range(2)], 900, base)
        open_breaker(at, host(at))
        at.conn.execute("UPDATE outputs SET woken_at = NULL")

        def dispatched() -> set[UUID]:
            sent: list[Wake] = []
            dispatch.dispatch_due(at.deps, lambda _queue: 0, lambda wakes: sent.extend(wakes) or len(wakes))
            return {wake.row_id for wake in sent}

        assert dispatched() == set(others)
        make_probe_due(at)
        assert dispatched() == {soon, *others}


def test_a_paused_worker_probes_nothing_that_waits(at: World) -> None:
    """While something is paused the named output is claimed: it waits for its breaker, too."""
    (row_id,) = waiting(at, [at.source.picture()], 60)
    open_breaker(at, host(at))
    at.conn.execute("INSERT INTO pauses (target, paused_by) VALUES ('fal', 'ann')")
    try:
        at.step("keep", row_id)
        assert at.row("outputs", row_id)["attempt"] == 0
        make_probe_due(at)
        at.step("keep", row_id)
        assert at.state("outputs", row_id) == "kept"
    finally:
        at.conn.execute("DELETE FROM pauses")


def test_long_past_its_expiry_a_file_is_tried(at: World) -> None:
    """Its wait ends with its attempts: a host that is gone for ever must not keep it."""
    (row_id,) = waiting(at, [at.source.picture()], -601)
    waiting(at, [at.source.picture()], -500)
    open_breaker(at, host(at))

    assert [claimed(at), claimed(at)] == [row_id, None]


def test_a_job_does_not_wait_longer_for_a_breaker_than_for_attempts(at: World) -> None:
    """Files that are not tried count no errors: after 15 minutes their job settles without them, and they wait on."""
    job = at.keeping([at.source.picture(n) for n in range(2)])
    first, second = at.outputs(job.job_id)
    at.step("keep", first)
    at.conn.execute("DELETE FROM target_attempts")
    open_breaker(at, host(at))
    at.conn.execute("UPDATE jobs SET run_at = moment()")
    reconcile.reconcile(at.deps, "sweeper", len, ["jobs"])
    assert at.state("jobs", job.job_id) == "keeping"

    at.conn.execute("UPDATE breakers SET opened_at = moment() - interval '901 s'")
    at.conn.execute("UPDATE jobs SET run_at = moment()")
    reconcile.reconcile(at.deps, "sweeper", len, ["jobs"])

    assert (at.state("jobs", job.job_id), at.state("outputs", second)) == ("partial", "waiting")
    make_probe_due(at)
    at.step("keep", second)
    assert (at.state("jobs", job.job_id), at.state("outputs", second)) == ("succeeded", "kept")


def test_with_policy_discard_a_file_that_was_never_tried_is_given_up_with_its_job(at: World) -> None:
    """It has no error yet; its dead letter names the breaker, and the other jobs of the sweep are checked."""
    jobs = [at.keeping([at.source.picture(n) for n in range(2)], partial="discard").job_id for _ in range(2)]
    first, untried = at.outputs(jobs[0])
    at.step("keep", first)
    at.conn.execute("DELETE FROM target_attempts")
    open_breaker(at, host(at))
    at.conn.execute("UPDATE breakers SET opened_at = moment() - interval '901 s'")
    at.conn.execute("UPDATE jobs SET run_at = moment()")

    counts = reconcile.reconcile(at.deps, "sweeper", len, ["jobs"])

    assert counts["jobs"] == 2
    assert at.state("jobs", jobs[0]) == "failed"
    (letter,) = at.letters(untried)
    assert (letter["category"], letter["reason"]) == ("DOWNLOAD_FAILED", "requests to its host fail")
    assert at.one("SELECT count(*) FROM jobs WHERE run_at <= moment()") == 0


def test_broken_files_of_one_owner_do_not_delay_anothers_on_the_same_host(at: World) -> None:
    """50 files of an owner answer 404 or break off: no breaker opens, and the good ones are kept at their turn."""
    broken = [at.source.broken(404) for _ in range(48)] + [at.source.broken(200, b"no image") for _ in range(2)]
    for n in range(5):
        waiting(at, broken[n::5], 60)
    good = waiting(at, [at.source.picture(n) for n in range(5)], 50)

    for row_id in good[:5]:
        at.step("keep", row_id)
    for _ in range(50):
        at.step("keep", uuid4())

    assert {at.state("outputs", row_id) for row_id in good} == {"kept"}
    assert open_targets(at) == []
    assert at.one("SELECT count(*) FROM outputs WHERE state = 'waiting'") == 0


def test_the_probe_is_a_file_of_an_owner_whose_files_did_not_fail(at: World) -> None:
    """50 broken files of one owner open the breaker; another owner's less urgent file on the host closes it at once."""
    broken = [waiting(at, [at.source.broken(500)], 60)[0] for _ in range(12)]
    (good,) = waiting(at, [at.source.picture()], 500)
    at.conn.execute("UPDATE jobs SET owner = 'eve' WHERE id IN (SELECT job_id FROM outputs WHERE id <> %s)", (good,))
    at.conn.execute(
        "UPDATE outputs SET expires_at = CASE WHEN id = %s THEN '2091-01-01' ELSE '2090-01-01'::timestamptz END",
        (good,),
    )
    for row_id in broken[:10]:
        at.step("keep", row_id)
    assert open_targets(at) == [host(at)]
    make_probe_due(at)

    at.step("keep", uuid4())

    assert (at.state("outputs", good), open_targets(at)) == ("kept", [])


def reserve(at: World) -> UUID:
    """Return an output in reserve, whose job stores another file that is not due."""
    job_id = chains.started(at)
    first, slow = chains.running(at, job_id)
    chains.time_out(at, first, slow)
    _, second = chains.running(at, job_id)
    chains.hear(at, second, "succeeded", [at.source.picture(1)])
    chains.hear(at, slow, "succeeded", [at.source.picture()])
    chosen, held = at.outputs(job_id)
    at.conn.execute("UPDATE outputs SET run_at = moment() + interval '1 h' WHERE id = %s", (chosen,))
    at.conn.execute("UPDATE outputs SET expires_at = moment() + '60 s', run_at = moment() WHERE id = %s", (held,))
    return held


def test_files_in_reserve_use_up_no_probe(at: World) -> None:
    """Nothing is requested for them: six, each postponed by 30 s, took every probe of a host that serves again."""
    rows = [reserve(at) for _ in range(7)]
    open_breaker(at, host(at))
    make_probe_due(at)
    at.step("keep", uuid4())
    assert at.one("SELECT count(*) FROM outputs WHERE id = ANY (%s) AND run_at > moment()", rows) == 1, "it is alone"
    asked = len(at.source.asked)
    (good,) = waiting(at, [at.source.picture()], 500)
    make_probe_due(at)

    at.step("keep", uuid4())

    assert len(at.source.asked) == asked + 1
    assert (at.state("outputs", good), open_targets(at)) == ("kept", [])


# --- the share of a host


def test_half_of_a_worker_downloads_from_one_host_while_others_are_due(at: World) -> None:
    """A slow host would hold all of its processes; all of them at the same moment, too."""
    with other_host(at) as base:
        slow = waiting(at, [at.source.picture(n) for n in range(8)], 60)
        good = waiting(at, [at.source.picture(n) for n in range(8)], 900, base)
        found: list[UUID | None] = []

        def claim(number: int) -> None:
            with at.beside() as deps:
                found.append(claimed(at, share=2, task=str(number), database=deps.database))

        together(*(lambda number=number: claim(number) for number in range(4)))

        assert (len({*found} & {*slow}), len({*found} & {*good})) == (2, 2)


def test_a_host_alone_gets_the_whole_worker(at: World) -> None:
    """The share is a preference: no process is idle while files are due. Other workers have shares of their own."""
    rows = waiting(at, [at.source.picture(n) for n in range(6)], 60)

    assert {claimed(at, share=2) for _ in range(4)} < {*rows}
    with other_host(at) as base:
        (other,) = waiting(at, [at.source.picture()], 900, base)
        who = {"lease_seconds": 30, "max_crashes": 5, "host_share": 2}
        lease, _ = output_claims.claim(at.deps.database, uuid4(), leased_by="node@other/1", **who)
        assert lease is not None
        assert lease.row_id in rows
        assert claimed(at, share=2) == other


# --- a provider's API


def running(at: World, external_id: str) -> UUID:
    made = at.registered(external_id)
    at.conn.execute("UPDATE predictions SET run_at = moment() WHERE id = %s", (made.prediction_id,))
    return made.prediction_id


def polled(at: World, row_id: UUID) -> bool:
    before = len(at.source.asked)
    at.step("poll", row_id)
    return len(at.source.asked) > before


def test_an_api_that_fails_is_probed_by_one_poll(at: World) -> None:
    """Ten polls of as many predictions: the eleventh is not sent, and one success closes."""
    rows = [running(at, f"p{n}") for n in range(12)]
    at.source.predictions = {f"p{n}": 503 for n in range(12)}
    assert [polled(at, row_id) for row_id in rows] == [True] * 10 + [False] * 2
    assert open_targets(at) == [API]
    assert [at.row("predictions", row_id)["polls"] for row_id in rows[10:]] == [0, 0]

    make_probe_due(at)
    at.source.predictions = {f"p{n}": prediction(f"p{n}", "processing") for n in range(12)}

    assert [polled(at, row_id) for row_id in (rows[11], rows[10])] == [False, True], "the most urgent one"
    assert open_targets(at) == []
    assert polled(at, rows[11])


def test_dispatch_wakes_one_poll_for_a_probe(at: World) -> None:
    """The wakes of the others would be empty claims."""
    rows = [running(at, f"p{n}") for n in range(3)]
    open_breaker(at, API)

    def woken() -> list[UUID]:
        return at.deps.database.run(lambda conn: dispatch.leases.wake_due(conn, "poll", limit=9, queue_is_empty=True))

    assert woken() == []
    make_probe_due(at)
    assert woken() == rows[:1]


def submitted(at: World, row_id: UUID) -> UUID | None:
    """Claim what a wake of step submit leads to; return the row."""
    who = {"leased_by": "node@test/1", "lease_seconds": 30.0, "max_crashes": 5}
    claimed = submission_turns.claim(at.deps.database, row_id, at.deps.settings, passed_on=(), **who)
    return claimed[0].row_id if claimed[0] else None


def test_submissions_wait_for_an_open_breaker_and_one_is_the_probe(at: World) -> None:
    """They are not sent, and no attempt is counted; dispatch wakes none."""
    at = at.changed(in_flight={"replicate": 5})
    rows = [chains.planned(at, chains.started(at, entries=1)) for _ in range(3)]
    open_breaker(at, API)

    def dispatched() -> int:
        return dispatch.dispatch_due(at.deps, lambda _queue: 0, len, ["submit"])["submit"]

    assert (dispatched(), submitted(at, rows[0])) == (0, None)
    make_probe_due(at)
    assert dispatched() > 0
    assert [submitted(at, row_id) for row_id in rows] == [rows[0], None, None]
    at.deps.database.run(lambda conn: breakers.queue_success(conn, API))
    assert submitted(at, rows[1]) == rows[1]


def test_a_submission_does_not_wait_longer_than_the_next_entry_of_its_chain(at: World) -> None:
    """Another provider may draw the picture: its time is the first entry's limit, as without a breaker."""
    alone, followed = (chains.planned(at, chains.started(at, entries=n)) for n in (1, 2))
    at.conn.execute("UPDATE predictions SET created_at = moment() - interval '61 s'")
    open_breaker(at, API)

    assert submitted(at, alone) == followed
    assert submitted(at, alone) is None


def test_a_submission_that_fails_opens_and_one_that_succeeds_closes(at: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step itself notes how its request ended; polls and submissions share the provider's breaker."""
    first, second = (chains.planned(at, chains.started(at, entries=1)) for _ in range(2))
    outcomes = [RateLimited("replicate returned 429", facts={"status": 429}), SubmitResult("p1")]
    monkeypatch.setattr(at.deps.providers["replicate"], "submit", lambda _request: raise_or_return(outcomes.pop(0)))
    fail(at, API, attempts=9, jobs=3)
    at.step("submit", first)
    assert open_targets(at) == [API]
    make_probe_due(at)

    at.step("submit", second)

    assert (open_targets(at), at.state("predictions", second)) == ([], "running")


def raise_or_return(outcome: Exception | SubmitResult) -> SubmitResult:
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def test_past_its_deadline_a_prediction_is_polled(at: World) -> None:
    """Its wait ends at the deadline, whatever its provider does."""
    row_id = running(at, "p1")
    open_breaker(at, API)
    assert not polled(at, row_id)
    at.conn.execute("UPDATE predictions SET deadline_at = moment()")

    assert polled(at, row_id)


def test_an_abandoned_prediction_waits_for_an_open_breaker_until_its_output_life_ends(at: World) -> None:
    """It is polled for an hour past its deadline; an outage must not be asked by all of them."""
    open_breaker(at, "api replicate")
    row_id = running(at, "a")
    at.conn.execute(
        "UPDATE predictions SET state = 'abandoned', deadline_at = moment(), output_until = moment() + '1 h'"
    )
    assert not polled(at, row_id)

    at.conn.execute("UPDATE predictions SET output_until = moment()")

    assert polled(at, row_id)


def test_a_success_of_an_api_is_noted_with_its_poll(at: World) -> None:
    """In the round trips that a poll has anyway."""
    row_id, counter = running(at, "p1"), RoundTripCounter()
    at.source.predictions["p1"] = prediction("p1", "processing")
    run_step(at.deps, counter, "poll", row_id)
    before = counter.total()
    at.conn.execute("UPDATE predictions SET run_at = moment()")
    run_step(at.deps, counter, "poll", row_id)

    assert counter.total() == 2 * before
    assert at.one("SELECT array_agg(target) FROM target_attempts WHERE job_id IS NULL") == [API]


def test_idle_sweeps_look_at_no_breaker(at: World) -> None:
    """An open breaker without due files costs nothing."""
    open_breaker(at, "host x")

    tick = ticks.claim_slot(at.deps.database, "dispatch", 0.001)

    assert tick is not None
    assert tick.due == []
