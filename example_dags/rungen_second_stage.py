"""Let a language model write scenes, and paint them: the results table of `write` is the table of `paint`."""

import os
from pathlib import Path

from airflow.sdk import DAG
from pydantic import BaseModel

from airflow_provider_rungen.operators import RunGenRunTableOperator

FOLDER = os.environ.get("RUNGEN_FOLDER", f"{Path.home()}/rungen")  # or s3://my-bucket
CHAPTERS = ("the harbor", "the storm", "the first snow")


class Scene(BaseModel):
    scene: str


with DAG(
    "rungen_second_stage",
    description="Let a language model write scenes, and paint them",
    doc_md=__doc__,
    tags=["rungen", "example"],
) as dag:
    write = RunGenRunTableOperator(
        task_id="write",
        table=[{"prompt": f"Write a scene for {chapter}, as JSON"} for chapter in CHAPTERS],
        app_id="my-llm",
        output_type=Scene,
        destination=f"{FOLDER}/scenes",
    )
    paint = RunGenRunTableOperator(
        task_id="paint",
        table=write.output,
        where="completed",
        to_input=lambda row: {"prompt": f"{row['scene']}, watercolor"},
        destination=f"{FOLDER}/scenes",
    )
