"""Run DAGs of this folder with ``dag.test()``, and print the states of their tasks.

Arguments: the emulator's URL; a JSON list of dag_id, options of the emulator, and file for the DAG's report.
"""

from __future__ import annotations

import importlib
import json
import sys
import urllib.request
from pathlib import Path


def main(emulator: str, plan: str) -> None:
    from airflow.cli.cli_parser import get_parser

    from airflow_provider_rungen._airflow import AIRFLOW_V_3_0_PLUS

    # in this process, since each new one takes seconds to import Airflow
    for command in (["db", "migrate"], ["dags", "reserialize"]):
        arguments = get_parser().parse_args(command)
        arguments.func(arguments)
    if not AIRFLOW_V_3_0_PLUS:  # its migration configures the logging in its own way
        from airflow.logging_config import configure_logging

        configure_logging()  # type: ignore[no-untyped-call]
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
