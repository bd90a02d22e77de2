"""DAGs that scale an app while they need it. The run's conf names the app and what goes wrong."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.providers.common.compat.sdk import DAG, task

from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.operators import RunGenRunJobOperator, scaled_app

APP = "{{ dag_run.conf['app_id'] }}"
DEFAULTS = {"retries": 1, "retry_delay": timedelta(seconds=1), "app_id": APP, "poll_interval": 1}


@task(retries=0)
def meddle(at: str, **context: Any) -> None:
    """Fail if the run's conf asks for it."""
    if context["dag_run"].conf.get(at) == "fail":
        raise RuntimeError("failed as asked")


def run(task_id: str) -> RunGenRunJobOperator:
    return RunGenRunJobOperator(
        task_id=task_id, input="{{ dag_run.conf['input'] }}", wait_for_completion=True, deferrable=False
    )


@task(retries=0)
def leave_a_job(**context: Any) -> None:
    """Submit a job without waiting for it."""
    with RunGenHook() as hook:
        hook.run_job(app_id=context["dag_run"].conf["app_id"], input=context["dag_run"].conf["input"])


def chain(dag_id: str, **options: Any) -> None:
    with DAG(dag_id, schedule=None, render_template_as_native_obj=True, default_args=DEFAULTS) as dag:
        with scaled_app(APP, 2, timeout=100, **options) as gpu:
            first = run("first")
            middle = meddle.override(task_id="middle")("middle")
            first >> middle >> run("last")
        first >> meddle.override(task_id="after")("after")
        gpu.down.retries = 2
        gpu.down.retry_delay = timedelta(seconds=1)
    globals()[dag_id] = dag


chain("scaled")
chain("scaled_deferred", deferrable=True)
chain("scaled_without_retries", retries=0)
chain("scaled_and_forgotten")
