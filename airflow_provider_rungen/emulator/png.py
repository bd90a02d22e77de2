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
    """Paint a sky, a sun with halos, some balloons and three ranges of hills."""
    dice = random.Random(hashlib.sha256(prompt.encode("utf-8", "replace")).digest())  # noqa: S311 - a picture
    hue, size = dice.random(), min(width, height)
    sky = _strip(_color(hue, 0.65, 0.45), _color(hue + 0.12, 0.35, 1.0), width + height)
    rows = [bytearray(sky[3 * y : 3 * (y + width)]) for y in range(height)]
    sun_x, sun_y = dice.uniform(0.15, 0.85) * width, dice.uniform(0.15, 0.5) * height
    radius = dice.uniform(0.1, 0.2) * size
    for halo in (2.0, 1.6, 1.3, 1.0):
        warm = hue + 0.12 + 0.36 / halo**2
        fill = _strip(_color(warm, 0.55, 1.0), _color(warm + 0.05, 0.3, 1.0), width + height)
        _ellipse(rows, (sun_x, sun_y), (radius * halo, radius * halo), fill, 0.25 if halo > 1 else 1.0)
    for _ in range(dice.randint(2, 6)):
        tint, r = dice.random(), dice.uniform(0.03, 0.09) * size
        fill = _strip(_color(tint, 0.5, 1.0), _color(tint, 0.9, 0.7), width + height)
        _ellipse(rows, (dice.random() * width, dice.uniform(0.05, 0.6) * height), (r, r * 1.2), fill, 0.9)
    for layer in range(3):
        tint = hue + 0.4 + dice.uniform(-0.08, 0.08)
        light = 0.75 - 0.2 * layer
        fill = _strip(_color(tint, 0.5, light), _color(tint, 0.75, light - 0.2), width + height)
        for _ in range(3):
            middle = (dice.random() * width, (0.95 + 0.15 * layer) * height)
            across = (dice.uniform(0.25, 0.6) * width, dice.uniform(0.15, 0.4) * height)
            _ellipse(rows, middle, across, fill)
    return rows


def _color(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _strip(start: tuple[int, int, int], end: tuple[int, int, int], length: int) -> bytes:
    """Return a gradient as one line of pixels. Rows that each start a pixel later make it diagonal."""
    channels = range(3)
    return bytes(round(start[c] + (end[c] - start[c]) * x / length) for x in range(length) for c in channels)


def _ellipse(
    rows: list[bytearray],
    middle: tuple[float, float],
    radii: tuple[float, float],
    fill: bytes,
    alpha: float = 1.0,
) -> None:
    width = len(rows[0]) // 3
    for y in range(max(0, math.ceil(middle[1] - radii[1])), min(len(rows), math.ceil(middle[1] + radii[1]))):
        half = radii[0] * math.sqrt(max(0.0, 1 - ((y - middle[1]) / radii[1]) ** 2))
        left, right = max(0, round(middle[0] - half)), min(width, round(middle[0] + half))
        if right <= left:
            continue
        paint = fill[3 * (y + left) : 3 * (y + right)]
        if alpha < 1:
            paint = _blend(paint, rows[y][3 * left : 3 * right], alpha)
        rows[y][3 * left : 3 * right] = paint


def _blend(new: bytes, old: bytearray, alpha: float) -> bytes:
    # added as two large numbers: no byte carries over, since the shares round down
    above = int.from_bytes(new.translate(_shares(alpha)), "big")
    below = int.from_bytes(old.translate(_shares(1 - alpha)), "big")
    return (above + below).to_bytes(len(new), "big")


@functools.cache
def _shares(share: float) -> bytes:
    return bytes(int(value * share) for value in range(256))
