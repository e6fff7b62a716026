"""Decisions: what follows a failure, an answer of a provider, an output's end."""

from datetime import UTC, datetime, timedelta

import pytest

from moorage import lifecycle, retry_policy, transitions
from moorage.errors import (
    DownloadInterrupted,
    InvalidMedia,
    OutputGone,
    ProviderUnavailable,
    StorageUnavailable,
    Transient,
)
from moorage.lifecycle import (
    ChoosePrediction,
    EndPrediction,
    FallbackState,
    IgnoreReport,
    LateSuccess,
    OutputCounts,
    PredictionContext,
    Settlement,
)
from moorage.provider_types import OutputFile, PredictionReport
from moorage.retry_policy import DeadLetterDecision, Retry, RetryContext, RetryPolicy
from tasks.predictions.reports import compute_expiry

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)
FILE = (OutputFile("output", url="https://files.example/x.png"),)


def after(error, errors=0, expires_in=None, jitter=0.5, **policy):
    expires_at = None if expires_in is None else NOW + timedelta(seconds=expires_in)
    work = RetryContext(errors=errors, expires_at=expires_at)
    return retry_policy.decide_after_failure(error, work, now=NOW, jitter=jitter, policy=RetryPolicy(**policy))


def wait_of(verdict):
    assert isinstance(verdict, Retry)
    return (verdict.run_at - NOW).total_seconds()


def test_the_wait_doubles_up_to_its_cap_and_is_spread():
    """A thousand workers must not come back together."""
    waits = [retry_policy.backoff(attempt, 1.0) for attempt in (1, 2, 3, 8, 20, 5000)]

    assert waits == [4.0, 8.0, 16.0, 300.0, 300.0, 300.0]
    assert retry_policy.backoff(3, 0.25) == 4.0


def test_a_permanent_failure_is_given_up_at_once():
    """It will never work."""
    assert after(InvalidMedia("a web page")) == DeadLetterDecision(
        "VALIDATION_FAILED", "InvalidMedia", "a web page", False
    )
    assert after(OutputGone("404")) == DeadLetterDecision("DOWNLOAD_FAILED", "OutputGone", "404", True)


@pytest.mark.parametrize(
    ("errors", "kind"), [(0, Retry), (10, Retry), (11, DeadLetterDecision), (30, DeadLetterDecision)]
)
def test_the_twelfth_error_is_the_last(errors, kind):
    """Eleven were written back before it."""
    assert isinstance(after(DownloadInterrupted("500"), errors=errors), kind)


def test_our_own_outage_does_not_count():
    """A quarter of an hour without storage must cost no file."""
    verdict = after(StorageUnavailable("away"), errors=500)

    assert isinstance(verdict, Retry)
    assert not verdict.is_counted
    assert verdict.kind == "storage_failed"
    assert 2.5 <= wait_of(verdict) <= 7.5


def test_retry_after_is_honoured():
    """A provider that asks for peace gets it."""
    assert wait_of(after(ProviderUnavailable("429", retry_after=77.0))) == 77.0
    assert wait_of(after(DownloadInterrupted("429", retry_after=0.1), errors=5, jitter=1.0)) > 100


@pytest.mark.parametrize("retry_after", [None, 3600.0])
def test_the_last_try_is_ten_seconds_before_the_url_dies(retry_after):
    """A wait beyond the URL's life would be the end."""
    assert wait_of(after(DownloadInterrupted("500", retry_after=retry_after), errors=9, expires_in=40)) == 30


def failing_past_expiry(*gaps, expired_ago=3600.0, error=None, **policy):
    """Decide on a failure now, after earlier ones at the given distances in seconds, all past the expiry."""
    times = [NOW]
    for gap in reversed(gaps):
        times.insert(0, times[0] - timedelta(seconds=gap))
    expires_at = NOW - timedelta(seconds=expired_ago)
    work = RetryContext(len(gaps), expires_at=expires_at, expired_attempts=tuple(times[:-1]))
    error = error or DownloadInterrupted("500", event_kind="source_unavailable")
    return retry_policy.decide_after_failure(error, work, now=NOW, jitter=0.5, policy=RetryPolicy(**policy))


