"""Thumbnails look like the file: HDR, gamma, transparency, orientation, and the first frame that is shown."""

import io
import struct
import zlib

import pytest
from PIL import Image

from egress import download
from media import colors, validate
from media.limits import Limits

LIMITS = Limits(poster_seconds=170)  # a busy machine takes longer than the usual 20 s to start a decoder
av = pytest.importorskip("av", reason="the `video` extra is not installed")
PQ, HLG, BT2020, DISPLAY_P3, SRGB = 16, 18, 9, 12, 1


def encoded(image, format_name, **options):
    out = io.BytesIO()
    image.save(out, format_name, **options)
    return out.getvalue()


def thumbnail(data):
    with download.spool_bytes(data, LIMITS) as fetched:
        examined = validate.validate_file(fetched, LIMITS)
    image = Image.open(io.BytesIO(examined.thumb.data))
    image.load()
    return image


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(rows, size, depth, color_type, extra=b""):
    header = struct.pack(">IIBBBBB", *size, depth, color_type, 0, 0, 0)
    pixels = png_chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + extra + pixels + png_chunk(b"IEND", b"")


def pq_code(nits):
    """SMPTE ST 2084, as 8 bits."""
    power = (nits / 10_000) ** 0.1593017578125
    return round(255 * ((0.8359375 + 18.8515625 * power) / (1 + 18.6875 * power)) ** 78.84375)


def hdr_png(color, transfer, primaries=BT2020):
    data = encoded(Image.new("RGB", (64, 48), color), "PNG")
    return data[:33] + png_chunk(b"cICP", bytes([primaries, transfer, 0, 1])) + data[33:]


def hdr_avif(color, transfer, primaries=BT2020):
    data = bytearray(encoded(Image.new("RGB", (64, 48), color), "AVIF", quality=100, subsampling="4:4:4"))
    start = data.index(b"nclx") + 4
    data[start : start + 4] = struct.pack(">HH", primaries, transfer)
    return bytes(data)


@pytest.mark.parametrize("build", [hdr_png, hdr_avif])
@pytest.mark.parametrize(
    ("nits", "expected"),
    # Chromium's operator maps light x, relative to white, to x (1 + x / peak^2) / (1 + x); sRGB's curve follows.
    [(0, 0), (20.3, 84), (101.5, 157), (203, 191), (1000, 255), (4000, 255)],
)
def test_pq_is_mapped_to_the_tones_of_a_screen(build, nits, expected):
    """Without it, white of 203 nits is grey and every image is dull."""
    code = pq_code(nits)

    assert thumbnail(build((code,) * 3, PQ)).getpixel((30, 20)) == pytest.approx((expected,) * 3, abs=7)


@pytest.mark.parametrize("build", [hdr_png, hdr_avif])
def test_hlg_is_mapped_to_the_tones_of_a_screen(build):
    """75 % of HLG is white: the same tone as 203 nits of PQ."""
    assert thumbnail(build((191,) * 3, HLG)).getpixel((30, 20)) == pytest.approx((191,) * 3, abs=5)
    assert thumbnail(build((255,) * 3, HLG)).getpixel((30, 20)) == pytest.approx((255,) * 3, abs=3)
    assert thumbnail(build((0,) * 3, HLG)).getpixel((30, 20)) == pytest.approx((0,) * 3, abs=3)


@pytest.mark.parametrize("build", [hdr_png, hdr_avif])
def test_wide_primaries_become_srgb(build):
    """Display-P3 (100, 200, 50) in sRGB, by the published matrix."""
    assert thumbnail(build((100, 200, 50), 13, DISPLAY_P3)).getpixel((30, 20)) == pytest.approx((42, 203, 0), abs=4)
    assert thumbnail(build((100, 200, 50), 13, SRGB)).getpixel((30, 20)) == pytest.approx((100, 200, 50), abs=4)


def test_only_the_colours_of_the_primary_item_of_an_avif_count():
    """A gain map for HDR screens is an item with colours of its own, beside an ordinary image."""
    data = bytearray(hdr_avif((148,) * 3, PQ))
    associations = data.index(b"ipma") + 15
    colors_at = associations + list(data[associations : associations + data[associations - 1]]).index(4)
    data[colors_at] = 1

    assert thumbnail(bytes(data)).getpixel((30, 20)) == pytest.approx((148,) * 3, abs=4)


def test_alpha_survives_tone_mapping():
    image = Image.new("RGBA", (8, 8), (10, 20, 30, 40))

    assert colors.to_srgb(image, (BT2020, PQ)).getpixel((0, 0))[3] == 40


@pytest.mark.parametrize(("gamma", "expected"), [(100_000, 188), (45_455, 128), (0, 128), (2**31, 128)])
def test_the_gamma_of_a_png_is_applied(gamma, expected):
    """Renderers store linear light with a gamma of 1."""
    data = encoded(Image.new("RGB", (64, 48), (128, 128, 128)), "PNG")
    data = data[:33] + png_chunk(b"gAMA", struct.pack(">I", gamma)) + data[33:]

    assert thumbnail(data).getpixel((30, 20)) == pytest.approx((expected,) * 3, abs=3)


def halves(depth, channels, left, right, size=(64, 48)):
    """Filtered rows: the left half of one colour, the right half of another, as packed samples."""
    width, height = size
    bits = "".join(f"{sample:0{depth}b}" for color in (left, right) for _ in range(width // 2) for sample in color)
    row = int(bits, 2).to_bytes(width * channels * depth // 8, "big")
    return (b"\0" + row) * height


@pytest.mark.parametrize(
    ("depth", "color_type", "clear", "opaque"),
    [(1, 0, (0,), (1,)), (1, 0, (1,), (0,)), (2, 0, (1,), (3,)), (4, 0, (9,), (3,)), (8, 0, (200,), (3,)),
     (16, 0, (0x1234,), (0x1235,)), (16, 0, (0x1234,), (0x1334,)), (8, 2, (1, 2, 3), (1, 2, 4)),
     (16, 2, (0x1234, 0x5678, 0x9ABC), (0x2234, 0x5678, 0x9ABC))],
)  # fmt: skip
def test_the_transparent_colour_of_a_png_stays_transparent(depth, color_type, clear, opaque):
    """Pillow scales samples of 1 to 4 bits and halves those of 16, but not the colour that is compared with them."""
    marker = b"".join(struct.pack(">H", sample) for sample in clear)
    data = png(halves(depth, len(clear), clear, opaque), (64, 48), depth, color_type, png_chunk(b"tRNS", marker))

    image = thumbnail(data).convert("RGBA")

    assert (image.getpixel((10, 20))[3], image.getpixel((50, 20))[3]) == (0, 255)


@pytest.mark.parametrize("alpha", [b"\0", b"\xff\0", b"\0\x80\xff"])
def test_the_palette_of_a_png_keeps_its_alpha(alpha):
    """One transparent entry, and one value for each entry, are separate cases of the decoder."""
    palette = png_chunk(b"PLTE", bytes((255, 0, 0, 0, 255, 0, 0, 0, 255)))
    data = png(halves(8, 1, (0,), (1,)), (64, 48), 8, 3, palette + png_chunk(b"tRNS", alpha))

    image = thumbnail(data).convert("RGBA")

    expected = (*alpha, 255, 255)[:2]
    assert (image.getpixel((10, 20))[3], image.getpixel((50, 20))[3]) == pytest.approx(expected, abs=2)


@pytest.mark.parametrize("depth", [8, 16])
def test_a_grey_png_with_an_alpha_channel_keeps_it(depth):
    top = (1 << depth) - 1
    data = png(halves(depth, 2, (top, 0), (top // 2, top)), (64, 48), depth, 4)

    image = thumbnail(data).convert("RGBA")

    assert image.getpixel((10, 20))[3] == 0
    assert image.getpixel((50, 20)) == pytest.approx((127, 127, 127, 255), abs=3)


def gif_with_small_frame(transparent):
    """A canvas of 60 x 40 with a background colour, and a red frame of 20 x 20 in the middle."""
    frame = encoded(Image.new("P", (20, 20), 1), "GIF")
    image = frame[frame.index(b"\x2c\0\0\0\0\x14\0\x14\0") + 9 :]
    flags = image[0]
    body = image[1 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0) :]
    palette = bytes((255, 0, 0, 0, 0, 255, 0, 255, 0, 255, 255, 255))
    control = b"\x21\xf9\x04\x01\0\0\x02\0" if transparent else b""
    return (
        b"GIF89a" + struct.pack("<HHBBB", 60, 40, 0xF1, 1, 0) + palette + control
        + b"\x2c" + struct.pack("<HHHHB", 20, 10, 20, 20, 0) + body
    )  # fmt: skip


@pytest.mark.parametrize("transparent", [False, True])
def test_the_canvas_of_a_gif_around_its_first_frame_is_transparent(transparent):
    """Browsers ignore the background colour of a GIF."""
    image = thumbnail(gif_with_small_frame(transparent)).convert("RGBA")

    assert image.size == (60, 40)
    assert image.getpixel((5, 5))[3] == 0
    assert image.getpixel((55, 35))[3] == 0
    assert image.getpixel((30, 20)) == pytest.approx((255, 0, 0, 255), abs=12)


def test_an_apng_shows_its_first_frame():
    """Its default image is for viewers without animations, and often says so."""
    default, first, second = (Image.new("RGBA", (40, 30), color) for color in ("red", "lime", "blue"))
    data = encoded(default, "PNG", save_all=True, append_images=[first, second], default_image=True)

    assert thumbnail(data).convert("RGB").getpixel((20, 15)) == pytest.approx((0, 255, 0), abs=6)
    with download.spool_bytes(data, LIMITS) as fetched:
        assert validate.validate_file(fetched, LIMITS).media.frames == 2


def test_the_default_image_of_an_apng_does_not_shine_through_a_small_first_frame():
    default = Image.new("RGBA", (40, 30), "red")
    frames = [Image.new("RGBA", (40, 30)) for _ in range(2)]
    frames[0].paste((0, 255, 0, 255), (10, 10, 20, 20))
    frames[1].paste((0, 0, 255, 255), (10, 10, 20, 20))
    data = encoded(default, "PNG", save_all=True, append_images=frames, default_image=True)

    image = thumbnail(data).convert("RGBA")

    assert image.getpixel((15, 15)) == pytest.approx((0, 255, 0, 255), abs=40)
    assert image.getpixel((35, 25))[3] == 0


XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@pytest.mark.parametrize("format_name", ["JPEG", "WEBP", "AVIF"])
def test_the_orientation_comes_from_exif_alone(format_name):
    """Browsers do not read it from XMP."""
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("RGB", (64, 48), "red")

    assert thumbnail(encoded(image, format_name, xmp=XMP)).size == (64, 48)
    assert thumbnail(encoded(image, format_name, exif=exif)).size == (48, 64)


def webm(image, codec="libvpx-vp9", transfer=None):
    out = io.BytesIO()
    pix_fmt = "yuva420p" if image.mode == "RGBA" else "yuv420p"
    with av.open(out, "w", format="webm") as container:
        stream = container.add_stream(codec, rate=12)
        stream.width, stream.height, stream.pix_fmt = *image.size, pix_fmt
        if image.mode == "RGBA":
            stream.metadata["alpha_mode"] = "1"
            stream.options = {"auto-alt-ref": "0"}
        frame = av.VideoFrame(*image.size, "rgba")
        frame.planes[0].update(image.convert("RGBA").tobytes())
        frame = frame.reformat(format=pix_fmt)
        if transfer:
            stream.codec_context.color_trc, stream.codec_context.color_primaries = transfer, BT2020
            frame.color_trc, frame.color_primaries = transfer, BT2020
        for index in range(3):
            frame.pts = index
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return out.getvalue()


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_the_poster_of_a_transparent_video_keeps_its_alpha(codec):
    """A cut-out animation must not get a black box."""
    cutout = Image.new("RGBA", (64, 48), (255, 0, 0, 0))
    cutout.paste((255, 0, 0, 255), (32, 0, 64, 48))

    image = thumbnail(webm(cutout, codec)).convert("RGBA")

    assert image.getpixel((10, 20))[3] < 20
    assert image.getpixel((54, 20)) == pytest.approx((255, 0, 0, 255), abs=25)


@pytest.mark.parametrize(("transfer", "expected"), [(None, 148), (PQ, 191), (HLG, 143)])
def test_the_poster_of_an_hdr_video_is_tone_mapped(transfer, expected):
    """148 of 255 is the code of 203 nits, SDR white."""
    image = thumbnail(webm(Image.new("RGB", (64, 48), (148,) * 3), transfer=transfer)).convert("RGB")

    assert image.getpixel((30, 20)) == pytest.approx((expected,) * 3, abs=7)
