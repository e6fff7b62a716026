"""The API as an ASGI application: `granian --interface asgi web.app:app`, or beside the receiver in `web.asgi`."""

import asyncio
import contextlib
import math
import re
import signal
import threading
from collections.abc import AsyncIterator, Callable
from types import FrameType
from typing import Any, Final, cast

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Message, Receive, Scope, Send

from moorage import local_errors, logs, metrics
from moorage import settings as settings_module
from moorage.asgi import LazyApp
from moorage.errors import OwnerLimitReached, Refused
from moorage.ids import uuid7
from web import openapi, routes
from web.api import assets
from web.console import actions, overview, records, session
from web.http import problems, validation
from web.http.problems import REQUEST_ID, Problem, unavailable
from web.page import views as page
from web.services.context import AppContext

log = logs.get_logger(__name__)

MAX_HEADER_BYTES: Final = 32 * 2**10  # of one request: bounds parsing on the event loop, which also receives webhooks
PUBLIC_PATHS: Final = (openapi.PATH, openapi.REFERENCE_PATH)
_REQUEST_ID: Final = re.compile(r"[!-~]{1,128}")
_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


class ApiApp:
    """Bounds headers, names each request, and logs unexpected errors around the FastAPI application."""

    def __init__(self, context: AppContext) -> None:
        self._api = build_api(context)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sent = [value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"]
        request_id = sent[0] if len(sent) == 1 and _REQUEST_ID.fullmatch(sent[0]) else str(uuid7())

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        with logs.bind_fields(**{REQUEST_ID: request_id}, **logs.read_traceparent(scope["headers"])):
            try:
                if sum(len(name) + len(value) for name, value in scope["headers"]) > MAX_HEADER_BYTES:
                    problem = Problem(431, f"the headers are larger than {MAX_HEADER_BYTES} bytes in total")
                    await problem.response()(scope, receive, send_with_id)
                else:
                    await self._api(scope, receive, send_with_id)
            except Exception:  # `_on_unexpected_error` has sent the response already
                log.error("request.failed", exc_info=True, method=scope["method"], path=scope["path"][:200])


def build_api(context: AppContext) -> FastAPI:
    """Return the application. It starts without PostgreSQL, broker or storage."""
    api = FastAPI(
        openapi_url=openapi.PATH, docs_url=None, redoc_url=None, redirect_slashes=False,
        exception_handlers={
            Problem: _on_problem, Refused: _on_refused, RequestValidationError: _on_invalid_request,
            HTTPException: _on_http_exception, Exception: _on_unexpected_error,
        },
    )  # fmt: skip
    api.state.context = context
    api.openapi = openapi.build_document  # type: ignore[method-assign]
    for module in (page, session, overview, actions, records):
        api.router.routes.extend(module.router.routes)
    api.add_api_route(openapi.REFERENCE_PATH, openapi.get_reference, methods=["GET", "HEAD"], include_in_schema=False)
    api.router.routes.extend(routes.build_router().routes)
    return api


def _call_on_stop_signal(callback: Callable[[], None]) -> None:
    """
    Run `callback` in the running loop on SIGTERM or SIGINT; existing handlers run, too. Only in the main thread.

    Granian (2.x) sends lifespan.shutdown only after every response has ended, and streams do not end. It watches the
    loop's wake-up file descriptor, which the interpreter writes to regardless of the Python handler.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        previous = signal.getsignal(number)
        if callable(previous):
            signal.signal(number, _chain_handlers(loop, callback, previous))


def _chain_handlers(
    loop: asyncio.AbstractEventLoop, callback: Callable[[], None], previous: Callable[[int, FrameType | None], object]
) -> Callable[[int, FrameType | None], None]:
    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(callback)
        previous(number, frame)

    return handle


async def _on_problem(request: Request, error: Exception) -> Response:
    problem = cast(Problem, error)
    if session.is_console_path(request.url.path):
        return session.render_problem(request, problem)
    is_file = any(request.url.path.startswith(prefix + assets.PREFIX) for prefix in routes.PREFIXES)
    if is_file:
        problem.headers.update(assets.CORS_HEADERS)
    is_for_people = "text/html" in request.headers.get("accept", "")
    if (is_file or page.is_page_path(request.url.path)) and is_for_people:
        return page.build_problem_page(request, problem)
    return problem.response()


async def _on_refused(request: Request, error: Exception) -> Response:
    refused = cast(Refused, error)
    headers = {"Retry-After": str(math.ceil(refused.retry_after))} if isinstance(refused, OwnerLimitReached) else {}
    return await _on_problem(request, Problem(refused.status, str(refused), headers=headers))


async def _on_invalid_request(request: Request, error: Exception) -> Response:
    """Return 404 for an invalid id in the path, 422 with every invalid name in the query or header."""
    errors: list[Any] = list(cast(RequestValidationError, error).errors())
    for item in errors:
        if item["loc"][0] == "path":
            return await _on_problem(request, problems.invalid_parameter(item["loc"][1]))
    queries = [field.field_info.annotation for field in request.scope["route"].dependant.query_params]
    return validation.invalid_fields(validation.explain_errors(errors, next(iter(queries), None), skip=1)).response()


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Return 404 for an unknown path, 405 for a method that it does not support; only with a token, if it needs one."""
    path = request.url.path
    try:
        if not (path in PUBLIC_PATHS or routes.is_public_path(path) or page.is_page_path(path)):
            await request.app.state.context.authenticator.authenticate(request.scope)
    except Problem as problem:
        return problem.response()
    if cast(HTTPException, error).status_code != 405:
        return await _on_problem(request, Problem(404, "not found"))
    scopes = ({**request.scope, "method": method} for method in _METHODS)
    allowed = [s["method"] for s in scopes if any(r.matches(s)[0] is Match.FULL for r in request.app.routes)]
    headers = {"Allow": ", ".join(allowed)}
    return await _on_problem(request, Problem(405, "method not allowed: see the Allow header", headers=headers))


async def _on_unexpected_error(request: Request | None, error: Exception) -> Response:
    """Return 503 for a failure of this machine, else 500; Starlette re-raises the error, `ApiApp` logs it."""
    if local_errors.find_local_failure(error):
        problem = unavailable("the server is short of disk space or memory, retry")
    else:
        metrics.API_UNAVAILABLE.inc()
        problem = Problem(500, "internal server error")
    return await _on_problem(request, problem) if request else problem.response()


@contextlib.asynccontextmanager
async def start_api() -> AsyncIterator[ApiApp]:
    settings = settings_module.get_settings()
    logs.configure_logging(settings.log_level, settings.log_format)
    if settings.api_token is None:
        log.warning("auth.not_configured", reason="MOORAGE_API_TOKEN is not set: every request returns 503")
    context = AppContext(settings)
    _call_on_stop_signal(context.feed.close)
    context.relay.start()
    try:
        yield ApiApp(context)
    finally:
        await context.close()


app = LazyApp(start_api)
