"""``python -m bench``: measure, and write the page."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

from bench import gaps, imports, page, reader, real_airflow, simulate, store, submits, watching
from bench.processes import ROOT
from compat.environments import measured_at

# Each module has `measure`, and its docstring is the text of the page. The number is that of the rounds.
MEASURES: dict[str, tuple[ModuleType, int]] = {
    "simulated": (simulate, 3),
    "watch": (watching, 3),
    "gaps": (gaps, 3),
    "submits": (submits, 3),
    "imports": (imports, 5),
    "airflow": (real_airflow, 3),
    "reader": (reader, 3),
    "store": (store, 1),
}


def main() -> None:
    given = _arguments()
    with tempfile.TemporaryDirectory() as folder:
        if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
            # a user's processes do not compile all that they import
            os.environ["PYTHONPYCACHEPREFIX"] = folder
        measured = page.load(given.out)
        for name in given.only or MEASURES:
            module, rounds = MEASURES[name]
            rounds = 1 if given.quick else rounds
            print(f"{time.strftime('%H:%M:%S')}  {name} ...", flush=True)
            rows = list(module.measure(rounds, 0.1 if given.quick else 1.0))
            print(*rows, sep="\n", flush=True)
            measured[name] = page.as_json(measured_at(), rounds, rows)
            # at once: what comes next may fail
            page.write(measured, texts(), given.out)


def texts() -> dict[str, str]:
    """Return the text of the page for each measurement."""
    return {name: str(module.__doc__) for name, (module, _) in MEASURES.items()}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure, and write the page.")
    parser.add_argument("--only", nargs="+", choices=MEASURES, help="measure only these, and keep the others")
    parser.add_argument("--quick", action="store_true", help="a tenth of the jobs, one round; needs --out")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "docs" / "benchmarks", help="the folder for the page"
    )
    given = parser.parse_args()
    if given.quick and given.out == parser.get_default("out"):
        parser.error("what is not the whole measurement goes elsewhere: give --out")
    return given


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
