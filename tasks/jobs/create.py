"""Create a job: from a job request, a prediction that the application started itself, or files that exist."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from types import MappingProxyType
from typing import Final
from uuid import UUID

from psycopg import errors as pg

from db import deliveries, jobs, outputs, owner_limits, projects, registrations, submissions
from db.connection import Connection, Database, QueuedQuery
from db.outputs import NewOutput
from moorage import ids
from moorage.errors import DownloadRefused, Refused
from moorage.model import JobDescription, JobRequest, Registration, Wake
from moorage.provider_types import OutputFile
from moorage.settings import Settings
from moorage.urls import parse_endpoint
from providers.base import Provider
from tasks.jobs import turns

NEW_JOB: Final = {"open_jobs": 1, "jobs_per_hour": 1, "stored_bytes": 1}  # what one adds at least to its owner's use
NO_LIMITS: Final[Mapping[str, int]] = MappingProxyType({})
DIRECT: Final = "direct"  # the provider of files that no prediction reported


class IdempotencyConflict(Refused):
    def __init__(self, job_id: UUID) -> None:
        super().__init__(f"this Idempotency-Key was sent with another body, for job {job_id}", status=409)


# --- job requests -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CreatedJob:
    """The job of a request or registration; `is_new` is False if an earlier one created it."""

    job_id: UUID
    prediction_id: UUID
    state: str
    is_new: bool
    wakes: list[Wake]


def create_job(
    database: Database,
    settings: Settings,
    providers: Mapping[str, Provider],
    request: JobRequest,
    limits: Mapping[str, int] = NO_LIMITS,
) -> CreatedJob:
    """
    Insert a job with its first prediction, planned and due now, unless its Idempotency-Key is known.

    `limits`: of the owner. Raises IdempotencyConflict, OwnerLimitReached.
    """

    def insert(conn: Connection) -> CreatedJob:
        if existing := find_or_require(conn, request, limits):
            return existing
        job_id = ids.uuid7()
        if request.project_id is not None:
            conn.execute(projects.ENSURE_OPEN, projects.build_ensure_open(request))
        jobs.queue_add(conn, job_id, request, notify=bool(settings.notify_urls), actor="api")
        first = request.fallback_chain[0]
        try:
            prediction_id = submissions.plan(
                conn, ids.uuid7(), job_id, 0, first, reason=None, actor="api", is_woken=False
            )
        except LookupError:  # an equal request was committed meanwhile: this job was not inserted
            return insert(conn)
        wakes = turns.wake_next(conn, settings, providers)  # none while its provider has no capacity
        return CreatedJob(job_id, prediction_id, "open", is_new=True, wakes=wakes)

    return database.run(insert, point="order")


def find_or_require(conn: Connection, request: JobDescription, limits: Mapping[str, int]) -> CreatedJob | None:
    """Return the job of an equal request with the same key; without one require that its owner may have one more."""
    if limits:
        owner_limits.lock(conn, request.owner)  # an equal request may have the last place: then its job is found
    existing = find_existing_job(conn, request)
    if existing is None:
        owner_limits.require(conn, request.owner, limits, **NEW_JOB)
    return existing


def find_existing_job(conn: Connection, request: JobDescription) -> CreatedJob | None:
    """Return the job of an equal request with the same key, if there is one. Raises IdempotencyConflict."""
    row = jobs.find_by_key(conn, request.owner, request.idempotency_key) if request.idempotency_key else None
    if row is None:
        return None
    if row["request_sha256"] != request.request_sha256:
        raise IdempotencyConflict(row["id"])
    return CreatedJob(row["id"], row["prediction_id"], row["state"], is_new=False, wakes=[])


# --- registrations ------------------------------------------------------------------------------------------------


def register_prediction(
    database: Database, settings: Settings, provider: Provider, registration: Registration
) -> CreatedJob:
    """
    Insert a job with its running prediction, then wake the deliveries received before.

    The deliveries are woken after the commit: ingest does not see an uncommitted prediction.
    """
    work = partial(_queue_registration, settings=settings, provider=provider, registration=registration, actor="api")
    added, found = database.run(work, point="register")
    wakes = wake_unmatched(database, registration.provider, registration.external_id)
    return CreatedJob(**found.rows[0], is_new=bool(added.rows), wakes=wakes)


def wake_unmatched(database: Database, provider: str, external_id: str) -> list[Wake]:
    """Make the deliveries due that were received before their prediction was known. Call after that commit."""
    rows = database.fetch_all(deliveries.MAKE_UNMATCHED_DUE, {"provider": provider, "external_id": external_id})
    return [Wake("ingest", row["id"]) for row in rows]


def insert_registration(
    conn: Connection, settings: Settings, provider: Provider, registration: Registration, *, actor: str
) -> tuple[UUID, bool]:
    """Insert a job and its prediction unless it is registered; returns the prediction's id, and True if it is new."""
    added, found = _queue_registration(conn, settings, provider, registration, actor=actor)
    conn.send_queue()
    return found.rows[0]["prediction_id"], bool(added.rows)


