"""Run DAGs with ``dag.test()``, print the states of their tasks, and save what the tasks returned.

Arguments: the emulator's URL; a JSON list of dag_id, options of the emulator, file for the DAG's report, and
conf of the run. The returned values are saved beside the report.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import urllib.request
from pathlib import Path


def main(emulator: str, plan: str) -> None:
    from airflow.cli.cli_parser import get_parser
    from airflow.providers.common.compat.sdk import DAG

    # in this process, since each new one takes seconds to import Airflow
    for command in (["db", "migrate"], ["dags", "reserialize"]):
        arguments = get_parser().parse_args(command)
        arguments.func(arguments)
    folder = Path(os.environ["AIRFLOW__CORE__DAGS_FOLDER"])
    files = sorted(folder.glob("*/rungen_*.py"))
    sys.path[:0] = sorted({str(file.parent) for file in files})
    modules = [importlib.import_module(file.stem) for file in files]
    by_id = {
        value.dag_id: value for module in modules for value in vars(module).values() if isinstance(value, DAG)
    }
    for dag_id, options, report, conf in json.loads(plan):
        request = urllib.request.Request(  # noqa: S310 - the emulator of the test
            f"{emulator}/_emulator/options",
            json.dumps(options).encode(),
            {"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=10).close()  # noqa: S310
        os.environ["RUNGEN_TEST_REPORT"] = report
        run = by_id[dag_id].test(run_conf=conf)
        states = {f"{ti.task_id}[{ti.map_index}]": str(ti.state) for ti in run.get_task_instances()}
        # Airflow 3.1 cannot pull those of mapped tasks: 'Select' object has no attribute 'with_entities'
        single = [ti for ti in run.get_task_instances() if ti.map_index < 0]
        values = {ti.task_id: ti.xcom_pull(task_ids=ti.task_id) for ti in single}
        print("STATES", json.dumps(states), flush=True)
        Path(report).with_suffix(".values").write_text(json.dumps(values, default=str))


if __name__ == "__main__":
    main(*sys.argv[1:])
