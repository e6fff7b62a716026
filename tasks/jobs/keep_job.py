"""Jobs of `moorage keep` and POST /v1/keep: files that no prediction reported, of provider `direct`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Final

from psycopg import errors as pg

from db import jobs, outputs, registrations
from db.connection import Connection, Database
from db.outputs import NewOutput
from moorage import ids
from moorage.errors import DownloadRefused
from moorage.failpoints import failpoint
from moorage.model import JobDescription, Registration, Wake
from moorage.provider_types import OutputFile
from moorage.settings import Settings
from moorage.urls import parse_endpoint
from providers.base import Provider
from tasks.jobs import create
from tasks.jobs.create import CreatedJob

PROVIDER: Final = "direct"


def create_keep_job(
    database: Database,
    settings: Settings,
    providers: Mapping[str, Provider],
    description: JobDescription,
    files: Sequence[OutputFile],
    *,
    actor: str,
    notify: bool,
    limits: Mapping[str, int] = create.NO_LIMITS,
) -> CreatedJob:
    """
    Insert a job in state `keeping` with the files as outputs, unless its idempotency key is known.

    `limits`: of the owner. Raises IdempotencyConflict, OwnerLimitReached.
    """

    def insert(conn: Connection) -> CreatedJob:
        existing = create.find_or_require(conn, description, limits)
        return existing or _insert_job(conn, settings, providers, description, files, actor=actor, notify=notify)

    try:
        created = database.run(insert)
    except pg.UniqueViolation:  # a concurrent request with this key committed first: now it is found
        created = database.run(insert)
    failpoint("keep_job.after_commit")
    return created


def _insert_job(
    conn: Connection,
    settings: Settings,
    providers: Mapping[str, Provider],
    description: JobDescription,
    files: Iterable[OutputFile],
    *,
    actor: str,
    notify: bool,
) -> CreatedJob:
    job_id, prediction_id, deadline = ids.uuid7(), ids.uuid7(), settings.job_deadline_seconds
    create.ensure_project(conn, description)
    registration = Registration(provider=PROVIDER, external_id=str(job_id), **asdict(description))
    row = {"job_id": job_id, "prediction_id": prediction_id, "state": "succeeded", "notify": notify, "actor": actor}
    registrations.queue_add(conn, registration, deadline_seconds=deadline, first_poll_seconds=deadline, **row)
    jobs.change_state(conn, jobs.lock(conn, job_id), "keeping", actor=actor, chosen_id=prediction_id)
    new = [NewOutput(ids.uuid7(), job_id, prediction_id, file, _find_expiry(file, providers)) for file in files]
    conn.execute(outputs.ADD, outputs.build_add(new, actor))
    wakes = [Wake("keep", output.id) for output in new]
    return CreatedJob(job_id, prediction_id, "keeping", is_new=True, wakes=wakes)


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
