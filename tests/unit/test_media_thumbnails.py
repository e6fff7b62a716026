"""Thumbnails: the square, upright, the right colours, nothing else in the file."""

import hashlib
import io
import math

import pytest
from PIL import Image, ImageCms

from media import thumbnails
from media.limits import Limits

LIMITS = Limits(thumbnail_px=100)


def opened(thumbnail):
    image = Image.open(io.BytesIO(thumbnail.data))
    image.load()
    return image


def reread(image, format_name="PNG", **options):
    out = io.BytesIO()
    image.save(out, format_name, **options)
    out.seek(0)
    found = Image.open(out)
    found.load()
    return found


def corners(image):
    """The colour names of the four quarters, clockwise from the top left."""
    names = {(255, 0, 0): "red", (0, 255, 0): "green", (0, 0, 255): "blue", (255, 255, 255): "white"}
    rgb = image.convert("RGB")
    w, h = rgb.size
    points = [(w // 4, h // 4), (3 * w // 4, h // 4), (3 * w // 4, 3 * h // 4), (w // 4, 3 * h // 4)]
    nearest = [min(names, key=lambda name: math.dist(name, rgb.getpixel(at))) for at in points]
    return [names[n] for n in nearest]


def quarters(size=(80, 60)):
    """Red, green, blue, white, clockwise from the top left."""
    w, h = size
    image = Image.new("RGB", size, "white")
    image.paste((255, 0, 0), (0, 0, w // 2, h // 2))
    image.paste((0, 255, 0), (w // 2, 0, w, h // 2))
    image.paste((0, 0, 255), (w // 2, h // 2, w, h))
    return image


def display_p3():
    """A Display-P3 profile as its numbers define it (matrix and tone curve)."""
    return P3_PROFILE


def _s15(value):
    return round(value * 65536).to_bytes(4, "big", signed=True)


def _xyz(x, y, z):
    return b"XYZ \0\0\0\0" + _s15(x) + _s15(y) + _s15(z)


def _profile():
    # Primaries adapted to D50, as Apple publishes them; the tone curve is sRGB's parametric one.
    curve = b"para\0\0\0\0\0\x03\0\0" + b"".join(map(_s15, (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)))
    text = b"desc\0\0\0\0\0\0\0\x0bDisplay P3\0" + bytes(78)
    tags = {
        b"desc": text,
        b"wtpt": _xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": _xyz(0.51512, 0.2412, -0.00105),
        b"gXYZ": _xyz(0.29198, 0.69225, 0.04189),
        b"bXYZ": _xyz(0.1571, 0.06657, 0.78407),
        b"rTRC": curve, b"gTRC": curve, b"bTRC": curve,
        b"cprt": b"text\0\0\0\0CC0\0",
    }  # fmt: skip
    at, table, body = 128 + 4 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        table += name + (at + len(body)).to_bytes(4, "big") + len(data).to_bytes(4, "big")
        body += data + bytes(-len(data) % 4)
    size = (at + len(body)).to_bytes(4, "big")
    head = (
        size + bytes(4) + b"\x02\x10\0\0mntrRGB XYZ " + bytes(12) + b"acsp" + bytes(28) + _xyz(0.9642, 1.0, 0.8249)[8:]
    )
    return head.ljust(128, b"\0") + len(tags).to_bytes(4, "big") + table + body


P3_PROFILE = _profile()


@pytest.mark.parametrize(
    ("size", "expected"),
    [((400, 200), (100, 50)), ((200, 400), (50, 100)), ((100, 100), (100, 100)), ((30, 20), (30, 20)),
     ((5000, 2), (100, 1)), ((1, 1), (1, 1)), ((333, 100), (100, 30))],
)  # fmt: skip
def test_it_fits_the_square_and_is_never_enlarged(size, expected):
    """The list page lays out squares."""
    thumbnail = thumbnails.render_thumbnail(Image.new("RGB", size, "red"), LIMITS)

    assert (thumbnail.width_px, thumbnail.height_px) == expected
    assert opened(thumbnail).size == expected
    assert opened(thumbnail).format == "WEBP"
    assert thumbnail.sha256 == hashlib.sha256(thumbnail.data).hexdigest()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_results_in_an_upright_thumbnail(orientation):
    """All eight are in use by phones and scanners."""
    undo = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    stored = quarters() if undo is None else quarters().transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = reread(stored, "JPEG", exif=exif, quality=95)

    thumbnail = thumbnails.render_thumbnail(image, LIMITS)

    assert (thumbnail.width_px, thumbnail.height_px) == (80, 60) == thumbnails.read_upright_size(image)
    assert corners(opened(thumbnail)) == ["red", "green", "blue", "white"]
    assert opened(thumbnail).getexif() == {}


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_display_p3_becomes_srgb(mode):
    """Without conversion the wide colours turn dull, because the WebP carries no profile."""
    p3 = (100, 200, 50)
    image = reread(Image.new(mode, (200, 200), p3), icc_profile=display_p3())

    made = opened(thumbnails.render_thumbnail(image, LIMITS))

    # sRGB of Display-P3 (100, 200, 50): linearised, through the two published matrices, gamma again.
    assert made.convert("RGB").getpixel((50, 50)) == pytest.approx(srgb_of_p3(p3), abs=4)
    assert abs(made.convert("RGB").getpixel((50, 50))[0] - p3[0]) > 15
    assert "icc_profile" not in made.info


def srgb_of_p3(color):
    linear = [c / 255 / 12.92 if c / 255 <= 0.04045 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
    matrix = [(1.2249401, -0.2249404, 0.0), (-0.0420569, 1.0420571, 0.0), (-0.0196376, -0.0786361, 1.0982735)]
    out = [min(1.0, max(0.0, sum(m * v for m, v in zip(row, linear, strict=True)))) for row in matrix]
    return tuple(255 * (v * 12.92 if v <= 0.0031308 else 1.055 * v ** (1 / 2.4) - 0.055) for v in out)


def test_a_broken_profile_is_noted_and_costs_nothing():
    """The numbers are then taken as sRGB, as a browser does."""
    notes = []
    image = reread(Image.new("RGB", (50, 50), (10, 200, 30)))
    image.info["icc_profile"] = b"rubbish"

    made = opened(thumbnails.render_thumbnail(image, LIMITS, notes.append))

    assert made.getpixel((5, 5)) == pytest.approx((10, 200, 30), abs=4)
    assert len(notes) == 1
    assert "colour profile" in notes[0]


def test_a_profile_for_other_channels_is_noted_and_costs_nothing():
    """A CMYK picture with an RGB profile exists in the wild."""
    notes = []
    image = Image.new("CMYK", (50, 50), (0, 255, 255, 0))
    image.info["icc_profile"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

    made = opened(thumbnails.render_thumbnail(image, LIMITS, notes.append))

    assert made.getpixel((5, 5)) == pytest.approx((255, 0, 0), abs=6)
    assert notes


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 128, (128, 128, 128)),
        ("LA", (128, 255), (128, 128, 128, 255)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("YCbCr", (76, 85, 255), (255, 0, 0)),
        ("I;16", 0x8000, (128, 128, 128)),
        ("I", 0x8000, (128, 128, 128)),
        ("RGBA", (10, 20, 200, 255), (10, 20, 200)),
        ("RGBX", (10, 20, 200, 0), (10, 20, 200)),
    ],
)
def test_every_mode_keeps_its_colour(mode, color, expected):
    """Decoders give a dozen modes; each must look as a viewer shows it."""
    made = opened(thumbnails.render_thumbnail(Image.new(mode, (300, 300), color), LIMITS))

    assert made.convert("RGB").getpixel((50, 50)) == pytest.approx(expected[:3], abs=6)


def test_alpha_survives():
    """A cut-out product on transparent ground must not get a black box."""
    image = Image.new("RGBA", (300, 300), (255, 0, 0, 0))
    image.paste((255, 0, 0, 255), (150, 0, 300, 300))

    made = opened(thumbnails.render_thumbnail(image, LIMITS))

    assert made.mode == "RGBA"
    assert made.getpixel((10, 50))[3] == 0
    assert made.getpixel((90, 50)) == pytest.approx((255, 0, 0, 255), abs=6)


@pytest.mark.parametrize("format_name", ["PNG", "GIF"])
def test_a_transparent_palette_colour_stays_transparent(format_name):
    """Palettes mark one colour as clear; it is not a channel that can be resized."""
    image = Image.new("P", (300, 300), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.paste(1, (150, 0, 300, 300))
    image = reread(image, format_name, transparency=0)

    made = opened(thumbnails.render_thumbnail(image, LIMITS)).convert("RGBA")

    assert made.getpixel((10, 50))[3] == 0
    assert made.getpixel((90, 50)) == pytest.approx((0, 255, 0, 255), abs=8)


def test_the_picture_itself_is_left_alone():
    """The caller decodes its next frames."""
    image = Image.new("RGB", (300, 200), "red")

    thumbnails.render_thumbnail(image, LIMITS)

    assert image.size == (300, 200)


@pytest.mark.parametrize(
    ("mode", "fill", "color"),
    [("RGB", (16, 32, 48), "#102030"), ("RGBA", (0, 0, 0, 0), "#ffffff"), ("L", 128, "#808080")],
)
def test_it_knows_the_colour_a_page_shows_before_it(mode, fill, color):
    """A page of pictures that load must not flash; what is transparent is seen on white."""
    assert thumbnails.render_thumbnail(Image.new(mode, (300, 20), fill), LIMITS).color == color
