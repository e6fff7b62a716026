"""
`make bench PART=thumbnails`: time, bytes and loss of a thumbnail by the gap of the reduction and the method of WebP.

The loss is a PSNR against the same picture resampled by Lanczos alone: of the pixels before WebP encodes them, and of
the file. Time is CPU time of the thread, of the thumbnail alone: nothing is decoded.
"""

import io
import math
import time
from typing import Final
from unittest import mock

from PIL import Image, ImageChops, ImageStat

from bench import pictures
from bench.results import Run, Table, median
from media import thumbnails
from media.limits import Limits

SHAPES: Final = ((1024, 1024), (1344, 768), (2048, 2048))
CHOICES: Final = ((None, 4), (2.0, 2), (None, 1), (1.5, 1), (1.2, 2), (1.2, 1), (1.2, 0), (1.0, 1))
ROUNDS: Final = 9


def main() -> None:
    run, limits = Run("thumbnails"), Limits()
    for shape in SHAPES:
        picture = pictures.draw(1, max(shape)).crop((0, 0, *shape))
        with mock.patch.object(thumbnails, "REDUCING_GAP", None):
            exact = thumbnails._shrink(picture, limits.thumbnail_px)
        rows = [_measure(picture, exact, gap, method, limits) for gap, method in CHOICES]
        run.tables.append(Table(["picture", "gap", "method", "ms", "bytes", "resampled", "file"], rows))
        run.figures["x".join(map(str, shape))] = rows
        run.note_load()
    run.tables = [Table(run.tables[0].columns, [row for table in run.tables for row in table.rows])]
    run.notes = [f"{ROUNDS} rounds; chosen: gap {thumbnails.REDUCING_GAP}, method {thumbnails.WEBP_METHOD}."]
    run.save()


def _measure(picture: Image.Image, exact: Image.Image, gap: float | None, method: int, limits: Limits) -> list[str]:
    with mock.patch.multiple(thumbnails, REDUCING_GAP=gap, WEBP_METHOD=method):
        resampled = thumbnails._shrink(picture, limits.thumbnail_px)
        seconds = []
        for _ in range(ROUNDS):
            started = time.thread_time()
            thumbnail = thumbnails.render_thumbnail(picture, limits)
            seconds.append(time.thread_time() - started)
    decoded = Image.open(io.BytesIO(thumbnail.data)).convert("RGB")
    return [
        f"{picture.width} x {picture.height}", "none" if gap is None else str(gap), str(method),
        f"{median(seconds) * 1000:.1f}", f"{len(thumbnail.data):,}", _compute_psnr(resampled, exact),
        _compute_psnr(decoded, exact),
    ]  # fmt: skip


def _compute_psnr(image: Image.Image, reference: Image.Image) -> str:
    squares = ImageStat.Stat(ImageChops.difference(image, reference)).sum2
    error = sum(squares) / (3 * image.width * image.height)
    return "exact" if error == 0 else f"{10 * math.log10(255**2 / error):.1f} dB"


if __name__ == "__main__":
    main()
