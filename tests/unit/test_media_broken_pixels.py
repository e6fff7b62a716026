"""Metadata and trailing bytes never cost an image; pixels that are missing always do, whatever they look like."""

import io
import random
import struct
import zlib

import pytest
from PIL import Image

from egress import download
from media import jpeg, validate
from media.containers import open_pieces
from media.limits import Limits
from moorage.errors import InvalidMedia

LIMITS = Limits()


def noise(size=(160, 120), mode="RGB", seed=1):
    channels = len(Image.new(mode, (1, 1)).getbands())
    image = Image.frombytes(mode, (16, 12), random.Random(seed).randbytes(192 * channels))
    return image.resize(size, Image.Resampling.BICUBIC)


def encoded(image, format_name, **options):
    out = io.BytesIO()
    image.save(out, format_name, **options)
    return out.getvalue()


def examine(data, limits=LIMITS):
    with download.spool_bytes(data, limits) as fetched:
        return validate.validate_file(fetched, limits)


def refusal(data):
    with pytest.raises(InvalidMedia) as caught:
        examine(data)
    return str(caught.value)


def png_chunk(kind, data, checksum=None):
    crc = zlib.crc32(kind + data) if checksum is None else checksum
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def png(rows, size=(40, 30), depth=8, color_type=2, extra=b"", interlaced=0):
    """Build a PNG from its filtered rows."""
    header = struct.pack(">IIBBBBB", *size, depth, color_type, 0, 0, interlaced)
    pixels = png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + extra + pixels + png_chunk(b"IEND", b"")


def insert_in_png(data, chunk):
    return data[:33] + chunk + data[33:]


MIB = 2**20
ANCILLARY = {
    "zTXt above 1 MiB": png_chunk(b"zTXt", b"prompt\0\0" + zlib.compress(bytes(3 * MIB))),
    "iTXt above 1 MiB": png_chunk(b"iTXt", b"prompt\0\1\0\0\0" + zlib.compress(bytes(3 * MIB))),
    "tEXt above 1 MiB": png_chunk(b"tEXt", b"prompt\0" + b"x" * 2 * MIB),
    "profile above 1 MiB": png_chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(3 * MIB))),
    "broken profile": png_chunk(b"iCCP", b"icc\0\0rubbish"),
    "wrong checksum in text": png_chunk(b"tEXt", b"a\0b", checksum=1),
    "wrong checksum in an unknown chunk": png_chunk(b"prVt", b"rubbish", checksum=1),
    "wrong checksum in the profile": png_chunk(b"iCCP", b"icc\0\0rubbish", checksum=1),
    "short pHYs": png_chunk(b"pHYs", b"\0"),
    "short tRNS": png_chunk(b"tRNS", b"\0"),
    "short gAMA": png_chunk(b"gAMA", b"\0"),
    "short cHRM": png_chunk(b"cHRM", b"\0"),
    "short sRGB": png_chunk(b"sRGB", b""),
    "short acTL": png_chunk(b"acTL", b"\0"),
    "acTL without frames": png_chunk(b"acTL", struct.pack(">II", 5, 0)),
    "rubbish eXIf": png_chunk(b"eXIf", b"rubbish"),
    "text bomb": png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(100 * MIB), 1)),
}


@pytest.mark.parametrize("chunk", ANCILLARY.values(), ids=ANCILLARY)
def test_an_optional_chunk_of_a_png_never_costs_it(chunk):
    """Workflows of a megabyte are stored as text in a PNG, and editors leave wrong checksums there."""
    media = examine(insert_in_png(encoded(noise(), "PNG"), chunk)).media

    assert (media.width_px, media.height_px, media.frames) == (160, 120, 1)


def test_what_was_ignored_in_a_png_is_noted():
    data = insert_in_png(encoded(noise(), "PNG"), ANCILLARY["wrong checksum in text"] + ANCILLARY["broken profile"])

    assert examine(data).media.notes == "chunk tEXt with a wrong checksum ignored; colour profile unreadable"


@pytest.mark.parametrize(
    "chunk",
    [png_chunk(b"ABCD", b"unknown and critical"), png_chunk(b"PLTE", b"abc", checksum=1)],
)
def test_a_damaged_or_unknown_required_chunk_of_a_png_is_refused(chunk):
    refusal(insert_in_png(encoded(noise(), "PNG"), chunk))


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize(("depth", "color_type", "channels"), [(1, 0, 1), (4, 3, 1), (8, 2, 3), (16, 6, 4)])
def test_a_png_whose_pixel_data_ends_early_is_refused(depth, color_type, channels, interlaced):
    """Its checksums are right and its stream is ended properly: the decoder returns black for the rest."""
    palette = png_chunk(b"PLTE", bytes(range(48))) if color_type == 3 else b""
    total = sum(
        rows * (1 + (columns * depth * channels + 7) // 8)
        for columns, rows in (
            ((5, 4), (5, 4), (10, 4), (10, 8), (20, 7), (20, 15), (40, 15)) if interlaced else ((40, 30),)
        )
        if columns
    )

    def build(size):
        return png(bytes(size), depth=depth, color_type=color_type, extra=palette, interlaced=interlaced)

    assert examine(build(total)).media.width_px == 40
    assert "end early" in refusal(build(total - 1))
    assert "end early" in refusal(build(total // 2))


@pytest.mark.parametrize(
    ("rows", "options"),
    [(bytes(41 * 30), {"color_type": 3}), (bytes(121 * 30), {"color_type": 1}), (bytes(121 * 30), {"depth": 4}),
     (bytes(121 * 29) + b"\5" + bytes(120), {}), (bytes(121 * 30), {"size": (0, 30)})],
)  # fmt: skip
def test_a_png_against_the_standard_is_refused(rows, options):
    """No palette, no such colour type or depth, no such filter, no pixels: browsers refuse them, too."""
    refusal(png(rows, **options))


def test_a_later_frame_of_an_apng_that_ends_early_is_refused():
    frames = [noise((40, 30), seed=seed) for seed in range(3)]
    data = encoded(frames[0], "PNG", save_all=True, append_images=frames[1:])
    start = data.rindex(b"fdAT") - 4
    size = int.from_bytes(data[start : start + 4], "big")
    content = data[start + 8 : start + 8 + size]
    short = content[:4] + zlib.compress(zlib.decompress(content[4:])[:-50])

    assert "frame 2 end early" in refusal(data[:start] + png_chunk(b"fdAT", short) + data[start + 12 + size :])


def test_pixels_of_a_png_that_are_interrupted_are_refused():
    """Decoders stop at the first chunk behind the pixels."""
    rows = zlib.compress(bytes(121 * 30))
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 40, 30, 8, 2, 0, 0, 0))
    chunks = png_chunk(b"IDAT", rows[:10]), png_chunk(b"tEXt", b"a\0b"), png_chunk(b"IDAT", rows[10:])

    assert "interrupted" in refusal(b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + png_chunk(b"IEND", b""))


JPEGS = [
    {},
    {"progressive": True},
    {"subsampling": 0},
    {"subsampling": 2, "quality": 95},
    {"restart_marker_blocks": 1},
    {"restart_marker_rows": 2, "progressive": True},
]


@pytest.mark.parametrize("options", JPEGS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_cut_and_closed_is_refused(options, mode):
    """An end marker hides the cut; the decoder fills up with grey."""
    data = encoded(noise(mode=mode), "JPEG", **options)
    first = data.index(b"\xff\xda") + 20

    assert examine(data).media.format == "jpeg"
    for cut in {len(data) // 2, len(data) * 3 // 4, len(data) - 200, *range(first, len(data) - 200, len(data) // 6)}:
        end = cut - 1 if data[cut - 1] == 0xFF else cut
        assert "truncated" in refusal(data[:end] + b"\xff\xd9"), end


@pytest.mark.parametrize("options", JPEGS)
@pytest.mark.parametrize("color", [(128, 128, 128), (0, 0, 0), (255, 255, 255)])
def test_a_jpeg_that_really_is_grey_below_is_kept(options, color):
    """The evidence is in the data, not in the colour."""
    image = noise()
    image.paste(color, (0, 60, 160, 120))

    assert examine(encoded(image, "JPEG", **options)).media.notes is None


@pytest.mark.parametrize("size", [(1, 1), (8, 8), (17, 9), (1000, 3)])
@pytest.mark.parametrize("options", JPEGS)
def test_a_small_jpeg_is_kept(size, options):
    assert examine(encoded(noise(size), "JPEG", **options)).media.width_px == size[0]


def test_a_jpeg_whose_last_block_lacks_some_bits_is_kept_with_a_note():
    """Cameras exist that omit them; nothing is to be seen of it."""
    data = encoded(noise((64, 64), "L"), "JPEG", quality=95)

    assert examine(data[:-4] + b"\xff\xd9").media.notes == "the data of one block of pixels ends early"


@pytest.mark.parametrize("subsampling", [0, 2])
@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_a_complete_jpeg_is_decoded_once_and_one_that_lacks_a_few_bytes_is_not(mode, subsampling):
    """A decoder of complete data asks for nothing after it; one that lacks blocks cannot fill them from eight bytes."""
    data = encoded(noise((160, 96), mode), "JPEG", quality=90, subsampling=subsampling)
    scan = jpeg.scan_jpeg(data)
    (start, end), *more = scan.entropy
    complete = [*scan.pieces[:-1], jpeg._LOOKAHEAD]

    assert jpeg.build_unended(scan) == complete
    assert not more
    assert needs_no_more(data, complete)
    for missing in (24, 60, 400):  # bytes of several blocks
        short = [piece if piece != (start, end) else (start, end - missing) for piece in complete]
        assert not needs_no_more(data, short)


def needs_no_more(data, pieces):
    with download.spool_bytes(data, LIMITS) as fetched, Image.open(open_pieces(fetched.file, pieces)) as image:
        try:
            image.load()
        except OSError:
            return False
        return image.tobytes() == Image.open(io.BytesIO(data)).tobytes()


def test_a_png_with_a_black_last_row_is_kept():
    """The row shows nothing then: the data are counted."""
    image = noise((40, 30))
    image.paste(0, (0, 20, 40, 30))

    assert examine(encoded(image, "PNG")).media.height_px == 30


def test_a_restart_interval_that_ends_early_is_refused():
    """The decoder resumes at the next marker; what is between is grey."""
    data = encoded(noise(), "JPEG", restart_marker_rows=1, quality=95)
    start, end = data.index(b"\xff\xd1") + 2, data.index(b"\xff\xd2")

    assert "ends early" in refusal(data[: (start + end) // 2] + data[end:])


def test_a_segment_between_the_pixels_and_the_end_never_costs_a_jpeg():
    assert examine(encoded(noise(), "JPEG")[:-2] + b"\xff\xfe\x00\x06abcd\xff\xd9").media.notes is None


@pytest.mark.parametrize(
    "segment",
    [b"\xff\xe0\x00\x07JFIF\0", b"\xff\xe2\x00\x08MPF\0ab", b"\xff\xed\x00\x12Photoshop 3.0\0ab",
     b"\xff\xee\x00\x07Adobe",
     b"\xff\xe1\x00\x08Exif\0\0", b"\xff\xe1\x00\x0aExif\0\0ab", b"\xff\xfe\x00\x02",
     b"\xff\xe2\x00\x10ICC_PROFILE\0\x02\x03"],
)  # fmt: skip
def test_a_malformed_metadata_segment_never_costs_a_jpeg(segment):
    data = encoded(noise(), "JPEG")

    assert examine(data[:2] + segment + data[2:]).media.width_px == 160


def gif(count=3):
    frames = [noise((40, 30), seed=seed).quantize(16) for seed in range(count)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], loop=0)


@pytest.mark.parametrize("end", [b"", b"\0", b"\0" * 20, b"rubbish"])
def test_a_gif_without_trailer_is_kept_with_a_note(end):
    """Some encoders leave it out; every frame is there."""
    media = examine(gif()[:-1] + end).media

    assert media.frames == 3
    assert media.notes


def test_a_gif_that_ends_before_an_announced_frame_is_refused():
    """The control block of a frame is evidence that the frame was cut."""
    refusal(gif()[:-1] + b"\x21\xf9\x04\0\x0a\0\0\0")


@pytest.mark.parametrize("extra", [b"\0", b"\0" * 7, b"\0" * 64, b"abc", random.Random(3).randbytes(100), b"\r\n"])
@pytest.mark.parametrize("format_name", ["AVIF", "WEBP", "PNG", "JPEG"])
def test_bytes_behind_an_image_never_cost_it(format_name, extra):
    media = examine(encoded(noise(), format_name) + extra).media

    assert media.width_px == 160
    assert (media.notes is not None) is (format_name == "AVIF")


def open_mdat(data):
    """Return an AVIF whose last box states no size: it extends to the end of the file."""
    start = data.rindex(b"mdat") - 4
    return data[:start] + bytes(4) + data[start + 4 :]


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_an_avif_of_open_size_that_is_cut_is_refused(mode):
    """Its boxes end with the file wherever that is cut; the extents of its items do not."""
    data = open_mdat(encoded(noise(mode=mode), "AVIF"))

    assert examine(data).media.width_px == 160
    assert "truncated" in refusal(data[:-1])
    assert "truncated" in refusal(data[: data.rindex(b"mdat") + 4 + (len(data) - data.rindex(b"mdat")) // 2])


def test_an_animated_avif_of_open_size_that_is_cut_is_refused():
    frames = [noise((64, 48), seed=seed) for seed in range(3)]
    data = open_mdat(encoded(frames[0], "AVIF", save_all=True, append_images=frames[1:]))

    assert examine(data).media.frames == 3
    refusal(data[:-1])


def test_unreadable_metadata_never_costs_an_avif():
    exif = Image.Exif()
    exif[0x010E] = "description"
    data = encoded(noise(), "AVIF", exif=exif, xmp=b"<x:xmpmeta/>")
    start = data.index(b"MM\0*") if b"MM\0*" in data else data.index(b"II*\0")

    assert examine(data).media.width_px == 160
    assert examine(data[:start] + b"\xff" * 4 + data[start + 4 :]).media.width_px == 160


@pytest.mark.parametrize(
    "data",
    [b"\x89PNG\r\n\x1a\n" + b"rubbish" * 9,
     b"\xff\xd8\xff\xe0\0\x10JFIF" + b"x" * 99 + b"\xff\xd9", b"GIF89a" + b"\0" * 99,
     b"RIFF\x20\0\0\0WEBPVP8 \x14\0\0\0" + b"x" * 30,
     encoded(noise(), "WEBP")[:40].ljust(len(encoded(noise(), "WEBP")), b"x"),
     encoded(noise(), "AVIF").replace(b"av01", b"av02")],
)  # fmt: skip
def test_the_reason_is_in_our_words(data):
    """An operator reads it; the representation of a file object says nothing."""
    text = refusal(data)

    assert not set("<>") & set(text)
    assert "Error" not in text
    assert text.startswith("the ")


@pytest.mark.parametrize("format_name", ["PNG", "JPEG", "WEBP", "GIF", "AVIF"])
def test_a_file_with_zeros_in_its_header_or_cut_in_half_is_refused(format_name):
    data = encoded(noise(), format_name)

    refusal(data[: len(data) // 2])
    for start in (0, 8):
        refusal(data[:start] + bytes(64) + data[start + 64 :])


@pytest.mark.parametrize(("kind", "progressive"), [(0xDB, False), (0xDB, True), (0xC4, False)])
def test_a_jpeg_whose_tables_are_zeros_is_refused(kind, progressive):
    """Decoders accept them and show other pixels."""
    data = encoded(noise(), "JPEG", progressive=progressive)
    table = data.index(bytes([0xFF, kind, 0])) + 5
    end = table + 59 if kind == 0xDB else data.rindex(b"\xff", 0, data.index(b"\xff\xda"))
    start = table + 4 if kind == 0xDB else end + 24

    assert refusal(data[:start] + bytes(40) + data[start + 40 :]).startswith("the JPEG is damaged: ")
