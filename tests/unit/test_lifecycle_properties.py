"""What holds of the pure decisions whatever comes in: orders and doublings of reports, failures, counts, times."""

import itertools
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moorage import lifecycle, retry_policy
from moorage.errors import DownloadInterrupted, InvalidMedia, MoorageError, OutputGone, StorageUnavailable, Transient
from moorage.lifecycle import ChoosePrediction, EndPrediction, LateSuccess, OutputCounts, PredictionContext
from moorage.model import DeliveryState, JobState, OutputState, PredictionState
from moorage.provider_types import OutputFile, PredictionReport, PredictionStatus
from moorage.retry_policy import DeadLetterDecision, Retry, RetryContext, RetryPolicy
from moorage.transitions import TERMINAL_JOB_STATES, TERMINAL_PREDICTION_STATES, TRANSITIONS

settings.register_profile("moorage", deadline=None, derandomize=True)  # a shared processor is slow by turns
settings.load_profile("moorage")

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LIVE = {
    "delivery": {"new", "unmatched"},
    "job": {"open", "keeping"},
    "prediction": {"planned", "submitting", "running", "abandoned"},
    "output": {"waiting", "discarding"},
    "dead_letter": {"open"},
}
STATES = {"delivery": DeliveryState, "job": JobState, "prediction": PredictionState, "output": OutputState}
# Doors out of a terminal state (rule 7), and nothing else: replays, a late success, a policy that discards.
DOORS = {
    ("delivery", "dead", "new"),
    ("job", "partial", "keeping"),
    ("job", "partial", "open"),
    ("job", "failed", "keeping"),
    ("job", "failed", "open"),
    ("job", "succeeded", "keeping"),
    ("prediction", "lost", "running"),
    ("prediction", "failed", "succeeded"),
    ("prediction", "lost", "succeeded"),
    ("prediction", "cancelled", "succeeded"),
    ("output", "dead", "waiting"),
    ("output", "kept", "discarding"),
}

heard = st.sampled_from(["running", "abandoned"])
files = st.lists(st.integers(0, 5), unique=True, max_size=3).map(
    lambda numbers: tuple(OutputFile(f"output[{n}]", url=f"https://a.example/{n}") for n in numbers)
)
reports = st.builds(
    PredictionReport,
    external_id=st.just("abc"),
    status=st.sampled_from(get_args(PredictionStatus)),
    raw_status=st.just("word"),
    outputs=files,
    error=st.none() | st.just("out of memory"),
    data_removed=st.booleans(),
)
situations = st.builds(
    PredictionContext,
    prediction_state=heard | st.sampled_from(sorted(TERMINAL_PREDICTION_STATES)),
    is_chosen=st.booleans(),
    job_state=st.sampled_from(get_args(JobState)),
    has_render=st.booleans(),
    has_placeholder=st.booleans(),
)
policies = st.builds(
    RetryPolicy,
    max_errors=st.integers(1, 12),
    wait_base_seconds=st.floats(0.01, 60),
    wait_cap_seconds=st.floats(0.01, 3600),
)
jitters = st.floats(0, 1, exclude_max=True)
theirs = st.builds(DownloadInterrupted, st.just("reset"), retry_after=st.none() | st.floats(0, 1e5))
ours = st.builds(StorageUnavailable, st.just("away"), retry_after=st.none() | st.floats(0, 1e5))
lives = st.none() | st.integers(-10_000, 100_000).map(lambda s: NOW + timedelta(seconds=s))


def hear(at: PredictionContext, report: PredictionReport) -> PredictionContext:
    """Return the situation after a report, as tasks/predictions/reports.py carries a verdict out."""
    verdict = lifecycle.on_report(report, at)
    if isinstance(verdict, ChoosePrediction):
        assert (at.job_state, "keeping") in TRANSITIONS["job"]
        return moved(at, "succeeded", is_chosen=True, job="keeping")
    if isinstance(verdict, LateSuccess):
        return moved(at, "succeeded", is_chosen=at.is_chosen, job=at.job_state)
    if isinstance(verdict, EndPrediction):
        return moved(at, verdict.state, is_chosen=at.is_chosen, job=at.job_state)
    return at


def moved(at: PredictionContext, to: PredictionState, *, is_chosen: bool, job: JobState) -> PredictionContext:
    """Return the situation after an edge of the prediction, which must be one that the lifecycle has."""
    assert (at.prediction_state, to) in TRANSITIONS["prediction"]
    return PredictionContext(to, is_chosen, job, at.has_render)


# --- reports ----------------------------------------------------------------------------------------------------


@given(situations, reports)
def test_every_verdict_takes_only_edges_that_there_are(at: PredictionContext, report: PredictionReport) -> None:
    """The audit compares the history with TRANSITIONS: any other decision would be reported as damage."""
    hear(at, report)


