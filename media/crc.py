"""Cyclic redundancy checks with the highest bit first, which the standard library does not have."""

from collections.abc import Sequence


def build_table(polynomial: int, bits: int) -> list[int]:
    table = []
    for value in range(256):
        remainder = value << bits - 8
        for _ in range(8):
            remainder = (remainder << 1) ^ (polynomial if remainder >> bits - 1 else 0)
            remainder &= (1 << bits) - 1
        table.append(remainder)
    return table


def compute_crc(data: bytes | bytearray, table: Sequence[int], bits: int) -> int:
    crc, mask, shift = 0, (1 << bits) - 1, bits - 8
    for byte in data:
        crc = (crc << 8 & mask) ^ table[crc >> shift ^ byte]
    return crc
