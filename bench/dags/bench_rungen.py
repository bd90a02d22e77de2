"""The DAGs that `make bench` runs in a real Airflow."""

from __future__ import annotations

import json
import os
from typing import Any

from airflow.providers.http.operators.http import HttpOperator
from airflow.sdk import dag

from airflow_provider_rungen import operators
from airflow_provider_rungen.sensors import RunGenJobSensor

JOBS = int(os.environ["BENCH_JOBS"])
TASKS = int(os.environ["BENCH_TASKS"])
SENSORS = int(os.environ.get("BENCH_SENSORS", "1"))
_INPUTS = [{"prompt": f"job {place}"} for place in range(JOBS)]


def _batch(**options: Any) -> None:
    operators.RunGenRunBatchOperator(task_id="batch", inputs=_INPUTS, poll_interval=1, **options)


if hasattr(operators, "RunGenRunBatchOperator"):

    @dag(schedule=None, tags=["bench"])
    def bench_batch() -> None:
        _batch(deferrable=False)

    @dag(schedule=None, tags=["bench"])
    def bench_batch_deferrable() -> None:
        _batch(deferrable=True)

    @dag(schedule=None, tags=["bench"])
    def bench_batch_deferred() -> None:
        _batch(deferrable=True, defer_after=0)

    bench_batch()
    bench_batch_deferrable()
    bench_batch_deferred()


def _one_job(**options: Any) -> None:
    operators.RunGenRunJobOperator(
        task_id="job",
        input={"prompt": "one job", "emulator": {"seconds": 2}},
        wait_for_completion=True,
        deferrable=True,
        poll_interval=1,
        **options,
    )


@dag(schedule=None, tags=["bench"])
def bench_job() -> None:
    _one_job()


@dag(schedule=None, tags=["bench"])
def bench_job_deferred() -> None:
    _one_job(defer_after=0)


@dag(schedule=None, tags=["bench"])
def bench_job_deferred_to_the_end() -> None:
    _one_job(defer_after=0, end_from_trigger=True)


bench_job()
bench_job_deferred()
bench_job_deferred_to_the_end()


@dag(schedule=None, tags=["bench"])
def bench_http_tasks() -> None:
    HttpOperator.partial(
        task_id="submit",
        http_conn_id="bench_http",
        endpoint="app/flux-schnell/run_async",
        method="POST",
        headers={"Content-Type": "application/json", "x-api-key": "rungen-emulator-key"},
    ).expand(data=[json.dumps({"input": {"prompt": f"task {place}"}}) for place in range(TASKS)])


bench_http_tasks()


def _sensors(**options: Any) -> None:
    for place in range(SENSORS):
        job_id = f"{{{{ dag_run.conf['ids'][{place}] }}}}"
        RunGenJobSensor(task_id=f"wait_{place}", job_id=job_id, poke_interval=5, **options)


@dag(schedule=None, tags=["bench"])
def bench_sensors_poke() -> None:
    _sensors(deferrable=False, mode="poke")


# few at a time, since a start needs a processor, and a wait needs no worker
@dag(schedule=None, tags=["bench"], max_active_tasks=8)
def bench_sensors_deferrable() -> None:
    _sensors(deferrable=True, defer_after=0)


@dag(schedule=None, tags=["bench"], max_active_tasks=8)
def bench_sensors_straight() -> None:
    _sensors(deferrable=True, start_from_trigger=True, end_from_trigger=True)


bench_sensors_poke()
bench_sensors_deferrable()
bench_sensors_straight()
