"""What every endpoint is given."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from starlette.requests import Request

from moorage.settings import Settings
from providers.base import Provider
from web.services.database import Threads
from web.services.event_feed import Feed
from web.services.model_cache import Catalogue
from web.services.upload_spool import Intake
from worker.publish import Relay

if TYPE_CHECKING:
    from web.services.asset_stream import Streamer


@dataclass(frozen=True, slots=True)
class Desk:
    """One process's settings, providers, way to PostgreSQL and way to the broker."""

    settings: Settings
    providers: Mapping[str, Provider]
    threads: Threads
    relay: Relay
    feed: Feed
    catalogue: Catalogue
    intake: Intake
    asset_base: str  # what stands before a key
    streamer: "Streamer | None" = None  # None: files are answered with a redirect


def of(request: Request) -> Desk:
    """Return the desk of the application that answers a request."""
    return cast(Desk, request.app.state.desk)
