"""Large images are decoded in a process with limits; one at a time, and the worker survives whatever it does."""

import contextlib
import errno
import fcntl
import io
import os
import select
import struct
import subprocess
import sys
import threading
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from egress import download
from media import confined, decoder_process, images, validate
from media.limits import Limits
from moorage.errors import DiskFull, InvalidMedia, MoorageError, ResourceExhausted, Transient
from moorage.local_errors import LOCAL_ERRNOS

LIMITS = Limits()


def encoded(image, format_name, **options):
    out = io.BytesIO()
    image.save(out, format_name, **options)
    return out.getvalue()


def examine(data, limits=LIMITS):
    with download.spool_bytes(data, limits) as fetched:
        return validate.validate_file(fetched, limits)


def refusal(data, limits=LIMITS, kind=InvalidMedia):
    with pytest.raises(kind) as caught:
        examine(data, limits)
    return caught.value


@pytest.fixture
def isolated(monkeypatch):
    """Decode every image in a process, however small."""
    monkeypatch.setattr(images, "_INLINE_PIXELS", 0)


@pytest.fixture
def program(monkeypatch, tmp_path, isolated):
    """Replace the program of the process by some lines."""

    def replace_by(text):
        (tmp_path / "program.py").write_text(text)
        monkeypatch.setattr(decoder_process, "__file__", str(tmp_path / "program.py"))

    return replace_by


def large_png(width, height):
    """An image of one colour: large in memory, small as a file."""
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))]
    packer = zlib.compressobj(1)
    row = bytes(1 + width * 3)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    chunks += [(b"IDAT", pixels), (b"IEND", b"")]
    parts = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.usefixtures("isolated")
@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "WEBP", "GIF", "AVIF"])
def test_the_process_returns_what_the_worker_would(format_name, monkeypatch):
    data = encoded(Image.linear_gradient("L").convert("RGB"), format_name)

    isolated = examine(data)
    monkeypatch.undo()

    assert isolated == examine(data)


@pytest.mark.usefixtures("isolated")
def test_a_refusal_of_the_process_has_its_reason_and_facts():
    data = encoded(Image.linear_gradient("L"), "PNG")

    error = refusal(data[:-30])

    assert str(error) == "the PNG is truncated: its end is missing"
    broken = bytearray(encoded(Image.linear_gradient("L"), "WEBP"))
    broken[60:200] = bytes(140)
    assert refusal(bytes(broken)).facts["format"] == "webp"


def test_small_images_need_no_process(program):
    """A process costs a quarter of a second."""
    images._INLINE_PIXELS = 2**22  # undone by the fixture
    program("raise SystemExit(1)")

    assert examine(encoded(Image.new("RGB", (1024, 1024)), "PNG")).media.width_px == 1024


def measure(data):
    """Return width, height and the peak memory in kB of a fresh process that validates a file."""
    code = (
        "import os\n"
        "from media import validate\nfrom media.limits import Limits\nfrom moorage.model import FetchedFile\n"
        "file = open(0, 'rb', closefd=False)\n"
        "media = validate.validate_file(FetchedFile(file, os.fstat(0).st_size, ''), Limits()).media\n"
        "peak = next(line for line in open('/proc/self/status') if line.startswith('VmHWM:')).split()[1]\n"
        "print(media.width_px or 0, media.height_px or 0, peak)\n"
    )
    with download.spool_bytes(data, LIMITS) as fetched:
        done = subprocess.run(
            [sys.executable, "-c", code], stdin=fetched.file, capture_output=True, check=True,
            cwd=Path(__file__).parents[2],
        )  # fmt: skip
    return map(int, done.stdout.split())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("size", [(8192, 8192), pytest.param((10_000, 10_000), marks=pytest.mark.prove)])
def test_what_models_make_is_kept_and_takes_no_memory_of_the_worker(size):
    width, height, peak_kb = measure(large_png(*size))
    assert (width, height) == size
    assert peak_kb < 128 * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_small_jpeg_with_a_million_restart_markers_takes_no_memory_of_the_worker():
    """Each of them adds two parts to the variant that shows whether the data ends early."""
    data = encoded(Image.new("L", (64, 64)), "JPEG")

    width, height, peak_kb = measure(data[:-2] + b"\xff\xd0" * 1_000_000 + b"\xff\xd9")

    assert (width, height) == (64, 64)
    assert peak_kb < 128 * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_file_of_another_kind_takes_no_memory_of_the_worker():
    """An image within a drawing is one attribute, which the parser holds in memory."""
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="data:image/png;base64,%s"/></svg>'

    _, _, peak_kb = measure(svg % (b"ABCD" * 2**23))

    assert peak_kb < 128 * 1024


def test_a_large_text_is_known_by_its_names_in_the_process():
    """It has no signature: the process needs its extension and content type, too."""
    lines = b"a transcript of several words\n" * 600_000

    for size in (len(lines), len(lines) - images.INLINE_BYTES // 2):
        with download.spool_chunks(
            iter((lines[:size],)), LIMITS, lambda: None, content_type="text/plain; charset=utf-8", extension="txt"
        ) as fetched:
            examined = validate.validate_file(fetched, LIMITS)
        assert (examined.media.format, examined.thumb) == ("txt", None)


@pytest.mark.parametrize(("size", "count"), [((1280, 720), 81), ((640, 360), 300), ((32, 32), 700)])
def test_animations_of_models_are_within_the_limits(size, count):
    images._check_size(*size, count, LIMITS, {})


def test_a_gif_of_700_small_frames_is_kept():
    frames = [Image.new("L", (32, 32), index % 256) for index in range(700)]

    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=10)

    assert examine(data).media.frames == 700


