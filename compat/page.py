"""Writes what came of the runs: the page, and its raw figures."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from compat.environments import AIRFLOWS, PRE_RELEASES, PYTHONS, ROOT, matrix
from compat.private_names import PRIVATE_NAMES, PrivateName

PAGE = ROOT / "docs" / "compatibility.md"
RESULTS = ROOT / "docs" / "compatibility.json"
HEADER = Path(__file__).parent / "header.md"
NOT_RUN = "not run yet"

# A test carries the marker `feature` with the key of what it proves.
FEATURES = {
    "durable": "a retry takes up the job of the attempt before (`durable=True`)",
    "kill": "a killed worker cancels the job it waits for (`cancel_on_kill=True`)",
    "timeout": "`timeout`, and `execution_timeout`, cancel the job",
    "end": "a success ends in the triggerer (`end_from_trigger=True`)",
    "start": "a sensor begins in the triggerer (`start_from_trigger=True`)",
    "schemas": "`input_schema` and `result_schema` are checked",
    "assets": "asset events tell app and jobs (`outlets`)",
    "lineage": "OpenLineage is told of apps and files",
    "form": "the connection form has the extras as fields",
    "test": "*Test* in the connection form asks the service",
}

_FEATURES = """
## What degrades where

Made of the tests that prove a feature and carry its marker: *yes* means that all of them passed wherever
this Airflow ran. Most of them run an operator or a trigger by itself. `make test-system` kills the parts of
a real Airflow, on 3.3; of its tests, one that marks a deferred task passed on 3.0 and 3.1, too, and the one
that clears it on 3.1. `make test-browser` fills in the connection form, tests the connection and follows the
links of a task in the UI of 3.3 and of 2.11.

"""
_BOUNDS = """
Not every Airflow works with the newest of everything. Airflow's own constraint files, which an installation
should use, know that; here the bounds in [compat/constraints](../compat/constraints) do.
"""
_PRIVATE = """
## What Airflow does not document

The package needs these names of Airflow, which are not part of Airflow's public interface: a release may move
them. The tests look each up on every Airflow they run on. *From* and *before* are the versions that the
package uses a name on.

"""
_ADDED = """
## What it adds to an installation

Packages that Airflow does not bring by itself; sizes are those on disk, bytecode included. The licences of
all that the package asks for are looked at in each run of the checks.

