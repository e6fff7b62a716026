"""A published file as every answer shows it."""

from typing import Any, Final

from db.connect import Row
from storage import addresses

FIELDS: Final = (
    "idx", "is_cover", "media", "content_type", "bytes", "sha256", "width_px", "height_px", "frames", "duration_s",
    "thumb_width_px", "thumb_height_px", "thumb_missing", "color", "is_placeholder",
)  # fmt: skip


def shown(row: Row, base: str) -> dict[str, Any]:
    """Return a row of the view `variants` with the addresses of its file and thumbnail; `base` stands before keys."""
    thumb = row["thumb_key"]
    return {
        **{name: row[name] for name in FIELDS},
        "url": addresses.asset_url(base, row["key"]),
        "thumb_url": addresses.asset_url(base, thumb) if thumb else None,
    }
