"""``python -m bench``: measure, and write the page."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import (
    imports,
    ledger,
    machine,
    page,
    reader,
    real_airflow,
    sensors,
    simulate,
    submits,
    tables,
    watching,
)
from bench.contenders import OURS, POOLED, SESSION
from bench.service import ROOT
from bench.watching import AT_ONCE, QUEUE, Load, Plan

PAGE = ROOT / "docs" / "benchmarks"
ROUNDS = {
    "simulated": 3,
    "watch": 3,
    "sizes": 1,
    "blocked": 3,
    "submits": 3,
    "imports": 5,
    "airflow": 3,
    "sensors": 2,
    "reader": 3,
    "tables": 3,
    "ledger": 3,
}
TASKS = 100
_BIG = 20_000_000


def watch(rounds: int, scale: float) -> list[dict[str, Any]]:
    """Wait for 1,000 jobs in three ways."""
    runs = []
    for seed in range(rounds):
        loads = [Load(round(1000 * scale), order) for order in (QUEUE, AT_ONCE)]
        runs += watching.run([Plan(kind, load) for load in loads for kind in (OURS, POOLED, SESSION)], seed)
    return runs


def sizes(rounds: int, scale: float) -> list[dict[str, Any]]:
    """Wait for few jobs and for many, and for jobs of an app whose counters lie."""
    plans = [Plan(OURS, Load(round(jobs * scale))) for jobs in (100, 1000, 10_000)]
    plans += [Plan(OURS, Load(round(1000 * scale)), counters=lie) for lie in ("frozen", "zero", "absent")]
    return [run for seed in range(rounds) for run in watching.run(plans, seed)]


def blocked(rounds: int, scale: float) -> list[dict[str, Any]]:
    """Measure a heartbeat beside the triggers. These runs have the machine to themselves."""
    loads: dict[str, tuple[Load, dict[str, Any]]] = {
        "gap": (Load(round(1000 * scale), AT_ONCE, 1, 6), {}),
        "gap 20 MB": (Load(20, AT_ONCE, 1, 2), {"big": _BIG}),
        "gap numbers": (Load(20, AT_ONCE, 1, 2), {"big": _BIG, "is_big_of_numbers": True}),
    }
    runs = []
    for seed in range(rounds):
        for name, (load, options) in loads.items():
            for kind in (OURS, POOLED):
                plan = Plan(kind, load, poll_interval=0.5, with_heart=True, **options)
                runs += [{"load": name, **run} for run in watching.run([plan], seed)]
    return runs


MEASURES: dict[str, Callable[[int, float], Any]] = {
    "simulated": simulate.measure,
    "imports": lambda rounds, _: imports.measure(rounds),
    "submits": lambda rounds, scale: submits.measure(rounds, round(200 * scale)),
    "blocked": blocked,
    "watch": watch,
    "sizes": sizes,
    "airflow": lambda rounds, scale: real_airflow.measure(rounds, max(4, round(TASKS * scale))),
    "sensors": lambda rounds, scale: sensors.measure(rounds, max(4, round(sensors.SENSORS * scale))),
    "reader": lambda rounds, scale: reader.measure(rounds, round(1_000_000 * scale)),
    "tables": lambda rounds, scale: tables.measure(
        rounds, reused_rows=round(100_000 * scale), changed_rows=round(10_000 * scale)
    ),
    "ledger": lambda rounds, scale: ledger.measure(rounds, round(10_000 * scale)),
}


def main() -> None:
    given = _arguments()
    names = given.only or list(MEASURES)
    rounds = {name: 1 if given.quick else ROUNDS[name] for name in names}
    scale = 0.1 if given.quick else 1.0
    with tempfile.TemporaryDirectory() as folder:
        if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
            # a user's processes do not compile all that they import
            os.environ["PYTHONPYCACHEPREFIX"] = folder
        here = machine.describe()
        kept = page.kept(given.out)
        if kept.get("machine") != here:
            kept = {}  # figures of two machines do not stand on one page
        settings: dict[str, Any] = {"rounds": {}, "days": {}} | kept.get("settings", {}) | {"scale": scale}
        measured = kept | {"machine": here, "settings": settings}
        began = time.monotonic()
        for name in names:
            print(f"{time.monotonic() - began:4.0f} s  {name} ...", flush=True)
            measured[name] = MEASURES[name](rounds[name], scale)
            settings["rounds"][name] = rounds[name]
            settings["days"][name] = time.strftime("%Y-%m-%d")
            # at once: what comes next may fail
            rows = page.write(measured, given.out)
    print(f"{time.monotonic() - began:4.0f} s  done\n")
    for row in rows:
        print(f"{row.verdict().strip('*'):12} {row.what}: {row.figure} (aim {row.aim}; {row.beside})")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure, and write the page.")
    parser.add_argument(
        "--only", nargs="+", choices=MEASURES, help="measure only these, and keep the rest of the page"
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the jobs, one round; needs --out")
    parser.add_argument("--out", type=Path, help="the folder for the page, if not docs/benchmarks")
    given = parser.parse_args()
    if given.out is None:
        if given.quick:
            parser.error("what is not the whole measurement goes elsewhere: give --out")
        given.out = PAGE
    return given


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
