"""Mistakes in parameters that are found when a DAG is parsed, and what must not be taken for one."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, ObjectStoragePath, task
from conftest import run_task
from rungen_emulator import Emulator

from airflow_provider_rungen.decorators import rungen_table_task, rungen_task
from airflow_provider_rungen.exceptions import RunGenInputError
from airflow_provider_rungen.operators import (
    RunGenCancelJobOperator,
    RunGenCollectResultsOperator,
    RunGenCreateAppOperator,
    RunGenDeleteAppOperator,
    RunGenPlanTableOperator,
    RunGenRunJobOperator,
    RunGenRunTableOperator,
    RunGenScaleAppOperator,
    scaled_app,
)
from airflow_provider_rungen.sensors import RunGenAppSensor, RunGenJobSensor


def job(**options: Any) -> Any:
    return RunGenRunJobOperator(**{"task_id": "x", "input": {"prompt": "x"}, **options})


def table(**options: Any) -> Any:
    return RunGenRunTableOperator(
        **{"task_id": "x", "table": "s3://b/t.csv", "destination": "/photos", **options}
    )


def plan(**options: Any) -> Any:
    return RunGenPlanTableOperator(task_id="x", table=[], destination="/photos", **options)


def collect(**options: Any) -> Any:
    return RunGenCollectResultsOperator(**{"task_id": "x", "job_id": "y", **options})


def cancel(**options: Any) -> Any:
    return RunGenCancelJobOperator(**{"task_id": "x", "job_id": "y", **options})


def wait(**options: Any) -> Any:
    return RunGenJobSensor(**{"task_id": "x", "job_id": "y", **options})


def app(**options: Any) -> Any:
    own: dict[str, Any] = {"configuration": {"gpu_tier": "BASIC"}, "workflow": {"model_url": "https://x"}}
    return RunGenCreateAppOperator(**{"task_id": "x", "name": "x", **own, **options})


def scale(**options: Any) -> Any:
    return RunGenScaleAppOperator(**{"task_id": "x", "active_workers": 1, **options})


def delete(**options: Any) -> Any:
    return RunGenDeleteAppOperator(**{"task_id": "x", "app_id": "gpu", **options})


def look(**options: Any) -> Any:
    return RunGenAppSensor(task_id="x", **options)


OWNERS = {
    job: "RunGenRunJobOperator",
    table: "RunGenRunTableOperator",
    plan: "RunGenPlanTableOperator",
    collect: "RunGenCollectResultsOperator",
    cancel: "RunGenCancelJobOperator",
    wait: "RunGenJobSensor",
    app: "RunGenCreateAppOperator",
    scale: "RunGenScaleAppOperator",
    delete: "RunGenDeleteAppOperator",
    look: "RunGenAppSensor",
}
EVERY = list(OWNERS)


@task
def give() -> Any:
    return {"prompt": "x"}


def picture(row: Any = None) -> Any:
    return {"prompt": "x"}


# --- values -------------------------------------------------------------------------------------------------


NOWHERE = "must be a URI or an absolute path"
FLAG = "must be True or False, not "
COUNT = "must be a positive whole number, not "
TEXT = "must be a text, not "
SECONDS = "must be a positive number of seconds or a timedelta, not "
COLUMNS = "must be the name of a column, or several, not "
REUSE = "must be True, False or a positive timedelta, not "
ROWS = "must be rows, the URI of files, SqlRows or a function, but it is a "
SHARE = "must be a whole number, a share below 1, or 'any', not "
OBJECT = "must be an object (a dict), a template or a task's output, but it is a "
IDS = "must be the id of a job, a list of ids, or the output of a task, not "


@pytest.mark.contract
@pytest.mark.parametrize(
    ("kind", "name", "values", "message"),
    [
        (job, "input", [42, None, "a lighthouse", ["a lighthouse"], Path("in.json")], OBJECT),
        (table, "destination", ["pictures", Path("pictures"), "./pictures", "", None, 5], NOWHERE),
        (table, "results", ["results.csv", Path("results.csv"), 5], NOWHERE),
        (collect, "destination", ["pictures"], NOWHERE),
        (app, "configuration", ["BASIC", None, {"gpu_tier": "HUGE"}], ""),
        (app, "workflow", ["https://x", None], OBJECT),
        (app, "name", [None, "", 5], "must be a text that is not empty, not "),
        (app, "description", [5], TEXT),
        *((kind, "rungen_conn_id", [None, 5, ""], "must be a text") for kind in EVERY),
        *((kind, "app_id", [5, ["flux"]], TEXT) for kind in EVERY if kind is not app),
        (delete, "app_id", [None], TEXT),
        *((kind, "deferrable", ["yes", 1, None], FLAG) for kind in (job, table, collect, scale, wait, look)),
        *((kind, "cancel_on_kill", ["no", None], FLAG) for kind in (job, table, collect, wait)),
        *((kind, "wait_for_completion", ["yes", None], FLAG) for kind in (job, collect)),
        *((kind, "poll_interval", [0, "5", None], SECONDS) for kind in (job, table, collect, scale, delete)),
        *((kind, "timeout", [-1, "1 h", None], SECONDS) for kind in (job, table, collect, scale, delete)),
        *((kind, "queued_timeout", [0, "1 h"], SECONDS) for kind in (job, table, collect, wait)),
        *((kind, "output_type", [5, "flux-schnel"], "") for kind in (table, collect, wait)),
        *((kind, "job_id", [5, "", None, ["a", 5], {"a": 1}], IDS) for kind in (collect, wait, cancel)),
        *((kind, "max_failed", [-1, 1.5, "some", None, True], SHARE) for kind in (table, collect)),
        *((kind, "input_schema", [5, "flux-schnel"], "") for kind in (job, table)),
        (job, "label", [5], TEXT),
        (look, "status", [5, None], TEXT),
        (scale, "active_workers", [-1, 1.5, "many", True, None], "must be a whole number from 0, not "),
        (scale, "only_if", [-1, 1.5, "many", []], "must be a whole number from 0, not "),
        (table, "table", [5, b"rows", None], ROWS),
        (table, "key", [None, 5, ["sku", ""], [1]], COLUMNS),
        (table, "key", [["sku", "sku"]], "has a name twice"),
        (table, "columns", [None, 5], COLUMNS),
        (table, "where", [None, 5], "must be a status, or several, not "),
        (table, "to_input", [{"prompt": "x"}], "must be a function, but it is a dict"),
        (table, "check", [5], "must be a function, but it is a int"),
        (table, "version", [2, None, ["v2"]], TEXT),
        (table, "reuse", ["sometimes", None, 1, 3600, timedelta()], REUSE),
        (table, "per_row", ["yes", 1, None], FLAG),
        (table, "max_attempts", [0, "3", 1.0, True, None], COUNT),
        (table, "max_in_flight", [0, "1", True], COUNT),
        (scale, "max_workers", [0, "1", True], COUNT),
        (plan, "finish_in", [0, "2 h", timedelta()], SECONDS),
        (plan, "reuse", ["sometimes"], REUSE),
        (table, "limit", [0, "many"], COUNT),
        (table, "max_jobs", [0, True], COUNT),
        (table, "max_cost", [20, "20"], "must be a positive amount with its currency, such as 20 USD, not "),
    ],
)  # fmt: skip
def test_a_mistake_is_found_when_the_dag_is_parsed(
    kind: Any, name: str, values: list[Any], message: str
) -> None:
    for value in values:
        with pytest.raises(RunGenInputError) as caught:
            kind(**{name: value})
        line = str(caught.value)
        assert line.startswith(f"{OWNERS[kind]} 'x': {name}"), "the operator, the task, the parameter"
        assert message in line
        assert "\n" not in line
        assert len(line) < 300


@pytest.mark.contract
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: RunGenRunTableOperator.partial(task_id="y", destination="/x", reuse="no"),
            f"RunGenRunTableOperator 'y': reuse {REUSE}'no'",
        ),
        (
            lambda: RunGenAppSensor.partial(task_id="y", poke_interval=1, deferrable="no"),
            f"RunGenAppSensor 'y': deferrable {FLAG}'no'",
        ),
        (
            rungen_table_task(table=[], destination="/x", per_row="no")(picture),
            f"@task.rungen_table 'picture': per_row {FLAG}'no'",
        ),
        (
            rungen_task(destination="x")(picture),
            f"@task.rungen 'picture': destination {NOWHERE}, not 'x': each worker has its own folder",
        ),
        (
            lambda: scaled_app("gpu", "many").__enter__(),
            "RunGenScaleAppOperator 'app_up': active_workers must be a whole number from 0, not 'many'",
        ),
        (
            lambda: table(key="sku", output_type={"properties": {"sku": {}}}),
            "RunGenRunTableOperator 'x': results: there would be two columns 'sku'",
        ),
    ],
)  # fmt: skip
def test_a_mistake_in_a_mapped_task_a_decorator_or_a_block_is_found_likewise(make: Any, message: str) -> None:
    with DAG("d", schedule=None), pytest.raises(RunGenInputError) as caught:
        make()
    assert str(caught.value).startswith(message)


INPUT = {"prompt": "x"}
FOLDERS = ["{{ params.folder }}", "file:///pictures", "/pictures", Path("/pictures")]
TABLE_OF_THE_WORKER = "prompts.csv"


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
        (app, "configuration", [{"gpu_tier": "{{ params.tier }}"}, "{{ params.app }}", {"location": "x"}]),
        (collect, "job_id", ["{{ x }}", ["a", None, "{{ x }}"], ("a",)]),
        (scale, "active_workers", [0, "2", "{{ params.workers }}"]),
        (scale, "only_if", [0, "2", None, False, "true", "{{ params.rows }}"]),
        (table, "version", ["", "v2", "{{ params.version }}"]),
        (table, "reuse", [True, False, timedelta(days=1)]),
        (table, "max_in_flight", [None, 1]),
        (table, "app_id", [None, "flux", "{{ params.app }}"]),
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
        table(task_id="z", table=output, destination=output["folder"], version=output, max_jobs=output)
        app(task_id="b", name=output, configuration=output, workflow=output, description=output)
        scale(task_id="s", app_id=output, active_workers=output["workers"], only_if=output)
        collect(task_id="c", job_id=[output, None], rungen_conn_id=output)


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
