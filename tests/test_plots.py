"""The plots of the benchmark page are those of its raw figures."""

from __future__ import annotations

import json
import re
from pathlib import Path

from bench import plots

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "benchmarks"


def test_the_plots_are_drawn_from_the_raw_figures(tmp_path: Path) -> None:
    drawn = plots.draw(json.loads((FOLDER / "results.json").read_text()), tmp_path)
    assert [file for file, _ in drawn] == re.findall(r"\]\((\w+\.svg)\)", (FOLDER / "README.md").read_text())
    assert drawn[0][0] == "headline.svg"
    for file, _ in drawn:
        assert (tmp_path / file).read_text() == (FOLDER / file).read_text()