@pytest.mark.parametrize("expired_ago", [-9, 0, 1, 3600, 86400])
def test_one_failure_at_or_past_the_expiry_ends_nothing(expired_ago):
    """An expiry by a clock that had jumped may lie in the past while the URL lives."""
    assert isinstance(failing_past_expiry(expired_ago=expired_ago), Retry)


@pytest.mark.parametrize(
    ("gaps", "kind"),
    [
        ((300, 299.9), Retry),
        ((300, 300), DeadLetterDecision),
        ((600,), Retry),  # two attempts
        ((86400,), Retry),
        ((3600, 10), Retry),  # a clock that jumped ahead in between
        ((3600, -3590, 10), Retry),  # ahead and back
        ((200, 200, 199.9), Retry),
        ((200, 200, 200), DeadLetterDecision),
        ((5, 5, 5, 5), Retry),
    ],
)
def test_a_source_is_given_up_after_three_attempts_over_ten_minutes_past_its_expiry(gaps, kind):
    """The clock alone is no proof: of each distance at most five minutes count."""
    verdict = failing_past_expiry(*gaps, expired_ago=1e6)

    assert isinstance(verdict, kind)
    if isinstance(verdict, DeadLetterDecision):
        assert "expired" in verdict.reason
        assert (verdict.source_expired, verdict.retryable) == (True, True)


def test_attempts_before_the_expiry_prove_nothing():
    """Those were made while the URL lived, whatever the clock said then."""
    assert isinstance(failing_past_expiry(300, 300, expired_ago=-60), Retry)


@pytest.mark.parametrize("error", [StorageUnavailable("away"), ProviderUnavailable("the refresh failed")])
def test_only_failures_of_the_source_end_it_past_its_expiry(error):
    """A night without storage is no answer of the source."""
    assert isinstance(failing_past_expiry(300, 300, error=error), Retry)


@pytest.mark.parametrize(("requested", "wait"), [(None, 8.0), (86400.0, 300.0)])
def test_a_wait_past_the_expiry_is_at_most_five_minutes(requested, wait):
    """A server that asks for a day would keep the row waiting for three."""
    error = DownloadInterrupted("503", retry_after=requested, event_kind="source_unavailable")

    assert wait_of(failing_past_expiry(1, 1, error=error)) == wait


def test_the_time_past_the_expiry_is_a_constant_that_tests_shorten():
    assert isinstance(failing_past_expiry(1, 1, expired_source_seconds=2.0), DeadLetterDecision)


def heard(status, prediction="running", chosen=False, job="open", render=False, outputs=FILE, can_ask=True, **more):
    stands_in, was_without_files = more.pop("stands_in", False), more.pop("was_without_files", False)
    report = PredictionReport("x", status, status, outputs=outputs if status == "succeeded" else (), **more)
    ctx = PredictionContext(prediction, chosen, job, render, can_ask, stands_in, was_without_files)
    return lifecycle.on_report(report, ctx)


@pytest.mark.parametrize("prediction", ["running", "abandoned"])
@pytest.mark.parametrize("status", ["succeeded", "failed", "cancelled"])
def test_an_end_reported_without_files_or_reason_is_polled(status, prediction):
    """A webhook without files is not a success without output: a poll returns the files."""
    assert heard(status, prediction, outputs=(), needs_fetch=True) == "poll now"


def test_a_success_without_files_is_lost_if_it_cannot_be_polled():
    """Files were generated and paid for: a dead letter with the remedy, not a failure without output."""
    verdict = heard("succeeded", outputs=(), needs_fetch=True, can_ask=False, error="set THE_KEY")

    assert isinstance(verdict, EndPrediction)
    assert verdict.state == "lost"
    assert "cannot be polled" in verdict.reason
    assert "set THE_KEY" in verdict.reason


