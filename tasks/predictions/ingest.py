"""The ingest step: parse recorded deliveries and apply them to their predictions."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from uuid import UUID

from db import deliveries, erasures, jobs, leases, predictions
from db.connection import Connection
from db.deliveries import DeliveryResult
from moorage.errors import LeaseLost, MoorageError, Permanent, UnknownPrediction, UnrelatedEvent
from moorage.lifecycle import ChoosePrediction, ReportDecision
from moorage.model import Delivery, Job, Lease, Prediction, Registration, Wake
from moorage.provider_types import PredictionReport
from moorage.text import to_storable
from providers import output_files
from providers.base import Provider
from tasks.jobs import create, turns
from tasks.predictions import inline_files, reports, submit_outcome
from tasks.predictions.reports import ReportSource
from tasks.step import Deps, LeaseGuard

Key = tuple[str, str]  # provider and external id
MAX_MATCH_DELAY_SECONDS = 300.0
SHARED_SECONDS = 600.0  # for a registration, where most webhooks are about predictions of others, or anybody sends them
LOCK_MS = 500  # sweeps wait behind it in the same queue


class ProviderGone(Permanent):
    """The delivery's provider is not configured any more, or its body was purged."""

    category = "VALIDATION_FAILED"
    retryable = True


@dataclass(frozen=True, slots=True)
class DeliveredReport:
    """A leased delivery with what it reports."""

    lease: Lease
    delivery: Delivery
    provider: Provider
    report: PredictionReport

    @property
    def key(self) -> Key:
        return self.provider.name, self.report.external_id


DecidedReport = tuple[DeliveredReport, reports.ReceivedReport, ReportDecision]


def run(deps: Deps, lease: Lease, guard: LeaseGuard) -> list[Wake]:
    """Apply one delivery. Raises MalformedPayload, or UnknownPrediction if it was not registered in time."""
    try:
        item = _parse(deps, lease)
    except UnrelatedEvent as error:
        reason = to_storable(str(error))
        deps.database.run(lambda conn: deliveries.end(conn, lease, "ignored", reason))
        return []
    report = item.report
    if output_files.is_unclear(report):
        known = deps.database.run(lambda conn: predictions.find_by_external_id(conn, *item.key))
        report = item.provider.refine_report(report, item.delivery.body or b"", known.model if known else None)
    item = replace(item, report=inline_files.upload_files(deps, report))
    guard.check()
    return deps.database.run(lambda conn: apply_one(conn, deps, item), lock_ms=LOCK_MS, point="ingest")


def run_batch(deps: Deps, leased: Sequence[Lease]) -> tuple[list[Wake], list[Lease]]:
    """
    Apply deliveries in one transaction; return wakes, and the leases that are left for `run`.

    Left are those that are locked, cannot be parsed, or need more than the usual statements.
    """
    items, left = [], []
    for lease in leased:
        try:
            item = _parse(deps, lease)
        except MoorageError:  # `run` records it
            left.append(lease)
        else:
            left.append(lease) if output_files.is_unclear(item.report) else items.append(item)
    work = partial(apply_usual, deps=deps, items=items)
    wakes, more = deps.database.run(work, lock_ms=LOCK_MS, point="ingest") if items else ([], [])
    return wakes, left + more


def _parse(deps: Deps, lease: Lease) -> DeliveredReport:
    delivery = lease.delivery
    if delivery is None or delivery.body is None:
        raise ProviderGone("the body of this delivery was purged")
    provider = deps.providers.get(delivery.provider)
    if provider is None:
        raise ProviderGone(f"provider {delivery.provider} is not configured")
    return DeliveredReport(lease, delivery, provider, provider.parse_report(delivery.body))


def _lock_rows(
    conn: Connection, items: Sequence[DeliveredReport]
) -> tuple[set[UUID], dict[UUID, Job], dict[Key, Prediction]]:
    """Lock deliveries, then jobs, but none that is locked; return both, and the predictions, locked by their jobs."""
    keys = [item.key for item in items]
    names, external_ids = [provider for provider, _ in keys], [external_id for _, external_id in keys]
    rows, tokens = [item.lease.row_id for item in items], [item.lease.token for item in items]
    held, locked = deliveries.queue_lock(conn, rows, tokens), jobs.queue_lock(conn, names, external_ids)
    found = {(row.provider, str(row.external_id)): row for row in predictions.find(conn, names, external_ids)}
    return {row["id"] for row in held.rows}, {row["id"]: Job(**row) for row in locked.rows}, found


def apply_one(conn: Connection, deps: Deps, item: DeliveredReport) -> list[Wake]:
    """Apply one delivery; wait for locked rows. Raises LeaseLost."""
    held, locked, found = _lock_rows(conn, [item])
    if not held and not leases.renew(conn, item.lease, lease_seconds=deps.settings.lease_seconds):  # waits for its lock
        raise LeaseLost(f"delivery {item.lease.row_id}: the lease is lost")
    if item.key not in found and _end_if_erased(conn, item):
        return []
    prediction = found.get(item.key) or _identify(conn, deps, item)
    if prediction is None:
        _wait_for_registration(conn, deps, item)
        return []
    job = locked.get(prediction.job_id)
    if job is None:  # locked, or the prediction is new
        job, prediction = jobs.lock(conn, prediction.job_id), predictions.lock(conn, prediction.id)
    received = _receive(conn, deps, item, job, prediction)
    return _write(conn, deps, [(item, received, reports.decide(received))])


