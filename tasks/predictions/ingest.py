"""Ingest: one recorded delivery, parsed and applied to its prediction."""

from datetime import datetime

from db import deliveries, jobs, predictions
from db.connection import Connection, current_time
from moorage.errors import Permanent, UnknownPrediction, UnrelatedEvent
from moorage.failpoints import failpoint
from moorage.model import Delivery, Lease, Registration, Wake
from moorage.provider_types import PredictionReport
from moorage.text import to_storable
from providers.base import Provider
from tasks.jobs import create
from tasks.predictions import reports, submit_outcome
from tasks.step import Deps, LeaseGuard

MAX_MATCH_DELAY_SECONDS = 300.0


class ProviderGone(Permanent):
    """A delivery of a provider that this moorage no longer knows."""

    category = "VALIDATION_FAILED"
    retryable = True


def run(deps: Deps, lease: Lease, pulse: LeaseGuard) -> list[Wake]:
    """
    Apply one delivery; returns wakes for the files it brought.

    Raises:
        Unreadable: the body is not the provider's dialect.
        UnknownPrediction: nobody registered its prediction in time.
    """
    delivery = deps.database.run(lambda conn: deliveries.get(conn, lease.row_id))
    if delivery is None or delivery.body is None:
        raise ProviderGone("the body of this delivery was purged")
    provider = deps.providers.get(delivery.provider)
    if provider is None:
        raise ProviderGone(f"there is no provider {delivery.provider} in this moorage")
    try:
        report = provider.parse_report(delivery.body)
    except UnrelatedEvent as error:
        reason = to_storable(str(error))
        deps.database.run(lambda conn: deliveries.end(conn, lease, "ignored", reason))
        return []
    pulse()
    failpoint("ingest.before_commit")
    wakes = deps.database.run(lambda conn: _apply(conn, deps, lease, delivery, provider, report))
    failpoint("ingest.after_commit")
    return wakes


def _apply(
    conn: Connection, deps: Deps, lease: Lease, delivery: Delivery, provider: Provider, report: PredictionReport
) -> list[Wake]:
    deliveries.lock_leased(conn, lease)
    found = predictions.find_by_external_id(conn, delivery.provider, report.external_id)
    if found is None:
        found = submit_outcome.bind_external_id(
            conn, provider, delivery.key_sha256, report.external_id, actor=lease.leased_by
        )
    if found is None and deps.settings.adopt:
        create.insert_registration(conn, deps.settings, provider, _adopted(delivery, report), actor=lease.leased_by)
        found = predictions.find_by_external_id(conn, delivery.provider, report.external_id)
    if found is None:
        return _wait(conn, deps, lease, delivery, report)
    job = jobs.lock(conn, found.job_id)
    prediction = predictions.lock(conn, found.id)
    heard = reports.ReportSource(
        "webhook",
        delivery.received_at,
        lease.leased_by,
        deps.asset_base,
        provider.output_lifetime_seconds,
        provider.can_poll,
    )
    applied = reports.apply_report(conn, job, prediction, report, heard)
    deliveries.end(
        conn,
        lease,
        "applied" if applied.changed else "ignored",
        applied.reason,
        external_id=report.external_id,
        prediction_id=prediction.id,
        job_id=job.id,
    )
    return applied.wakes


def _wait(conn: Connection, deps: Deps, lease: Lease, delivery: Delivery, report: PredictionReport) -> list[Wake]:
    """Keep an unmatched delivery: from 1 s to 5 min between looks, until a registration or the end of its time."""
    until = delivery.unmatched_until
    if until is not None and current_time(conn) >= until:
        raise UnknownPrediction(f"nobody registered {delivery.provider} prediction {report.external_id} in time")
    life = min(deps.settings.unmatched_seconds, deps.providers[delivery.provider].output_lifetime_seconds or 86400.0)
    wait = next_match_delay(delivery, current_time(conn))
    deliveries.mark_unmatched(conn, lease, report.external_id, wait_seconds=wait, unmatched_seconds=life)
    return []


def next_match_delay(delivery: Delivery, at_time: datetime) -> float:
    """
    Return how many seconds to wait before looking for a registration again: as long as it has waited, 1 s to 5 min.

    After the first look always 1 s: a registration committed meanwhile could not see that this delivery waits for it.
    """
    if delivery.state == "new":
        return 1.0
    return min(max((at_time - delivery.received_at).total_seconds(), 1.0), MAX_MATCH_DELAY_SECONDS)


def _adopted(delivery: Delivery, report: PredictionReport) -> Registration:
    return Registration(
        provider=delivery.provider, external_id=report.external_id, owner="adopted", kind="mixed", model=report.model
    )
