"""The shape of the package: no chains of classes, no imports that lead back."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "airflow_provider_rungen"
# Errors and operators may have a grandparent. These have one more, or are neither.
DEEP = {
    "exceptions.RunGenJobQueuedTimeoutError",  # whoever catches a time-out of the job means this one, too
}


@cache
def modules() -> dict[str, Path]:
    paths = sorted((ROOT / PACKAGE).rglob("*.py"))
    return {str(path.relative_to(ROOT / PACKAGE)): path for path in paths}


# --- classes ---


def classes_of(name: str, path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield the classes of a module with their base classes, by their full names."""
    tree, module = ast.parse(path.read_text()), name.removesuffix(".py").replace("/", ".")
    imported = {
        alias.asname or alias.name: f"{node.module}.{alias.name}".removeprefix(f"{PACKAGE}.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            bases = [base.value if isinstance(base, ast.Subscript) else base for base in node.bases]
            names = [ast.unparse(base) for base in bases]
            yield (f"{module}.{node.name}", [imported.get(each, f"{module}.{each}") for each in names])


def test_no_class_has_a_grandparent() -> None:
    classes = dict(each for name, path in modules().items() for each in classes_of(name, path))

    def height(name: str) -> int:
        return 1 + max(map(height, classes[name]), default=0) if name in classes else 0

    heights = {name: height(name) for name in classes}
    assert heights["exceptions.RunGenJobFailedError"] == 3, "the bases are found"
    relaxed = ("exceptions.", "operators.", "sensors.", "decorators.")
    high = {
        name
        for name, height in heights.items()
        if height > (3 if name.startswith(relaxed) or name.endswith("Error") else 2)
    }
    assert high == DEEP


# --- imports ---


def test_no_import_leads_back() -> None:
    """Also within functions, and for type checkers."""
    grimp = pytest.importorskip("grimp")
    graph = grimp.build_graph(PACKAGE, cache_dir=None)
    back = {
        f"{name} -> {imported}"
        for name in graph.modules
        for imported in graph.find_modules_directly_imported_by(name)
        if graph.chain_exists(importer=imported, imported=name)
    }
    assert sorted(back) == []
