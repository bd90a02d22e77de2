"""Runs DAGs of this folder with ``dag.test()`` in a process of its own; prints the states of their tasks.

Arguments: pairs of a dag_id and the emulator's options, as JSON.
"""

from __future__ import annotations

import importlib
import json
import sys
import urllib.request
from pathlib import Path


def main(emulator: str, plan: str) -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    dags = importlib.import_module("rungen_dags")
    by_id = {dag.dag_id: dag for dag in (dags.ways, dags.deferred, dags.failing, dags.retried, dags.scaled)}
    for dag_id, options, report in json.loads(plan):
        request = urllib.request.Request(  # noqa: S310 - the emulator of the test
            f"{emulator}/_emulator/options",
            json.dumps(options).encode(),
            {"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=10).close()  # noqa: S310
        dags.os.environ["RUNGEN_TEST_REPORT"] = report
        run = by_id[dag_id].test()
        states = {f"{ti.task_id}[{ti.map_index}]": str(ti.state) for ti in run.get_task_instances()}
        print("STATES", json.dumps(states), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
