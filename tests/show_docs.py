"""Execute the code blocks of the documentation in one process with one database.

The argument is a folder with a ``plan.json``. The outcomes go to ``outcomes.json`` in that folder: the
traceback of each block, or an empty text if it succeeded. How many jobs each of the two runs of a DAG made
goes to ``jobs.json``.
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
    jobs: dict[str, Any] = {}
    for name, (way, what) in plan.items():
        if way == "test":
            continue
        print("=====", name, flush=True)
        try:
            jobs[name] = ways[way](what)
            outcomes[name] = ""
        except (Exception, SystemExit):
            outcomes[name] = traceback.format_exc()
    # the last, since they import some of the DAG files
    outcomes |= run_tests({what: name for name, (way, what) in plan.items() if way == "test"})
    (folder / "outcomes.json").write_text(json.dumps(outcomes))
    (folder / "jobs.json").write_text(
        json.dumps({name: jobs[name] for name in jobs if plan[name][0] == "dag"})
    )


def skip_synchronization() -> None:
    """Stop ``dag.test()`` from parsing and storing all DAGs before each run: they are stored already."""
    try:
        dagbag = importlib.import_module("airflow.dag_processing.dagbag")
    except ImportError:  # Airflow 3.1
        dagbag = importlib.import_module("airflow.models.dagbag")

    for name in ("BundleDagBag", "sync_bag_to_db"):
        if hasattr(dagbag, name):
            setattr(dagbag, name, lambda *_, **__: None)


def run_dags(name: str) -> list[int]:
    """Run the DAGs of a file twice, and return how many jobs each of the two made."""
    from airflow.sdk import DAG

    gc.freeze()  # so that get_objects() lists only what is created from here on
    file = importlib.import_module(name).__file__
    # a `with` block need not name its DAG; isinstance() would trigger lazy imports
    dags = {o.dag_id: o for o in gc.get_objects() if type(o) is DAG and o.fileloc == file}
    assert dags, f"no DAG in {file}"
    made = [count_jobs()]
    for _ in ("with nothing remembered", "with everything"):
        for dag_id, dag in dags.items():
            start_workers()
            run = dag.test()
            states = {f"{ti.task_id}[{ti.map_index}]": str(ti.state) for ti in run.get_task_instances()}
            assert str(run.state) == "success", (dag_id, len(made), states)
            assert "success" in states.values(), (dag_id, len(made), states)
            assert set(states.values()) <= {"success", "skipped"}, (dag_id, len(made), states)
        made.append(count_jobs())
    return [made[1] - made[0], made[2] - made[1]]


def start_workers() -> None:
    """Restore the workers of the apps, which the previous DAG may have scaled down."""
    for app_id in ("flux-schnell", "YOUR-APP-ID", "YOUR-LLM-APP-ID"):
        ask_emulator("workers", {"app_id": app_id, "workers": 4})


def count_jobs() -> int:
    return int(ask_emulator("stats")["jobs_created"])


def ask_emulator(what: str, body: Any = None) -> Any:
    emulator = json.loads(os.environ["AIRFLOW_CONN_RUNGEN_DEFAULT"])["host"]
    data = None if body is None else json.dumps(body).encode()
    with urlopen(f"{emulator}/_emulator/{what}", data, timeout=10) as answer:  # noqa: S310 - the test's own
        return json.load(answer)


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
