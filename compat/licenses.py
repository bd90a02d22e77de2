"""Checks the licenses of all packages that this one needs, and ends with 1 if one is not permissive."""

from __future__ import annotations

import importlib.metadata
import re
import sys

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


def license_of(name: str) -> str:
    """Return the license that a package declares, in one line."""
    metadata = importlib.metadata.metadata(name)
    classifiers = [
        line.rpartition(" :: ")[2]
        for line in metadata.get_all("Classifier", ())
        if line.startswith("License :: ")
    ]
    names = metadata.get_all("License-Expression") or classifiers or metadata.get_all("License") or ["none"]
    return ", ".join(names).strip().splitlines()[0]


def main() -> int:
    requirements = {Requirement(line) for line in importlib.metadata.distribution(PACKAGE).requires or ()}
    # without those of Airflow alone
    direct = {each.name for each in requirements if each.marker is None} - {AIRFLOW}
    licenses = {name: license_of(name) for each in direct for name in needed(each)}
    unknown = {name: text for name, text in licenses.items() if not _PERMISSIVE.search(text)}
    print(f"{len(licenses)} dependencies, licenses to check: {unknown or 'none'}")
    return 1 if unknown else 0


if __name__ == "__main__":
    sys.exit(main())
