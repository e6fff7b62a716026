"""Application context shared by all endpoints."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moorage.settings import Settings
from moorage.text import to_storable
from providers.base import Provider
from web.http.validation import invalid_field
from web.services.authentication import Authenticator
from web.services.database import DatabaseThreads
from web.services.event_feed import EventFeed
from web.services.model_cache import ModelCache
from web.services.quarantine_reader import QuarantineReader
from web.services.upload_spool import UploadSpool
from worker.publish import WakeRelay

if TYPE_CHECKING:
    from web.services.asset_stream import AssetStreamer


@dataclass(frozen=True, slots=True)
class AppContext:
    settings: Settings
    authenticator: Authenticator
    providers: Mapping[str, Provider]
    database: DatabaseThreads
    relay: WakeRelay
    feed: EventFeed
    model_cache: ModelCache
    upload_spool: UploadSpool
    quarantine_reader: QuarantineReader
    asset_base: str  # URL prefix of object keys
    streamer: "AssetStreamer | None" = None  # None: assets are redirected to the public bucket

    def get_provider(self, name: str) -> Provider:
        """Return a provider by the field `provider` of a request. Raises Problem: 422 with the known names."""
        if name not in self.providers:
            known = ", ".join(sorted(self.providers))
            raise invalid_field("provider", f"{to_storable(name, 60)!r} does not exist: use one of {known}")
        return self.providers[name]
