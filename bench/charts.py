"""Draws charts as SVG that are legible on a phone, and in a light and a dark page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Protocol

WIDTH = 480
_MARGIN, _LEFT, _PLOT_HEIGHT = 16, 56, 190
# a palette for color-blind readers, of enough contrast on either background
_STYLE = """
svg { --paper: #fff; --ink: #1f2328; --quiet: #59636e; --grid: #d8dee4;
  --ours: #0072b2; --other: #b35c00; --third: #7a7a7a; --aim: #b3261e; }
@media (prefers-color-scheme: dark) {
  svg { --paper: #0d1117; --ink: #f0f6fc; --quiet: #a3adb8; --grid: #30363d;
    --ours: #58a6ff; --other: #f0a040; --third: #a0a0a0; --aim: #ff8a80; }
}
text { font: 14px system-ui, "DejaVu Sans", sans-serif; fill: var(--ink);
  stroke: var(--paper); stroke-width: 4px; paint-order: stroke; }
.title { font-weight: 600; } .quiet { fill: var(--quiet); font-size: 13px; }
.paper { color: var(--paper); } .grid { stroke: var(--grid); }
.ours { color: var(--ours); } .other { color: var(--other); } .third { color: var(--third); }
rect { fill: currentColor; } polyline, .aim { fill: none; stroke: currentColor; stroke-width: 2.5; }
polyline.third { stroke-dasharray: 2 4; } .aim { color: var(--aim); stroke-dasharray: 6 4; }
"""


class Panel(Protocol):
    """A part of a chart; the parts are drawn one below the other."""

    @property
    def height(self) -> float: ...

    def draw(self, top: float) -> list[str]:
        """Return the elements of the panel."""


@dataclass(frozen=True)
class Bar:
    """
    A bar.

    :param text: its value, as it is shown.
    :param look: the class of its color: ``ours``, ``other`` or ``third``.
    """

    name: str
    value: float
    text: str
    look: str


@dataclass(frozen=True)
class Bars:
    """Bars, each below its name; ``aim`` is the value that should not be exceeded."""

    title: str
    bars: Sequence[Bar]
    aim: float | None = None

    @property
    def height(self) -> float:
        return 32 + 44 * len(self.bars)

    def draw(self, top: float) -> list[str]:
        drawn, texts = [], [_text(_MARGIN, top + 14, self.title, "title")]
        room, most = WIDTH - 2 * _MARGIN - 80, max(bar.value for bar in self.bars)
        for number, bar in enumerate(self.bars):
            y, width = top + 32 + 44 * number, max(room * bar.value / most, 2)
            size = f'width="{width:.1f}" height="16"'
            drawn.append(f'<rect class="{bar.look}" x="{_MARGIN}" y="{y + 16:g}" {size}/>')
            texts.append(_text(_MARGIN, y + 10, bar.name, "quiet"))
            texts.append(_text(_MARGIN + width + 6, y + 29, bar.text))
        if self.aim is not None:
            x, bottom = _MARGIN + room * self.aim / most, top + self.height - 8
            drawn.append(f'<path class="aim" d="M{x:.1f} {top + 26:g}V{bottom:g}"/>')
        return drawn + texts


@dataclass(frozen=True)
class Line:
    """A line through points; ``look`` as of a `Bar`."""

    points: Sequence[tuple[float, float]]
    look: str


@dataclass(frozen=True)
class Lines:
    """Lines in one plot, with dashed ones where the aims are."""

    title: str
    lines: Sequence[Line]
    x_label: str
    y_label: str
    x_aim: float | None = None
    y_aim: float | None = None

    @property
    def height(self) -> float:
        return _PLOT_HEIGHT + 90

    def draw(self, top: float) -> list[str]:
        points = [point for line in self.lines for point in line.points]
        x_ticks = _ticks(max(x for x, _ in points))
        y_ticks = _ticks(max(y for _, y in points))
        above, bottom, right = top + 44, top + 44 + _PLOT_HEIGHT, WIDTH - _MARGIN

        def at_x(x: float) -> float:
            return _LEFT + (right - _LEFT) * x / x_ticks[-1]

        def at_y(y: float) -> float:
            return bottom - _PLOT_HEIGHT * y / y_ticks[-1]

        drawn = [
            _text(_MARGIN, top + 14, self.title, "title"),
            _text(_MARGIN, top + 34, self.y_label, "quiet"),
        ]
        for y in y_ticks:
            drawn.append(f'<path class="grid" d="M{_LEFT} {at_y(y):.1f}H{right}"/>')
            drawn.append(_text(_LEFT - 6, at_y(y) + 4, f"{y:,g}", "quiet", "end"))
        drawn += [_text(at_x(x), bottom + 18, f"{x:,g}", "quiet", "middle") for x in x_ticks]
        drawn.append(_text((_LEFT + right) / 2, bottom + 36, self.x_label, "quiet", "middle"))
        for line in self.lines:
            path = " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in line.points)
            drawn.append(f'<polyline class="{line.look}" points="{path}"/>')
        if self.x_aim is not None:
            drawn.append(f'<path class="aim" d="M{at_x(self.x_aim):.1f} {above:g}V{bottom:g}"/>')
        if self.y_aim is not None:
            drawn.append(f'<path class="aim" d="M{_LEFT} {at_y(self.y_aim):.1f}H{right}"/>')
        return drawn


@dataclass(frozen=True)
class Legend:
    """What the colors stand for: names by look."""

    names: dict[str, str]

    @property
    def height(self) -> float:
        return 22 * len(self.names) + 4

    def draw(self, top: float) -> list[str]:
        drawn = []
        for number, (look, name) in enumerate(self.names.items()):
            y = top + 22 * number + 7
            sample = f"{_MARGIN},{y:g} {_MARGIN + 28},{y:g}"
            drawn.append(
                f'<path class="aim" d="M{_MARGIN} {y:g}h28"/>'
                if look == "aim"
                else f'<polyline class="{look}" points="{sample}"/>'
            )
            drawn.append(_text(_MARGIN + 36, y + 5, name, "quiet"))
        return drawn


def chart(title: str, panels: Iterable[Panel]) -> str:
    """
    Return a chart.

    :param title: what it shows, for those who cannot see it.
    :param panels: its parts, from top to bottom.
    """
    drawn: list[str] = []
    top: float = _MARGIN
    for panel in panels:
        drawn += panel.draw(top)
        top += panel.height + 12
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top:g}" width="{WIDTH}" role="img">',
        f"<title>{escape(title, quote=False)}</title>",
        f"<style>{_STYLE}</style>",
        f'<rect class="paper" width="{WIDTH}" height="{top:g}"/>',
        *drawn,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _text(x: float, y: float, text: str, look: str = "", anchor: str = "") -> str:
    attributes = (f' class="{look}"' if look else "") + (f' text-anchor="{anchor}"' if anchor else "")
    return f'<text x="{x:.1f}" y="{y:.1f}"{attributes}>{escape(text, quote=False)}</text>'


def _ticks(most: float) -> list[float]:
    """Return some four round numbers from 0 to beyond the largest value."""
    power = 10.0 ** math.floor(math.log10(most / 4))
    step = next(step for factor in (1, 2, 2.5, 5, 10) if (step := factor * power) * 5 >= most)
    return [step * number for number in range(math.ceil(most / step) + 1)]
