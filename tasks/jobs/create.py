"""Create a job: from a job request, or for a prediction that the application started itself (a registration)."""

from collections.abc import Mapping
from dataclasses import dataclass
from uuid import UUID

import psycopg

from db import deliveries, jobs, predictions, projects, submissions
from db.connection import Connection, Database
from moorage import ids
from moorage.errors import Refused
from moorage.failpoints import failpoint
from moorage.model import JobRequest, Registration, Step, Wake
from moorage.settings import Settings
from providers.base import Provider


class ForeignProject(Refused):
    def __init__(self) -> None:
        super().__init__("names a project that this owner does not have", status=422)


class IdempotencyConflict(Refused):
    def __init__(self, job_id: UUID) -> None:
        super().__init__(f"this Idempotency-Key was sent with another body, for job {job_id}", status=409)


# --- job requests -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CreatedJob:
    """The job of a request; `is_new` is False if an earlier request with the same key created it."""

    job_id: UUID
    prediction_id: UUID
    state: str
    is_new: bool
    wakes: list[Wake]


def create_job(
    database: Database, settings: Settings, providers: Mapping[str, Provider], request: JobRequest
) -> CreatedJob:
    """
    Insert a job with its first prediction, planned and due now, unless its Idempotency-Key is known.

    Raises IdempotencyConflict or ForeignProject.
    """
    created = database.run(lambda conn: insert_job(conn, settings, providers, request))
    failpoint("order.after_commit")
    return created


def insert_job(
    conn: Connection, settings: Settings, providers: Mapping[str, Provider], request: JobRequest
) -> CreatedJob:
    existing = find_existing_job(conn, request)
    if existing is not None:
        return existing
    job_id = ids.uuid7()
    is_new = False
    with conn.transaction() as savepoint:  # an equal request may commit meanwhile: then this one is rolled back
        _require_project(conn, request.project_id, request.owner)
        is_new = jobs.add_requested(conn, job_id, request, notify=settings.notify_url is not None, actor="api")
        if not is_new:
            raise psycopg.Rollback(savepoint)
    if not is_new:
        return insert_job(conn, settings, providers, request)
    first = request.fallback_chain[0]
    prediction_id = submissions.plan(conn, job_id, 0, first, reason=None, actor="api")
    step: Step = "generate" if providers[first.provider].is_synchronous else "submit"
    return CreatedJob(job_id, prediction_id, "open", is_new=True, wakes=[Wake(step, prediction_id)])


def find_existing_job(conn: Connection, request: JobRequest) -> CreatedJob | None:
    """Return the job of an equal request with the same key, if there is one. Raises IdempotencyConflict."""
    row = jobs.find_by_key(conn, request.owner, request.idempotency_key) if request.idempotency_key else None
    if row is None:
        return None
    if row["request_sha256"] != request.request_sha256:
        raise IdempotencyConflict(row["id"])
    return CreatedJob(row["id"], row["prediction_id"], row["state"], is_new=False, wakes=[])


# --- registrations ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RegisteredJob:
    """The job of a registration; `is_new` is False if the prediction was registered before."""

    job_id: UUID
    prediction_id: UUID
    is_new: bool
    wakes: list[Wake]


def register_prediction(
    database: Database, settings: Settings, provider: Provider, registration: Registration
) -> RegisteredJob:
    """
    Insert a job with its running prediction, then wake the deliveries received before. Raises ForeignProject.

    The deliveries are woken after the commit: ingest does not see an uncommitted prediction.
    """
    job_id, prediction_id, is_new = database.run(
        lambda conn: insert_registration(conn, settings, provider, registration, actor="api")
    )
    failpoint("register.after_commit")
    delivery_ids = database.run(
        lambda conn: deliveries.make_unmatched_due(conn, registration.provider, registration.external_id)
    )
    return RegisteredJob(job_id, prediction_id, is_new, [Wake("ingest", delivery_id) for delivery_id in delivery_ids])


def insert_registration(
    conn: Connection, settings: Settings, provider: Provider, registration: Registration, *, actor: str
) -> tuple[UUID, UUID, bool]:
    """Insert a job and its prediction unless it is registered; returns their ids, and True if they are new."""
    existing = predictions.find_by_external_id(conn, registration.provider, registration.external_id)
    if existing is not None:
        return existing.job_id, existing.id, False
    deadline = registration.deadline_seconds or settings.job_deadline_seconds
    first = provider.first_poll_seconds() if provider.can_poll else deadline
    job_id, prediction_id, notify = ids.uuid7(), ids.uuid7(), settings.notify_url is not None
    _require_project(conn, registration.project_id, registration.owner)
    with conn.transaction() as savepoint:  # the same registration may commit meanwhile
        jobs.add_registered(conn, job_id, registration, deadline_seconds=deadline, notify=notify, actor=actor)
        is_new = predictions.add(
            conn, prediction_id, job_id, registration, deadline_seconds=deadline, first_poll_seconds=first, actor=actor
        )
        if not is_new:
            raise psycopg.Rollback(savepoint)
    if is_new:
        return job_id, prediction_id, True
    return insert_registration(conn, settings, provider, registration, actor=actor)


def _require_project(conn: Connection, project_id: str | None, owner: str) -> None:
    """Create the project if it is missing. Raises ForeignProject if it belongs to another owner."""
    if project_id is not None and not projects.ensure_open(conn, project_id, owner):
        raise ForeignProject
