"""Videos: a container is walked to its end; a poster comes from a confined process and never costs the video."""

import hashlib
import io
import os
import random
import struct
import subprocess
import sys
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from PIL import Image

from egress import download
from media import decoder_process, poster, sniff, validate
from media.limits import Limits
from moorage.errors import DiskFull, InvalidMedia

LIMITS = Limits(
    thumbnail_px=100, poster_seconds=170
)  # a busy machine takes longer than the usual 20 s to start a decoder
av = pytest.importorskip("av", reason="the `video` extra is not installed")
CODECS = {"mp4": "mpeg4", "webm": "vp8"}


def made(format_name, *, frames=12, size=(160, 120), options=None):
    """A short video, its left half red and its right half blue."""
    with tempfile.NamedTemporaryFile(suffix=f".{format_name}") as file:  # some options make the writer open it again
        encode(file.name, format_name, frames, size, options)
        return Path(file.name).read_bytes()


def encode(target, format_name, frames=12, size=(160, 120), options=None):
    with av.open(target, "w", format=format_name, options=options or {}) as container:
        stream = container.add_stream(CODECS[format_name], rate=12)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        image = Image.new("RGB", size, "red")
        image.paste((0, 0, 255), (size[0] // 2, 0, *size))
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())


class Unseekable(io.RawIOBase):
    """A pipe, as a live recorder writes to."""

    def __init__(self):
        self.parts = []

    def writable(self):
        return True

    def write(self, data):
        self.parts.append(bytes(data))
        return len(data)

    def getvalue(self):
        return b"".join(self.parts)


def examine(data, limits=LIMITS):
    with download.spool_bytes(data, limits) as fetched:
        return validate.validate_file(fetched, limits)


def refusal(data):
    with download.spool_bytes(data, LIMITS) as fetched, pytest.raises(InvalidMedia) as caught:
        validate.validate_file(fetched, LIMITS)
    return caught.value


@pytest.fixture
def no_poster(monkeypatch):
    """Leave the decoder out: these tests are about containers, and a process costs 200 ms."""

    def refuse(*_):
        raise poster.PosterError("left out")

    monkeypatch.setattr(poster, "extract_poster", refuse)


@pytest.mark.parametrize("format_name", ["mp4", "webm"])
def test_a_video_is_kept_with_its_facts_and_a_poster(format_name):
    """The poster shows the first frame, in its colours."""
    examined = examine(made(format_name))

    media = examined.media
    assert (media.media, media.format, media.extension) == ("video", format_name, format_name)
    assert media.content_type == f"video/{format_name}"
    assert (media.width_px, media.height_px) == (160, 120)
    assert media.duration_s == pytest.approx(1.0, abs=0.1)
    assert examined.thumb_missing is None
    with Image.open(io.BytesIO(examined.thumb.data)) as poster:
        assert (poster.format, poster.size) == ("WEBP", (100, 75))
        assert poster.getpixel((10, 30)) == pytest.approx((255, 0, 0), abs=25)
        assert poster.getpixel((90, 30)) == pytest.approx((0, 0, 255), abs=25)


@pytest.mark.parametrize(
    ("format_name", "options"),
    [("mp4", {}), ("mp4", {"movflags": "faststart"}), ("webm", {}), ("webm", {"cues_to_front": "1"})],
)
@pytest.mark.usefixtures("no_poster")
def test_a_video_cut_anywhere_is_refused(format_name, options):
    """A cut video plays at first; only its end is missing."""
    data = made(format_name, options=options)

    for end in {*range(1, len(data), 10), len(data) - 1}:
        refusal(data[:end])


FRAGMENTS = "frag_every_frame"


@pytest.mark.parametrize("flags", [FRAGMENTS, f"{FRAGMENTS}+empty_moov", f"{FRAGMENTS}+empty_moov+default_base_moof"])
@pytest.mark.usefixtures("no_poster")
def test_a_fragmented_mp4_is_kept_and_refused_when_cut_in_a_fragment(flags):
    """Streaming encoders write fragments; their index has no durations, or that of the first fragment."""
    data = made("mp4", options={"movflags": flags})

    media = examine(data).media

    assert media.width_px == 160
    assert media.duration_s == pytest.approx(1.0, abs=0.1)
    start = data.rindex(b"moof")
    for end in (start + 2, start + 40, data.rindex(b"mdat") + 6):
        refusal(data[:end])
    refusal(data[:-10])


TRAILERS = [b"\0", bytes(7), bytes(64), b"abc", random.Random(3).randbytes(100), b"\r\n", b"<html>not found</html>"]
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}


