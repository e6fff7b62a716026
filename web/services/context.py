"""Application context shared by all endpoints."""

import asyncio
import importlib
from typing import TYPE_CHECKING, cast

import providers
from moorage.settings import Settings
from moorage.text import to_storable
from providers.base import Provider
from storage import urls
from web.http.validation import invalid_field
from web.http.visibility import VisibilityPolicy
from web.services.authentication import Authenticator
from web.services.database import DatabaseThreads
from web.services.event_feed import EventFeed, limit_to_files
from web.services.model_cache import ModelCache
from web.services.quarantine_reader import QuarantineReader
from web.services.upload_spool import UploadSpool
from web.services.worker_access import StatusReader
from worker.publish import WakeRelay

if TYPE_CHECKING:
    from web.services.asset_stream import AssetStreamer


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
        self.upload_spool = UploadSpool(settings, self.database)
        self.quarantine_reader = QuarantineReader(settings)
        self.status_reader = StatusReader(settings)
        self.asset_base = urls.get_asset_base_url(settings)  # URL prefix of object keys
        self.streamer: AssetStreamer | None = None  # None: files are redirected to the public bucket
        if settings.assets != "redirect":  # by name: it loads boto3
            module = importlib.import_module("web.services.asset_stream")
            self.streamer = cast("AssetStreamer", module.AssetStreamer(settings, settings.s3_public_bucket))

    async def close(self) -> None:
        self.feed.close()
        if self.streamer is not None:
            self.streamer.close()
        self.quarantine_reader.close()
        self.status_reader.close()
        self.model_cache.close()
        self.upload_spool.close()
        await asyncio.to_thread(self.relay.stop)
        await self.database.close()

    def get_provider(self, name: str) -> Provider:
        """Return a provider by the field `provider` of a request. Raises Problem: 422 with the known names."""
        if name not in self.providers:
            known = ", ".join(sorted(self.providers))
            raise invalid_field("provider", f"{to_storable(name, 60)!r} does not exist: use one of {known}")
        return self.providers[name]
