"""A pytest plugin that records the outcome of a run: counts, reasons of skips, and features that passed."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from compat.environments import measured_at, own_dependencies


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", type=Path, help="the JSON file to write the outcome to")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--record")
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(path), "rungen-recorder")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Send the features of each test with its reports, since the process that records may be another one."""
    for item in items:
        item.user_properties += [("feature", mark.args[0]) for mark in item.iter_markers("feature")]


class Recorder:
    """Counts the tests of a session, and writes the counts to a file at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._features: dict[str, list[str]] = {}
        self._outcomes: dict[str, str] = {}
        self._reasons: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        outcome = self._outcomes.setdefault(report.nodeid, "passed")
        self._features[report.nodeid] = [
            str(value) for name, value in report.user_properties if name == "feature"
        ]
        if report.failed:
            self._outcomes[report.nodeid] = "failed"
        elif report.skipped and outcome == "passed":
            self._outcomes[report.nodeid] = "skipped"
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self._reasons[report.nodeid] = reason.removeprefix("Skipped: ")

    def pytest_sessionfinish(self) -> None:
        counts = Counter(self._outcomes.values())
        features: dict[str, dict[str, Any]] = {}
        for test, names in self._features.items():
            for name in names:
                seen = features.setdefault(name, {"passed": 0, "failed": 0, "skipped": []})
                if (outcome := self._outcomes[test]) != "skipped":
                    seen[outcome] += 1
                elif self._reasons[test] not in seen["skipped"]:
                    seen["skipped"].append(self._reasons[test])
        ours = {name: importlib.metadata.version(name) for name in own_dependencies()}
        record = {
            "airflow": importlib.metadata.version("apache-airflow"),
            "python": platform.python_version(),
            "day": measured_at(),
            "dependencies": ours,
            "passed": counts["passed"],
            "failed": counts["failed"],
            "skipped": counts["skipped"],
            "failures": sorted(test for test, outcome in self._outcomes.items() if outcome == "failed"),
            "features": dict(sorted(features.items())),
        }
        self.path.write_text(json.dumps(record, indent=1) + "\n")