@pytest.mark.parametrize("extra", TRAILERS)
@pytest.mark.parametrize(
    ("format_name", "options"), [("mp4", {}), ("mp4", FRAGMENTED), ("webm", {}), ("webm", {"live": "1"})]
)
@pytest.mark.usefixtures("no_poster")
def test_bytes_behind_a_video_never_cost_it(format_name, options, extra):
    """Servers and editors append bytes; the frames are complete, so the video is kept with a note."""
    out = Unseekable() if "live" in options else io.BytesIO()
    encode(out, format_name, options=options)

    media = examine(out.getvalue() + extra).media

    assert media.duration_s == pytest.approx(1.0, abs=0.1)
    assert "ignored" in media.notes


def open_last_box(data):
    """Return an MP4 whose last data box states no size: it extends to the end of the file."""
    start = data.rindex(b"mdat") - 4
    return data[:start] + bytes(4) + data[start + 4 :]


@pytest.mark.parametrize("options", [{"movflags": "faststart"}, FRAGMENTED | {"write_tmcd": "0"}])
@pytest.mark.usefixtures("no_poster")
def test_an_mp4_of_open_size_that_is_cut_is_refused(options):
    """Its boxes end with the file wherever that is cut; its last sample does not."""
    data = made("mp4", options=options)
    if b"mfra" in data:
        data = data[: data.rindex(b"mfra") - 4]
    data = open_last_box(data)

    assert examine(data).media.width_px == 160
    refusal(data[:-1])
    refusal(data[: data.rindex(b"mdat") + 5])


@pytest.mark.usefixtures("no_poster")
def test_a_live_webm_of_unknown_size_is_kept_and_refused_when_cut_in_an_element():
    """A recorder that cannot seek back leaves the sizes open."""
    out = Unseekable()
    encode(out, "webm", options={"live": "1"})
    data = out.getvalue()

    media = examine(data).media

    assert (media.width_px, media.height_px) == (160, 120)
    assert media.duration_s == pytest.approx(1.0, abs=0.05)
    refusal(data[:-3])


@pytest.mark.usefixtures("no_poster")
def test_a_quarter_turn_is_recorded_upright():
    """Phones store portrait video lying, with a matrix."""
    data = made("mp4")
    matrix = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    at = data.index(matrix, data.index(b"tkhd"))
    turned = data[:at] + struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000) + data[at + 36 :]

    media = examine(turned).media

    assert (media.width_px, media.height_px) == (120, 160)


def test_a_turned_video_has_an_upright_poster():
    """The red half is on the left; a rotation by 90 degrees clockwise moves it to the top."""
    data = made("mp4")
    matrix = struct.pack(">9i", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)
    at = data.index(matrix, data.index(b"tkhd"))
    turned = data[:at] + struct.pack(">9i", 0, 0x10000, 0, -0x10000, 0, 0, 0, 0, 0x40000000) + data[at + 36 :]

    with Image.open(io.BytesIO(examine(turned).thumb.data)) as poster:
        assert poster.size == (75, 100)
        assert poster.getpixel((30, 10)) == pytest.approx((255, 0, 0), abs=25)


@pytest.mark.usefixtures("no_poster")
def test_an_index_that_points_behind_the_end_is_refused():
    """A data box of open size hides a cut; the chunk table does not."""
    data = bytearray(made("mp4", options={"movflags": "faststart"}))
    at = data.index(b"stco") + 12
    data[at : at + 4] = struct.pack(">I", len(data) + 1)

    assert "points to byte" in str(refusal(bytes(data)))


@pytest.mark.usefixtures("no_poster")
def test_rubbish_sizes_and_durations_count_as_unknown():
    """They are facts of a row, and a number that no column takes would keep the video from being kept."""
    data = made("webm")
    duration = data.index(b"\x44\x89\x88") + 3
    width = data.index(b"\xb0\x81\xa0\xba\x81\x78")
    rubbish = bytearray(data)
    rubbish[duration : duration + 8] = struct.pack(">d", float("inf"))
    rubbish[width : width + 6] = b"\xb0\x84\x7f\xff\xff\xff"

    media = examine(bytes(rubbish)).media

    assert (media.width_px, media.height_px) == (None, None)
    assert media.duration_s == pytest.approx(1.0, abs=0.1)  # from the blocks


