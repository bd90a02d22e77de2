"""The bounds of the package allow what Airflow's own constraint files pin. CI resolves against them, too."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from compat.environments import AIRFLOWS, PRE_RELEASES, ROOT
from compat.resolve import PINS, read_pins

FILES = sorted(PINS.glob("*.txt"))


def test_each_released_line_of_airflow_has_pins() -> None:
    lines = {path.stem.rpartition(".")[0] for path in FILES}
    assert lines == set(AIRFLOWS) - set(PRE_RELEASES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_bounds_allow_what_is_pinned(path: Path) -> None:
    pins = read_pins(path) | {"apache-airflow": path.stem}
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for line in dependencies:
        requirement = Requirement(line)
        pinned = pins.get(canonicalize_name(requirement.name))
        assert pinned is None or requirement.specifier.contains(pinned), f"{line}, but {pinned} is pinned"
