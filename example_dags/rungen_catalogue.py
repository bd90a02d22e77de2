"""Every night: paint a picture for each row of a catalogue, and write down where the pictures are."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_rungen.operators import RunGenCollectResultsOperator, RunGenRunJobOperator

HOME = os.environ.get("AIRFLOW_HOME", "~/airflow")
FOLDER = os.environ.get("RUNGEN_CATALOGUE_FOLDER", f"{HOME}/rungen_catalogue")
PRODUCTS = ("a red kettle", "a pair of blue boots", "a walnut desk")

with DAG(
    "rungen_catalogue",
    schedule="0 2 * * *",
    start_date=datetime(2025, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    params={"folder": FOLDER},
    tags=["rungen"],
):

    @task
    def extract() -> list[dict[str, Any]]:
        """Give one job's input for each row; here the rows are made up."""
        size = {"width": 512, "height": 512}
        return [{"prompt": f"{product} on a white background", **size} for product in PRODUCTS]

    @task
    def load(inputs: Any, job_ids: Any, results: Any, params: dict[str, Any] | None = None) -> str:
        """Write the catalogue, and give its path."""
        rows = [
            {"prompt": given["prompt"], "job_id": job_id, "images": result["images"]}
            for given, job_id, result in zip(inputs, job_ids, results, strict=True)
        ]
        target = Path((params or {})["folder"]).expanduser() / "catalogue.json"
        target.parent.mkdir(parents=True, exist_ok=True)
        # whoever can read the file can open the pictures, for seven days
        new = target.with_suffix(".new")
        new.touch(mode=0o600)
        new.write_text(json.dumps(rows, indent=2))
        new.replace(target)
        return str(target)

    inputs = extract()
    # each row is a task that waits in the triggerer, so a job that failed is tried again alone
    paint = RunGenRunJobOperator.partial(
        task_id="paint",
        wait_for_completion=True,
        deferrable=True,
        timeout=3600,
        retries=2,
        retry_delay=timedelta(minutes=1),
    ).expand(input=inputs)
    collect = RunGenCollectResultsOperator(task_id="collect", job_id=paint.output)
    load(inputs, paint.output, collect.output)
