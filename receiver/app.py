"""The receiver as an ASGI application: `granian --interface asgi --workers 1 receiver.app:app`."""

import asyncio
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from multiprocessing.connection import wait
from typing import Final

from starlette.types import Receive, Scope, Send

import providers
from moorage import local_errors, logs, metrics
from moorage import settings as settings_module
from moorage.asgi import LazyApp
from moorage.errors import DatabaseUnavailable, KeysStale, Refused, Transient
from moorage.settings import Settings
from receiver import health
from receiver.connection_pool import ConnectionPool
from receiver.recorder import REFUSAL_STATUSES, DeliveryRecorder, RefusalRecorder
from receiver.responses import KINDS, Response, json_response, problem_response, send_response
from receiver.webhooks import WebhookReceiver, parse_provider_name
from worker.publish import WakeRelay, publish_ingest_wakes

log = logs.get_logger(__name__)

GRACE_SECONDS: Final = 10.0  # for requests in flight, as granian's main process grants
ALLOW_WEBHOOK: Final = (b"allow", b"POST, GET, HEAD, OPTIONS")
ALLOW_READ: Final = (b"allow", b"GET, HEAD")
_UNAVAILABLE_REASONS: Final[dict[type[Transient], str]] = {DatabaseUnavailable: "database", KeysStale: "keys"}


class Receiver:
    """Routes requests. Starts without PostgreSQL or broker."""

    def __init__(self, settings: Settings) -> None:
        self._database_url = settings.database_url.get_secret_value()
        self._metrics_address = settings.metrics_address
        self._connections = ConnectionPool(self._database_url)
        self._relay = WakeRelay(publish_ingest_wakes)
        recorder = DeliveryRecorder(self._connections, answer_seconds=settings.constants.answer_seconds)
        self._webhooks = WebhookReceiver(settings, providers.load(settings), recorder, self._relay)
        self._refusals = RefusalRecorder(self._connections)
        self._readiness = health.Readiness(self._connections)
        for provider in (one for one in self._webhooks.providers.values() if one.is_enabled):
            metrics.WEBHOOKS_RECORDED.labels(provider.name)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        trace = logs.read_traceparent(scope["headers"])
        with logs.bind_fields(**trace) if trace else nullcontext():
            response = await self._handle_request(scope, receive)
        await send_response(send, response, method=scope["method"])

    @asynccontextmanager
    async def run(self) -> AsyncIterator["Receiver"]:
        """Publish wakes and serve metrics until the block ends."""
        _end_with_parent()
        self._relay.start()
        address = self._metrics_address
        stop_metrics = health.serve_metrics(address, self._database_url) if address != "off" else None
        try:
            yield self
        finally:
            await asyncio.to_thread(self._relay.stop)
            if stop_metrics:
                await asyncio.to_thread(stop_metrics)
            await self._connections.close()

    async def _handle_request(self, scope: Scope, receive: Receive) -> Response:
        """Outermost exception handler of a request."""
        try:
            name = parse_provider_name(scope["path"])
            if name is not None:
                return await self._handle_webhook(name, scope, receive)
            return await self._handle_probe(scope)
        except Exception as error:
            log.error("request.failed", exc_info=True, method=scope["method"], path=scope["path"][:200])
            if failure := local_errors.find_local_failure(error):
                return problem_response(503, f"{failure}. Retry", (b"retry-after", b"1"))
            return problem_response(500, "internal server error")

    async def _handle_webhook(self, name: str, scope: Scope, receive: Receive) -> Response:
        started, is_post = time.perf_counter(), scope["method"] == "POST"
        try:
            if is_post:
                response = await self._webhooks.receive(name, scope["headers"], receive, query=scope["query_string"])
            else:
                response = self._describe_webhook(name, scope["method"])
        except Refused as error:
            metrics.WEBHOOKS_REFUSED.labels(KINDS[error.status]).inc(is_post)
            is_signed = any(header.endswith(b"-signature") for header, _ in scope["headers"])  # else of no provider
            if is_post and is_signed and error.status in REFUSAL_STATUSES and name in self._webhooks.providers:
                self._refusals.add(name, str(error))
            log.info("webhook.refused", provider=name[:60], status=error.status, reason=str(error))
            return problem_response(error.status, str(error))
        except Transient as error:
            reason = _UNAVAILABLE_REASONS.get(type(error), "bytes_in_flight")
            metrics.WEBHOOKS_UNAVAILABLE.labels(reason).inc()
            log.warning("webhook.unavailable", provider=name, reason=reason, error=str(error))
            return problem_response(503, f"not recorded: {error}. Retry", (b"retry-after", b"1"))
        except Exception:
            metrics.WEBHOOKS_UNAVAILABLE.labels("internal").inc()
            raise
        finally:
            if is_post:
                metrics.WEBHOOK_SECONDS.observe(time.perf_counter() - started)
        return response

    def _describe_webhook(self, name: str, method: str) -> Response:
        """Respond to GET, HEAD and OPTIONS: providers test an address with them when it is registered."""
        self._webhooks.get_enabled_provider(name)
        if method == "OPTIONS":
            return Response(204, headers=(ALLOW_WEBHOOK,))
        if method in ("GET", "HEAD"):
            return Response(200, b'{"status": "ok", "method": "POST"}', headers=(ALLOW_WEBHOOK,))
        return problem_response(405, f"method {method[:20]} not allowed: send webhooks with POST", ALLOW_WEBHOOK)

    async def _handle_probe(self, scope: Scope) -> Response:
        path = scope["path"].removesuffix("/")
        if path not in ("/healthz", "/readyz"):
            return problem_response(404, "not found: webhooks are received at /webhooks/{provider}")
        if scope["method"] not in ("GET", "HEAD"):
            return problem_response(405, "method not allowed: use GET", ALLOW_READ)
        if path == "/readyz":
            return await self._readiness.check()
        return json_response(200, {"status": "ok"})


def _end_with_parent() -> None:
    """
    End this process when the main process of its server has died; do nothing if multiprocessing did not start it.

    granian serves in a child of its main process. Killed by SIGKILL, the main process cannot stop the child, which
    would keep the port and serve an old version beside the new one. The end of the parent closes a pipe that
    multiprocessing opened for this purpose: no interval, and on every system (the parent death signal is Linux's).
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), name="parent-watch", daemon=True).start()


def _end_after(sentinel: int) -> None:
    wait([sentinel])
    log.error("receiver.parent_died", grace_s=GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def start_receiver() -> AbstractAsyncContextManager[Receiver]:
    settings = settings_module.get_settings()
    logs.configure_logging(settings.log_level, settings.log_format)
    return Receiver(settings).run()


app = LazyApp(start_receiver)
