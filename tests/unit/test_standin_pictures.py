"""The files that the stand-in serves: valid ones, and ones that no decoder accepts."""

import hashlib
import io
import warnings

import pytest
from PIL import Image, ImageChops, ImageSequence, ImageStat

from egress import download
from media import validate
from media.limits import Limits
from simulation.provider import pictures, script
from simulation.provider.ledger import Ledger
from simulation.provider.outputs import Outputs


@pytest.fixture
def outputs():
    return Outputs("http://127.0.0.1:1", "http://127.0.0.1:2", None, Ledger())


@pytest.mark.parametrize("format_", pictures.FORMATS)
@pytest.mark.parametrize("seed", range(5))
def test_a_generated_picture_decodes_completely(format_, seed):
    """It must pass validation; the marker that makes it unique must not damage it."""
    file = pictures.generate(format_, seed)

    with Image.open(io.BytesIO(file.data)) as image:
        frames = [frame.copy().size for frame in ImageSequence.Iterator(image)]

    assert Image.MIME[image.format] == file.content_type
    assert len(frames) == (3 if format_ == "gif" else 1)
    assert 512 <= max(frames[0]) <= 1024


@pytest.mark.parametrize("format_", pictures.FILE_FORMATS)
def test_a_generated_file_passes_validation(format_):
    """The drill includes outputs that are no pictures."""
    file = pictures.generate(format_, 3)

    with download.spool_bytes(file.data, Limits()) as fetched:
        media = validate.validate_file(fetched, Limits()).media

    assert (media.media, media.content_type) == ("file", file.content_type)
    assert file.data != pictures.generate(format_, 4).data


def test_files_are_equal_for_equal_seeds_only():
    """The ledger is compared by sha256; equal files would hide a mix-up."""
    files = [pictures.generate(format_, seed) for format_ in pictures.FORMATS for seed in range(12)]
    hashes = {hashlib.sha256(file.data).digest() for file in files}

    assert len(hashes) == 12 * len(pictures.FORMATS)
    assert pictures.generate("png", 3) == pictures.generate("png", 3)


def test_pictures_of_prompts_differ_visibly():
    """On the page of the demo every render looked the same."""
    names = [("a boat", 1), ("a boat", 5), ("a quay", 1), ("", 1)]
    small = [io.BytesIO(pictures.generate("png", seed, (640, 480), prompt).data) for prompt, seed in names]

    seen = [Image.open(data).convert("RGB").resize((8, 6)) for data in small]

    for number, one in enumerate(seen):
        for other in seen[:number]:
            assert max(ImageStat.Stat(ImageChops.difference(one, other)).mean) > 10
    assert pictures.generate("png", 1, None, "a boat") == pictures.generate("png", 1, None, "a boat")
    assert pictures.generate("webp", 1, (16, 16), "\ud800 海 " * 500).data


def test_a_rotated_jpeg_has_an_exif_orientation():
    """Thumbnails must be upright; only a rotated source can test it."""
    with Image.open(io.BytesIO(pictures.generate("jpeg_rotated", 0).data)) as image:
        assert image.getexif()[0x0112] == 6


@pytest.mark.parametrize("name", ["half_file", "corrupt", "web_page", "empty"])
@pytest.mark.parametrize("format_", pictures.FORMATS)
def test_a_damaged_file_does_not_decode(outputs, name, format_):
    """The ledger expects `dead`, which requires that no decoder succeeds."""
    damaged = script.parse_script({"formats": [format_], "faults": {"0": name}})
    data = outputs.build_file(outputs.create("p", damaged, "output[{}]")[0]).data

    with pytest.raises((OSError, SyntaxError, ValueError)):
        _decode(data)


def _decode(data):
    with Image.open(io.BytesIO(data)) as image:
        for frame in ImageSequence.Iterator(image):
            frame.load()


def test_the_bomb_is_a_small_png_of_three_hundred_megapixels():
    """It must look like a valid picture until its size is read."""
    data = pictures.bomb().data

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(Image.DecompressionBombError):
            Image.open(io.BytesIO(data))

    assert len(data) < 100_000
    assert int.from_bytes(data[16:20]) * int.from_bytes(data[20:24]) == 300_000_000