def test_a_failure_without_a_reason_is_final_if_it_cannot_be_polled():
    """There is nothing to lose: the application is notified of the failure at once."""
    verdict = heard("failed", outputs=(), needs_fetch=True, can_ask=False)

    assert isinstance(verdict, EndPrediction)
    assert verdict.state == "failed"


@pytest.mark.parametrize("status", ["succeeded", "failed"])
@pytest.mark.parametrize("prediction", ["succeeded", "failed", "cancelled", "lost"])
def test_an_ended_prediction_is_not_polled_again(status, prediction):
    """A duplicate of a thin webhook must not poll."""
    assert isinstance(heard(status, prediction, outputs=(), needs_fetch=True), IgnoreReport)


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (heard("running"), "record status"),
        (heard("unknown"), "record status"),
        (heard("succeeded"), ChoosePrediction(reopens_job=False)),
        (heard("succeeded", "abandoned", job="failed"), ChoosePrediction(reopens_job=True)),
        (heard("succeeded", "lost", job="failed"), ChoosePrediction(reopens_job=True)),
        (heard("succeeded", "lost", job="failed", render=True), LateSuccess()),
        (heard("succeeded", job="keeping"), LateSuccess(in_reserve=True)),
        (heard("succeeded", "cancelled", job="keeping"), LateSuccess(in_reserve=True)),
        (heard("succeeded", "cancelled", job="failed"), ChoosePrediction(reopens_job=True)),
        (heard("succeeded", "cancelled", job="open"), ChoosePrediction(reopens_job=False)),
        (heard("succeeded", "cancelled", job="cancelled"), IgnoreReport("late: succeeded after cancelled")),
        (heard("succeeded", "cancelled", job="succeeded"), IgnoreReport("late: succeeded after cancelled")),
        (heard("succeeded", job="keeping", stands_in=True), ChoosePrediction(reopens_job=False)),
        (heard("succeeded", job="partial", render=True, stands_in=True), ChoosePrediction(reopens_job=True)),
        (heard("succeeded", job="partial", render=True), LateSuccess()),
        (heard("succeeded", job="cancelled"), LateSuccess()),
        (heard("succeeded", "succeeded", chosen=True, job="keeping"), "refresh urls"),
    ],
)
def test_report_decides(verdict, expected):
    """The first terminal success is chosen; a later report refreshes URLs or is late."""
    assert verdict == expected


@pytest.mark.parametrize("ended", sorted(transitions.TERMINAL_PREDICTION_STATES))
@pytest.mark.parametrize("status", ["queued", "running", "failed", "cancelled"])
def test_a_status_never_moves_backwards(ended, status):
    """Webhooks arrive out of order."""
    assert isinstance(heard(status, ended), IgnoreReport)


@pytest.mark.parametrize(
    ("verdict", "state"),
    [
        (heard("failed", error="nsfw"), "failed"),
        (heard("cancelled"), "cancelled"),
        (heard("succeeded", outputs=(), can_ask=False), "failed"),
        (heard("succeeded", outputs=(), was_without_files=True), "failed"),
        (heard("succeeded", outputs=(), data_removed=True), "lost"),
    ],
)
def test_an_end_without_files(verdict, state):
    """Files that the provider removed are lost; a provider's own failure is none of ours."""
    assert isinstance(verdict, EndPrediction)
    assert verdict.state == state


def test_a_success_without_files_is_asked_for_once_more():
    """The status may be ahead of the list of files."""
    assert heard("succeeded", outputs=()) == "poll again"


def test_the_reason_of_no_output_names_what_the_answer_mentions():
    """Nothing that looks like a file is passed over in silence."""
    mentioned = OutputFile("output.text", url="https://a.example/x", problem="is part of a text", is_mention=True)

    verdict = heard("succeeded", outputs=(), was_without_files=True, mentions=(mentioned,))

    assert verdict.reason.endswith("without any file; output.text is part of a text")


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        ("open", ChoosePrediction(reopens_job=False)),
        ("failed", ChoosePrediction(reopens_job=True)),
        ("keeping", LateSuccess(in_reserve=True)),
        ("succeeded", LateSuccess()),
        ("cancelled", LateSuccess()),
    ],
)
def test_a_later_success_with_files_counts_as_a_late_one(job, expected):
    """After a success without files only; a failure of the provider stays one."""
    assert heard("succeeded", "failed", job=job, was_without_files=True) == expected
    assert isinstance(heard("succeeded", "failed", job=job), IgnoreReport)