"""


def load() -> dict[str, Any]:
    """Read what the runs before have left."""
    if RESULTS.exists():
        results: dict[str, Any] = json.loads(RESULTS.read_text())
        return results
    return {"runs": {}}


def write(results: dict[str, Any]) -> None:
    """Write the page and the figures."""
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    parts = [
        f"{HEADER.read_text()}\n",
        runs_table(results["runs"]),
        oldest(results["runs"]),
        failures(results["runs"]),
        _BOUNDS,
        _FEATURES,
        features_table(results["runs"]),
        skips(results["runs"]),
        _PRIVATE,
        private_names_table(),
        _ADDED,
        added_table(results["runs"]),
    ]
    PAGE.write_text("".join(parts))


def runs_table(runs: dict[str, Any]) -> str:
    rows = [["Airflow", *(f"Python {python}" for python in PYTHONS)]]
    for airflow in AIRFLOWS:
        cells = []
        for python in PYTHONS:
            run = runs.get(f"{airflow}-py{python}")
            if python not in AIRFLOWS[airflow]:
                cells.append("not tested" if airflow in PRE_RELEASES else "not supported by Airflow")
            else:
                cells.append(_outcome(run) if run else NOT_RUN)
        rows.append([_patch(runs, airflow), *cells])
    return _table(rows)


def oldest(runs: dict[str, Any]) -> str:
    """Tell how it went with the oldest versions that the package names."""
    [name] = [each.name for each in matrix() if each.is_oldest]
    if name not in runs:
        return ""
    run = runs[name]
    versions = ", ".join(f"{each} {version}" for each, version in run["dependencies"].items())
    return (
        "\nWith the oldest versions that the package says it works with, "
        f"Airflow {run['airflow']} and {versions}: {_outcome(run)}.\n"
    )


def failures(runs: dict[str, Any]) -> str:
    """Tell what failed, by file."""
    lines = []
    for name, run in sorted(runs.items()):
        files = Counter(test.partition("::")[0] for test in run["failures"])
        told = ", ".join(f"{count} of `{file}`" for file, count in sorted(files.items()))
        remark = f": {run['remark']}" if "remark" in run else ""  # by whoever has looked into it
        lines += [f"- {name}: {told}{remark}\n"] if told else []
    return "\nWhat failed:\n\n" + "".join(lines) if lines else ""


def features_table(runs: dict[str, Any]) -> str:
    rows = [["", *AIRFLOWS, "where not"]]
    for key, title in FEATURES.items():
        cells, reasons = [], []
        for airflow in AIRFLOWS:
            seen = [
                run["features"].get(key, {}) for name, run in runs.items() if name.startswith(f"{airflow}-")
            ]
            cells.append(_cell(seen))
            reasons += [reason for each in seen for reason in each.get("skipped", ())]
        if set(cells) != {NOT_RUN}:
            rows.append([title, *cells, "; ".join(dict.fromkeys(reasons))])
    return _table(rows)


def added_table(runs: dict[str, Any]) -> str:
    rows = [["Airflow", "packages", "megabytes", "which, and their licences"]]
    of_airflow = {run["airflow"]: run["added"] for run in runs.values() if "added" in run}
    for airflow, packages in sorted(of_airflow.items()):
        told = ", ".join(f"{each['name']} ({each['licence']})" for each in packages) or "none"
        megabytes = sum(each["size"] for each in packages) / 1e6
        rows.append([airflow, str(len(packages)), f"{megabytes:.1f}", told])
    return _table(rows)


def private_names_table() -> str:
    rows = [["name", "needed for", "from", "before", "seen in"]]
    for name in PRIVATE_NAMES:
        versions = (".".join(map(str, each)) for each in (name.since, name.before))
        since, before = versions if name.before < PrivateName.before else (next(versions), "")
        rows.append([f"`{name.path}`", name.use, since, before, name.seen])
    return _table(rows)


def _cell(seen: list[dict[str, Any]]) -> str:
    passed, failed = (sum(each.get(name, 0) for each in seen) for name in ("passed", "failed"))
    if failed:
        return "**fails**"
    if any(each.get("skipped") for each in seen):
        return "in part" if passed else "no"
    return "yes" if passed else NOT_RUN


def skips(runs: dict[str, Any]) -> str:
    """Tell why tests were skipped, and where."""
    where: dict[str, list[str]] = {}
    for name, run in runs.items():
        for reason in run["reasons"]:
            where.setdefault(reason, []).append(name)
    lines = [
        f"- {reason}: {'everywhere' if set(names) == set(runs) else ', '.join(sorted(names))}\n"
        for reason, names in sorted(where.items())
    ]
    return "\nTests were skipped because:\n\n" + "".join(lines) if lines else ""


def _outcome(run: dict[str, Any]) -> str:
    failed = f"**{run['failed']} failed**" if run["failed"] else "0 failed"
    return f"{run['passed']} passed, {run['skipped']} skipped, {failed} ({run['python']}, {run['day']})"


def _patch(runs: dict[str, Any], airflow: str) -> str:
    names = (f"{airflow}-py{python}" for python in PYTHONS)
    versions = [runs[name]["airflow"] for name in names if name in runs]
    remark = " (pre-release)" if airflow in PRE_RELEASES else ""
    return (", ".join(dict.fromkeys(versions)) or PRE_RELEASES.get(airflow, airflow)) + remark


def _table(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    lines.insert(1, f"|{' --- |' * len(rows[0])}")
    return "\n".join(lines) + "\n"
