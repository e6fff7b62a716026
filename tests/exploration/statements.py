"""The statements of db/ and tasks/ over the model's rows; every decision is asked of moorage/lifecycle.py itself."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from moorage import lifecycle, retry_policy
from moorage.errors import DownloadInterrupted, MoorageError, OutputGone, StorageUnavailable
from moorage.lifecycle import (
    ChoosePrediction,
    EndPrediction,
    IgnoreReport,
    LateSuccess,
    OutputCounts,
    PredictionContext,
    ReportDecision,
)
from moorage.provider_types import OutputFile, PredictionReport
from moorage.retry_policy import DeadLetterDecision, RetryContext, RetryPolicy
from tests.exploration.state import (
    ENDED_JOB,
    JOB,
    LIVE,
    OUTPUTS,
    OUTPUTS_OF,
    P0,
    PREDICTION_OF,
    PREDICTIONS,
    Actor,
    Job,
    Lost,
    Row,
    View,
    Violation,
)

MAX_CRASHES: Final = 2
POLICY: Final = RetryPolicy(max_errors=2)
DISCARDS: Final = ("discarding", "discarded")
NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)
ERRORS: Final[Mapping[str, MoorageError]] = {
    "gone": OutputGone("404"),
    "interrupted": DownloadInterrupted("reset"),
    "storage away": StorageUnavailable("503"),
}
REPORTS: Final = {
    p: PredictionReport(
        f"ext-{p}", "succeeded", "succeeded", tuple(OutputFile(f"output[{o}]", url="https://x") for o in files)
    )
    for p, files in OUTPUTS_OF.items()
}
OUT_OF_ORDER: Final = PredictionReport(
    f"ext-{P0}", "failed", "failed", error="sent before the success, arrives after it"
)

Statement = Callable[[View, Actor, "Rules"], Actor | None]


def lock_job(view: View, _me: Actor, _rules: "Rules") -> None:
    """jobs.lock"""
    view.lock(JOB)


def _owned(view: View, me: Actor, state: tuple[str, ...]) -> Row:
    row: Row = view.lock(me.slot)
    if row.token != me.token or row.state not in state:
        raise Lost
    return row


def cleared(row: Row) -> Row:
    """leases.CLEAR"""
    return row._replace(token=0, over=False, crashes=row.crashes - 1)


def end_kept(view: View, me: Actor, rules: "Rules") -> None:
    """outputs.end_kept; keep._postpone; settle.reopen up to its settlement"""
    row, job = _owned(view, me, ("waiting",)), view.get(JOB)
    decision = decide_stored(job, me.slot)
    if decision == "wait":
        view.put(me.slot, cleared(row)._replace(attempt=row.attempt - 1))
        return
    view.put(me.slot, cleared(row)._replace(state="kept", key=rules.named(me.token), deferred=False))
    if decision == "choose":
        choose_again(view, PREDICTION_OF[me.slot])


def decide_stored(job: Job, o: int) -> str:
    """keep._decide_stored"""
    is_awaited = job.chosen == PREDICTION_OF[o]
    return lifecycle.on_file_stored(job.state, is_awaited=is_awaited, has_placeholder=False)


def choose_again(view: View, p: int) -> None:
    """settle.reopen"""
    job = view.lock(JOB)
    view.put(JOB, job._replace(state="keeping", chosen=p))
    stop_others(view)
    if job.partial == "discard":
        resume(view, p)


def resume(view: View, p: int) -> None:
    """deferral.resume"""
    for o in OUTPUTS_OF[p]:
        if view.get(o).deferred:
            row = view.lock(o)
            fresh = {} if row.token else {"attempt": 0, "crashes": 0}
            view.put(o, row._replace(deferred=False, reserve=False, **fresh))


def stop_others(view: View) -> None:
    """cancel.cancel_predictions"""
    for other in PREDICTIONS:
        if view.get(other).state in LIVE[other]:
            view.put(other, view.lock(other)._replace(stopped=True))


def defer(view: View, me: Actor, _rules: "Rules") -> None:
    """deferral.defer, leases.reschedule"""
    row = _owned(view, me, ("waiting",))
    view.put(me.slot, cleared(row)._replace(deferred=True))


def end_dead(view: View, me: Actor, _rules: "Rules") -> None:
    """outputs.end_dead, dead_letters.add"""
    row = _owned(view, me, ("waiting",))
    view.put(me.slot, cleared(row)._replace(state="dead", letter=True, deferred=False))


def hand_back(view: View, me: Actor, _rules: "Rules") -> None:
    """leases.hand_back"""
    row = cleared(_owned(view, me, LIVE[me.slot]))
    view.put(me.slot, row._replace(attempt=row.attempt - (0 if me.memo.is_counted else 1)))


def end_discarded(view: View, me: Actor, _rules: "Rules") -> None:
    """discards.end"""
    row = _owned(view, me, ("discarding",))
    view.put(me.slot, cleared(row)._replace(state="discarded", key=0))


def counted(view: View) -> OutputCounts:
    """jobs.count"""
    rows = [view.get(o) for o in OUTPUTS if PREDICTION_OF[o] == view.get(JOB).chosen]
    states = ["dead" if row.deferred else row.state for row in rows]
    dead = sum(s in ("dead", "discarding", "discarded") for s in states)
    return OutputCounts(states.count("waiting"), states.count("kept"), dead, reserve=len(in_reserve(view)))


def in_reserve(view: View) -> list[int]:
    """Return the outputs of late successes that were not attempted."""
    return [o for o in OUTPUTS if view.get(o).state == "waiting" and view.get(o).reserve]


def choose_reserve(view: View) -> None:
    """settle._choose_reserve"""
    p = PREDICTION_OF[in_reserve(view)[0]]
    view.took(JOB, "keeping", "keeping")
    view.put(JOB, view.lock(JOB)._replace(chosen=p))
    resume(view, p)


def settle(view: View, _me: Actor, rules: "Rules") -> None:
    """settle.if_last, with a count of its own"""
    settle_on(view, counted(view), rules)


def settle_on(view: View, counts: OutputCounts, rules: "Rules") -> None:
    """settle.if_last, renders.publish, discards.begin, jobs.move"""
    if view.get(JOB).partial == "discard" and end_incomplete(view):
        counts = counted(view)
    if view.get(JOB).state != "keeping":
        return
    decision = lifecycle.on_output_counts(counts, view.get(JOB).partial)
    if decision is None:
        return
    job = view.lock(JOB)
    kept = [o for o in OUTPUTS if view.get(o).state == "kept"]
    if decision.discard_kept:
        for o in kept:
            view.put(o, view.lock(o)._replace(state="discarding", attempt=0, crashes=0))
    if decision.state == "keeping":
        choose_reserve(view)
        return
    if decision.state == "failed" and running(view):  # chain.after_files
        view.put(JOB, job._replace(state="open"))
        return
    if decision.publish and counts.kept and rules.cancels_deferred:
        cancel_others(view)
    published = rules.publishes(kept, counts) if decision.publish else []
    variants = tuple(sorted({*job.variants, *published}))
    view.took(JOB, job.state, decision.state)
    render = job.render or bool(kept and decision.publish)
    view.put(JOB, job._replace(state=decision.state, render=render, variants=variants))


def cancel_others(view: View) -> None:
    """deferral.cancel_others"""
    for o in OUTPUTS:
        row = view.get(o)
        if row.deferred and PREDICTION_OF[o] != view.get(JOB).chosen:
            end_deferred(view, o, stopped=True)


def end_incomplete(view: View) -> bool:
    """deferral.end_incomplete_outputs"""
    ended = False
    for outputs in OUTPUTS_OF.values():
        rows = [view.get(o) for o in outputs if view.get(o).state]
        over = any(row.state != "waiting" for row in rows)
        if over and not any(row.state == "waiting" and not row.deferred for row in rows):
            for o in outputs:
                if view.get(o).deferred and not view.get(o).reserve:
                    end_deferred(view, o, letter=True)
                    ended = True
    return ended


def end_deferred(view: View, o: int, **how: bool) -> None:
    """cancellation.build_cancel_statement: also takes a lease away"""
    row = view.lock(o)
    crashes = row.crashes - (1 if row.token else 0)
    view.put(o, row._replace(state="dead", token=0, over=False, crashes=crashes, deferred=False, reserve=False, **how))


def running(view: View) -> bool:
    """predictions.awaited"""
    return any(view.get(p).state == "running" for p in PREDICTIONS)


def go_on(view: View) -> None:
    """chain.go_on, of a job without a chain"""
    job = view.get(JOB)
    if job.state == "open" and not running(view):
        view.put(JOB, job._replace(state="failed"))


def lock_delivery(view: View, me: Actor, _rules: "Rules") -> None:
    """deliveries.lock"""
    _owned(view, me, LIVE[me.slot])


def hear(view: View, me: Actor, rules: "Rules") -> None:
    """predictions.lock, apply.apply, deliveries.end"""
    p = P0 if me.memo == "out of order" else PREDICTION_OF[me.slot]
    changed = apply(view, p, OUT_OF_ORDER if me.memo else REPORTS[p], rules)
    view.put(me.slot, cleared(view.lock(me.slot))._replace(state="applied" if changed else "ignored"))


def apply(view: View, p: int, report: PredictionReport, rules: "Rules") -> bool:
    """apply.apply"""
    job, row = view.lock(JOB), view.lock(p)
    verdict = rules.on_report(report, PredictionContext(row.state, job.chosen == p, job.state, job.render))
    is_taken = row.state in ("succeeded", "failed") or not isinstance(verdict, IgnoreReport)
    if report.status == "succeeded" and not is_taken and job.state in ("open", "keeping", "failed"):
        raise Violation("rule 7: a success is ignored, and its job has no files")
    if isinstance(verdict, ChoosePrediction | LateSuccess | EndPrediction):
        state = verdict.state if isinstance(verdict, EndPrediction) else "succeeded"
        crashes = row.crashes - (1 if row.token else 0)
        view.put(p, row._replace(state=state, token=0, over=False, crashes=crashes, letter=False))
    if isinstance(verdict, ChoosePrediction):
        view.put(JOB, job._replace(state="keeping", chosen=p))
        stop_others(view)  # a claim passes over them until the commit
        for o in OUTPUTS_OF[p]:
            if not view.get(o).state:
                view.put(o, Row("waiting"))
        settle_on(view, counted(view), rules)
    if isinstance(verdict, EndPrediction):
        go_on(view)
    if isinstance(verdict, LateSuccess) and verdict.in_reserve:
        for o in OUTPUTS_OF[p]:
            if not view.get(o).state:
                view.put(o, Row("waiting", deferred=True, reserve=True))
        return True
    return isinstance(verdict, ChoosePrediction | EndPrediction)  # a later answer that renews nothing is a duplicate


def answer(view: View, me: Actor, rules: "Rules") -> None:
    """poll._answer: the provider has finished, or stays silent past our time limit, then past the output life"""
    row = view.lock(me.slot)
    if row.state not in LIVE[me.slot]:
        return
    if row.token != me.token:
        raise Lost
    if me.memo == "finished":
        apply(view, me.slot, REPORTS[me.slot], rules)
    elif row.stopped:
        view.put(me.slot, cleared(row)._replace(state="cancelled"))
        go_on(view)
    elif row.state == "running":
        view.put(me.slot, cleared(row)._replace(state="abandoned", attempt=row.crashes - 1))
        go_on(view)
    else:
        view.put(me.slot, cleared(row)._replace(state="lost", letter=True))
        go_on(view)


def poison(view: View, me: Actor, rules: "Rules") -> None:
    """failures._dead_letter_poison: does nothing unless the row is unleased and at the crash limit"""
    row = view.lock(me.slot)
    if row.token or row.state not in LIVE[me.slot] or row.crashes < MAX_CRASHES:
        raise Lost
    ends = {"waiting": "dead", "discarding": "discarded", "new": "dead"}
    view.put(me.slot, row._replace(state=ends.get(row.state, "lost"), letter=True, key=0, deferred=False,
                                   reserve=False))  # fmt: skip
    if me.slot in PREDICTIONS:
        go_on(view)
    elif me.slot in OUTPUTS:
        settle_on(view, counted(view), rules)


def check(view: View, me: Actor, rules: "Rules") -> None:
    """sweeps.check_job"""
    if view.get(JOB).state == "keeping":
        settle(view, me, rules)
    go_on(view)


def revived(view: View, slot: int) -> list[int]:
    """outputs.replay, and the count after it: with policy `discard` all dead files of the prediction, or none"""
    if slot not in OUTPUTS or view.get(JOB).partial != "discard":
        return [slot]
    rows = {o: view.get(o) for o in OUTPUTS_OF[PREDICTION_OF[slot]]}
    dead = [o for o, row in rows.items() if row.state == "dead" and row.letter]
    if any(row.state in ("dead", *DISCARDS) or row.deferred for o, row in rows.items() if o not in dead):
        raise Lost
    return dead


def revive(view: View, me: Actor, rules: "Rules") -> None:
    """replay.replay"""
    row, job = view.lock(me.slot), view.get(JOB)
    if not row.letter or row.state not in ("dead", "lost"):
        raise Lost
    if me.slot in OUTPUTS and job.state in rules.refuses:
        raise Lost
    if me.slot in OUTPUTS and job.chosen != PREDICTION_OF[me.slot]:
        raise Lost
    state = {"dead": "waiting", "lost": "running"}[row.state]
    state = "new" if me.slot in PREDICTION_OF and me.slot not in OUTPUTS else state
    for slot in revived(view, me.slot):
        view.put(slot, view.lock(slot)._replace(state=state, attempt=0, crashes=0, letter=False, stopped=False))
    if me.slot in OUTPUTS and job.state in ENDED_JOB:
        view.put(JOB, view.lock(JOB)._replace(state="keeping"))
    if me.slot in PREDICTIONS and job.state == "failed":
        view.put(JOB, job._replace(state="open"))


def verdict_on(row: Row, failure: str) -> retry_policy.Retry | DeadLetterDecision:
    """failures._record: errors are attempts less crashes"""
    errors = row.attempt - row.crashes
    work = RetryContext(errors, work="file", failing_since=NOW, source_errors=errors, is_deferred=row.deferred)
    return retry_policy.decide_after_failure(ERRORS[failure], work, now=NOW, jitter=0.5, policy=POLICY)


@dataclass(frozen=True)
class Rules:
    """How the system works; a broken variant changes one of them."""

    transactions: Mapping[str, tuple[Statement, ...]] = field(
        default_factory=lambda: {
            "record": (lock_job, end_kept, settle),
            "bury": (lock_job, end_dead, settle),
            "defer": (lock_job, defer, settle),
            "hand back": (hand_back,),
            "ingest": (lock_delivery, lock_job, hear),
            "poll": (lock_job, answer),
            "discarded": (end_discarded,),
            "poison": (lock_job, poison),
            "check": (lock_job, check),
            "replay": (lock_job, revive),
        }
    )
    on_report: Callable[[PredictionReport, PredictionContext], ReportDecision] = lifecycle.on_report
    publishes: Callable[[list[int], OutputCounts], list[int]] = lambda kept, _counts: kept
    claims_leased: bool = False  # a claim takes a row that another worker holds
    releases: bool = True  # the sweep frees leases that have ended
    releases_unproved: bool = False  # the sweep frees leases that have not ended
    deletes_after_uncertain: bool = False  # a worker takes its upload back when COMMIT gave no answer
    cancels_deferred: bool = True  # files of one prediction end the attempts at those of others
    refuses: tuple[str, ...] = ("succeeded", "open")  # jobs whose dead files are not replayed
    orphans: str = "row lock"  # or "hash" (no token in the key, no look at leases), "two looks" (no lock)

    def named(self, token: int) -> int:
        """Return what an object's key says of the attempt; a key of the bytes alone says nothing."""
        return 0 if self.orphans == "hash" else token
