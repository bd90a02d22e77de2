"""Every night, paint a picture for each row of a catalog, store the pictures, and write a table of them."""

from __future__ import annotations

import csv
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.providers.common.compat.sdk import DAG, Asset, ObjectStoragePath, task

from airflow_provider_rungen.operators import RunGenCollectResultsOperator, RunGenRunBatchOperator

HOME = os.environ.get("AIRFLOW_HOME", "~/airflow")
FOLDER = Path(os.environ.get("RUNGEN_CATALOGUE_FOLDER", f"{HOME}/rungen_catalogue")).expanduser()
PICTURES = Asset("rungen_catalogue_pictures")

with DAG(
    "rungen_catalogue",
    schedule="0 2 * * *",
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    default_args={"retries": 2, "retry_delay": timedelta(minutes=1)},
    # both can be in an object store: s3://my-aws-connection@bucket/folder
    params={
        "catalogue": str(Path(__file__).with_name("rungen_catalogue.jsonl")),
        "folder": FOLDER.as_uri(),
    },
    tags=["rungen"],
):
    # one folder for each night, the same for each attempt
    night = (
        "{{ params.folder }}/{{ (dag_run.logical_date or dag_run.run_after).strftime('%Y-%m-%d-%H%M%S') }}"
    )

    paint = RunGenRunBatchOperator(
        task_id="paint",
        inputs="{{ params.catalogue }}",
        input_schema="flux-schnell",
        max_failed=0.1,
        timeout=timedelta(hours=4),
        deferrable=True,
    )
    # the event of the asset contains the folder of the pictures, and their jobs
    land = RunGenCollectResultsOperator(
        task_id="land", job_id=paint.output, destination=night, max_failed=0.1, outlets=[PICTURES]
    )

    @task
    def write_table(stored: Any, catalogue: str, folder: str) -> str:
        """Write a row for each picture, and return the path of the table."""
        table = ObjectStoragePath(folder) / "pictures.csv"
        with ObjectStoragePath(catalogue).open() as lines, table.open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["prompt", "job_id", "picture", "bytes", "sha256"])
            for line, job in zip(lines, stored, strict=True):
                for picture in job["outputs"] if job else ():
                    place = [picture[name] for name in ("uri", "size", "sha256")]
                    rows.writerow([json.loads(line)["prompt"], job and job["job_id"], *place])
        return str(table)

    write_table(land.output, "{{ params.catalogue }}", night)
