"""Draws a picture of a prompt. The same prompt gives the same picture, others look different."""

from __future__ import annotations

import colorsys
import functools
import hashlib
import math
import random
import struct
import zlib


@functools.lru_cache(maxsize=64)
def draw(prompt: str, width: int, height: int) -> bytes:
    """Return a PNG of this size."""
    pixels = b"".join(b"\0" + row for row in _paint(prompt, width, height))
    return (
        b"\x89PNG\r\n\x1a\n"
        + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + _chunk(b"IDAT", zlib.compress(pixels, 6))
        + _chunk(b"IEND", b"")
    )


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _paint(prompt: str, width: int, height: int) -> list[bytearray]:
    """Paint a sky, a sun and three ranges of hills."""
    dice = random.Random(hashlib.sha256(prompt.encode("utf-8", "replace")).digest())  # noqa: S311 - a picture
    hue, size = dice.random(), min(width, height)
    sky = _strip((hue, 0.65, 0.45), (hue + 0.12, 0.35, 1.0), width + height)
    rows = [bytearray(sky[3 * y : 3 * (y + width)]) for y in range(height)]

    def ellipse(x: float, y: float, x_radius: float, y_radius: float, fill: bytes) -> None:
        for row in range(max(0, math.ceil(y - y_radius)), min(height, math.ceil(y + y_radius))):
            half = x_radius * math.sqrt(max(0.0, 1 - ((row - y) / y_radius) ** 2))
            left, right = max(0, round(x - half)), min(width, round(x + half))
            if left < right:
                rows[row][3 * left : 3 * right] = fill[3 * (row + left) : 3 * (row + right)]

    sun, radius = (dice.uniform(0.15, 0.85) * width, dice.uniform(0.15, 0.5) * height), dice.uniform(0.1, 0.2)
    fill = _strip((hue + 0.48, 0.6, 1.0), (hue + 0.53, 0.3, 1.0), width + height)
    ellipse(*sun, radius * size, radius * size, fill)
    for layer in range(3):
        tint, light = hue + 0.4 + dice.uniform(-0.08, 0.08), 0.75 - 0.2 * layer
        fill = _strip((tint, 0.5, light), (tint, 0.75, light - 0.2), width + height)
        for _ in range(3):
            x, x_radius, y_radius = dice.random(), dice.uniform(0.25, 0.6), dice.uniform(0.15, 0.4)
            ellipse(x * width, (0.95 + 0.15 * layer) * height, x_radius * width, y_radius * height, fill)
    return rows


def _strip(start: tuple[float, float, float], end: tuple[float, float, float], length: int) -> bytes:
    """
    Return a gradient as one line of pixels. Rows that each start a pixel later make it diagonal.

    :param start: the color at its start: hue, saturation and value.
    """
    (h, s, v), (to_h, to_s, to_v) = start, end
    first, last = colorsys.hsv_to_rgb(h % 1, s, v), colorsys.hsv_to_rgb(to_h % 1, to_s, to_v)
    shares = (place / length for place in range(length))
    return bytes(round(255 * (a + (b - a) * x)) for x in shares for a, b in zip(first, last, strict=True))
