"""Dependencies of all endpoints: the application context, and the caller at a minimum level."""

import asyncio
import functools
import importlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Final, TypeVar, cast
from uuid import UUID

from fastapi import Depends
from starlette.requests import Request

import providers
from db import renders
from db.connection import Connection, Database, Row
from moorage.settings import Settings
from moorage.text import to_storable
from providers.base import Provider
from storage import urls
from tasks.bulk_dead_letters import BulkResult
from tasks.jobs.cancel import ActionOutcome
from tasks.jobs.create import CreatedJob
from web.http.permissions import Caller, Level, find_scope
from web.http.problems import Problem
from web.http.validation import invalid_field
from web.http.visibility import VisibilityPolicy
from web.services.authentication import Authenticator
from web.services.database import DatabaseThreads
from web.services.event_feed import EventFeed, limit_to_files
from web.services.model_cache import ModelCache
from web.services.request_limits import RequestLimits
from web.services.upload_spool import UploadSpool
from web.services.worker_access import StatusReader
from worker.publish import WakeRelay

if TYPE_CHECKING:
    from web.services.asset_stream import AssetStreamer


MAX_WAITS: Final = 200  # requests that wait for a job: each asks PostgreSQL twice a second
MAX_WAITS_PER_OWNER: Final = 10

W = TypeVar("W", CreatedJob, ActionOutcome, BulkResult)  # the result of an action, with its wakes


class AppContext:
    """Settings and services. Created without PostgreSQL, broker or storage."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.providers = providers.load(settings)
        self.database = DatabaseThreads(settings.database_url.get_secret_value())
        self.authenticator = Authenticator(settings, self.database)
        self.relay = WakeRelay()
        self.feed = EventFeed(self.database, limit_to_files(settings.max_streams))
        self.visibility = VisibilityPolicy(settings)
        self.model_cache = ModelCache()
        self.waits = RequestLimits(MAX_WAITS, MAX_WAITS_PER_OWNER)
        self.upload_spool = UploadSpool(settings, self.database)
        self.status_reader = StatusReader(settings)
        self.asset_base = urls.get_asset_base_url(settings)  # URL prefix of object keys
        self.streamer: AssetStreamer | None = None  # None: files are redirected to the public bucket
        if settings.assets != "redirect":
            self.streamer = _build_streamer(settings, settings.s3_public_bucket)

    @functools.cached_property
    def quarantine_streamer(self) -> "AssetStreamer":
        """Built on first use: only an operator reads files in quarantine."""
        return _build_streamer(self.settings, self.settings.s3_private_bucket)

    async def close(self) -> None:
        self.feed.close()
        for streamer in (self.streamer, vars(self).get("quarantine_streamer")):
            if streamer is not None:
                streamer.close()
        self.status_reader.close()
        self.model_cache.close()
        self.upload_spool.close()
        await asyncio.to_thread(self.relay.stop)
        await self.database.close()

    async def run_and_wake(self, work: Callable[[Database], W]) -> W:
        """Run `work` in a database thread, then publish its wakes, even if its result is no longer awaited."""

        def run(database: Database) -> W:
            result = work(database)
            self.relay.enqueue(*result.wakes)
            return result

        return await self.database.run(run)

    def list_variants(self, conn: Connection, render_ids: Iterable[UUID]) -> dict[UUID, list[Row]]:
        """Return the published files of each render, with the URLs of the file and its thumbnail."""
        variants: dict[UUID, list[Row]] = {render_id: [] for render_id in render_ids}
        for row in renders.list_variants_of_renders(conn, list(variants)):
            url, thumb = urls.build_asset_url(self.asset_base, row["key"]), row["thumb_key"]
            thumb_url = urls.build_asset_url(self.asset_base, thumb) if thumb else None
            variants[row["render_id"]].append({**row, "url": url, "thumb_url": thumb_url})
        return variants

    def get_provider(self, name: str) -> Provider:
        """Return a provider by the field `provider` of a request. Raises Problem: 422 with the known names."""
        if name not in self.providers:
            known = ", ".join(sorted(self.providers))
            raise invalid_field("provider", f"{to_storable(name, 60)!r} does not exist: use one of {known}")
        return self.providers[name]


def _build_streamer(settings: Settings, bucket: str) -> "AssetStreamer":
    module = importlib.import_module("web.services.asset_stream")  # by name: it loads boto3
    return cast("AssetStreamer", module.AssetStreamer(settings, bucket))


async def get_context(request: Request) -> AppContext:
    return cast(AppContext, request.app.state.context)


Context = Annotated[AppContext, Depends(get_context)]


async def authenticate(request: Request, ctx: Context) -> Caller:
    """
    Return the caller; raises as `Authenticator.authenticate` does.

    Raises Problem: 403, its token does not have the scope, or a viewer, who changes nothing.
    """
    caller = await ctx.authenticator.authenticate(request.scope)
    # The template, not the path: a project may have the id "session".
    caller.require_scope(find_scope(request.method, request.scope["route"].path_format))
    if caller.level is Level.VIEWER and request.method not in ("GET", "HEAD"):
        raise Problem(403, "a token of level viewer only reads: use one of level admin")
    return caller


AnyCaller = Annotated[Caller, Depends(authenticate)]


class RequireLevel:
    """Dependency: the caller, if its token has at least this level. Raises Problem: 403."""

    def __init__(self, level: Level) -> None:
        self.level: Final = level

    async def __call__(self, caller: AnyCaller) -> Caller:
        if caller.level < self.level:
            raise Problem(403, f"a token of level {self.level.name.lower()} is required")
        return caller


ApplicationOnly: Final = Depends(RequireLevel(Level.APPLICATION))
ViewerOnly: Final = Depends(RequireLevel(Level.VIEWER))
AdminOnly: Final = Depends(RequireLevel(Level.ADMIN))
