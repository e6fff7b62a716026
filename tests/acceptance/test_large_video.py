"""Half a gigabyte through a worker of some dozen megabytes."""

import hashlib
import http.server
import json
import struct
import threading
from pathlib import Path

import pytest

from tests.acceptance.test_bad_input import send

SIZES = [100_000_000, pytest.param(499_000_000, marks=pytest.mark.prove)]
LIMIT = 64_000_000  # above idle
CHUNK = bytes(1_000_000)


def box(kind, *parts):
    """Return one box of an MP4."""
    body = b"".join(parts)
    return struct.pack(">I4s", len(body) + 8, kind) + body


def head():
    """Return an MP4 up to its media data: one video track of 320 x 240, no frame that anyone could show."""
    matrix = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    movie = box(b"mvhd", struct.pack(">5IIH10x", 0, 0, 0, 1000, 1000, 0x10000, 0x100), matrix, bytes(24), b"\0\0\0\2")
    track = box(b"tkhd", struct.pack(">6I8x4H", 7, 0, 0, 1, 0, 1000, 0, 0, 0, 0), matrix,
                struct.pack(">II", 320 << 16, 240 << 16))  # fmt: skip
    handler = box(b"hdlr", bytes(8), b"vide", bytes(13))
    table = box(
        b"stbl", *(box(kind, bytes(8)) for kind in (b"stsd", b"stts", b"stsc", b"stco")), box(b"stsz", bytes(12))
    )
    media = box(b"mdia", box(b"mdhd", struct.pack(">6I", 0, 0, 0, 1000, 1000, 0)), handler, box(b"minf", table))
    return box(b"ftyp", b"isom\0\0\2\0isommp41") + box(b"moov", movie, box(b"trak", track, media))


class Files(http.server.BaseHTTPRequestHandler):
    """Serves a video of any size: /BYTES.mp4."""

    def do_GET(self):
        size = int(Path(self.path).stem)
        self.send_response(200)
        self.send_header("Content-Type", "video/mp4")
        self.send_header("Content-Length", str(size))
        self.end_headers()
        for chunk in content(size):
            self.wfile.write(chunk)

    def log_message(self, *_):
        """Stay quiet."""


def content(size):
    """Give the bytes of a video in chunks: its head, then one box of media data to the end."""
    first = head()
    yield first + struct.pack(">I4s", size - len(first), b"mdat")
    left = size - len(first) - 8
    while left:
        yield CHUNK[: min(left, len(CHUNK))]
        left -= min(left, len(CHUNK))


@pytest.fixture
def files(free_port):
    with http.server.ThreadingHTTPServer(("127.0.0.1", free_port), Files) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{free_port}"
        server.shutdown()
        thread.join()


@pytest.mark.timeout(400)  # a gigabyte crosses loopback and the disk
@pytest.mark.parametrize("size", SIZES)
def test_a_large_video_is_kept_in_little_memory(world, files, size):
    """A worker's memory must not grow with the file, or a few videos at once take the machine down."""
    with world.without("keep1", "keep2"):
        worker = world.local.add_worker("large", "-Q", "keep", "-c", "1")
        worker.launch()
        try:
            kept(world, files, size // 1000)  # loads what a child loads once
            (child,) = worker.list_children()
            idle = reset_peak(child)

            row = kept(world, files, size)

            assert worker.list_children() == [child]
            assert memory(child, "VmHWM") - idle < LIMIT
        finally:
            worker.stop()
            del world.local.processes["large"]
    digest = hashlib.sha256()
    for chunk in content(size):
        digest.update(chunk)
    assert (row["bytes"], row["sha256"], row["format"]) == (size, digest.hexdigest(), "mp4")
    assert world.blobs.head(world.blobs.public_bucket, row["key"]).sha256 == digest.hexdigest()


def kept(world, files, size):
    """Keep one video through a webhook and return its row."""
    name = f"video{size}"
    asked = world.register(name, kind="video")
    said = {"id": name, "status": "succeeded", "output": f"{files}/{size}.mp4", "created_at": "2026-01-01T00:00:00Z"}
    assert send(world, json.dumps(said).encode(), f"msg_{name}").status_code == 202
    world.await_end(asked, seconds=240)
    (row,) = world.outputs(asked)
    assert row["state"] == "kept", row["reason"]
    return row


def memory(pid, name):
    """Return one of the kernel's numbers of a process, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def reset_peak(pid):
    """Have the kernel measure the peak from now on; returns the present memory."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return memory(pid, "VmRSS")