@given(heard, st.lists(reports, max_size=8))
def test_a_prediction_only_moves_forward(start: PredictionState, said: list[PredictionReport]) -> None:
    """Webhooks come doubled and in any order; once over, a prediction takes back nothing."""
    at = PredictionContext(start, False, "open", False)

    for report in said:
        before, at = at, hear(at, report)

        if before.prediction_state in TERMINAL_PREDICTION_STATES:
            assert (before.prediction_state, at.prediction_state) in {
                (at.prediction_state, at.prediction_state),
                ("lost", "succeeded"),
                ("cancelled", "succeeded"),
            }


@given(heard, st.lists(reports, min_size=1, max_size=6))
def test_repeated_reports_change_nothing(start: PredictionState, said: list[PredictionReport]) -> None:
    """A provider that sends a webhook again must not double what it did."""
    at = once = PredictionContext(start, False, "open", False)

    for report in said:
        once = hear(once, report)
        at = hear(hear(at, report), report)

    assert at == once


@given(st.lists(st.tuples(st.integers(0, 2), reports), max_size=10))
def test_a_job_chooses_once(said: list[tuple[int, PredictionReport]]) -> None:
    """Of several predictions of a job, exactly one is chosen, whatever the order of reports."""
    states: list[PredictionState] = ["running"] * 3
    job: JobState = "open"
    chosen = []

    for who, report in said:
        after = hear(PredictionContext(states[who], who in chosen, job, False), report)
        if job == "open" and after.job_state == "keeping":
            chosen.append(who)
        states[who], job = after.prediction_state, after.job_state

    assert len(chosen) <= 1


@given(situations, reports)
def test_a_job_opens_again_only_without_a_render_of_its_own(at: PredictionContext, report: PredictionReport) -> None:
    """What was published stays as it is: a late success may help only a job that failed, or shows a placeholder."""
    verdict = lifecycle.on_report(report, at)

    if isinstance(verdict, ChoosePrediction) and at.job_state in TERMINAL_JOB_STATES:
        assert verdict.reopens_job
        assert at.has_placeholder if at.job_state == "partial" else (at.job_state == "failed" and not at.has_render)


@given(heard, reports)
def test_a_success_with_files_is_never_called_a_failure(prediction: PredictionState, report: PredictionReport) -> None:
    """Files that were paid for are kept or recorded as late, whatever else the report contains."""
    success = replace(report, status="succeeded", outputs=(OutputFile("output", url="https://a.example/1"),))

    verdict = lifecycle.on_report(success, PredictionContext(prediction, False, "open", False))

    assert verdict == ChoosePrediction(reopens_job=False)


# --- failures ---------------------------------------------------------------------------------------------------


@given(theirs | ours, st.integers(0, 20), lives, jitters, policies)
def test_a_retry_is_never_in_the_past_nor_after_the_last_try(
    error: MoorageError, errors: int, expires_at: datetime | None, jitter: float, policy: RetryPolicy
) -> None:
    """A retry behind the URL's death is a silent loss; one in the past spins."""
    verdict = retry_policy.decide_after_failure(
        error, RetryContext(errors, expires_at), now=NOW, jitter=jitter, policy=policy
    )

    if isinstance(verdict, Retry):
        assert verdict.run_at >= NOW
        if expires_at is not None and expires_at - policy.expiry_margin > NOW:
            assert verdict.run_at <= expires_at - policy.expiry_margin


@given(theirs | ours, st.integers(0, 11), lives, jitters)
def test_a_retry_within_the_lifetime_honours_retry_after(
    error: Transient, errors: int, expires_at: datetime | None, jitter: float
) -> None:
    """Retry-After is honoured up to the last try."""
    policy = RetryPolicy(max_errors=20)

    verdict = retry_policy.decide_after_failure(
        error, RetryContext(errors, expires_at), now=NOW, jitter=jitter, policy=policy
    )

    if isinstance(verdict, Retry) and error.retry_after:
        asked = NOW + timedelta(seconds=error.retry_after)
        last = expires_at - policy.expiry_margin if expires_at else asked
        last = last if last > NOW else NOW + timedelta(seconds=policy.expired_source_seconds / 2)
        assert verdict.run_at >= min(asked, last)


@given(theirs, jitters, policies)
def test_the_error_limit_is_reached_exactly(error: MoorageError, jitter: float, policy: RetryPolicy) -> None:
    """Twelve errors mean twelve: not eleven, which gives up early, nor thirteen."""
    tries = 0
    while True:
        verdict = retry_policy.decide_after_failure(error, RetryContext(tries), now=NOW, jitter=jitter, policy=policy)
        tries += 1
        if isinstance(verdict, DeadLetterDecision):
            break
        assert verdict.is_counted

    assert tries == policy.max_errors


@given(ours, st.integers(0, 1000), jitters, policies)
def test_our_own_outage_never_counts_nor_ends_anything(
    error: MoorageError, errors: int, jitter: float, policy: RetryPolicy
) -> None:
    """A night without storage must not cost one file whose URL lives."""
    alive = RetryContext(errors, NOW + timedelta(days=1))

    verdict = retry_policy.decide_after_failure(error, alive, now=NOW, jitter=jitter, policy=policy)

    assert isinstance(verdict, Retry)
    assert not verdict.is_counted


