"""The API as an ASGI application: `granian --interface asgi web.app:app`, or beside the receiver in `web.asgi`."""

import asyncio
import importlib
from typing import TYPE_CHECKING, Final, cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

import providers
from moorage import local_errors, logs
from moorage import settings as settings_module
from moorage.asgi import LazyApp
from moorage.settings import Settings
from storage import urls
from web import openapi, routes, shutdown
from web.http import permissions
from web.http.problems import Problem, unavailable
from web.page import views as page
from web.services.authentication import Authenticator
from web.services.context import AppContext
from web.services.database import DatabaseThreads
from web.services.event_feed import EventFeed
from web.services.model_cache import ModelCache
from web.services.quarantine_reader import QuarantineReader
from web.services.upload_spool import UploadSpool
from worker.publish import WakeRelay

if TYPE_CHECKING:
    from web.services.asset_stream import AssetStreamer

log = logs.get_logger(__name__)

MAX_HEADER_BYTES: Final = 32 * 2**10  # of one request: bounds parsing on the event loop, which also receives webhooks


class ApiApp:
    """Authenticates and routes requests. Starts without PostgreSQL, broker or storage."""

    def __init__(self, settings: Settings) -> None:
        database = DatabaseThreads(settings.database_url.get_secret_value())
        self._authenticator = Authenticator(settings, database)
        self._context = AppContext(
            settings=settings,
            providers=providers.load(settings),
            database=database,
            relay=WakeRelay(),
            feed=EventFeed(database),
            model_cache=ModelCache(),
            upload_spool=UploadSpool(settings, database),
            quarantine_reader=QuarantineReader(settings),
            asset_base=urls.get_asset_base_url(settings),
            streamer=_load_streamer(settings),
        )
        self._routes = Starlette(
            routes=[
                Route(openapi.PATH, openapi.get_openapi),
                *page.ROUTES,
                *(r for prefix in routes.PREFIXES for r in routes.build_routes(prefix)),
            ],
            exception_handlers={
                Problem: _on_problem,
                HTTPException: _on_http_exception,
                Exception: _on_unexpected_error,
            },
        )
        self._routes.router.redirect_slashes = False
        self._routes.state.context = self._context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._run_lifespan(receive, send)
        elif scope["type"] == "http":
            await self._handle_request(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _run_lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        shutdown.call_on_stop_signal(self._context.feed.close)
        self._context.relay.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self._context.feed.close()
        if self._context.streamer is not None:
            self._context.streamer.close()
        self._context.quarantine_reader.close()
        self._context.model_cache.close()
        self._context.upload_spool.close()
        await asyncio.to_thread(self._context.relay.stop)
        await self._context.database.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _handle_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Outermost exception handler of a request; `_on_unexpected_error` has sent the response already."""
        try:
            if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
                raise Problem(431, f"the headers are larger than {MAX_HEADER_BYTES} bytes in total")
            permissions.set_caller(scope, await self._authenticate(scope))
            await self._routes(scope, receive, send)
        except Problem as problem:
            await problem.response()(scope, receive, send)
        except Exception:
            log.error("request.failed", exc_info=True, method=scope["method"], path=scope["path"][:200])

    async def _authenticate(self, scope: Scope) -> permissions.Caller:
        if scope["path"] == openapi.PATH or routes.is_public_path(scope["path"]):
            return permissions.ANONYMOUS
        if page.is_page_path(scope["path"]):
            return await page.authenticate_viewer(self._authenticator, scope)
        return await self._authenticator.authenticate(scope)


def _load_streamer(settings: Settings) -> "AssetStreamer | None":
    """Return the streamer unless files are redirected to a public bucket. Imported by name: it loads boto3."""
    if settings.assets == "redirect":
        return None
    module = importlib.import_module("web.services.asset_stream")
    return cast("AssetStreamer", module.AssetStreamer(settings, settings.s3_public_bucket))


async def _on_problem(_request: Request, error: Exception) -> Response:
    return cast(Problem, error).response()


async def _on_http_exception(_request: Request, error: Exception) -> Response:
    """Return 404 for an unknown path, 405 for a method that the path does not support."""
    http_error = cast(HTTPException, error)
    if http_error.status_code == 405:
        return Problem(405, "method not allowed: see the Allow header", headers=http_error.headers).response()
    return Problem(404, "not found").response()


async def _on_unexpected_error(_request: Request, error: Exception) -> Response:
    """Return 503 for a failure of this machine, else 500; Starlette re-raises the error, `_handle_request` logs it."""
    if local_errors.find_local_failure(error):
        return unavailable("the server is short of disk space or memory, retry").response()
    return Problem(500, "internal server error").response()


def _build_app() -> ApiApp:
    settings = settings_module.get_settings()
    logs.configure_logging(settings.log_level, settings.log_format)
    if settings.api_token is None:
        log.warning("auth.not_configured", reason="MOORAGE_API_TOKEN is not set: every request returns 503")
    return ApiApp(settings)


app = LazyApp(_build_app)
