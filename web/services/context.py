"""What every endpoint is given."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from starlette.requests import Request

from moorage.settings import Settings
from providers.base import Provider
from web.services.database import DatabaseThreads
from web.services.event_feed import EventFeed
from web.services.model_cache import ModelCache
from web.services.upload_spool import UploadSpool
from worker.publish import WakeRelay

if TYPE_CHECKING:
    from web.services.asset_stream import AssetStreamer


@dataclass(frozen=True, slots=True)
class AppContext:
    """One process's settings, providers, way to PostgreSQL and way to the broker."""

    settings: Settings
    providers: Mapping[str, Provider]
    database: DatabaseThreads
    relay: WakeRelay
    feed: EventFeed
    model_cache: ModelCache
    upload_spool: UploadSpool
    asset_base: str  # what stands before a key
    streamer: "AssetStreamer | None" = None  # None: files are answered with a redirect


def get_context(request: Request) -> AppContext:
    """Return the desk of the application that answers a request."""
    return cast(AppContext, request.app.state.desk)
