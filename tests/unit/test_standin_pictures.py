"""The files that the stand-in serves: real ones, and ones that are truly broken."""

import hashlib
import io
import warnings

import pytest
from PIL import Image, ImageSequence

from simulation.provider import faults, pictures
from simulation.provider.ledger import Ledger
from simulation.provider.outputs import Outputs


@pytest.fixture
def outputs():
    return Outputs("http://127.0.0.1:1", "http://127.0.0.1:2", None, Ledger())


@pytest.mark.parametrize("kind", pictures.KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_a_made_picture_decodes_to_the_end(kind, seed):
    """A keeper must have no reason to refuse it; the mark that makes it unique must not break it."""
    file = pictures.made(kind, seed)

    with Image.open(io.BytesIO(file.data)) as image:
        frames = [frame.copy().size for frame in ImageSequence.Iterator(image)]

    assert Image.MIME[image.format] == file.content_type
    assert len(frames) == (3 if kind == "gif" else 1)
    assert 512 <= max(frames[0]) <= 1024


def test_seeds_give_different_files_and_the_same_seed_the_same():
    """The ledger compares by sha256; equal files would hide a mix-up."""
    hashes = {hashlib.sha256(pictures.made(kind, seed).data).digest() for kind in pictures.KINDS for seed in range(40)}

    assert len(hashes) == 40 * len(pictures.KINDS)
    assert pictures.made("png", 3) == pictures.made("png", 3)


def test_a_rotated_jpeg_says_so_in_its_exif():
    """Thumbnails must be upright; only a rotated source can show it."""
    with Image.open(io.BytesIO(pictures.made("jpeg_rotated", 0).data)) as image:
        assert image.getexif()[0x0112] == 6


@pytest.mark.parametrize("name", ["half_file", "corrupt", "web_page", "empty"])
@pytest.mark.parametrize("kind", pictures.KINDS)
def test_a_broken_file_does_not_decode(outputs, name, kind):
    """The ledger says `dead`: that is true only when no decoder gets through."""
    plan = faults.plan({"formats": [kind], "faults": {"0": name}})
    data = outputs.file(outputs.make("p", plan, "output[{}]")[0]).data

    with pytest.raises((OSError, SyntaxError, ValueError)):
        _decode(data)


def _decode(data):
    with Image.open(io.BytesIO(data)) as image:
        for frame in ImageSequence.Iterator(image):
            frame.load()


def test_the_bomb_is_a_small_png_of_three_hundred_megapixels():
    """It must pass for a picture until somebody reads its size."""
    data = pictures.bomb().data

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with pytest.raises(Image.DecompressionBombError):
            Image.open(io.BytesIO(data))

    assert len(data) < 100_000
    assert int.from_bytes(data[16:20]) * int.from_bytes(data[20:24]) == 300_000_000