@pytest.mark.parametrize(
    ("counts", "partial", "expected"),
    [
        (OutputCounts(waiting=1, kept=3), "keep", None),
        (OutputCounts(kept=3), "keep", Settlement("succeeded", publish=True)),
        (OutputCounts(kept=2, dead=1), "keep", Settlement("partial", publish=True)),
        (OutputCounts(kept=2, dead=1), "discard", Settlement("failed", publish=False, discard_kept=True)),
        (OutputCounts(kept=3), "discard", Settlement("succeeded", publish=True)),
        (OutputCounts(dead=3), "keep", Settlement("failed", publish=False)),
        (OutputCounts(kept=2, foreign=1), "keep", Settlement("succeeded", publish=True)),
        (OutputCounts(kept=2, foreign=1), "discard", Settlement("succeeded", publish=True)),
        (OutputCounts(kept=2, foreign=1, dead=1), "keep", Settlement("partial", publish=True)),
        (OutputCounts(foreign=1), "keep", Settlement("failed", publish=False)),
        (OutputCounts(placeholders=1), "keep", Settlement("partial", publish=True)),
        (OutputCounts(dead=2, placeholders=1, others=1, reserve=1), "keep", Settlement("keeping", publish=False)),
        (OutputCounts(kept=1, dead=1, others=1, reserve=1), "keep", Settlement("partial", publish=True)),
        (
            OutputCounts(kept=1, dead=1, others=1, reserve=1),
            "discard",
            Settlement("keeping", publish=False, discard_kept=True),
        ),
        (OutputCounts(dead=2, placeholders=1), "keep", Settlement("partial", publish=True)),
        (OutputCounts(kept=2, placeholders=1), "keep", Settlement("succeeded", publish=True)),
        (
            OutputCounts(kept=1, dead=1, placeholders=1),
            "discard",
            Settlement("partial", publish=True, discard_kept=True),
        ),
    ],
)
def test_how_a_job_ends(counts, partial, expected):
    """Never with zero variants, never while one waits."""
    assert lifecycle.on_output_counts(counts, partial) == expected


def test_a_remaining_entry_precedes_a_kept_placeholder():
    """A job tried again has its chain before it."""
    assert lifecycle.on_output_counts(OutputCounts(dead=1, placeholders=1), "keep", has_next_entry=True) == Settlement(
        "failed", publish=False
    )


@pytest.mark.parametrize(
    ("prospect", "expected"),
    [
        (FallbackState(pending_predictions=1, next_entry=1, placeholder="wanted"), "await"),
        (FallbackState(pending_predictions=0, next_entry=0, placeholder="wanted"), "entry"),
        (FallbackState(pending_predictions=0, next_entry=None, placeholder="wanted"), "placeholder"),
        (FallbackState(pending_predictions=0, next_entry=None, placeholder="kept"), "show placeholder"),
        (FallbackState(pending_predictions=0, next_entry=None, placeholder="none"), "fail"),
    ],
)
def test_what_follows_a_try_that_brought_nothing(prospect, expected):
    """Only when nothing else can come does a job end."""
    assert lifecycle.on_no_files(prospect) == expected