def _queue_registration(
    conn: Connection, settings: Settings, provider: Provider, registration: Registration, *, actor: str
) -> tuple[QueuedQuery, QueuedQuery]:
    """Insert a registration, and read the prediction, which may have been known."""
    deadline = registration.deadline_seconds or settings.job_deadline_seconds
    first = provider.first_poll_seconds() if provider.can_poll else deadline
    row = {"job_id": ids.uuid7(), "prediction_id": ids.uuid7(), "state": "running", "actor": actor}
    row["notify"] = bool(settings.notify_urls)
    added = registrations.queue_add(conn, registration, deadline_seconds=deadline, first_poll_seconds=first, **row)
    return added, registrations.queue_find(conn, registration.provider, registration.external_id)


# --- files that exist ----------------------------------------------------------------------------------------------


def create_keep_job(
    database: Database,
    settings: Settings,
    providers: Mapping[str, Provider],
    description: JobDescription,
    files: Sequence[OutputFile],
    *,
    actor: str,
    notify: bool,
    limits: Mapping[str, int] = NO_LIMITS,
) -> CreatedJob:
    """
    Insert a job in state `keeping` with the files as outputs, unless its idempotency key is known.

    `limits`: of the owner. Raises IdempotencyConflict, OwnerLimitReached.
    """

    def insert(conn: Connection) -> CreatedJob:
        if existing := find_or_require(conn, description, limits):
            return existing
        job_id, prediction_id, deadline = ids.uuid7(), ids.uuid7(), settings.job_deadline_seconds
        registration = Registration(provider=DIRECT, external_id=str(job_id), **asdict(description))
        row = {"job_id": job_id, "prediction_id": prediction_id, "state": "succeeded", "notify": notify, "actor": actor}
        registrations.queue_add(conn, registration, deadline_seconds=deadline, first_poll_seconds=deadline, **row)
        jobs.change_state(conn, jobs.lock(conn, job_id), "keeping", actor=actor, chosen_id=prediction_id)
        new = [NewOutput(ids.uuid7(), job_id, prediction_id, file, _find_expiry(file, providers)) for file in files]
        conn.execute(outputs.ADD, outputs.build_add(new, actor))
        wakes = [Wake("keep", output.id) for output in new]
        return CreatedJob(job_id, prediction_id, "keeping", is_new=True, wakes=wakes)

    try:
        return database.run(insert, point="keep_job")
    except pg.UniqueViolation:  # a concurrent request with this key committed first: now it is found
        return database.run(insert)


def _find_expiry(file: OutputFile, providers: Mapping[str, Provider]) -> datetime | None:
    """Return when a URL expires at the latest if it is a provider's: its file may be older than this request."""
    if file.url is None:
        return None
    try:
        endpoint = parse_endpoint(file.url)
    except DownloadRefused:
        return None  # the download refuses it, too, and says why
    lives = [p.output_lifetime_seconds for p in providers.values() if p.hosts.contains(endpoint)]
    return min((datetime.now(UTC) + timedelta(seconds=life) for life in lives if life is not None), default=None)