@given(
    theirs | ours,
    st.integers(0, 3),
    st.lists(st.integers(0, 290) | st.integers(-100_000, 100_000), max_size=8),
    jitters,
)
def test_the_clock_alone_never_ends_a_file(error: MoorageError, errors: int, gaps: list[int], jitter: float) -> None:
    """However the clock jumps between the attempts: it ends nothing without three, ten minutes apart."""
    times = list(itertools.accumulate(gaps, lambda at, gap: at - timedelta(seconds=gap), initial=NOW))
    work = RetryContext(errors, min(times) - timedelta(seconds=1), tuple(reversed(times[1:])))

    verdict = retry_policy.decide_after_failure(error, work, now=NOW, jitter=jitter, policy=RetryPolicy())

    waited = sum(min(max(gap, 0), 300) for gap in gaps)
    assert isinstance(verdict, DeadLetterDecision) == (error.category == "DOWNLOAD_FAILED" and waited >= 600)
    assert isinstance(verdict, Retry) or len(gaps) >= 2


@given(
    st.sampled_from([OutputGone("404"), InvalidMedia("half a picture")]), st.integers(0, 20), lives, jitters, policies
)
def test_what_will_never_work_is_not_tried_again(
    error: MoorageError, errors: int, expires_at: datetime | None, jitter: float, policy: RetryPolicy
) -> None:
    """A dead letter keeps the error's own word on whether a replay could succeed."""
    verdict = retry_policy.decide_after_failure(
        error, RetryContext(errors, expires_at), now=NOW, jitter=jitter, policy=policy
    )

    assert verdict == DeadLetterDecision(error.category, type(error).__name__, str(error), error.retryable)


@given(st.integers(1, 10_000), jitters, st.floats(0.001, 100), st.floats(0.001, 1e4))
def test_backoff_stays_within_its_bounds(attempt: int, jitter: float, base: float, cap: float) -> None:
    """Full jitter: anything from nothing to the bound, which doubles and is capped."""
    wait = retry_policy.backoff(attempt, jitter, base=base, cap=cap)

    assert 0 <= wait <= cap
    assert wait <= base * 2.0 ** min(attempt, 30)
    assert retry_policy.backoff(attempt + 1, jitter, base=base, cap=cap) >= wait


# --- counts -----------------------------------------------------------------------------------------------------


@given(
    st.builds(
        OutputCounts, *(st.integers(0, 4) for _ in range(3)), placeholders=st.integers(0, 1), reserve=st.integers(0, 1)
    ),
    st.sampled_from(["keep", "discard"]),
    st.booleans(),
)
def test_every_count_has_one_end(counts: OutputCounts, partial: str, more: bool) -> None:
    """A job ends exactly when nothing waits; it publishes only what was kept, and never nothing."""
    settle = lifecycle.on_output_counts(counts, partial, has_next_entry=more)

    assert (settle is None) == (counts.waiting > 0)
    if settle is not None:
        assert ("keeping", settle.state) in TRANSITIONS["job"]
        assert settle.publish == (settle.state in ("succeeded", "partial"))
        assert settle.publish <= (counts.kept + counts.placeholders > 0)
        assert not (settle.publish and settle.discard_kept and not counts.placeholders)
        assert not (settle.publish and more and not counts.kept)
        assert settle.publish or settle.discard_kept or not counts.kept
        assert (settle.state == "succeeded") == (counts.kept > 0 and not counts.dead)


# --- the graph --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subject", LIVE)
def test_every_live_state_can_end(subject: str) -> None:
    """A live state without a way out would hold its row for ever."""
    for state in LIVE[subject]:
        reached = {state}
        while more := {to for since, to in TRANSITIONS[subject] if since in reached} - reached:
            reached |= more
        assert reached - LIVE[subject], f"{subject} {state} never ends"


@pytest.mark.parametrize("subject", STATES)
def test_every_state_can_be_reached_and_every_edge_is_between_states(subject: str) -> None:
    """An unreachable state is dead code, a transition to an unknown state a typing error."""
    words = set(get_args(STATES[subject])) | {None}
    reached: set[str | None] = {None}

    while more := {to for since, to in TRANSITIONS[subject] if since in reached} - reached:
        reached |= more

    assert {word for edge in TRANSITIONS[subject] for word in edge} <= words
    assert reached == words


@pytest.mark.parametrize("subject", STATES)
def test_terminal_states_are_left_by_known_transitions_only(subject: str) -> None:
    """Terminal states are final except for the transitions of rule 7."""
    out = {
        (subject, since, to) for since, to in TRANSITIONS[subject] if since is not None and since not in LIVE[subject]
    }

    assert out == {door for door in DOORS if door[0] == subject}
