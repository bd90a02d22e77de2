"""Calls that a type checker rejects. Where it accepts one, mypy fails: its ``type: ignore`` is unused."""

from __future__ import annotations

from airflow_provider_rungen.operators import (
    RunGenCancelJobOperator,
    RunGenCollectResultsOperator,
    RunGenCreateAppOperator,
    RunGenDeleteAppOperator,
    RunGenRunJobOperator,
    RunGenRunTableOperator,
    RunGenScaleAppOperator,
    SqlRows,
    scaled_app,
)
from airflow_provider_rungen.results import read_results
from airflow_provider_rungen.sensors import RunGenAppSensor, RunGenJobSensor


def misspelled() -> None:
    RunGenCancelJobOperator(task_id="x", job_id="x", app="x")  # type: ignore[call-arg]
    RunGenCollectResultsOperator(task_id="x", job_id="x", destinaton="x")  # type: ignore[call-arg]
    RunGenCreateAppOperator(task_id="x", name="x", configuration={}, workflow={}, exists="x")  # type: ignore[call-arg]
    RunGenDeleteAppOperator(task_id="x", app_id="x", poll_intervall=5)  # type: ignore[call-arg]
    RunGenRunTableOperator(task_id="x", table=[], destination="x", max_fail=1)  # type: ignore[call-arg]
    RunGenRunJobOperator(task_id="x", input={}, wait=True)  # type: ignore[call-arg]
    RunGenRunTableOperator(task_id="x", table=[], destination="x", result="x")  # type: ignore[call-arg]
    RunGenScaleAppOperator(task_id="x", active_workers=1, workers=1)  # type: ignore[call-arg]
    RunGenAppSensor(task_id="x", app_id="x", poke_intervall=5)  # type: ignore[call-arg]
    RunGenJobSensor(task_id="x", job_id="x", softfail=True)  # type: ignore[call-arg]
    scaled_app("x", 1, drained=True)  # type: ignore[call-arg]
    read_results("x").rows(state="failed")  # type: ignore[call-arg]
    SqlRows("x", "x", params=[])  # type: ignore[call-arg]


def misspelled_parameter_of_airflow() -> None:
    RunGenRunJobOperator(task_id="x", input={}, retires=3)  # type: ignore[call-arg]


def missing() -> None:
    RunGenRunJobOperator(task_id="x")  # type: ignore[call-arg]
    RunGenRunJobOperator(input={})  # type: ignore[call-arg]
    RunGenRunTableOperator(task_id="x", table=[])  # type: ignore[call-arg]


def wrong_type() -> None:
    RunGenRunJobOperator(task_id="x", input={}, timeout="1h")  # type: ignore[arg-type]
    RunGenRunJobOperator(task_id="x", input=["prompt"])  # type: ignore[arg-type]
    RunGenRunTableOperator(task_id="x", table=[5], destination="x")  # type: ignore[list-item]
    RunGenRunTableOperator(task_id="x", table=5, destination="x")  # type: ignore[arg-type]
    RunGenRunTableOperator(task_id="x", table=[], destination="x", max_in_flight="all")  # type: ignore[arg-type]
    RunGenRunTableOperator(task_id="x", table=[], destination="x", reuse=90)  # type: ignore[arg-type]
    RunGenJobSensor(task_id="x", job_id=5)  # type: ignore[arg-type]
    read_results(["x"])  # type: ignore[arg-type]
    read_results("x").rows(status=5)  # type: ignore[arg-type]
