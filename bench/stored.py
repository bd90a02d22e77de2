"""``python -m bench.stored``: measure what a batch leaves in a PostgreSQL database, for docs/sizing.md."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from airflow_provider_rungen.emulator import Emulator
from bench.processes import APP, ROOT

sys.path.append(str(ROOT / "scripts"))
from distributed_airflow import DistributedAirflow

JOBS = 10_000
_DAG = """\
from airflow.sdk import DAG
from airflow_provider_rungen.operators import RunGenRunBatchOperator

with DAG("stored", schedule=None):
    RunGenRunBatchOperator(task_id="batch", inputs="{inputs}", deferrable=True, defer_after=0)
"""
_TIMEOUT = 900.0
# What a batch stores, as text and in its compressed form.
_ROWS = {
    "task_state_store": "SELECT key, length(value), pg_column_size(value) FROM task_state_store",
    "xcom": "SELECT key, length(value::text), pg_column_size(value) FROM xcom",
    "trigger": "SELECT 'kwargs', length(kwargs), pg_column_size(kwargs) FROM trigger",
}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, Emulator(workers=0) as emulator:
        dags = Path(folder) / "dags"
        dags.mkdir()
        inputs = Path(folder) / "inputs.jsonl"
        inputs.write_text("".join(json.dumps({"prompt": f"job {place}"}) + "\n" for place in range(JOBS)))
        (dags / "stored.py").write_text(_DAG.format(inputs=inputs.as_uri()))
        environment = {"AIRFLOW_CONN_RUNGEN_DEFAULT": emulator.airflow_connection()}
        with DistributedAirflow(
            Path(folder) / "home", dags, environment=environment, workers=1, triggerers=1
        ) as airflow:
            began = time.monotonic()
            run_id = airflow.trigger("stored")
            while not airflow.database.query("SELECT id FROM trigger WHERE triggerer_id IS NOT NULL"):
                if time.monotonic() - began > _TIMEOUT:
                    raise RuntimeError("the batch was not deferred in time")
                time.sleep(1)
            print(f"deferred after {time.monotonic() - began:.0f} s on worker-1")
            _tell(airflow)
            emulator.service.scale(APP, JOBS)
            print(airflow.wait_for_run("stored", run_id, _TIMEOUT), emulator.service.stats()["requests"])
            _tell(airflow)


def _tell(airflow: DistributedAirflow) -> None:
    for table, statement in _ROWS.items():
        rows = airflow.database.query(statement)
        [[size, dead]] = airflow.database.query(
            f"SELECT pg_total_relation_size('{table}'), n_tup_upd FROM pg_stat_user_tables "  # noqa: S608 - ours
            f"WHERE relname = '{table}'"
        )
        text, stored = (sum(int(row[place]) for row in rows) for place in (1, 2))
        print(
            f"{table}: {len(rows)} rows, {text} bytes of text, {stored} stored, {dead} updates, {size} in all"
        )
        print("   ", *(" ".join(row) for row in rows[:4]), sep="\n    ")


if __name__ == "__main__":
    main()
