"""Pictures: what is kept, what is refused, and with which facts."""

import io
import struct
import zlib

import pytest
from PIL import Image

from egress import download
from media import thumbnails, validate
from media.limits import Limits
from moorage.errors import DiskFull, InvalidMedia
from moorage.model import FetchedFile

LIMITS = Limits(poster_seconds=170)  # a busy machine takes longer than the usual 20 s to start a decoder
FORMATS = ["PNG", "JPEG", "WEBP", "GIF", "AVIF"]


def picture(size=(48, 32), mode="RGB", seed=1):
    """A picture with detail everywhere, so that a cut shows."""
    width, height = size
    data = bytes((x * 7 * seed + y * 13 + x * y) % 256 for y in range(height) for x in range(width))
    return Image.frombytes("L", size, data).convert(mode)


def encoded(image, format_name, **options):
    out = io.BytesIO()
    image.save(out, format_name, **options)
    return out.getvalue()


def examine(data, limits=LIMITS):
    with download.spool_bytes(data, limits) as fetched:
        return validate.validate_file(fetched, limits)


def refusal(data, limits=LIMITS):
    with pytest.raises(InvalidMedia) as caught:
        examine(data, limits)
    return caught.value


def frames(count, size=(40, 30)):
    return [picture(size, seed=n + 1) for n in range(count)]


def animated(format_name, count=4):
    first, *rest = frames(count)
    return encoded(first, format_name, save_all=True, append_images=rest, duration=50, loop=0)


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb_png(width, height):
    """A PNG that announces any size in some bytes."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b"\0" * 100)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("format_name", FORMATS)
def test_each_format_is_kept_with_its_facts(format_name):
    """The five formats that image providers answer with."""
    examined = examine(encoded(picture(), format_name))

    media = examined.media
    assert (media.media, media.format) == ("image", format_name.lower())
    assert media.content_type == f"image/{format_name.lower()}"
    assert (media.width_px, media.height_px, media.frames, media.notes) == (48, 32, 1, None)
    assert (examined.thumb.width_px, examined.thumb.height_px, examined.thumb_missing) == (48, 32, None)


@pytest.mark.parametrize("format_name", FORMATS)
def test_a_picture_cut_anywhere_is_refused(format_name):
    """A half-written render looks right in a list and is grey below."""
    data = encoded(picture(), format_name)

    last = len(data) - (2 if format_name == "GIF" else 1)  # a GIF may lack its trailer
    for end in {*range(1, last, 10), last}:
        assert refusal(data[:end]).category == "VALIDATION_FAILED", end


@pytest.mark.parametrize("format_name", ["GIF", "WEBP", "PNG", "AVIF"])
def test_an_animation_counts_its_frames_and_is_refused_when_cut(format_name):
    """Decoders stop at the first frame; a cut in a later one must still show."""
    data = animated(format_name)

    assert examine(data).media.frames == 4
    last = len(data) - (2 if format_name == "GIF" else 1)
    for end in {*range(1, last, 10), last}:
        refusal(data[:end])


@pytest.mark.parametrize("progressive", [False, True])
def test_a_jpeg_without_its_end_marker_is_refused(progressive):
    """libjpeg is content once it has all lines; two missing bytes mean the sender was cut."""
    data = encoded(picture(), "JPEG", progressive=progressive)

    assert "truncated" in str(refusal(data[:-2]))


def test_a_jpeg_with_a_trailer_is_kept():
    """Phones append data behind the end marker, also bytes that look like markers."""
    assert examine(encoded(picture(), "JPEG") + b"\xff\xda\x00\x0ctrailer\xff\xd8").media.format == "jpeg"


def test_a_jpeg_whose_embedded_preview_has_an_end_marker_is_still_refused_when_cut():
    """The preview's end marker stands early in the file and must not count."""
    data = encoded(picture(), "JPEG", comment=encoded(picture(), "JPEG"))

    assert examine(data).media.format == "jpeg"
    refusal(data[:-2])


def test_a_wrong_checksum_in_a_png_is_refused():
    """Decoding alone accepts it: a flipped bit in storage or on the way would be published."""
    data = bytearray(encoded(picture(), "PNG"))
    at = data.index(b"IDAT") + 4 + struct.unpack(">I", data[data.index(b"IDAT") - 4 : data.index(b"IDAT")])[0]
    data[at] ^= 0xFF

    assert "the checksum of chunk IDAT" in str(refusal(bytes(data)))


def test_a_broken_later_frame_is_refused():
    """The first frame of this animation is good and would make a good thumbnail."""
    data = bytearray(animated("PNG"))
    at = data.rindex(b"fdAT") + 4
    size = struct.unpack(">I", data[at - 8 : at - 4])[0]
    broken = data[at : at + 4] + b"\xff" * (size - 4)
    data[at - 8 : at + size + 4] = png_chunk(b"fdAT", bytes(broken))

    assert "the pixels of frame 3" in str(refusal(bytes(data)))


def test_a_picture_with_other_pictures_inside_is_a_jpeg():
    """Phones and gain maps make MPO files, which every viewer shows as JPEG."""
    data = encoded(picture(), "MPO", save_all=True, append_images=[picture(seed=3)])

    media = examine(data).media

    assert (media.format, media.extension, media.frames) == ("jpeg", "jpg", 1)


def test_a_bomb_is_refused_before_decoding_with_the_measured_pixels():
    """300 megapixels would take the worker's memory; the header is enough to know."""
    error = refusal(bomb_png(20_000, 15_000))

    assert error.facts["pixels"] == 300_000_000
    assert error.facts["limit"] == 2**27
    assert "300000000 pixels" in str(error)


@pytest.mark.parametrize(("size", "refused"), [((8192, 16384), False), ((8193, 16384), True), ((17_000, 17_000), True)])
def test_the_pixel_limit_holds_to_the_pixel(size, refused):
    """Between the limit and twice the limit Pillow only warns."""
    error = refusal(bomb_png(*size))

    assert ("pixels" in error.facts) is refused


def test_the_pixels_of_all_frames_count():
    """Many frames take as much time as one large picture."""
    data = animated("GIF", count=4)  # each frame counts at least 2^14 pixels

    error = refusal(data, Limits(animation_max_pixels=4 * 2**14 - 1))

    assert (error.facts["pixels"], error.facts["frames"]) == (4 * 2**14, 4)
    assert "MOORAGE_ANIMATION_MAX_PIXELS" in str(error)
    assert examine(data, Limits(animation_max_pixels=4 * 2**14)).media.frames == 4


def test_a_web_page_is_named_in_the_refusal():
    """The usual thing to come from an expired URL that answers 200."""
    error = refusal(b"<!DOCTYPE html><html><body>Gone</body></html>")

    assert str(error) == "a web page (text/html) instead of an image or video"
    assert error.facts["bytes"] == 45
    assert not error.retryable


def test_one_format_under_the_name_of_another_is_refused():
    """Only the decoder that the magic names may look at the bytes."""
    refusal(b"GIF89a" + encoded(picture(), "PNG"))
    refusal(b"\xff\xd8\xff" + encoded(picture(), "BMP"))


def test_a_file_over_the_limit_of_its_kind_is_refused():
    """A file from our own bucket passed no download limit."""
    data = encoded(picture(), "PNG")
    with download.spool_bytes(data, LIMITS) as fetched, pytest.raises(InvalidMedia) as caught:
        validate.validate_file(fetched, Limits(image_max_bytes=100))

    assert caught.value.facts == {"format": "png", "bytes": len(data), "limit": 100}


def test_unreadable_metadata_never_costs_the_picture():
    """A valid image with EXIF that Pillow cannot read is kept, with a note."""
    data = encoded(picture(), "WEBP", exif=b"rubbish", icc_profile=b"not a profile")

    media = examine(data).media

    assert (media.width_px, media.height_px) == (48, 32)
    assert "EXIF unreadable" in media.notes
    assert "colour profile" in media.notes


def test_the_size_is_recorded_upright():
    """A phone's portrait photo is stored lying on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6

    media = examine(encoded(picture((48, 32)), "JPEG", exif=exif)).media

    assert (media.width_px, media.height_px) == (32, 48)


def test_an_error_of_the_disk_is_not_the_picture_s_fault():
    """A dead letter for a good picture because our disk failed would lose it."""

    class Broken(io.BytesIO):
        def read(self, size=-1, /):  # noqa: ARG002 (the signature is the file's)
            raise OSError(5, "Input/output error")

    with pytest.raises(DiskFull) as caught:
        validate.validate_file(FetchedFile(Broken(), 10, "0" * 64), LIMITS)

    assert caught.value.is_internal


def test_the_file_is_at_its_start_afterwards():
    """The next step uploads the very same file."""
    with download.spool_bytes(encoded(picture(), "PNG"), LIMITS) as fetched:
        validate.validate_file(fetched, LIMITS)

        assert fetched.file.tell() == 0
        assert fetched.file.read(4) == b"\x89PNG"


@pytest.mark.parametrize(
    ("size", "decoded"),
    [
        ((1024, 1024), (512, 512)),
        ((768, 1344), (384, 672)),
        ((2048, 1024), (512, 256)),
        ((4096, 296), (512, 37)),
        ((4096, 300), (1024, 75)),
        ((1026, 1025), (1026, 1025)),  # a half would have a remainder
        ((958, 958), (958, 958)),  # a half would be smaller than the gap times the thumbnail
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "CMYK"])
def test_a_large_jpeg_is_decoded_at_the_smallest_size_that_its_thumbnail_needs(size, decoded, mode, monkeypatch):
    """Its properties and the thumbnail's size are those of the file."""
    sizes = []
    render = thumbnails.render_thumbnail
    monkeypatch.setattr(
        thumbnails, "render_thumbnail", lambda image, *more: sizes.append(image.size) or render(image, *more)
    )
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees

    result = examine(encoded(Image.new("L", size, 90).convert(mode), "JPEG", exif=exif))
    whole = render(Image.new("RGB", size[::-1]), LIMITS)

    assert sizes == [decoded]
    assert (result.media.width_px, result.media.height_px) == size[::-1]
    assert (result.thumb.width_px, result.thumb.height_px) == (whole.width_px, whole.height_px)


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"quality": 95}])
def test_a_large_jpeg_cut_and_closed_is_refused(options):
    """Also where it would be decoded at a half."""
    data = encoded(picture((1024, 960)), "JPEG", **options)

    assert examine(data).media.notes is None
    for missing in (60, 400, len(data) // 2):
        end = len(data) - missing
        assert "truncated" in str(refusal(data[: end - (data[end - 1] == 0xFF)] + b"\xff\xd9")), missing
