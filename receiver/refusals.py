"""Records whose webhooks are refused, so that operators see a wrong secret: one write a second, whoever sends them."""

import asyncio
from collections import Counter
from typing import Final

import psycopg

from moorage import logs
from receiver.connection_pool import ConnectionPool

log = logs.get_logger(__name__)

WRITE_SECONDS: Final = 1.0
STATUSES: Final = (401, 404)  # a wrong signature, or a provider without a secret

RECORD: Final = """
INSERT INTO webhook_refusals AS r (provider, value, reason) VALUES (%(provider)s, %(value)s, %(reason)s)
ON CONFLICT (provider) DO UPDATE SET last_at = moment(), reason = excluded.reason,
       value = excluded.value + CASE WHEN r.last_at > moment() - interval '10 min' THEN r.value ELSE 0 END
"""


class RefusalRecorder:
    def __init__(self, connections: ConnectionPool) -> None:
        self._connections = connections
        self._counts: Counter[str] = Counter()
        self._reasons: dict[str, str] = {}
        self._task: asyncio.Task[None] | None = None

    def add(self, provider: str, reason: str) -> None:
        """Count a refusal of a provider that exists; it is written within a second, or lost with the process."""
        self._counts[provider] += 1
        self._reasons[provider] = reason
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._write_later())

    async def _write_later(self) -> None:
        await asyncio.sleep(WRITE_SECONDS)
        counts, self._counts = self._counts, Counter()
        try:
            async with self._connections.acquire() as conn:
                for provider, value in counts.items():
                    args = {"provider": provider, "value": value, "reason": self._reasons[provider]}
                    await conn.execute(RECORD, args)
        except psycopg.Error as error:
            log.warning("refusals.not_recorded", error=str(error))
