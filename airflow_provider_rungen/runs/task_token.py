"""The token of a task run, which names its folder."""

from __future__ import annotations

import hashlib

from airflow_provider_rungen.runs import records

_DIGITS = 32


def task_token(
    *,
    base_url: str,
    dag_id: str,
    run_id: str,
    task_id: str,
    map_index: int = -1,
    region: str = "",
) -> str:
    """
    Return what all attempts of a task run have in common, and no other task run.

    :param base_url: the URL of Airflow: staging and production may share a bucket.
    :param region: the place in a task loop, which there is from Airflow 3.4 on.
    """
    task = records.to_json([base_url.rstrip("/"), dag_id, run_id, task_id, map_index, region])
    return hashlib.sha256(task.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]
