"""Dependencies of a worker process, and the checks before it accepts work."""

import functools
import os
import time
from collections.abc import Callable
from typing import Final

import providers
from db import migrate
from db.connection import Database
from egress.session import EgressGuard
from media.limits import Limits
from moorage import logs
from moorage import settings as settings_module
from moorage.errors import Transient
from storage import buckets, s3
from tasks import notifications
from tasks.jobs import placeholder
from tasks.step import Deps, build_retry_policy

log = logs.get_logger(__name__)

RETRY_SECONDS: Final = 2.0


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


def check_dependencies() -> None:
    """
    Wait until PostgreSQL and storage are available, and check schema, buckets, secrets and the placeholder file.

    Leaves no connection open. Raises ConfigError.
    """
    deps = get_deps()
    notifications.load_signing_secrets(deps.settings)
    _retry("disk space", lambda: placeholder.check_placeholder_file(deps.settings, deps.limits))
    _retry("PostgreSQL", lambda: deps.database.run(migrate.require_current_schema))
    deps.database.close()
    _retry("storage", lambda: buckets.ensure_buckets(deps.storage, deps.settings))
    _deps.cache_clear()  # pool children create their own


def _retry(dependency: str, check: Callable[[], object]) -> None:
    while True:
        try:
            check()
        except Transient as error:
            log.warning("boot.waiting", waiting_for=dependency, error=str(error))
            time.sleep(RETRY_SECONDS)
        else:
            return
