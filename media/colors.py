"""Conversion of wide-gamut and HDR colours, named by ITU-T H.273 code points, to sRGB."""

import functools
import itertools
import math
from typing import Final

from PIL import Image, ImageFilter

_BT2020, _DCI_P3, _DISPLAY_P3 = 9, 11, 12
_LINEAR, _PQ, _HLG = 8, 16, 18
Matrix = tuple[tuple[float, float, float], tuple[float, float, float], tuple[float, float, float]]
_P3_TO_SRGB: Final[Matrix] = ((1.2249, -0.2249, 0.0), (-0.0420, 1.0420, 0.0), (-0.0196, -0.0786, 1.0983))
_TO_SRGB: Final[dict[int, Matrix]] = {
    _BT2020: ((1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187)),
    _DCI_P3: _P3_TO_SRGB,
    _DISPLAY_P3: _P3_TO_SRGB,
}
_WHITE_NITS: Final = 203.0  # of SDR white in HDR (ITU-R BT.2408)
_PEAK: Final = 1000.0 / _WHITE_NITS
_LUT_SIZE: Final = 33


def to_srgb(image: Image.Image, cicp: tuple[int, int]) -> Image.Image:
    """Convert an RGB or RGBA image with these colour primaries and transfer function; alpha is kept."""
    table = _build_table(*cicp)
    return image if table is None else image.filter(table)


@functools.lru_cache(maxsize=8)
def _build_table(primaries: int, transfer: int) -> ImageFilter.Color3DLUT | None:
    matrix = _TO_SRGB.get(primaries)
    if matrix is None and transfer not in (_LINEAR, _PQ, _HLG):
        return None
    levels = [index / (_LUT_SIZE - 1) for index in range(_LUT_SIZE)]
    linear = [_to_linear(level, transfer) for level in levels]
    table: list[float] = []
    for blue, green, red in itertools.product(linear, repeat=3):  # red changes fastest
        table += _convert((red, green, blue), matrix, transfer)
    return ImageFilter.Color3DLUT(_LUT_SIZE, table, channels=3)


def _convert(rgb: tuple[float, float, float], matrix: Matrix | None, transfer: int) -> list[float]:
    scale = 1.0
    if transfer == _HLG:  # the scene becomes light of a display of 1000 nits (ITU-R BT.2100)
        scale = (0.2627 * rgb[0] + 0.6780 * rgb[1] + 0.0593 * rgb[2]) ** 0.2 * _PEAK
    brightest = max(rgb) * scale
    if transfer in (_PQ, _HLG):
        scale *= (1 + brightest / _PEAK**2) / (1 + brightest)  # Reinhard's extended operator, as in Chromium
    rows = matrix or ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))
    return [_encode(scale * sum(m * v for m, v in zip(row, rgb, strict=True))) for row in rows]


def _to_linear(value: float, transfer: int) -> float:
    """Return light relative to SDR white; for HLG that of the scene, from 0 to 1."""
    if transfer == _LINEAR:
        return value
    if transfer == _PQ:  # SMPTE ST 2084
        root: float = value ** (1 / 78.84375)
        ratio = max(root - 0.8359375, 0.0) / (18.8515625 - 18.6875 * root)
        return 10_000 / _WHITE_NITS * math.pow(ratio, 1 / 0.1593017578125)
    if transfer == _HLG and value <= 0.5:  # ARIB STD-B67
        return value * value / 3
    if transfer == _HLG:
        return (math.exp((value - 0.55991073) / 0.17883277) + 0.28466892) / 12
    base: float = (value + 0.055) / 1.055
    return value / 12.92 if value <= 0.04045 else base**2.4


def _encode(value: float) -> float:
    value = min(1.0, max(0.0, value))
    root: float = value ** (1 / 2.4)
    return value * 12.92 if value <= 0.0031308 else 1.055 * root - 0.055
