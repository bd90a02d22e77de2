"""Execute the code blocks of the documentation in one process with one database.

The argument is a folder with a ``plan.json``. The outcomes go to ``outcomes.json`` in that folder: the
traceback of each block, or an empty text if it succeeded.
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
    # in this process, since each new one takes seconds to import Airflow
    for command in (["db", "migrate"], ["dags", "reserialize"]):
        arguments = get_parser().parse_args(command)
        arguments.func(arguments)
    skip_synchronization()
    ways: dict[str, Callable[[Any], Any]] = {
        "dag": run_dags,
        "script": runpy.run_path,
        "command": get_parser().parse_args,
    }
    outcomes: dict[str, str] = {}
    for name, (way, what) in plan.items():
        if way == "test":
            continue
        print("=====", name, flush=True)
        try:
            ways[way](what)
            outcomes[name] = ""
        except (Exception, SystemExit):
            outcomes[name] = traceback.format_exc()
    # the last, since they import some of the DAG files
    outcomes |= run_tests({what: name for name, (way, what) in plan.items() if way == "test"})
    (folder / "outcomes.json").write_text(json.dumps(outcomes))


def skip_synchronization() -> None:
    """Stop ``dag.test()`` from parsing and storing all DAGs before each run: they are stored already."""
    from airflow.dag_processing import dagbag

    for name in ("BundleDagBag", "sync_bag_to_db"):
        if hasattr(dagbag, name):
            setattr(dagbag, name, lambda *_, **__: None)


def run_dags(name: str) -> None:
    from airflow.sdk import DAG

    gc.freeze()  # so that get_objects() lists only what is created from here on
    file = importlib.import_module(name).__file__
    # a `with` block need not name its DAG; isinstance() would trigger lazy imports
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
    """Restore the workers of the apps, which the previous DAG may have scaled down."""
    emulator = json.loads(os.environ["AIRFLOW_CONN_RUNGEN_DEFAULT"])["host"]
    for app_id in ("flux-schnell", "YOUR-APP-ID", "YOUR-LLM-APP-ID"):
        body = json.dumps({"app_id": app_id, "workers": 4}).encode()
        with urlopen(f"{emulator}/_emulator/workers", body, timeout=10):  # noqa: S310 - the test's own
            pass


def run_tests(names: dict[str, str]) -> dict[str, str]:
    """Run test files, and return the failures of each."""
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
