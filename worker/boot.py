"""Dependencies of a worker process, and the checks before it accepts work."""

import functools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Collection
from functools import partial
from multiprocessing.connection import Connection
from typing import Final

import providers
from db import migrate
from db.connection import Database
from egress.guard import EgressGuard, load_tls_context
from media.limits import Limits
from moorage import logs
from moorage import settings as settings_module
from moorage.certificates import find_certificate_error
from moorage.errors import ConfigError, Transient
from moorage.settings import Settings
from storage import buckets, s3
from storage.errors import CertificateRefused
from tasks import notifications
from tasks.jobs import placeholder
from tasks.step import Deps, build_retry_policy
from worker import broker_errors, broker_transports
from worker.bootsteps import touch_liveness_file

log = logs.get_logger(__name__)

RETRY_SECONDS: Final = 2.0
BROKER_SECONDS: Final = 2
WAIT_SECONDS: Final = 3.0  # long enough that a usual refusal by storage still prevents the start

CheckStorage = Callable[[Callable[[], bool]], None]


def get_deps() -> Deps:
    """Return this process's dependencies, created on first use: never before the fork."""
    return _deps(os.getpid())


@functools.lru_cache(maxsize=1)
def _deps(_pid: int) -> Deps:
    settings = settings_module.get_settings()
    limits = Limits.from_settings(settings)
    return Deps(
        settings=settings,
        database=Database(settings.database_url.get_secret_value(), name="moorage-worker"),
        storage=s3.ObjectStore(settings),
        providers=providers.load(settings),
        session=EgressGuard(settings.egress_allow).new_session(limits),
        limits=limits,
        policy=build_retry_policy(settings),
    )


def check_dependencies(queues: Collection[str]) -> None:
    """
    Wait until PostgreSQL is available, and storage if a worker of these queues can do nothing without it; check schema,
    buckets, secrets and the placeholder file.

    Leaves no connection open. Raises ConfigError.
    """
    deps = get_deps()
    _check_broker_certificate(deps.settings)
    notifications.load_signing_secrets(deps.settings)
    _retry("disk space", lambda: placeholder.check_placeholder_file(deps.settings, deps.limits))
    _retry("PostgreSQL", lambda: deps.database.run(migrate.require_current_schema))
    deps.database.close()
    if set(queues) != {"sweeps"}:  # they send no request
        load_tls_context()
    if set(queues) <= {"keep"}:
        _await_buckets(deps)
    elif set(queues) != {"sweeps"}:  # they do not use storage, and need not have its keys
        check_beside(partial(_await_buckets, deps), needs_storage="keep" in queues)
    _deps.cache_clear()  # pool children create their own


def _check_broker_certificate(settings: Settings) -> None:
    """Refuse a broker with a wrong certificate; Celery waits for one that is unavailable."""
    url = settings.broker_url.get_secret_value()
    if not url.startswith(("rediss://", "amqps://")):
        return
    try:
        with broker_transports.open_connection(url, seconds=BROKER_SECONDS):
            pass
    except broker_errors.BROKER_ERRORS as error:
        if find_certificate_error(error):
            raise ConfigError(": ".join(broker_errors.explain(error))) from error


def _await_buckets(deps: Deps, is_wanted: Callable[[], bool] = touch_liveness_file) -> None:
    _retry("storage", lambda: buckets.ensure_buckets(deps.storage, deps.settings), is_wanted)


def _retry(dependency: str, check: Callable[[], object], is_wanted: Callable[[], bool] = touch_liveness_file) -> None:
    while is_wanted():
        try:
            check()
        except CertificateRefused as error:  # waiting does not change it
            raise ConfigError(str(error)) from error
        except Transient as error:
            log.warning("boot.waiting", waiting_for=dependency, error=str(error))
            time.sleep(RETRY_SECONDS)
        else:
            return


def check_beside(check: CheckStorage, *, needs_storage: bool, wait_seconds: float = WAIT_SECONDS) -> None:
    """
    Start the check, which repeats until its argument returns False, and return after its success or the wait.

    It has a process of its own, as a thread would exist when the pool forks. It ends with its result, or the worker.
    Raises ConfigError. A ConfigError after the wait stops this process by SIGTERM if it needs storage, and is logged.
    """
    context = multiprocessing.get_context("fork")
    results, sender = context.Pipe(duplex=False)
    args = (check, results, sender, os.getpid(), needs_storage)
    context.Process(target=_run_beside, args=args, daemon=True).start()
    sender.close()
    with results:
        if not results.poll(wait_seconds):
            log.warning("boot.storage_unavailable", continues="without storage")
        elif problem := results.recv():
            raise ConfigError(problem)


def _run_beside(
    check: CheckStorage, results: Connection, sender: Connection, worker_pid: int, needs_storage: bool
) -> None:
    results.close()  # held open here, it would accept a result that is not read
    problem = ""
    try:
        check(lambda: os.getppid() == worker_pid)
    except ConfigError as error:
        problem = str(error)
    try:
        sender.send(problem)
    except BrokenPipeError:  # the worker waits no longer
        if not problem:
            log.info("boot.storage_available")
        elif os.getppid() == worker_pid:
            log.error("boot.storage_refused", error=problem, stops=needs_storage)
            if needs_storage:
                os.kill(worker_pid, signal.SIGTERM)
