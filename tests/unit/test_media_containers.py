"""Broken containers are refused with the place, and the walk is bounded; no decoder is needed for it."""

import io
import struct

import pytest
from PIL import Image

from egress import download
from media import jpeg, validate
from media.limits import Limits
from moorage.errors import InvalidMedia

LIMITS = Limits()


def refusal(data):
    with download.spool_bytes(data, LIMITS) as fetched, pytest.raises(InvalidMedia) as caught:
        validate.validate_file(fetched, LIMITS)
    return caught.value


def box(kind, content=b"", size=None):
    return struct.pack(">I4s", len(content) + 8 if size is None else size, kind) + content


FTYP = box(b"ftyp", b"isom\0\0\2\0isommp41")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (FTYP + box(b"mdat", b"x" * 50), "no index"),
        (FTYP + box(b"moov") + box(b"mdat"), "no video track"),
        (FTYP + box(b"moov"), "no data"),
        (FTYP + box(b"mdat", b"x" * 50, size=500), "has 500 bytes"),
        (FTYP + box(b"mdat", size=4), "a box of 4 bytes"),
        (FTYP + struct.pack(">I4sQ", 1, b"mdat", 2**63), "are there"),
        (FTYP + box(b"moov", box(b"trak", box(b"mdia", size=99))) + box(b"mdat"), "has 99 bytes"),
        (b"\x1aE\xdf\xa3\x87\x42\x82\x84webm", "no segment"),
        (b"\x1aE\xdf\xa3\x87\x42\x82\x84webm\x18\x53\x80\x67\x80", "no tracks"),
        (b"\x1aE\xdf\xa3\x87\x42\x82\x84webm\x18\x53\x80\x67\x90", "are there"),
        (b"\x1aE\xdf\xa3\x87\x42\x82\x84webm\x18\x53\x80\x67\xff\x00\x00", "incomplete element"),
    ],
)
def test_a_broken_container_is_refused_with_the_place(data, reason):
    """A person who reads the dead letter sees what is missing."""
    error = refusal(data)

    assert reason in str(error)
    assert error.facts["bytes"] == len(data)


@pytest.mark.parametrize(
    ("format_name", "at", "part"),
    [("GIF", -1, b"\x21\xf9\0"), ("JPEG", 2, b"\xff\x01"), ("PNG", -12, struct.pack(">I4sI", 0, b"IDAT", 0x35AF061E))],
)
def test_an_image_of_empty_parts_is_refused(format_name, at, part):
    """Each takes a hundred bytes of a worker's memory, and two to twelve of the file."""
    out = io.BytesIO()
    Image.new("L", (8, 8)).save(out, format_name)
    data = out.getvalue()

    assert "more than 131072 parts" in str(refusal(data[:at] + part * 140_000 + data[at:]))


def test_a_million_empty_boxes_do_not_keep_a_worker_busy():
    """The walk is bounded whatever the file holds."""
    assert "boxes" in str(refusal(FTYP + box(b"free") * 300_000))


def test_a_table_of_any_size_costs_little_memory():
    """A hostile index names a hundred million samples in one chunk."""
    count = 5_000_000
    tables = (
        box(b"stco", struct.pack(">III", 0, 1, 0))
        + box(b"stsc", struct.pack(">IIIII", 0, 1, 1, count, 1))
        + box(b"stsz", struct.pack(">III", 0, 0, count) + bytes(4 * count))
    )
    handler = box(b"hdlr", bytes(8) + b"vide" + bytes(13))
    track = box(b"trak", box(b"mdia", handler + box(b"minf", box(b"stbl", tables))))
    data = FTYP + box(b"moov", track) + box(b"mdat")

    assert "more samples than" in str(refusal(data))


@pytest.mark.parametrize("interval", [b"\xff\xdd\x00\x04\x00\x01", b""])
def test_restart_markers_count_only_in_a_jpeg_that_announces_them(interval):
    """Elsewhere a decoder ends at the first one, so that a file of nothing else needs no memory for its variants."""
    out = io.BytesIO()
    Image.new("L", (80, 80)).save(out, "JPEG", restart_marker_blocks=1)
    announced = b"\xff\xdd\x00\x04\x00\x01"
    data = out.getvalue().replace(announced, interval)

    scan = jpeg.scan_jpeg(data)
    (pieces,) = jpeg.build_filled_variants(data, scan)

    assert announced in out.getvalue()
    assert scan.added_pieces == 10 + 2 * 99 * (interval != b"")
    assert len(pieces) - len(scan.pieces) <= scan.added_pieces