def test_a_failed_poster_keeps_the_video_and_records_the_reason():
    """The container is whole, its frames are rubbish to the decoder."""
    data = bytearray(made("mp4"))
    at = data.index(b"mdat") + 4
    size = struct.unpack(">I", data[at - 8 : at - 4])[0] - 8
    data[at : at + size] = bytes(size)

    examined = examine(bytes(data))

    assert examined.media.format == "mp4"
    assert examined.thumb is None
    assert examined.thumb_missing


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (Limits(decoder_memory_bytes=20_000_000), ""),
        (Limits(image_max_pixels=1000), "160 x 120 pixels are too many"),
    ],
)
def test_a_decoder_that_runs_into_its_limits_costs_the_poster_only(limits, reason):
    """A hostile video may take the decoder's process down, and nothing else."""
    examined = examine(made("mp4"), limits)

    assert examined.thumb is None
    assert examined.thumb_missing
    assert reason in examined.thumb_missing


def test_a_decoder_that_hangs_is_ended(tmp_path, monkeypatch):
    """The decoder's process gets a clock as well."""
    script = tmp_path / "sleeper.py"
    script.write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setattr(decoder_process, "__file__", str(script))

    with download.spool_bytes(made("mp4"), LIMITS) as fetched, pytest.raises(poster.PosterError, match="too long"):
        poster.extract_poster(fetched.file, sniff.MP4, Limits(poster_seconds=-4))


@pytest.mark.parametrize(("number", "reason"), [(11, "crashed, or needs more memory"), (9, "ended by the system")])
def test_a_killed_decoder_costs_the_poster_only(tmp_path, monkeypatch, number, reason):
    """Memory corruption ends in a signal; the reason is recorded on the output."""
    script = tmp_path / "suicide.py"
    script.write_text(f"import os\nos.kill(os.getpid(), {number})\n")
    monkeypatch.setattr(decoder_process, "__file__", str(script))

    assert reason in examine(made("mp4")).thumb_missing


def test_a_poster_that_this_machine_prevents_is_rendered_later(tmp_path, monkeypatch):
    """The video would be kept without it for ever, as if the video were to blame."""
    script = tmp_path / "full.py"
    script.write_text("print('{\"errno\": 28}')\nraise SystemExit(3)\n")
    monkeypatch.setattr(decoder_process, "__file__", str(script))

    with pytest.raises(DiskFull):
        examine(made("mp4"))


def test_the_decoder_sees_no_credentials(tmp_path, monkeypatch):
    """Code that a hostile file executes must find no secret in its environment."""
    script = tmp_path / "env.py"
    script.write_text(
        "import json, os\nprint(json.dumps({'problem': repr(sorted(os.environ))}))\nraise SystemExit(3)\n"
    )
    monkeypatch.setattr(decoder_process, "__file__", str(script))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    assert "AWS" not in examine(made("mp4")).thumb_missing


def test_the_decoder_does_not_follow_names_inside_a_file():
    """A playlist or reference movie could make it read files and hosts; the format is forced."""
    playlist = b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"

    with download.spool_bytes(playlist, LIMITS) as fetched, pytest.raises(poster.PosterError, match="InvalidData"):
        poster.render_poster(fetched.file, "mov", LIMITS)


def test_the_decoder_leaves_the_file_as_it_was():
    """The upload reads the same open file next; a position moved behind its back would mix up the bytes."""
    data = made("mp4") + struct.pack(">I4s", 51_208, b"free") + bytes(range(256)) * 200

    with download.spool_bytes(data, LIMITS) as fetched:
        first = fetched.file.read(10)
        poster.extract_poster(fetched.file, sniff.MP4, LIMITS)

        assert hashlib.sha256(first + fetched.file.read()).digest() == hashlib.sha256(data).digest()


@pytest.mark.usefixtures("no_poster")
def test_a_large_video_is_examined_with_little_memory():
    """Half a gigabyte passes through a worker of some dozen megabytes."""
    data = made("mp4")
    filler = 200_000_000

    def chunks():
        yield data + struct.pack(">I4s", filler + 8, b"free")
        for _ in range(filler // 1_000_000):
            yield bytes(1_000_000)

    tracemalloc.start()
    with download.spool_chunks(chunks(), LIMITS, lambda: None) as fetched:
        examined = validate.validate_file(fetched, LIMITS)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert fetched.size_bytes > filler
    assert examined.media.format == "mp4"
    assert peak < 8_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_decoder_is_the_first_to_wait_and_the_first_to_end():
    """It may be the child of the process that takes webhooks, which must outlive what a hostile file asks for."""
    code = (
        "import os; from media import decoder_process; decoder_process.limit_resources(2**30, 5, 6, 2**20);"
        "print(os.nice(0), open('/proc/self/oom_score_adj').read())"
    )

    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )

    assert told.stdout.split() == [str(min(os.nice(0) + 10, 19)), "1000"]
