"""What a container says of its video."""

from dataclasses import dataclass


class ContainerError(Exception):
    """The container is cut, broken, or holds no video. The message says what is missing."""


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """Size in pixels, upright, and duration; None where the container does not say."""

    width_px: int | None
    height_px: int | None
    duration_s: float | None
