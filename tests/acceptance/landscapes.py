"""Drawn landscapes, so that the screenshots of the page show pictures that somebody might have asked for."""

import math
import random
from pathlib import Path
from typing import Final, NamedTuple

from PIL import Image, ImageDraw, ImageFilter

Color = tuple[int, int, int]

LANDSCAPE: Final = (1024, 768)
PORTRAIT: Final = (768, 960)
_FINE: Final = 2  # drawn so much larger: smooth edges
_RIDGES: Final = 6


class Mood(NamedTuple):
    """The colours of a landscape from top to bottom, where its sun stands (shares of the picture), and its water."""

    sky: Color
    horizon: Color
    far: Color
    near: Color
    sun: tuple[float, float]
    has_lake: bool = False
    size: tuple[int, int] = LANDSCAPE


MOODS: Final = {
    "dawn": Mood((72, 92, 140), (250, 205, 170), (186, 160, 175), (38, 44, 66), (0.68, 0.42), has_lake=True),
    "dunes": Mood((126, 170, 196), (246, 226, 190), (226, 186, 138), (122, 72, 40), (0.25, 0.26)),
    "fjord": Mood((150, 178, 186), (226, 232, 228), (150, 176, 180), (24, 52, 60), (0.5, 0.3), True, PORTRAIT),
    "dusk": Mood((38, 30, 70), (236, 122, 96), (150, 84, 120), (26, 18, 40), (0.4, 0.5)),
    "forest": Mood((190, 208, 190), (240, 240, 220), (158, 184, 160), (22, 54, 40), (0.75, 0.25)),
    "night": Mood((10, 16, 36), (52, 74, 110), (52, 68, 100), (6, 10, 22), (0.3, 0.22), has_lake=True),
}


def draw_all(folder: Path) -> list[str]:
    """Write four pictures of each mood into a folder; returns their names."""
    names = []
    for mood in MOODS:
        for seed in range(4):
            names.append(f"{mood}-{seed}.jpg")
            draw(MOODS[mood], seed).save(folder / names[-1], "JPEG", quality=90)
    return names


def draw(mood: Mood, seed: int) -> Image.Image:
    """Return ridges under a sky, each nearer one darker, and their reflection where there is a lake."""
    chance = random.Random(f"{mood} {seed}")
    size = (mood.size[0] * _FINE, mood.size[1] * _FINE)
    shade = Image.linear_gradient("L").resize(size)
    image = Image.composite(Image.new("RGB", size, mood.horizon), Image.new("RGB", size, mood.sky), shade)
    _shine(image, mood, chance)
    for number in range(_RIDGES):
        share = number / (_RIDGES - 1)
        ridge = _ridge(size, 0.42 + 0.42 * share, 0.05 + 0.06 * share, chance)
        ImageDraw.Draw(image).polygon(ridge, fill=_between(mood.far, mood.near, share**1.2))
    if mood.has_lake:
        _flood(image, mood)
    return image.resize(mood.size, Image.Resampling.LANCZOS)


def _shine(image: Image.Image, mood: Mood, chance: random.Random) -> None:
    width, height = image.size
    x, y = width * (mood.sun[0] + chance.uniform(-0.1, 0.1)), height * mood.sun[1]
    for radius, blur, strength in ((height / 4, height / 9, 120), (height / 16, 2, 255)):
        mask = Image.new("L", image.size, 0)
        ImageDraw.Draw(mask).ellipse((x - radius, y - radius, x + radius, y + radius), fill=strength)
        image.paste(_between(mood.horizon, (255, 252, 240), 0.7), mask=mask.filter(ImageFilter.GaussianBlur(blur)))


def _ridge(size: tuple[int, int], level: float, swing: float, chance: random.Random) -> list[tuple[float, float]]:
    waves = [(chance.uniform(0.6, 1.4) * 2**n, chance.uniform(0, math.tau), swing / 1.7**n) for n in range(7)]
    line = []
    for step in range(401):
        along = step / 400
        drop = sum(high * math.sin(math.tau * pace * along + phase) for pace, phase, high in waves)
        line.append((along * size[0], (level + drop) * size[1]))
    return [*line, (size[0], size[1]), (0, size[1])]


def _flood(image: Image.Image, mood: Mood) -> None:
    width, height = image.size
    shore = int(height * 0.7)
    seen = image.crop((0, 2 * shore - height, width, shore)).transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    tinted = Image.blend(seen, Image.new("RGB", seen.size, mood.near), 0.35)
    image.paste(tinted.filter(ImageFilter.BoxBlur(height / 200)), (0, shore))


def _between(one: Color, other: Color, share: float) -> Color:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue
