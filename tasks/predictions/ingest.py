"""The ingest step: parse one recorded delivery and apply it to its prediction."""

from datetime import datetime

from db import deliveries, jobs, predictions
from db.connection import Connection, current_time
from moorage.errors import Permanent, UnknownPrediction, UnrelatedEvent
from moorage.failpoints import failpoint
from moorage.model import Delivery, Lease, Prediction, Registration, Wake
from moorage.provider_types import PredictionReport
from moorage.text import to_storable
from providers.base import Provider
from tasks.jobs import create
from tasks.predictions import reports, submit_outcome
from tasks.step import Deps, LeaseGuard

MAX_MATCH_DELAY_SECONDS = 300.0
LOCK_MS = 500  # sweeps wait behind it in the same queue


class ProviderGone(Permanent):
    """The delivery's provider is not configured any more, or its body was purged."""

    category = "VALIDATION_FAILED"
    retryable = True


def run(deps: Deps, lease: Lease, guard: LeaseGuard) -> list[Wake]:
    """Apply one delivery. Raises MalformedPayload, or UnknownPrediction if it was not registered in time."""
    delivery = deps.database.run(lambda conn: deliveries.get(conn, lease.row_id))
    if delivery is None or delivery.body is None:
        raise ProviderGone("the body of this delivery was purged")
    provider = deps.providers.get(delivery.provider)
    if provider is None:
        raise ProviderGone(f"provider {delivery.provider} is not configured")
    try:
        report = provider.refine_report(provider.parse_report(delivery.body), delivery.body)
    except UnrelatedEvent as error:
        reason = to_storable(str(error))
        deps.database.run(lambda conn: deliveries.end(conn, lease, "ignored", reason))
        return []
    guard.check()
    failpoint("ingest.before_commit")
    wakes = deps.database.run(lambda conn: _apply(conn, deps, lease, delivery, provider, report), lock_ms=LOCK_MS)
    failpoint("ingest.after_commit")
    return wakes


def _apply(
    conn: Connection, deps: Deps, lease: Lease, delivery: Delivery, provider: Provider, report: PredictionReport
) -> list[Wake]:
    deliveries.lock_leased(conn, lease)
    prediction = _find_prediction(conn, deps, lease, delivery, provider, report)
    if prediction is None:
        return _wait_for_registration(conn, deps, lease, delivery, report)
    job = jobs.lock(conn, prediction.job_id)
    prediction = predictions.lock(conn, prediction.id)
    received_at, life_seconds, can_poll = delivery.received_at, provider.output_lifetime_seconds, provider.can_poll
    source = reports.ReportSource("webhook", received_at, lease.leased_by, deps.asset_base, life_seconds, can_poll)
    outcome = reports.apply_report(conn, job, prediction, report, source)
    state, external_id = "applied" if outcome.changed else "ignored", report.external_id
    deliveries.end(
        conn, lease, state, outcome.reason, external_id=external_id, prediction_id=prediction.id, job_id=job.id
    )
    return outcome.wakes


def _find_prediction(
    conn: Connection, deps: Deps, lease: Lease, delivery: Delivery, provider: Provider, report: PredictionReport
) -> Prediction | None:
    """Find a delivery's prediction by its id, then by the key in the webhook URL; adopt it if the settings say so."""
    external_id, actor = report.external_id, lease.leased_by
    prediction = predictions.find_by_external_id(conn, provider.name, external_id)
    if prediction is None:
        prediction = submit_outcome.bind_external_id(conn, provider, delivery.key_sha256, external_id, actor=actor)
    if prediction is None and deps.settings.adopt:
        registration = Registration(
            provider=provider.name, external_id=external_id, owner="adopted", kind="mixed", model=report.model
        )
        create.insert_registration(conn, deps.settings, provider, registration, actor=actor)
        prediction = predictions.find_by_external_id(conn, provider.name, external_id)
    return prediction


def _wait_for_registration(
    conn: Connection, deps: Deps, lease: Lease, delivery: Delivery, report: PredictionReport
) -> list[Wake]:
    now, until = current_time(conn), delivery.unmatched_until
    if until is not None and now >= until:
        raise UnknownPrediction(f"{delivery.provider} prediction {report.external_id} was not registered in time")
    lifetime = deps.providers[delivery.provider].output_lifetime_seconds or 86400.0
    wait, limit = next_match_delay(delivery, now), min(deps.settings.unmatched_seconds, lifetime)
    deliveries.mark_unmatched(conn, lease, report.external_id, wait_seconds=wait, unmatched_seconds=limit)
    return []


def next_match_delay(delivery: Delivery, at_time: datetime) -> float:
    """
    Return the delay in seconds before the next attempt to match: the time since receipt, between 1 s and 5 min.

    After the first attempt always 1 s: a registration committed meanwhile did not see the unmatched delivery.
    """
    if delivery.state == "new":
        return 1.0
    return min(max((at_time - delivery.received_at).total_seconds(), 1.0), MAX_MATCH_DELAY_SECONDS)
