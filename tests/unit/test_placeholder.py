"""The picture that stands in where a chain brought nothing: of the size that was asked for."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from PIL import Image

from media.limits import Limits
from moorage.errors import ConfigError
from moorage.model import Output
from moorage.settings import Settings
from tasks.jobs import placeholder
from tasks.step import Deps


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ({"width": 768, "height": 1344}, (768, 1344)),
        ({"size": "1536x1024"}, (1536, 1024)),
        ({"image_size": "portrait_4_3"}, (768, 1024)),
        ({"image_size": {"width": 640, "height": 480}}, (640, 480)),
        ({"aspect_ratio": "16:9"}, (1368, 768)),
        ({"aspect_ratio": "1:1"}, (1024, 1024)),
        ({"width": 9000, "height": 3000}, (2048, 683)),
        ({"width": 100_000_000, "height": 3, "aspect_ratio": "1:1"}, (1024, 1024)),
        ({"width": float("nan"), "height": 3}, None),
        ({"width": 10**400, "height": 3}, None),
        ({"width": True, "height": 3}, None),
        ({"width": "768", "height": "1344"}, None),
        ({"size": "auto"}, None),
        ({"size": "0x99999"}, None),
        ({"aspect_ratio": "match_input_image"}, None),
        ({"aspect_ratio": "0:9"}, None),
        ({}, None),
    ],
)
def test_a_size_is_read_wherever_a_model_takes_it(given: dict[str, object], size: tuple[int, int] | None) -> None:
    """A page that keeps room for 16:9 must not jump, and no input makes a picture of any size."""
    assert placeholder.requested_size(given) == size


@pytest.mark.parametrize("ratio", ["1:999", "999:1", "3:2"])
def test_any_ratio_stays_within_the_sides(ratio: str) -> None:
    """It is drawn in a worker's memory."""
    size = placeholder.requested_size({"aspect_ratio": ratio})

    assert size is not None
    assert all(side in placeholder.SIDE_LIMITS for side in size)


def test_the_picture_is_of_that_size_and_not_of_one_colour() -> None:
    """It shall look like a picture that is not there, not like a broken one."""
    image = Image.open(io.BytesIO(placeholder.draw_image((160, 90))))
    colours = image.getcolors(maxcolors=160 * 90)

    assert (image.format, image.size) == ("PNG", (160, 90))
    assert colours is not None
    assert len(colours) > 20


def test_a_reason_says_placeholder() -> None:
    """Applications show the reason."""
    assert placeholder.placeholder_reason("nsfw") == "placeholder: nsfw"


def test_the_operators_own_picture_stands_in(tmp_path: Path) -> None:
    """A shop shows its own sign, not ours."""
    file = tmp_path / "sign.png"
    file.write_bytes(placeholder.draw_image((64, 64)))
    deps, output = SimpleNamespace(settings=settings(file)), SimpleNamespace()

    assert placeholder.load_image(cast(Deps, deps), cast(Output, output)) == file.read_bytes()


def test_a_file_that_is_no_picture_is_refused_at_the_start(tmp_path: Path) -> None:
    """Else it is found out when every provider is down, by jobs that fail for it."""
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    good.write_bytes(placeholder.draw_image((64, 64)))
    bad.write_bytes(good.read_bytes()[:200])

    placeholder.check_placeholder_file(settings(None), Limits())
    placeholder.check_placeholder_file(settings(good), Limits())
    for file in (bad, tmp_path / "missing.png"):
        with pytest.raises(ConfigError, match=r"MOORAGE_PLACEHOLDER_FILE=.*cannot be a placeholder"):
            placeholder.check_placeholder_file(settings(file), Limits())


def settings(file: Path | None) -> Settings:
    given = {"database_url": "postgresql://moorage@localhost/moorage", "broker_url": "redis://localhost"}
    return Settings(_env_file=None, placeholder_file=file, **given)
