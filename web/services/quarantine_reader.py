"""Streams files from quarantine."""

import functools
import importlib
from typing import TYPE_CHECKING, Final, cast

from starlette.responses import Response

from db.connection import Row
from moorage.settings import Settings

if TYPE_CHECKING:
    from web.services.asset_stream import AssetStreamer

# Never shown in a browser: the file was refused.
HEADERS: Final = {
    "Content-Type": "application/octet-stream",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class QuarantineReader:
    """Imports storage on first use: only an operator reads such files."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @functools.cached_property
    def _streamer(self) -> "AssetStreamer":
        module = importlib.import_module("web.services.asset_stream")
        return cast("AssetStreamer", module.AssetStreamer(self._settings, self._settings.s3_private_bucket))

    async def build_response(self, file: Row, name: str, *, with_body: bool) -> Response:
        """Return a download of a row of `quarantine.find`. Raises Problem: 404 no such object, 503."""
        headers = {**HEADERS, "Content-Disposition": f'attachment; filename="{name}"'}
        headers["Content-Length"] = str(file["bytes"])
        if not with_body:
            return Response(status_code=200, headers=headers)
        return await self._streamer.build_response(file["key"], None, 200, headers)

    def close(self) -> None:
        if "_streamer" in self.__dict__:
            self._streamer.close()
