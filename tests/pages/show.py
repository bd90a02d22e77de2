"""Does what the pages show, in one process with one database, and writes down how each went.

The argument is a folder with a ``plan.json``; the outcomes go to ``outcomes.json`` beside it, an empty text
for what went well.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen


def main(folder: Path) -> None:
    from airflow.cli.cli_parser import get_parser

    plan = json.loads((folder / "plan.json").read_text())
    sys.path.insert(0, str(folder))
    # commands, without the start of a process for each
    for command in (["db", "migrate"], ["dags", "reserialize"]):
        arguments = get_parser().parse_args(command)
        arguments.func(arguments)
    ways: dict[str, Callable[[Any], Any]] = {
        "dag": run_dags,
        "script": runpy.run_path,
        "command": get_parser().parse_args,
    }
    outcomes = run_tests({what: name for name, (way, what) in plan.items() if way == "test"})
    for name, (way, what) in plan.items():
        if name in outcomes:
            continue
        print("=====", name, flush=True)
        try:
            ways[way](what)
            outcomes[name] = ""
        except (Exception, SystemExit):
            outcomes[name] = traceback.format_exc()
    (folder / "outcomes.json").write_text(json.dumps(outcomes))


def run_dags(name: str) -> None:
    from airflow.sdk import DAG

    file = importlib.import_module(name).__file__
    # a `with` block need not name its DAG; isinstance() would wake up what is imported lazily
    dags = {o.dag_id: o for o in gc.get_objects() if type(o) is DAG and o.fileloc == file}
    assert dags, f"no DAG in {file}"
    for dag_id, dag in dags.items():
        start_workers()
        run = dag.test()
        states = {f"{ti.task_id}[{ti.map_index}]": str(ti.state) for ti in run.get_task_instances()}
        assert str(run.state) == "success", (dag_id, states)
        assert "success" in states.values(), (dag_id, states)
        assert set(states.values()) <= {"success", "skipped"}, (dag_id, states)


def start_workers() -> None:
    """Give the apps their workers back, which the DAG before may have taken away."""
    emulator = json.loads(os.environ["AIRFLOW_CONN_RUNGEN_DEFAULT"])["host"]
    for app_id in ("flux-schnell", "YOUR-APP-ID", "YOUR-LLM-APP-ID"):
        body = json.dumps({"app_id": app_id, "workers": 4}).encode()
        with urlopen(f"{emulator}/_emulator/workers", body, timeout=10):  # noqa: S310 - the test's own
            pass


def run_tests(names: dict[str, str]) -> dict[str, str]:
    """Run the files of tests, and give what failed in each."""
    import pytest

    outcomes: dict[str, str] = {}

    class Reporter:
        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            name = names["/" + report.nodeid.partition("::")[0]]
            outcomes[name] = outcomes.get(name, "") + (report.longreprtext if report.failed else "")

    options = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", "/"]
    code = pytest.main([*options, *names], plugins=[Reporter()])
    assert code in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED), code
    return outcomes


if __name__ == "__main__":
    main(Path(sys.argv[1]))
