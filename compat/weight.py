"""Lists the packages that this one adds to an installation of Airflow, with their sizes and licenses.

As a program, it prints them for its own environment, and ends with 1 if a license is not on the list.
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
# Licenses that allow use in a closed-source product.
_PERMISSIVE = re.compile(
    r"apache|bsd|isc|\bmit\b|mpl|mozilla public|psf|python software foundation", re.IGNORECASE
)


def needed(name: str) -> set[str]:
    """Return the names of a package and of all its dependencies."""
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


def license_of(distribution: Distribution) -> str:
    """Return the license that a package declares, in one line."""
    metadata = distribution.metadata
    classifiers = [
        line.rpartition(" :: ")[2]
        for line in metadata.get_all("Classifier", ())
        if line.startswith("License :: ")
    ]
    names = metadata.get_all("License-Expression") or classifiers or metadata.get_all("License") or ["none"]
    return ", ".join(names).strip().splitlines()[0]


def size(distribution: Distribution) -> int:
    """Return the bytes of a package on disk, including bytecode."""
    paths = [Path(str(file.locate())) for file in distribution.files or ()]
    return sum(path.stat().st_size for path in paths if path.is_file())


def required() -> set[str]:
    """Return the names of all dependencies of this package, without those of Airflow alone."""
    requirements = {Requirement(line) for line in importlib.metadata.distribution(PACKAGE).requires or ()}
    names = {each.name for each in requirements if each.marker is None and not each.name.startswith(AIRFLOW)}
    return {name for each in names for name in needed(each)}


def describe(names: set[str]) -> list[dict[str, Any]]:
    """Return the ``name``, ``version``, ``size`` in bytes and ``license`` of each package."""
    return [
        {"name": name, "version": found.version, "size": size(found), "license": license_of(found)}
        for name in sorted(names)
        for found in [importlib.metadata.distribution(name)]
    ]


def added() -> list[dict[str, Any]]:
    """Describe the packages that are not dependencies of Airflow."""
    return describe(needed(PACKAGE) - needed(AIRFLOW) - {PACKAGE})


def main() -> int:
    packages = added()
    airflow, total = importlib.metadata.version(AIRFLOW), sum(each["size"] for each in packages)
    print(f"Added to Airflow {airflow}: {len(packages)} packages, {total / 1e6:.1f} MB")
    for each in packages:
        print(f"  {each['name']} {each['version']}: {each['size'] / 1e6:.1f} MB, {each['license']}")
    dependencies = describe(required())
    unknown = [each for each in dependencies if not _PERMISSIVE.search(each["license"])]
    print(f"{len(dependencies)} dependencies, {len(unknown)} with a license to check")
    for each in unknown:
        print(f"  {each['name']}: {each['license']}")
    return 1 if unknown else 0


if __name__ == "__main__":
    sys.exit(main())
