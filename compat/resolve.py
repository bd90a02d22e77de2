"""``python -m compat.resolve WHEEL``: resolve the package under the pins of each Airflow's constraint file.

Managed platforms enforce these files. ``--install`` also installs the package, and runs a job.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from compat.environments import FOLDER, ROOT, CompatError, create, pip, run

PINS = Path(__file__).parent / "pins"
PYTHON = "3.12"  # the pins are for this version
SMOKE = Path(__file__).parent / "smoke.py"


def read_pins(path: Path) -> dict[str, str]:
    """Return the version of each package that a constraint file pins."""
    requirements = [Requirement(line) for line in path.read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(each.name): str(each.specifier).removeprefix("==") for each in requirements}


def resolve(folder: Path, wheel: Path, pins: Path) -> dict[str, str]:
    """
    Return the versions that pip chooses for an Airflow and the package.

    :raises CompatError: the package cannot be installed.
    """
    report = folder / "report.json"
    options = ["--dry-run", "--ignore-installed", "--report", str(report), "-c", str(pins)]
    pip(folder, "install", *options, f"apache-airflow=={pins.stem}", str(wheel))
    chosen = json.loads(report.read_text())["install"]
    return {canonicalize_name(each["metadata"]["name"]): each["metadata"]["version"] for each in chosen}


def check(folder: Path, wheel: Path, pins: Path, *, install: bool) -> str:
    """
    Resolve or install the package under pins, and return the outcome in a line.

    :raises CompatError: it cannot be installed, or does not work.
    """
    began = time.monotonic()
    if install:
        create(folder, PYTHON)
        ours = str(wheel), str(ROOT / "emulator")
        pip(folder, "install", "-c", str(pins), f"apache-airflow=={pins.stem}", *ours)
        outcome = run([str(folder / "bin" / "python"), "-I", str(SMOKE)]).splitlines()[-1]
    else:
        versions, pinned = resolve(folder, wheel, pins), read_pins(pins)
        wrong = {name: version for name, version in versions.items() if pinned.get(name, version) != version}
        if wrong or versions.get("apache-airflow") != pins.stem or "airflow-provider-rungen" not in versions:
            raise CompatError(f"pip chose {wrong or versions}")
        outcome = f"{len(versions)} packages, {len(set(versions) & set(pinned))} of them pinned"
    return f"Airflow {pins.stem}: {outcome}, {time.monotonic() - began:.0f} s"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m compat.resolve", description=__doc__)
    parser.add_argument("wheel", type=Path, help="the wheel of the package")
    text = "versions to install, and to run a job on with the emulator"
    parser.add_argument("--install", nargs="+", metavar="VERSION", default=[], help=text)
    options = parser.parse_args()

    FOLDER.mkdir(exist_ok=True)
    failed = 0
    with tempfile.TemporaryDirectory(dir=FOLDER) as scratch:
        folder = Path(scratch) / "venv"
        create(folder, PYTHON)
        for pins in sorted(PINS.glob("*.txt")):
            try:
                install = pins.stem.startswith(tuple(options.install))
                print(check(folder, options.wheel.resolve(), pins, install=install), flush=True)
            except CompatError as error:
                failed += 1
                print(f"Airflow {pins.stem}: the package cannot be installed\n{error}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
