"""Mistakes in parameters that are found when a DAG is parsed, and what must not be taken for one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, ObjectStoragePath, task
from conftest import run_task
from rungen_emulator import Emulator

from airflow_provider_rungen.decorators import rungen_table_task, rungen_task
from airflow_provider_rungen.operators import (
    RunGenCollectResultsOperator,
    RunGenCreateAppOperator,
    RunGenRunJobOperator,
    RunGenRunTableOperator,
    RunGenScaleAppOperator,
    scaled_app,
)
from airflow_provider_rungen.sensors import RunGenAppSensor


def job(**options: Any) -> Any:
    return RunGenRunJobOperator(**{"task_id": "x", "input": {"prompt": "x"}, **options})


def table(**options: Any) -> Any:
    return RunGenRunTableOperator(
        **{"task_id": "x", "table": "s3://b/t.csv", "destination": "/photos", **options}
    )


def collect(**options: Any) -> Any:
    return RunGenCollectResultsOperator(task_id="x", job_id="y", **options)


def app(**configuration: Any) -> Any:
    workflow = {"model_url": "https://x"}
    return RunGenCreateAppOperator(task_id="x", name="x", configuration=configuration, workflow=workflow)


@task
def give() -> Any:
    return {"prompt": "x"}


def picture(row: Any = None) -> Any:
    return {"prompt": "x"}


# --- values -------------------------------------------------------------------------------------------------


NOWHERE = "must be a URI or an absolute path"


@pytest.mark.parametrize(
    ("kind", "name", "values", "message"),
    [
        (job, "input", [42], r"input must be an object \(a dict\), a template .*, but it is a int"),
        (job, "input", [None, "a lighthouse", ["a lighthouse"], Path("in.json")], "input must be an object"),
        (table, "destination", ["pictures"], f"destination {NOWHERE}, not 'pictures'"),
        (table, "destination", [Path("pictures"), "./pictures"], f"destination {NOWHERE}"),
        (table, "results", ["results.csv"], f"results {NOWHERE}, not 'results.csv'"),
        (collect, "destination", ["pictures"], f"destination {NOWHERE}"),
        (table, "results", [Path("results.csv")], f"results {NOWHERE}"),
        (app, "gpu_tier", ["HUGE"], "configuration: gpu_tier must be one of BASIC, .*, not 'HUGE'"),
    ],
)
def test_a_literal_mistake_is_found_when_the_dag_is_parsed(
    kind: Any, name: str, values: list[Any], message: str
) -> None:
    for value in values:
        with pytest.raises(ValueError, match=message):
            kind(**{name: value})


INPUT = {"prompt": "x"}
FOLDERS = ["{{ params.folder }}", "file:///pictures", "/pictures", Path("/pictures")]
TABLE_OF_THE_WORKER = "prompts.csv"


@pytest.mark.parametrize(("name", "value"), [("check", 5), ("to_input", {"prompt": "x"})])
def test_what_is_no_function_is_found_when_the_dag_is_parsed(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} must be a function, but it is a "):
        table(**{name: value})


@pytest.mark.parametrize(
    ("kind", "name", "values"),
    [
        (
            job,
            "input",
            ["{{ params.input }}", "{% if x %}{}{% endif %}", {"prompt": "{{ ds }}", "width": "{{ w }}"}],
        ),
        (table, "table", [TABLE_OF_THE_WORKER, [INPUT], (INPUT for _ in range(3)), []]),
        (table, "destination", [*FOLDERS, ObjectStoragePath("file:///pictures")]),
        (table, "results", ["s3://conn@bucket/{{ ds }}/results.csv"]),
        (app, "gpu_tier", ["BASIC", "{{ params.tier }}"]),
        (app, "location", ["x"]),  # the rest is checked when the task runs
    ],
)
def test_what_may_be_right_is_not_refused(kind: Any, name: str, values: list[Any]) -> None:
    for value in values:
        assert kind(**{name: value})


def test_the_output_of_a_task_is_not_refused() -> None:
    with DAG("d", schedule=None, params={"input": {"prompt": "x"}}) as dag:
        output: Any = give()
        job(input=output)
        job(task_id="y", input=dag.param("input"))
        table(task_id="z", table=output, destination=output["folder"])
        RunGenCreateAppOperator(task_id="b", name="x", configuration=output, workflow=output)


def test_a_class_with_files_of_templates_may_name_one() -> None:
    class OfFiles(RunGenRunJobOperator):
        template_ext = (".json",)

    with DAG("d", schedule=None, template_searchpath="/tmp"):  # noqa: S108 - nothing is read
        assert OfFiles(task_id="x", input="input.json")


def test_a_mapped_task_is_checked_when_it_runs(rungen_emulator: Emulator, context: Any) -> None:
    with DAG("d", schedule=None):
        mapped: Any = RunGenRunJobOperator.partial(task_id="x").expand(input=[{"prompt": "x"}, 42])
        RunGenRunJobOperator.partial(task_id="y").expand(input=give())
    arguments = mapped.unmap({"input": 42})
    error = run_task(arguments, context).error
    assert type(error).__name__ == "AirflowFailException"
    assert "input must be a JSON object (a dict)" in str(error)


# --- names --------------------------------------------------------------------------------------------------


SCALED: Any = scaled_app
DECORATOR: Any = rungen_task
OF_TABLES: Any = rungen_table_task


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: job(inputt={}), "RunGenRunJobOperator has no parameter 'inputt': use 'input'"),
        (lambda: job(zzz=1), "RunGenRunJobOperator has no parameter 'zzz'$"),
        (lambda: job(retires=3), "no parameter 'retires': use 'retries'"),
        (lambda: RunGenAppSensor(task_id="x", poke_intervall=3), "use 'poke_interval'"),  # type: ignore[call-arg]
        (lambda: SCALED(deferable=1), "scaled_app has no parameter 'deferable': use 'deferrable'"),
        (DECORATOR(retires=1)(picture), "@task.rungen has no parameter 'retires': use 'retries'"),
        (DECORATOR()(picture).override(app="x"), "@task.rungen has no parameter 'app'"),
        (
            OF_TABLES(table=[], key="x", result="/x.csv", destination="/x")(picture),
            "@task.rungen_table has no parameter 'result': use 'results'",
        ),
    ],
)
def test_a_misspelled_parameter_is_named_as_its_user_knows_it(make: Any, message: str) -> None:
    with DAG("d", schedule=None), pytest.raises(TypeError, match=message):
        make()


def test_parameters_of_airflow_are_known() -> None:
    with DAG("d", schedule=None, default_args={"owner": "me", "zzz": 1}):
        assert job(retries=3, pool="x", outlets=[], do_xcom_push=False).owner == "me"
        RunGenScaleAppOperator.partial(task_id="y", retries=1).expand(active_workers=[1])
        with scaled_app("gpu", 2, timeout=5, retries=1):
            pass
