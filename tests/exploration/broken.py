"""Systems with one rule taken out. The search must find each, or it could not find our own mistakes either."""

from dataclasses import dataclass, replace
from typing import Any, Final

from moorage import lifecycle
from moorage.lifecycle import ChoosePrediction, OutputCounts, PredictionContext, ReportDecision
from moorage.provider_types import PredictionReport
from tests.exploration import scenarios
from tests.exploration.moves import Scenario
from tests.exploration.state import JOB, OUTPUTS, Actor, Lost, View
from tests.exploration.statements import (
    Rules,
    Statement,
    cleared,
    counted,
    end_dead,
    end_kept,
    lock_job,
    settle,
    settle_on,
)

CORRECT: Final = Rules()


@dataclass(frozen=True)
class Broken:
    """What was taken out, where the search starts, and how the law that it breaks begins."""

    rules: Rules
    scenario: Scenario
    law: str


def _with(**transactions: tuple[Statement, ...]) -> Rules:
    return replace(CORRECT, transactions={**CORRECT.transactions, **transactions})


def _end_kept_unfenced(view: View, me: Actor, rules: Rules) -> None:
    row = view.lock(me.slot)
    if row.state != "waiting":
        raise Lost
    view.put(me.slot, cleared(row)._replace(state="kept", key=rules.named(me.token)))


def _snapshot(view: View, me: Actor, _rules: Rules) -> Actor:
    return me._replace(memo=counted(view))


def _settle_on_snapshot(view: View, me: Actor, rules: Rules) -> None:
    view.lock(JOB)
    settle_on(view, me.memo, rules)


def _read_job(view: View, me: Actor, _rules: Rules) -> Actor:
    return me._replace(memo=view.get(JOB).state)


def _revive_on_what_was_read(view: View, me: Actor, _rules: Rules) -> None:
    row = view.lock(me.slot)
    if not row.letter or me.slot not in OUTPUTS or me.memo == "succeeded":
        raise Lost
    view.put(me.slot, row._replace(state="waiting", attempt=0, crashes=0, letter=False))
    if me.memo != "keeping":
        view.put(JOB, view.lock(JOB)._replace(state="keeping"))


def _end_dead_silently(view: View, me: Actor, rules: Rules) -> None:
    end_dead(view, me, rules)
    view.put(me.slot, view.get(me.slot)._replace(letter=False))


def _forgets_the_past(report: PredictionReport, at: PredictionContext) -> ReportDecision:
    return lifecycle.on_report(report, replace(at, prediction_state="running"))


def _chooses_every_success(report: PredictionReport, at: PredictionContext) -> ReportDecision:
    verdict = lifecycle.on_report(report, at)
    return ChoosePrediction(reopens_job=True) if isinstance(verdict, lifecycle.LateSuccess) else verdict


def _drops_late_successes(report: PredictionReport, at: PredictionContext) -> ReportDecision:
    verdict = lifecycle.on_report(report, at)
    return lifecycle.LateSuccess() if isinstance(verdict, lifecycle.LateSuccess) else verdict


def _believes_a_cancellation(report: PredictionReport, at: PredictionContext) -> ReportDecision:
    ended = at.prediction_state == "cancelled"
    return lifecycle.IgnoreReport("cancelled") if ended else lifecycle.on_report(report, at)


def _publishes_the_last(kept: list[int], _counts: OutputCounts) -> list[int]:
    return kept[-1:]


def _small(**budget: Any) -> Scenario:
    return Scenario(scenarios.keeping(**budget), fine=True)


VARIANTS: Final = {
    "no fence on the final write": Broken(
        _with(record=(lock_job, _end_kept_unfenced, settle)), _small(faults=1), "rule 6"
    ),
    "count without the job lock": Broken(_with(record=(end_kept, settle)), _small(), "rule 3"),
    "lock and count in one statement": Broken(
        _with(record=(end_kept, _snapshot, _settle_on_snapshot)), _small(), "rule 3"
    ),
    "orphans told by the hash alone": Broken(replace(CORRECT, orphans="hash"), _small(), "rule 5"),
    "orphans looked at twice without the row lock": Broken(replace(CORRECT, orphans="two looks"), _small(), "rule 4"),
    "an upload taken back after an uncertain commit": Broken(
        replace(CORRECT, deletes_after_uncertain=True), _small(faults=1), "rule 4"
    ),
    "leases released without proof": Broken(replace(CORRECT, releases_unproved=True), _small(), "rule 6"),
    "leased rows claimed": Broken(replace(CORRECT, claims_leased=True), _small(), "rule 6"),
    "replay without the job lock": Broken(
        _with(replay=(_read_job, _revive_on_what_was_read)), _small(failures=1, replays=1), "rule 3"
    ),
    "publish only the last": Broken(replace(CORRECT, publishes=_publishes_the_last), _small(), "rule 3"),
    "give up without a dead letter": Broken(
        _with(bury=(lock_job, _end_dead_silently, settle)), _small(failures=1), "rule 8"
    ),
    "a prediction that moves backwards": Broken(
        replace(CORRECT, on_report=_forgets_the_past), scenarios.DISORDER, "rule 7"
    ),
    "every success chosen": Broken(replace(CORRECT, on_report=_chooses_every_success), scenarios.WHOLE, "rule"),
    "late successes dropped": Broken(
        replace(CORRECT, on_report=_drops_late_successes), scenarios.SHORT["whole"], "rule 7"
    ),
    "a success after a cancellation ignored": Broken(
        replace(CORRECT, on_report=_believes_a_cancellation), scenarios.CANCELLED, "rule 7"
    ),
    "a file replayed while its job awaits another prediction": Broken(
        replace(CORRECT, refuses=("succeeded",)), scenarios.LATE, "rule 3"
    ),
    "attempts that nobody needs go on": Broken(
        replace(CORRECT, cancels_deferred=False), scenarios.SHORT["deferred"], "rule 2"
    ),
    "nobody frees a dead worker's lease": Broken(replace(CORRECT, releases=False), _small(faults=1), "rule 2"),
}
