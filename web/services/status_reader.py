"""What `moorage status` shows, collected in a thread, once for all requests within two seconds."""

import asyncio
import importlib
import time
from typing import Any, Final

from db.connection import Database
from moorage.settings import Settings

MAX_AGE_SECONDS: Final = 2.0


class StatusReader:
    """Imports what a worker needs (storage, Celery) on first use: only operators ask for the status."""

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
        status, boot = importlib.import_module("worker.status"), importlib.import_module("worker.boot")
        database = self._database or Database(self._settings.database_url.get_secret_value(), name="moorage status")
        collected: dict[str, Any] = status.collect_status(boot.get_deps(), database)
        # A server that is silent keeps the connection: the next one is new.
        self._database = database if collected["postgresql"] == "ok" else None
        return collected
