"""What an installation has on top of Airflow because of this package: packages, their size, their licences.

As a program, for the environment that it runs in: prints it, and ends with 1 over a licence that is not on
the list.
"""

from __future__ import annotations

import importlib.metadata
import re
import sys
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PACKAGE, AIRFLOW = "airflow-provider-rungen", "apache-airflow"
# Those that may be used in a company's product without its own code being asked for.
_FREE = re.compile(r"apache|bsd|isc|\bmit\b|mpl|mozilla public|psf|python software foundation", re.IGNORECASE)


def needed(name: str) -> set[str]:
    """Give the names of all that a package installs with itself, and its own."""
    found: set[tuple[str, str]] = set()
    todo = [(canonicalize_name(name), "")]
    while todo:
        package, extra = each = todo.pop()
        if each in found:
            continue
        found.add(each)
        for line in importlib.metadata.distribution(package).requires or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                todo += [(canonicalize_name(requirement.name), more) for more in ("", *requirement.extras)]
    return {package for package, _ in found}


def licence(distribution: Distribution) -> str:
    """Give what a package says of its licence, in a line."""
    metadata = distribution.metadata
    classifiers = [
        line.rpartition(" :: ")[2]
        for line in metadata.get_all("Classifier", ())
        if line.startswith("License :: ")
    ]
    told = metadata.get_all("License-Expression") or classifiers or metadata.get_all("License") or ["none"]
    return ", ".join(told).strip().splitlines()[0]


def size(distribution: Distribution) -> int:
    """Give the bytes that a package takes on disk, bytecode included."""
    paths = [Path(str(file.locate())) for file in distribution.files or ()]
    return sum(path.stat().st_size for path in paths if path.is_file())


def brought() -> set[str]:
    """Give the names of the packages that this one asks for, Airflow's aside, and of what they need."""
    asked = {Requirement(line) for line in importlib.metadata.distribution(PACKAGE).requires or ()}
    names = {each.name for each in asked if each.marker is None and not each.name.startswith(AIRFLOW)}
    return {name for each in names for name in needed(each)}


def describe(names: set[str]) -> list[dict[str, Any]]:
    """Give of each package its ``name``, ``version``, ``size`` in bytes, and ``licence``."""
    return [
        {"name": name, "version": found.version, "size": size(found), "licence": licence(found)}
        for name in sorted(names)
        for found in [importlib.metadata.distribution(name)]
    ]


def added() -> list[dict[str, Any]]:
    """Describe the packages that Airflow does not bring by itself."""
    return describe(needed(PACKAGE) - needed(AIRFLOW) - {PACKAGE})


def main() -> int:
    packages = added()
    airflow, total = importlib.metadata.version(AIRFLOW), sum(each["size"] for each in packages)
    print(f"On top of Airflow {airflow}: {len(packages)} packages, {total / 1e6:.1f} MB")
    for each in packages:
        print(f"  {each['name']} {each['version']}: {each['size'] / 1e6:.1f} MB, {each['licence']}")
    all_of_them = describe(brought())
    strange = [each for each in all_of_them if not _FREE.search(each["licence"])]
    print(f"{len(all_of_them)} packages that it asks for by itself, {len(strange)} with a licence to look at")
    for each in strange:
        print(f"  {each['name']}: {each['licence']}")
    return 1 if strange else 0


if __name__ == "__main__":
    sys.exit(main())
