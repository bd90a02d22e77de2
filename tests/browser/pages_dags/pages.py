"""Tasks whose pages the tests open."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any

from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG

from airflow_provider_rungen.operators import RunGenRunTableOperator

APP = "flux-schnell"
FOLDER = os.environ.get("PAGES_FOLDER", "/tmp")  # noqa: S108 - the tests set it
THINGS = ("lighthouse", "harbor", "windmill", "orchard", "glacier", "market", "bridge", "meadow")
LIGHTS = ("at dawn", "in the rain", "under a full moon", "in thick fog", "on a bright winter morning")
ARGUMENTS: dict[str, Any] = {"start_date": datetime(2025, 1, 1, tzinfo=UTC), "schedule": None}
BATCH: dict[str, Any] = {"app_id": APP, "deferrable": True, "max_failed": 1000}


def scene(number: int) -> dict[str, Any]:
    thing, light = THINGS[number % len(THINGS)], LIGHTS[number % len(LIGHTS)]
    size = {"width": 320, "height": (224, 320, 416)[number % 3]}
    return {"prompt": f"a {thing} {light}", **size, "seed": 1000 + number}


with DAG("gallery", **ARGUMENTS):
    RunGenRunTableOperator(
        task_id="paint",
        table=[scene(number) for number in range(200)],
        destination=f"file://{FOLDER}/gallery",
        **BATCH,
    )

with DAG("moving", **ARGUMENTS):
    RunGenRunTableOperator(
        task_id="paint",
        table=[scene(number) | {"emulator": {"seconds": 6 + 6 * number}} for number in range(12)],
        results=f"file://{FOLDER}/moving/results.jsonl",
        **BATCH,
    )

with DAG("many", **ARGUMENTS):
    RunGenRunTableOperator(
        task_id="paint",
        table=[{"sku": f"sku-{number}", "prompt": f"thing {number}"} for number in range(10_000)],
        key="sku",
        to_input=lambda row: {"prompt": row["prompt"], "width": 64, "height": 64},
        results=f"file://{FOLDER}/many/results.jsonl",
        **{name: value for name, value in BATCH.items() if name != "max_failed"},
    )

with DAG("other", **ARGUMENTS):
    PythonOperator(task_id="paint", python_callable=lambda: None)