def apply_usual(conn: Connection, deps: Deps, items: Sequence[DeliveredReport]) -> tuple[list[Wake], list[Lease]]:
    """Apply deliveries that need the usual statements only; return wakes, and the leases of the others."""
    held, locked, found = _lock_rows(conn, items)
    decided: list[DecidedReport] = []
    left, left_keys = [], set()
    for item in items:
        prediction = found.get(item.key)
        job = locked.get(prediction.job_id) if prediction else None
        received = _receive(conn, deps, item, job, prediction) if job and prediction else None
        decision = reports.decide(received) if received else None
        is_usual = prediction is None and not _may_be_identified(deps, item)
        if received and decision:
            is_usual = not reports.needs_own_transaction(received, decision)
        if not is_usual or item.lease.row_id not in held or item.key in left_keys:
            left.append(item.lease)
            left_keys.add(item.key)  # later reports about it are applied after this one
        elif received and decision:
            decided.append((item, received, decision))
            if isinstance(decision, ChoosePrediction):
                found[item.key] = replace(received.prediction, state="succeeded")
                locked[received.job.id] = replace(received.job, state="keeping", chosen_id=received.prediction.id)
        elif not _end_if_erased(conn, item):
            _wait_for_registration(conn, deps, item)
    return _write(conn, deps, decided), left


def _receive(
    conn: Connection, deps: Deps, item: DeliveredReport, job: Job, prediction: Prediction
) -> reports.ReceivedReport:
    provider, actor = item.provider, item.lease.leased_by
    life_seconds, can_poll = provider.output_lifetime_seconds, provider.can_poll
    source = ReportSource("webhook", item.delivery.received_at, actor, deps.asset_base, life_seconds, can_poll)
    return reports.receive(conn, job, prediction, item.report, source)


def _write(conn: Connection, deps: Deps, decided: Sequence[DecidedReport]) -> list[Wake]:
    outcomes = reports.apply_decisions([(received, decision) for _, received, decision in decided])
    results: list[DeliveryResult] = []
    pairs = list(zip(decided, outcomes, strict=True))
    for (item, received, _), outcome in pairs:
        prediction, state = received.prediction, "applied" if outcome.changed else "ignored"
        external_id = item.report.external_id
        results.append((item.lease, state, outcome.reason, external_id, prediction.id, prediction.job_id))
    if results:
        conn.queue(deliveries.END, deliveries.build_end(*results))
    wakes = [wake for outcome in outcomes for wake in outcome.wakes]
    if any(outcome.ended and received.prediction.entry is not None for (_, received, _), outcome in pairs):
        wakes += turns.wake_next(conn, deps.settings, deps.providers)  # a place became free
    return wakes


def _may_be_identified(deps: Deps, item: DeliveredReport) -> bool:
    """Return True if an unknown prediction may be found or adopted, or is not waited for any longer."""
    until = item.delivery.unmatched_until
    is_over = until is not None and item.lease.claimed_at >= until
    return item.delivery.key_sha256 is not None or deps.settings.adopt or is_over


def _identify(conn: Connection, deps: Deps, item: DeliveredReport) -> Prediction | None:
    """Find the prediction by the key in the webhook URL; adopt it if the settings say so."""
    external_id, actor, provider = item.report.external_id, item.lease.leased_by, item.provider
    prediction = submit_outcome.bind_external_id(conn, provider, item.delivery.key_sha256, external_id, actor=actor)
    if prediction is None and deps.settings.adopt and not item.report.is_unverified:
        registration = Registration(
            provider=provider.name, external_id=external_id, owner="adopted", kind="mixed", model=item.report.model
        )
        create.insert_registration(conn, deps.settings, provider, registration, actor=actor)
        prediction = predictions.find_by_external_id(conn, provider.name, external_id)
    return prediction


def _end_if_erased(conn: Connection, item: DeliveredReport) -> bool:
    """End a delivery whose prediction was erased, and delete its body; return False for any other."""
    delivery, lease = item.delivery, item.lease
    if not erasures.is_erased(conn, item.provider.name, item.report.external_id, delivery.key_sha256):
        return False
    deliveries.end(conn, lease, "ignored", "its prediction was erased")
    erasures.purge_body(conn, lease.row_id)
    return True


def _wait_for_registration(conn: Connection, deps: Deps, item: DeliveredReport) -> None:
    now, until, external_id = item.lease.claimed_at, item.delivery.unmatched_until, item.report.external_id
    is_shared, is_unverified = item.provider.name in deps.settings.ignore_unregistered, item.report.is_unverified
    if until is not None and now >= until:
        reason = f"{item.provider.name} prediction {external_id} was not registered in time"
        if not is_shared and not is_unverified:
            raise UnknownPrediction(reason)
        why = "and its body is not signed" if is_unverified else "as MOORAGE_IGNORE_UNREGISTERED expects"
        deliveries.end(conn, item.lease, "ignored", f"{reason}, {why}")
        return
    limit = min(deps.settings.unmatched_seconds, item.provider.output_lifetime_seconds or 86400.0)
    limit = min(limit, SHARED_SECONDS) if is_shared or is_unverified else limit
    wait = next_match_delay(item.delivery, now)
    deliveries.mark_unmatched(conn, item.lease, external_id, wait_seconds=wait, unmatched_seconds=limit)


def next_match_delay(delivery: Delivery, at_time: datetime) -> float:
    """
    Return the delay in seconds before the next attempt to match: the time since receipt, between 1 s and 5 min.

    After the first attempt always 1 s: a registration committed meanwhile did not see the unmatched delivery.
    """
    if delivery.state == "new":
        return 1.0
    return min(max((at_time - delivery.received_at).total_seconds(), 1.0), MAX_MATCH_DELAY_SECONDS)
