"""
Measure the peak memory of a worker and of its decoder process while an image of each format is validated.

`make bench PART=memory`; `make bench-media` at the limit of 134 megapixels (two minutes, 3 GB of memory).
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Final

from PIL import Image

from bench import results

MEGAPIXELS: Final = 20.0
Writer = Callable[[BinaryIO, int, int], None]
_COLUMNS: Final = ("file", "pixels", "MB", "worker MB", "decoder MB", "seconds", "result")


def main(megapixels: float) -> None:
    run = results.Run("memory" if megapixels == MEGAPIXELS else "memory-custom")
    rows = [measure(*case) for case in _list_cases(megapixels)]
    run.tables, run.figures = [results.Table(_COLUMNS, rows)], {"megapixels": megapixels}
    run.save()


def measure(name: str, width: int, height: int, save: Writer) -> list[str]:
    """Validate an image in a process of its own; return its row of the table."""
    with tempfile.TemporaryFile() as file:
        if not (pid := os.fork()):  # creating the image needs memory of its own
            save(file, width, height)
            file.flush()
            os._exit(0)
        if os.waitpid(pid, 0)[1]:
            raise SystemExit(f"{name} was not written")
        command = [sys.executable, "-m", "bench.memory", "--validate"]
        done = subprocess.run(command, stdin=file, stdout=subprocess.PIPE, check=True, cwd=results.ROOT)
        facts: dict[str, Any] = json.loads(done.stdout)
        size = os.fstat(file.fileno()).st_size / 1e6
    memory = f"{facts['worker']:.0f}", f"{facts['decoder']:.0f}"
    shown = f"{width * height:,}", f"{size:.1f}", *memory, f"{facts['seconds']:.1f}", str(facts["result"])
    return [name.strip(), *shown]


def _list_cases(megapixels: float) -> Iterator[tuple[str, int, int, Writer]]:
    """Yield name, size and writer. WebP has at most 16,383 pixels a side, and its lossy form not every content."""
    width = min(16_383, int((megapixels * 1e6) ** 0.5) + 4)
    height = min(width, int(megapixels * 1e6 / width))
    for mode in ("RGB", "RGBA", "I;16", "P"):
        yield f"PNG {mode}", width, height, _writer(mode, "PNG", compress_level=1)
    for mode, options in (("RGB", {}), ("CMYK", {}), ("RGB", {"progressive": True, "subsampling": 0})):
        yield f"JPEG {mode} {' '.join(options)}", width, height, _writer(mode, "JPEG", **options)
    for mode, options in (("RGB", {"method": 0}), ("RGBA", {"method": 0}), ("RGBA", {"method": 0, "lossless": True})):
        yield f"WebP {mode} {' '.join(options)}", width, height, _writer(mode, "WEBP", **options)
    yield "GIF", width, height, _writer("P", "GIF")
    for mode in ("RGB", "RGBA"):
        yield f"AVIF {mode}", width, height, _writer(mode, "AVIF", speed=10, subsampling="4:4:4")


def _writer(mode: str, format_name: str, **options: Any) -> Writer:
    def write(file: BinaryIO, width: int, height: int) -> None:
        samples = bytes(4096) if format_name == "WEBP" else random.Random(1).randbytes(4096)
        tile = Image.frombytes("L", (64, 64), samples).resize((512, 512)).convert("RGB")
        source = tile.convert("P") if mode == "P" else tile.convert("L") if mode == "I;16" else tile.convert(mode)
        if mode == "I;16":
            source = source.convert("I").point(lambda value: value * 257).convert("I;16")
        image = Image.new(mode, (width, height))
        for left in range(0, width, 512):
            for top in range(0, height, 512):
                image.paste(source, (left, top))
        if mode == "P":
            image.putpalette(source.getpalette() or [])
        image.save(file, format_name, **options)

    return write


def validate() -> None:
    """Validate the image on standard input, and print the memory of this process and its child."""
    import resource

    import boto3  # noqa: F401 (a worker has it loaded)
    import celery  # noqa: F401
    import psycopg  # noqa: F401

    from media import validate as validation
    from media.limits import Limits
    from moorage.errors import MoorageError
    from moorage.model import FetchedFile

    started = time.monotonic()
    with open(0, "rb", closefd=False) as file:
        try:
            media = validation.validate_file(FetchedFile(file, os.fstat(0).st_size, ""), Limits()).media
            result = f"kept {media.width_px} x {media.height_px}"
        except MoorageError as error:
            result = f"{type(error).__name__}: {error} {error.facts.get('decoder', '')}"
    with open("/proc/self/status", encoding="ascii") as status:  # ru_maxrss of this process is that of its parent
        worker = next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM:"))
    decoder = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    facts = {"worker": worker, "decoder": decoder, "seconds": time.monotonic() - started, "result": result}
    sys.stdout.write(json.dumps(facts))


if __name__ == "__main__":
    if sys.argv[1:] == ["--validate"]:
        validate()
    else:
        main(float(sys.argv[1]) if len(sys.argv) > 1 else MEGAPIXELS)
