"""Writes the outcome of the runs: the page, and its raw figures."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from compat.environments import AIRFLOWS, PRE_RELEASES, PYTHONS, ROOT, matrix

PAGE = ROOT / "docs" / "compatibility.md"
RESULTS = ROOT / "docs" / "compatibility.json"
HEADER = Path(__file__).parent / "header.md"
NOT_RUN = "not run yet"

# A test carries the marker `feature` with the key of what it proves.
FEATURES = {
    "durable": "a retry resumes the job of the attempt before",
    "kill": "a killed task cancels the job it waits for (`cancel_on_kill=True`)",
    "timeout": "`timeout`, and `execution_timeout`, cancel the job",
    "schemas": "`input_schema` and `output_type` are checked",
    "assets": "asset events name the app and the jobs (`outlets`)",
    "lineage": "OpenLineage events name apps and files",
    "form": "the connection form has the extras as fields",
    "test": "*Test* in the connection form sends a request to the service",
}

_FEATURES = """
## Features by version

*yes* means that all tests with the marker of the feature passed in every run with this Airflow. Most of
them run an operator or a trigger alone. `make test-system` kills the parts of a real Airflow 3.3. Its test
that marks a deferred task, and the one that clears a task, also passed on 3.1.
`make test-browser` fills in the connection form, tests the connection and follows the links of a task in the
UI of 3.3. It opens the pages in 3.1, 3.3 and the pre-release 3.4.

"""
_BOUNDS = """
Some versions of Airflow do not work with the newest version of every package. Airflow's own constraint files,
which an installation should use, take that into account. These runs use
`compat/constraints` instead.
"""


def load() -> dict[str, Any]:
    """Return the figures of the earlier runs."""
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
    """Describe the run with the oldest versions that the package allows."""
    [name] = [each.name for each in matrix() if each.is_oldest]
    if name not in runs:
        return ""
    run = runs[name]
    versions = ", ".join(f"{each} {version}" for each, version in run["dependencies"].items())
    return (
        "\nWith the oldest versions that the package allows, "
        f"Airflow {run['airflow']} and {versions}: {_outcome(run)}.\n"
    )


def failures(runs: dict[str, Any]) -> str:
    """List the failed tests by file."""
    lines = []
    for name, run in sorted(runs.items()):
        files = Counter(test.partition("::")[0] for test in run["failures"])
        counts = ", ".join(f"{count} of `{file}`" for file, count in sorted(files.items()))
        lines += [f"- {name}: {counts}\n"] if counts else []
    return "\nFailed tests:\n\n" + "".join(lines) if lines else ""


def features_table(runs: dict[str, Any]) -> str:
    rows = [["", *AIRFLOWS, "limits"]]
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


def _cell(seen: list[dict[str, Any]]) -> str:
    passed, failed = (sum(each.get(name, 0) for each in seen) for name in ("passed", "failed"))
    if failed:
        return "**fails**"
    if any(each.get("skipped") for each in seen):
        return "in part" if passed else "no"
    return "yes" if passed else NOT_RUN


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
