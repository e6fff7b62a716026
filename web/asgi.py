"""One ASGI application with the API, the page and the receiver: `granian --interface asgi --workers 1 web.asgi:app`."""

import gc
import importlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from starlette.types import ASGIApp, Receive, Scope, Send

import providers
from moorage import logs
from moorage import settings as settings_module
from moorage.asgi import LazyApp
from web import app as api
from web import routes
from web.page.views import is_page_path

log = logs.get_logger(__name__)

WEBHOOK_PREFIXES: Final = ("/webhooks/", "/api/v1/webhooks/")
_receiver: Any = importlib.import_module("receiver.app")  # by name: packages on one level do not import each other


@asynccontextmanager
async def start_receiver_and_api() -> AsyncIterator[ASGIApp]:
    """Start the receiver and the API, and stop both."""
    async with _receiver.start_receiver() as receiver_app, api.start_api() as api_app:

        async def route(scope: Scope, receive: Receive, send: Send) -> None:
            await (api_app if is_api_path(scope["path"]) else receiver_app)(scope, receive, send)

        gc.freeze()  # what the API loaded would be visited by every full collection while webhooks arrive
        gc.set_threshold(20_000, 10, 10)  # at 700 objects, requests in flight are visited again and again
        _log_listening()
        yield route


def _log_listening() -> None:
    settings = settings_module.get_settings()
    enabled = sorted(name for name, provider in providers.load(settings).items() if provider.is_enabled)
    log.info(
        "receiver.listening",
        host=os.environ.get("GRANIAN_HOST", "unknown"),
        port=os.environ.get("GRANIAN_PORT", "unknown"),
        providers=",".join(enabled) or "none",
        api="open" if settings.api_token else "closed: set MOORAGE_API_TOKEN",
    )


def is_api_path(path: str) -> bool:
    """Return True for paths of the API and the page. Webhooks below /api/v1 belong to the receiver."""
    if path.startswith(WEBHOOK_PREFIXES):
        return False
    if path in api.PUBLIC_PATHS or is_page_path(path):
        return True
    return any(path == prefix or path.startswith(f"{prefix}/") for prefix in routes.PREFIXES)


app = LazyApp(start_receiver_and_api)
