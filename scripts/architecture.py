"""Draws docs/images/architecture.svg from the imports of the package. Run it after a change of modules.

It needs ``grimp``, which comes with import-linter.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "airflow_provider_rungen"
DRAWING = ROOT / "docs" / "images" / "architecture.svg"

# The floors from the top: their packages, with the share of the width. A package imports what is below it.
FLOORS: tuple[dict[str, int], ...] = (
    {"decorators": 2, "operators": 3, "triggers": 3, "sensors": 2, "plugins": 2},
    {"execution": 1},
    {"hooks": 3, "links": 2, "schemas": 2, "parameters": 2, "checks": 2, "ledger": 2, "retries": 2},
    {"client": 5, "runs": 3, "pages": 2, "_airflow": 2},
    {"exceptions": 2, "emulator": 5},
)
PURPOSES = {
    "decorators": "@task.rungen",
    "operators": "what DAG authors write: parameters, no logic",
    "triggers": "wait in the triggerer, one poller for each app",
    "sensors": "wait for jobs, or for an app",
    "plugins": "the pages in Airflow",
    "execution": "what one attempt of a task consists of; imported only when a task runs",
    "hooks": "the connection, and the API for Python code",
    "links": "links in Airflow's UI",
    "schemas": "JSON Schemas",
    "parameters": "types of parameters",
    "checks": "checks of parameters",
    "ledger": "the ledger, as a DAG names it",
    "retries": "the retry policy",
    "client": "RunGen without Airflow: the REST API as flows without I/O, and two drivers for them",
    "runs": "what one task run is: plan, table of jobs, log",
    "pages": "what pages show, and their look",
    "_airflow": "Airflow's names, by version",
    "exceptions": "the error tree",
    "emulator": "stands for the service; only run_operator() uses Airflow",
}
# Packages that nearly all others import: their box lists who does, instead of arrows.
LISTED = ("_airflow",)

WIDTH, MARGIN, GAP, FLOOR_GAP = 1100, 20, 28, 46
PADDING, LINE, LETTER = 14, 16, 6.7  # of the text in a box; the width of a letter
STYLE = """
text { font: 11px ui-monospace, "DejaVu Sans Mono", monospace; fill: #57606a; }
.name { font: 600 15px system-ui, "DejaVu Sans", sans-serif; fill: #14181d; }
.purpose { font: 12px system-ui, "DejaVu Sans", sans-serif; fill: #30363d; }
rect { fill: #f4f2ff; stroke: #9a8fe0; }
.paper { fill: #fff; stroke: none; }
path { fill: none; stroke: #6d7783; stroke-width: 1.4; marker-end: url(#head); }
.up { stroke: #c2410c; stroke-dasharray: 5 4; }
marker path { fill: #6d7783; stroke: none; marker-end: none; }
"""


@dataclass(frozen=True)
class Graph:
    """
    What the drawing shows.

    :param modules: the modules of each package.
    :param imports: the packages that each package imports; imports for type checkers do not count.
    """

    modules: dict[str, list[str]]
    imports: dict[str, list[str]]


@dataclass(frozen=True)
class Box:
    """The place of a package in the drawing."""

    floor: int
    x: float
    y: float
    width: float
    height: float

    @property
    def middle(self) -> float:
        return self.x + self.width / 2

    @property
    def bottom(self) -> float:
        return self.y + self.height


def main() -> None:
    DRAWING.write_text(draw(read_graph()))
    print(DRAWING.relative_to(ROOT))


def read_graph() -> Graph:
    """Read the imports from the source of the package."""
    graph = grimp.build_graph(PACKAGE, cache_dir=None, exclude_type_checking_imports=True)
    modules: dict[str, set[str]] = {}
    imports: dict[str, set[str]] = {}
    for module in graph.modules:
        package, name = _split(module)
        if not package:  # the version and the provider info
            continue
        modules.setdefault(package, set()).update([name] if name else [])
        others = {_split(other)[0] for other in graph.find_modules_directly_imported_by(module)}
        imports.setdefault(package, set()).update(others - {"", package})
    return Graph(_sorted(modules), _sorted(imports))


def _split(module: str) -> tuple[str, str]:
    package, _, name = module.removeprefix(PACKAGE).removeprefix(".").partition(".")
    return package, name


def _sorted(names: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    return {name: sorted(names[name]) for name in sorted(names)}


def draw(graph: Graph) -> str:
    """Return the drawing as SVG, with the graph as JSON in its metadata."""
    known = {package for floor in FLOORS for package in floor}
    if differing := known ^ graph.modules.keys():
        sys.exit(f"FLOORS in scripts/architecture.py is wrong about {', '.join(sorted(differing))}")
    boxes = _boxes(graph)
    height = max(box.bottom for box in boxes.values()) + MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img">',
        "<title>The packages of airflow_provider_rungen, and what imports what</title>",
        f"<metadata>{escape(json.dumps(asdict(graph)), quote=False)}</metadata>",
        f"<style>{STYLE}</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
        'orient="auto"><path d="M0 0 L8 4 L0 8 z"/></marker></defs>',
        f'<rect class="paper" width="{WIDTH}" height="{height:.0f}"/>',
        *(_arrow(boxes[package], boxes[other]) for package, other in drawn_imports(graph.imports)),
        *(line for package, box in boxes.items() for line in _drawn_box(graph, package, box)),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def drawn_imports(imports: Mapping[str, Iterable[str]]) -> Iterator[tuple[str, str]]:
    """Find the imports to draw: those down that do not follow from others, and all that are not down."""
    floors = {package: number for number, floor in enumerate(FLOORS) for package in floor}

    def down(package: str) -> set[str]:
        return {other for other in imports[package] if floors[other] > floors[package]}

    def below(package: str) -> set[str]:
        return down(package).union(*(below(other) for other in down(package)))

    for package, others in imports.items():
        implied = {each for other in down(package) for each in below(other)}
        yield from ((package, other) for other in others if other not in implied and other not in LISTED)


# --- boxes ---


def _boxes(graph: Graph) -> dict[str, Box]:
    boxes: dict[str, Box] = {}
    y = float(MARGIN)
    for number, floor in enumerate(FLOORS):
        unit = (WIDTH - 2 * MARGIN - GAP * (len(floor) - 1)) / sum(floor.values())
        widths = {package: share * unit for package, share in floor.items()}
        rows = max(len(_text(graph, package, widths[package])) for package in floor)
        x, height = float(MARGIN), 2 * PADDING + LINE * (rows + 1)
        for package, width in widths.items():
            boxes[package] = Box(number, x, y, width, height)
            x += width + GAP
        y += height + FLOOR_GAP
    return boxes


def _text(graph: Graph, package: str, width: float) -> list[tuple[str, str]]:
    """Return the lines of a box below its name, each with its class."""
    columns = int((width - 2 * PADDING) / LETTER)
    listed = ", ".join(graph.modules[package])
    if package in LISTED:
        users = ", ".join(name for name, others in graph.imports.items() if package in others)
        listed = f"{listed}; imported by {users}"
    purpose = [("purpose", line) for line in textwrap.wrap(PURPOSES[package], columns)]
    return [*purpose, *(("", line) for line in textwrap.wrap(listed, columns))]


def _drawn_box(graph: Graph, package: str, box: Box) -> Iterator[str]:
    x, y = box.x + PADDING, box.y + PADDING + LINE * 0.7
    yield f'<rect x="{box.x:.0f}" y="{box.y:.0f}" width="{box.width:.0f}" height="{box.height:.0f}" rx="8"/>'
    yield f'<text class="name" x="{x:.0f}" y="{y:.0f}">{package}</text>'
    for kind, line in _text(graph, package, box.width):
        y += LINE
        yield f'<text class="{kind}" x="{x:.0f}" y="{y:.0f}">{escape(line)}</text>'


# --- arrows ---


def _arrow(box: Box, other: Box) -> str:
    """Draw from the box that imports to the one that it imports."""
    if box.floor == other.floor:
        y = box.y + PADDING + LINE
        if box.x < other.x:
            return _path(box.x + box.width, y, other.x, y)
        return _path(box.x, y, other.x + other.width, y)
    if other.floor < box.floor:  # beside the arrow down
        x = _meeting(box, other) + 2 * PADDING
        return _path(x, box.y, x, other.bottom, kind="up")
    return _path(_meeting(box, other), box.bottom, _meeting(other, box), other.y)


def _meeting(box: Box, other: Box) -> float:
    """Return where the edge of a box is met by an arrow from or to another box."""
    left, right = max(box.x, other.x), min(box.x + box.width, other.x + other.width)
    if left < right:
        return (left + right) / 2
    inset = 2 * PADDING
    return min(max(other.middle, box.x + inset), box.x + box.width - inset)


def _path(x: float, y: float, to_x: float, to_y: float, kind: str = "") -> str:
    bend = (to_y - y) / 2
    curve = f"M{x:.0f} {y:.0f} C{x:.0f} {y + bend:.0f} {to_x:.0f} {to_y - bend:.0f} {to_x:.0f} {to_y:.0f}"
    return f'<path class="{kind}" d="{curve}"/>'


if __name__ == "__main__":
    main()