def test_terminal_states_are_left_through_known_doors_only():
    """Replay, a late success, or policy discard: nothing else revives a row."""
    doors = {
        "delivery": {("dead", "new")},
        "job": {
            ("partial", "keeping"),
            ("partial", "open"),
            ("failed", "keeping"),
            ("failed", "open"),
            ("succeeded", "keeping"),
        },
        "prediction": {
            ("lost", "running"),
            ("lost", "succeeded"),
            ("failed", "succeeded"),
            ("cancelled", "succeeded"),
        },
        "output": {("dead", "waiting"), ("kept", "discarding")},
    }
    ended = {
        "delivery": {"applied", "ignored", "dead"},
        "job": transitions.TERMINAL_JOB_STATES,
        "prediction": transitions.TERMINAL_PREDICTION_STATES,
        "output": {"kept", "dead", "discarded"},
    }

    found = {
        subject: {e for e in transitions.TRANSITIONS[subject] if e[0] in states} for subject, states in ended.items()
    }

    assert found == doors


@pytest.mark.parametrize(
    ("says", "completed", "expected"),
    [(None, None, 3600), (None, -600, 3000), (None, 600, 3600), (1200, -2400, 1200), (10**8, 10**8, 3600)],
)
def test_expiry_of_urls(says, completed, expected):
    """A provider's fast clock must not extend the lifetime of a URL."""

    def at(seconds):
        return None if seconds is None else NOW + timedelta(seconds=seconds)

    report = PredictionReport("x", "succeeded", "succeeded", completed_at=at(completed), expires_at=at(says))

    assert compute_expiry(report, NOW, 3600.0) == at(expected)


# --- files that fail for long ------------------------------------------------------------------------------------


def fails(errors, *, since=0.0, jitter=0.5, error=None, expires_in=3600.0, **more):
    """Return what follows when a file fails that has failed for so many seconds."""
    work = RetryContext(
        errors,
        NOW + timedelta(seconds=expires_in),
        work="file",
        failing_since=NOW - timedelta(seconds=since),
        **{"source_errors": errors, **more},
    )
    failure = error or DownloadInterrupted("503", event_kind="source_unavailable")
    return retry_policy.decide_after_failure(failure, work, now=NOW, jitter=jitter, policy=RetryPolicy())


@pytest.mark.parametrize("errors", [11, 12, 500])
def test_a_file_is_not_given_up_while_its_url_lives(errors):
    """Whatever the number of errors: the wait is at most five minutes."""
    assert 0 < wait_of(fails(errors, jitter=0.999)) <= 300


@pytest.mark.parametrize(
    ("errors", "since", "defers"), [(0, 0, False), (10, 400, False), (11, 400, True), (8, 700, True), (30, 2000, True)]
)
def test_a_job_waits_for_twelve_errors_or_fifteen_minutes(errors, since, defers):
    """Full jitter spreads twelve errors over up to 28 minutes: the time is limited, too."""
    assert fails(errors, since=since, jitter=0.9).defers is defers


def test_a_file_is_deferred_once():
    """Its job was settled without it."""
    assert not fails(40, since=2000, is_deferred=True).defers


def test_a_failure_of_our_own_defers_nothing():
    """A job cannot be settled without storage."""
    assert not fails(40, since=2000, error=StorageUnavailable("away")).defers


@pytest.mark.parametrize(("errors", "source_errors", "kind"), [(11, 0, DeadLetterDecision), (30, 20, Retry)])
def test_twelve_unexpected_errors_give_a_file_up(errors, source_errors, kind):
    """Those of the server are not among them."""
    bug = Transient("ZeroDivisionError")

    assert isinstance(fails(errors, error=bug, source_errors=source_errors), kind)


@pytest.mark.parametrize(("expires_in", "kind"), [(60.0, Retry), (-599.0, Retry), (-601.0, DeadLetterDecision)])
def test_a_provider_that_gives_no_fresh_url_is_asked_until_the_source_has_ended(expires_in, kind):
    """Its failures are not the source's, but without them nothing would end."""
    assert isinstance(fails(20, error=ProviderUnavailable("503"), expires_in=expires_in), kind)


def test_the_waits_of_a_notification_are_those_of_the_documentation():
    """14 attempts over 72 hours, each wait longer than the one before."""
    waits = retry_policy.NOTIFICATION_WAITS

    assert list(waits) == sorted(set(waits))
    assert sum(waits) == 72 * 3600
