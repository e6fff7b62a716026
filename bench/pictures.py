"""Pictures of 1024 x 1024 pixels with the detail of a photograph: 0.2 MB as JPEG, 1.6 as PNG, 0.1 as WebP."""

import functools
import io
import random
from typing import Any, Final

from PIL import Image, ImageChops

from bench import results

SIDE_PX: Final = 1024
VARIANTS: Final = 2
FORMATS: Final[dict[str, dict[str, Any]]] = {
    "jpeg": {"quality": 90},
    "png": {"compress_level": 4},
    "webp": {"quality": 85, "method": 2},
}


def load(format_: str) -> list[bytes]:
    """Return the files of a format; they are encoded once, and kept beside the results."""
    folder = results.FOLDER / "pictures"
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for seed in range(VARIANTS):
        path = folder / f"{seed}-{SIDE_PX}.{format_}"
        if not path.exists():
            unfinished = path.with_suffix(".new")
            unfinished.write_bytes(encode(draw(seed), format_))
            unfinished.rename(path)
        files.append(path.read_bytes())
    return files


@functools.cache
def draw(seed: int, side_px: int = SIDE_PX) -> Image.Image:
    """Return a picture of noise in five scales: the larger the scale, the stronger."""
    rng = random.Random(seed)
    picture = Image.new("RGB", (side_px, side_px), (128, 128, 128))
    for cells, share in ((4, 0.55), (16, 0.3), (64, 0.2), (256, 0.1), (side_px, 0.025)):
        noise = Image.frombytes("RGB", (cells, cells), rng.randbytes(cells * cells * 3))
        layer = noise.resize((side_px, side_px), Image.Resampling.BICUBIC)
        layer = layer.point([round((value - 128) * share) + 128 for value in range(256)] * 3)
        picture = ImageChops.add(picture, layer, 1, -128)
    return picture


def encode(picture: Image.Image, format_: str) -> bytes:
    target = io.BytesIO()
    picture.save(target, format_.upper(), **FORMATS[format_])
    return target.getvalue()
