"""Limits of downloads and media files."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from moorage.formats import FORMATS, list_accepted
from moorage.model import MediaKind

if TYPE_CHECKING:
    from moorage.settings import Settings  # decoder processes need none: loading it takes longer than a poster


@dataclass(frozen=True, slots=True)
class Limits:
    """Defaults are those of the settings."""

    connect_seconds: float = 5.0
    idle_seconds: float = 15.0
    total_seconds: float = 300.0
    min_bytes_per_second: int = 50_000
    slow_after_seconds: float = 10.0  # the minimum speed applies after this time
    max_redirects: int = 5
    image_max_bytes: int = 200_000_000
    image_max_pixels: int = 2**27  # of one frame
    animation_max_pixels: int = 1_000_000_000  # of all frames
    video_max_bytes: int = 500_000_000  # of files that are no images, too
    accept: Sequence[str] = FORMATS
    thumbnail_px: int = 400
    poster_seconds: int = 20
    decoder_memory_bytes: int = 2_500_000_000
    decoder_cpu_seconds: int = 60
    decoder_seconds: int = 180  # by the clock, on a busy machine
    is_confined: bool = False  # this process is a decoder process itself

    @classmethod
    def from_settings(cls, settings: "Settings") -> "Limits":
        return cls(
            connect_seconds=settings.constants.download_connect_seconds,
            idle_seconds=settings.constants.download_idle_seconds,
            total_seconds=settings.download_total_seconds,
            min_bytes_per_second=settings.constants.download_min_bytes_per_second,
            max_redirects=settings.constants.download_max_redirects,
            image_max_bytes=settings.image_max_bytes,
            image_max_pixels=settings.image_max_pixels,
            animation_max_pixels=settings.animation_max_pixels,
            decoder_memory_bytes=settings.decoder_memory_bytes,
            video_max_bytes=settings.video_max_bytes,
            thumbnail_px=settings.thumbnail_px,
            accept=list_accepted(settings.accept),
        )

    @property
    def max_bytes(self) -> int:
        return max(self.image_max_bytes, self.video_max_bytes)

    def get_size_limit(self, media: MediaKind) -> tuple[int, str]:
        """Return the largest size of a kind of file in bytes, and the name of its setting."""
        if media == "image":
            return self.image_max_bytes, "MOORAGE_IMAGE_MAX_BYTES"
        return self.video_max_bytes, "MOORAGE_VIDEO_MAX_BYTES"
