"""
Record how requests to download hosts and providers' APIs end, for their circuit breakers (db/breakers.py).

A failure is recorded in a transaction of its own, a success with the result of its step, at most once in ten seconds:
while nothing fails, no step has a further round trip. What cannot be recorded is left out: the step goes on.
"""

import contextlib
import time
from functools import partial
from typing import Final
from uuid import UUID

from db import breakers
from db.connection import Connection
from moorage import errors, logs
from moorage.certificates import iterate_causes
from moorage.local_errors import find_local_failure
from moorage.model import Output
from moorage.text import to_storable
from moorage.urls import find_source_host
from tasks.step import Deps, LeaseGuard

log = logs.get_logger(__name__)

_SERVED: Final = (errors.InvalidMedia, errors.FileTooLarge)  # the host answered as it should


def name_host(output: Output) -> str | None:
    """Return the target of a download; None if nothing is downloaded."""
    is_url = output.source_kind == "url" and output.quarantine_key is None and output.source is not None
    host = find_source_host(output.source or "") if is_url else ""
    return f"host {host}" if host else None


def name_api(provider: str) -> str:
    return f"api {provider}"


def note_success(conn: Connection, deps: Deps, target: str | None) -> None:
    now = time.monotonic()
    if target is not None and now - deps.noted.get(target, -breakers.SUCCESS_SECONDS) >= breakers.SUCCESS_SECONDS:
        breakers.queue_success(conn, target)
        conn.after_commit += (partial(deps.noted.update, {target: now}),)


def note_download_error(deps: Deps, output: Output, error: errors.MoorageError) -> None:
    """Record what the error of step keep says about the host, or about the API that was asked for a fresh URL."""
    host = name_host(output)
    if isinstance(error, errors.ProviderUnavailable):
        note_failure(deps, name_api(output.provider), output.job_id, error)
    elif host is not None and isinstance(error, _SERVED):
        with contextlib.suppress(errors.DatabaseUnavailable, errors.DatabaseLocked):
            deps.database.run(lambda conn: note_success(conn, deps, host))
    elif host is not None:
        note_failure(deps, host, output.job_id, error)


def note_failure(deps: Deps, target: str, job_id: UUID, error: errors.MoorageError) -> None:
    """Record a failed request if it failed as in an outage; open the breaker at the tenth of three jobs."""
    if not is_outage(error):
        return
    reason = to_storable(str(error), 300)
    with contextlib.suppress(errors.DatabaseUnavailable, errors.DatabaseLocked):
        if breakers.note_failure(deps.database, target, job_id, reason):
            log.error("breaker.opened", target=target, error=reason)


def note_api_error(deps: Deps, guard: LeaseGuard, provider: str, job_id: UUID, error: errors.MoorageError) -> None:
    """Record the error of a request to a provider, from which the step itself records what follows."""
    guard.provider_error = error
    note_failure(deps, name_api(provider), job_id, error)


def is_outage(error: errors.MoorageError) -> bool:
    """Return True for 429, 5xx, a refused connection and a time-out; not for what concerns one file or this machine."""
    of_target = isinstance(error, errors.DownloadInterrupted | errors.ProviderUnavailable)
    if not of_target or find_local_failure(error) is not None:
        return False
    status, cause = error.facts.get("status"), error.__cause__
    if status is not None and not 200 <= status < 300:
        return bool(status == 429 or status >= 500)
    if status is not None:  # the response had begun
        return any(isinstance(each, TimeoutError) for each in iterate_causes(error))
    return not isinstance(cause, errors.MoorageError)  # an answer that cannot be parsed is no outage