def test_an_image_that_needs_more_memory_is_refused_with_the_name_of_the_setting():
    """The worker lives, and an operator knows what to change before a replay."""
    error = refusal(large_png(9000, 9000), replace(LIMITS, decoder_memory_bytes=2**28))

    assert "MOORAGE_DECODER_MEMORY_BYTES" in str(error)
    assert error.facts["limit"] == 2**28
    assert error.facts["width_px"] == 9000


@pytest.mark.usefixtures("isolated")
@pytest.mark.parametrize(
    ("format_name", "limit"), [("JPEG", 130_000_000), ("WEBP", 200_000_000), ("AVIF", 200_000_000)]
)
def test_no_decoder_reports_a_lack_of_memory_as_a_damaged_file(format_name, limit):
    data = encoded(Image.new("RGB", (5001, 4001)), format_name)  # odd, so that a JPEG is decoded at full size

    assert "MOORAGE_DECODER_MEMORY_BYTES" in str(refusal(data, replace(LIMITS, decoder_memory_bytes=limit)))


@pytest.mark.parametrize(
    ("text", "kind", "reason"),
    [
        ("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)", InvalidMedia, "crashed, or needs more memory than"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGXCPU)", InvalidMedia, "60 s of CPU time"),
        ("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", Transient, "ended by the system"),
        ("raise SystemExit(1)", InvalidMedia, "MOORAGE_DECODER_MEMORY_BYTES"),
        ('print(\'{"error": "ValueError: bug"}\')\nraise SystemExit(3)', Transient, "could not be validated"),
        ("print('{\"errno\": 28}')\nraise SystemExit(3)", DiskFull, "ENOSPC"),
    ],
)
def test_a_process_that_ends_by_itself_costs_the_file_alone(program, text, kind, reason):
    """Memory corruption ends in a signal; a kill by the system says nothing about the file."""
    program(text)

    assert reason in str(refusal(encoded(Image.new("RGB", (8, 8)), "PNG"), kind=kind))


def test_the_process_reports_an_error_of_this_machine_that_is_not_its_own_limit():
    """Of a limit that it exceeds the file is to blame; for anything else the file is decoded again."""
    described = {code: decoder_process._describe_error(OSError(code, "failed"), 2**30) for code in LOCAL_ERRNOS}

    reported = {code for code, result in described.items() if result == {"errno": code}}
    assert LOCAL_ERRNOS.keys() - reported == {errno.EFBIG, errno.ENOMEM}
    assert all("problem" in described[code] for code in (errno.EFBIG, errno.ENOMEM))


def test_a_process_that_hangs_is_ended(program):
    program("import time\ntime.sleep(600)")

    error = refusal(encoded(Image.new("RGB", (8, 8)), "PNG"), replace(LIMITS, decoder_seconds=-4), kind=Transient)

    assert "too long" in str(error)


def test_the_limit_of_cpu_time_ends_the_process(program):
    """A file may be small in memory and endless in work."""
    program(
        "from media.decoder_process import limit_resources\nlimit_resources(2**31, 1, 100, 9)\nwhile True:\n    pass"
    )

    assert "1 s of CPU time" in str(
        refusal(encoded(Image.new("RGB", (8, 8)), "PNG"), replace(LIMITS, decoder_cpu_seconds=1))
    )


def test_the_process_sees_no_credentials(program, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    program("import json, os\nprint(json.dumps({'error': sorted(os.environ)}))\nraise SystemExit(3)")

    assert "AWS" not in str(refusal(encoded(Image.new("RGB", (8, 8)), "PNG"), kind=MoorageError))


def test_one_decoder_runs_at_a_time(program):
    """A worker with many processes needs the memory of one decoder."""
    program("raise SystemExit(1)")
    ended = threading.Event()

    def run():
        with contextlib.suppress(InvalidMedia):
            examine(encoded(Image.new("RGB", (8, 8)), "PNG"))
        ended.set()

    thread = threading.Thread(target=run)
    with Path(confined.__file__).open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        thread.start()
        assert not ended.wait(1)
    assert ended.wait(60)
    thread.join()


def test_waiting_for_another_decoder_ends(program, monkeypatch):
    program("raise SystemExit(1)")
    monkeypatch.setattr(confined, "LOCK_SECONDS", 0.0)

    with Path(confined.__file__).open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        error = refusal(encoded(Image.new("RGB", (8, 8)), "PNG"), kind=ResourceExhausted)

    assert "other files" in str(error)


def test_a_lock_ends_with_the_process_that_holds_it():
    """A worker that is killed while it decodes must not block the others."""
    code = "import os\nfrom media import confined\nwith confined._hold_lock():\n    os.kill(os.getpid(), 9)\n"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == -9

    with confined._hold_lock():
        assert os.getpid()


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel for the signal")
def test_a_decoder_process_ends_with_its_parent():
    """Otherwise the next worker would decode beside it, with the memory of two."""
    decoder = (
        "import os, time\nfrom media.decoder_process import limit_resources\n"
        "limit_resources(2**32, 60, 500, 2**20)\nos.write(1, b'ready')\ntime.sleep(500)"
    )
    parent = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {decoder!r}], stdout=subprocess.PIPE)\n"
        "child.stdout.read(5)\nprint(child.pid, flush=True)\ntime.sleep(500)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    ) as process:
        pid = int(process.stdout.readline())
        descriptor = os.pidfd_open(pid)

        process.kill()

        assert select.select([descriptor], [], [], 60)[0]
        os.close(descriptor)
