"""What only operators request and needs what a worker has (storage, Celery), which is imported on first use."""

import asyncio
import importlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from contextvars import copy_context
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from db.connection import Database
from moorage.errors import DatabaseUnavailable, MoorageError
from moorage.settings import Settings
from moorage.text import to_storable
from web.http.problems import Problem, unavailable

if TYPE_CHECKING:
    from tasks.step import Deps

T = TypeVar("T")

MAX_AGE_SECONDS: Final = 2.0
# Not the threads of the loop, which check inputs and fetch public keys: a slow provider would occupy them all.
_EXECUTOR: Final = ThreadPoolExecutor(2, "operator")


class StatusReader:
    """What `moorage status` shows, collected in a thread, once for all requests within two seconds."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = asyncio.Lock()
        self._database: Database | None = None
        self._read_at = -MAX_AGE_SECONDS
        self._status: dict[str, Any] = {}

    async def read(self) -> dict[str, Any]:
        async with self._lock:
            if time.monotonic() - self._read_at >= MAX_AGE_SECONDS:
                self._status = await asyncio.to_thread(self._collect)
                self._read_at = time.monotonic()
            return self._status

    def close(self) -> None:
        if self._database is not None:
            self._database.close()

    def _collect(self) -> dict[str, Any]:
        database = self._database or _connect(self._settings)
        collected: dict[str, Any] = importlib.import_module("worker.status").collect_status(_get_deps(), database)
        # A server that is silent keeps the connection: the next one is new.
        self._database = database if collected["postgresql"] == "ok" else None
        return collected


async def run_with_deps(settings: Settings, work: Callable[["Deps"], T]) -> T:
    """Run what talks to a provider in a thread, over a connection of its own. Raises Problem: it cannot be done."""

    def run_in_thread() -> T:
        with closing(_connect(settings)) as database:
            return work(replace(_get_deps(), database=database))

    try:
        return await asyncio.get_running_loop().run_in_executor(_EXECUTOR, copy_context().run, run_in_thread)
    except DatabaseUnavailable as error:
        raise unavailable("database unavailable, retry") from error
    except MoorageError as error:  # the provider's answer, without secrets
        raise Problem(409, to_storable(str(error), 500)) from error


def _get_deps() -> "Deps":
    deps: Deps = importlib.import_module("worker.boot").get_deps()
    return deps


def _connect(settings: Settings) -> Database:
    return Database(settings.database_url.get_secret_value(), name="moorage operator")
