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
from moorage import logs
from moorage import settings as settings_module
from moorage.asgi import LazyApp
from moorage.settings import Settings
from storage import urls
from web import openapi, routes, shutdown
from web.http import permissions
from web.http.problems import Problem
from web.page import views as page
from web.services.authentication import Authenticator
from web.services.context import AppContext
from web.services.database import DatabaseThreads
from web.services.event_feed import EventFeed
from web.services.model_cache import ModelCache
from web.services.upload_spool import UploadSpool
from worker.publish import WakeRelay

if TYPE_CHECKING:
    from web.services.asset_stream import AssetStreamer

log = logs.get_logger(__name__)

MAX_HEADER_BYTES: Final = 32 * 2**10  # of one request: some are read piece by piece, where webhooks wait meanwhile


class ApiApp:
    """Answers whoever the gate knows. Needs no server to be up when it starts."""

    def __init__(self, settings: Settings) -> None:
        threads = DatabaseThreads(settings.database_url.get_secret_value())
        self._authenticator = Authenticator(settings, threads)
        self._context = AppContext(
            settings=settings,
            providers=providers.load(settings),
            database=threads,
            relay=WakeRelay(),
            feed=EventFeed(threads),
            model_cache=ModelCache(),
            upload_spool=UploadSpool(settings),
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
        self._routes.state.desk = self._context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the life of the process."""
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
        self._context.model_cache.close()
        self._context.upload_spool.close()
        await asyncio.to_thread(self._context.relay.stop)
        await self._context.database.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def _handle_request(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, whatever happens: the outermost line, below which `_failed` has answered already."""
        try:
            _check_header_size(scope)
            permissions.set_caller(scope, await self._authenticate(scope))
            await self._routes(scope, receive, send)
        except Problem as refused:
            await refused.response()(scope, receive, send)
        except Exception:
            log.error("request.failed", exc_info=True, method=scope["method"], path=scope["path"][:200])

    async def _authenticate(self, scope: Scope) -> permissions.Caller:
        if scope["path"] == openapi.PATH or routes.is_public_path(scope["path"]):
            return permissions.ANONYMOUS
        if page.is_page_path(scope["path"]):
            return await page.authenticate_viewer(self._authenticator, scope)
        return await self._authenticator.authenticate(scope)


def _check_header_size(scope: Scope) -> None:
    if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
        raise Problem(431, f"the headers are larger than {MAX_HEADER_BYTES} bytes together")


def _load_streamer(settings: Settings) -> "AssetStreamer | None":
    """Return what streams files, where it is asked for: by name, because it loads boto3, which nothing else needs."""
    if settings.assets == "redirect":
        return None
    return cast("AssetStreamer", importlib.import_module("web.services.asset_stream").AssetStreamer(settings))


async def _on_problem(_request: Request, error: Exception) -> Response:
    return cast(Problem, error).response()


async def _on_http_exception(_request: Request, error: Exception) -> Response:
    """Answer where no endpoint does: 404, or 405 with the methods that are answered."""
    missing = cast(HTTPException, error)
    if missing.status_code == 405:
        return Problem(405, "this address does not take this method: see Allow", headers=missing.headers).response()
    return Problem(404, "nothing is here: see docs/http.md for the addresses").response()


async def _on_unexpected_error(_request: Request, _error: Exception) -> Response:
    """Answer for what nobody foresaw; the error goes on to the outermost line, which logs it."""
    return Problem(500, "the API failed; its log says why").response()


def _build_app() -> ApiApp:
    settings = settings_module.get_settings()
    logs.configure_logging(settings.log_level, settings.log_format)
    if settings.api_token is None:
        log.warning("api.shut", reason="MOORAGE_API_TOKEN is not set: every request is answered 503")
    return ApiApp(settings)


app = LazyApp(_build_app)
