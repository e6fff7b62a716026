"""Pictures without metadata: what shows stays bit for bit, and nothing else is passed on."""

import io
import struct
import tempfile
import zlib
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageCms, PngImagePlugin

from media import strip_image_metadata
from moorage.errors import InvalidMedia
from moorage.model import Media

SECRET = b"47.3769N 8.5417E"
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/">' + SECRET + b"</x:xmpmeta>"


def drawn(seed: int = 0) -> Image.Image:
    image = Image.effect_noise((37, 23), 50 + seed).convert("RGB")
    image.putpixel((3, 4), (255, 0, seed))
    return image


def exif() -> Image.Exif:
    made = Image.Exif()
    made[0x010E] = SECRET.decode()
    made.get_ifd(0x8825)[2] = (47.0, 22.0, 36.0)
    return made


def saved(form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    drawn().save(out, form, **options)
    return out.getvalue()


def moving(form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    drawn().save(
        out, form, save_all=True, append_images=[drawn(9), drawn(20)], duration=[70, 90, 110], loop=3, **options
    )
    return out.getvalue()


def bare(form: str, data: bytes) -> bytes:
    return b"".join(strip_image_metadata.STRIP_BY_FORMAT[form](data))


def frames(data: bytes) -> list[Image.Image]:
    with Image.open(io.BytesIO(data)) as image:
        found = []
        for index in range(getattr(image, "n_frames", 1)):
            image.seek(index)
            found.append(image.convert("RGBA"))
        return found


def jpeg_with(marker: int, content: bytes) -> bytes:
    data = saved("JPEG")
    return data[:2] + struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + data[2:]


def png_with(kind: bytes, content: bytes) -> bytes:
    data, check = saved("PNG"), zlib.crc32(kind + content)
    return data[:33] + struct.pack(">I", len(content)) + kind + content + struct.pack(">I", check) + data[33:]


def text() -> PngImagePlugin.PngInfo:
    made = PngImagePlugin.PngInfo()
    made.add_text("Location", SECRET.decode())
    made.add_itxt("XML:com.adobe.xmp", XMP.decode())
    return made


FILES = {
    "jpeg": saved("JPEG", exif=exif(), xmp=XMP, comment=SECRET, icc_profile=PROFILE),
    "progressive jpeg": saved("JPEG", exif=exif(), progressive=True, icc_profile=PROFILE),
    "jpeg of a press agency": jpeg_with(0xED, b"Photoshop 3.0\x008BIM" + SECRET),
    "jpeg of an unknown program": jpeg_with(0xE9, SECRET),
    "jpeg with a preview in its first header": jpeg_with(0xE0, b"JFXX\x00\x10" + SECRET),
    "jpeg with something behind its end": saved("JPEG") + SECRET,
    "png": saved("PNG", exif=exif(), pnginfo=text(), icc_profile=PROFILE),
    "png of an unknown program": png_with(b"prVt", SECRET),
    "png with something behind its end": saved("PNG") + SECRET,
    "moving png": moving("PNG", exif=exif()),
    "webp": saved("WEBP", exif=exif(), xmp=XMP, icc_profile=PROFILE),
    "lossless webp": saved("WEBP", exif=exif(), lossless=True),
    "moving webp": moving("WEBP", exif=exif(), xmp=XMP),
    "webp with something behind its end": saved("WEBP") + SECRET,
    "gif": saved("GIF", comment=SECRET),
    "moving gif": moving("GIF", comment=SECRET),
}


@pytest.mark.parametrize("name", FILES)
def test_every_pixel_and_frame_stays_and_nothing_else(name: str) -> None:
    """A photo may contain a home address; a re-encoded image differs from the original."""
    form = next(word for word in name.split() if word in strip_image_metadata.STRIP_BY_FORMAT)
    data = FILES[name]
    assert SECRET in data

    made = bare(form, data)

    assert SECRET not in made
    before, after = frames(data), frames(made)
    assert len(before) == len(after)
    assert all(ImageChops.difference(old, new).getbbox() is None for old, new in zip(before, after, strict=True))
    with Image.open(io.BytesIO(made)) as image:
        image.load()
        assert dict(image.getexif()) == {}
        assert not {"exif", "xmp", "comment", "photoshop", "Location", "XML:com.adobe.xmp"} & set(image.info)
        assert image.info.get("icc_profile") == (PROFILE if PROFILE in data or b"iCCP" in data else None)


def test_an_animation_keeps_its_pace_and_its_repeats() -> None:
    """Frames without their timing are another picture."""
    for form in ("GIF", "PNG", "WEBP"):
        data = moving(form)
        with Image.open(io.BytesIO(data)) as old, Image.open(io.BytesIO(bare(form.lower(), data))) as new:
            for index in range(3):
                old.seek(index)
                new.seek(index)
                old.load()
                new.load()
                assert (new.info.get("duration"), new.info.get("loop")) == (
                    old.info.get("duration"),
                    old.info.get("loop"),
                )


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP"])
def test_a_cut_file_is_refused_or_as_short_and_never_hangs(form: str) -> None:
    """What arrives here was decoded before, but a parser that trusts that is one bug from a loop."""
    data = moving(form) if form != "JPEG" else saved(form)

    for length in range(40, len(data), max(1, len(data) // 60)):
        try:
            assert len(bare(form.lower(), data[:length])) <= length + 8
        except (InvalidMedia, IndexError):
            continue


def test_what_is_bare_stays_as_it_is() -> None:
    """A second pass would otherwise change what a digest was taken of."""
    for name, data in FILES.items():
        form = next(word for word in name.split() if word in strip_image_metadata.STRIP_BY_FORMAT)
        once = bare(form, data)

        assert bare(form, once) == once, name


@pytest.mark.parametrize("end", [b"", b"rubbish"])
def test_a_gif_gets_the_end_that_it_lacks(end: bytes) -> None:
    """It is accepted without, and what is stored is complete."""
    data = moving("GIF")

    assert bare("gif", data[:-1] + end) == bare("gif", data)


def test_a_chunk_of_a_png_with_a_wrong_checksum_is_removed() -> None:
    """Decoders ignore it, or refuse the image because of it."""
    data = saved("PNG")
    wrong = b"\0\0\0\x04gAMA" + bytes(8)

    assert bare("png", data[:33] + wrong + data[33:]) == bare("png", data)


def test_an_image_with_unreadable_metadata_is_examined_for_reencoding() -> None:
    """Text above 1 MiB must not fail the second decoder either."""
    data = png_with(b"zTXt", b"a\0\0" + zlib.compress(bytes(2 * 2**20)))
    media = Media("image", "png", "image/png", "png", 1, 1, 1)

    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()

        assert strip_image_metadata.reencode_if_needed(file, media) is None
