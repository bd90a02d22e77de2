"""
Submit jobs, do something else, and collect what they made.

`fire` ends when its job is accepted. `wait` waits in the triggerer, without a worker slot. `collect` stores
the pictures.
"""

import os
from pathlib import Path

from airflow.sdk import DAG

from airflow_provider_rungen.operators import RunGenCollectResultsOperator, RunGenRunJobOperator
from airflow_provider_rungen.sensors import RunGenJobSensor

FOLDER = os.environ.get("RUNGEN_FOLDER", f"{Path.home()}/rungen")  # or s3://my-bucket

with DAG(
    "rungen_fire_and_collect",
    description="Submit jobs, wait for them, and collect what they made",
    doc_md=__doc__,
    tags=["rungen", "example"],
) as dag:
    fire = RunGenRunJobOperator.partial(task_id="fire").expand(
        input=[{"prompt": f"a {color} boat"} for color in ("red", "green")]
    )
    wait = RunGenJobSensor(task_id="wait", job_id=fire.output, poke_interval=5, deferrable=True)
    collect = RunGenCollectResultsOperator(
        task_id="collect", job_id=fire.output, destination=f"{FOLDER}/boats"
    )
    wait >> collect
