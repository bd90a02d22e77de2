"""A DAG for each way to run a job. The run's conf has the input."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import Any

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_rungen.operators import RunGenRunJobOperator

INPUT = "{{ dag_run.conf['input'] }}"
DEFAULTS = {"retries": 2, "retry_delay": timedelta(seconds=1), "poll_interval": 1}


def dag(dag_id: str, **defaults: Any) -> DAG:
    return DAG(dag_id, schedule=None, render_template_as_native_obj=True, default_args=DEFAULTS | defaults)


def hold_first_attempt(context: Any, result: Any = None) -> None:
    if context["ti"].try_number == 1:
        time.sleep(300)


with dag("no_wait"):
    RunGenRunJobOperator(task_id="run", input=INPUT, deferrable=False, post_execute=hold_first_attempt)

with dag("hopeless"):
    RunGenRunJobOperator(task_id="run", input=INPUT, app_id="no-such-app")

WAITING: dict[str, dict[str, Any]] = {
    "blocking": {"deferrable": False},
    "deferred": {"deferrable": True},
    "rotating": {"deferrable": True, "rungen_conn_id": "rungen_rotating"},
    "deferred_timeout": {"deferrable": True, "timeout": 12, "retries": 0},
}
for dag_id, options in WAITING.items():
    with dag(dag_id, wait_for_completion=True, **options):
        RunGenRunJobOperator(task_id="run", input=INPUT)

with dag("blocking_execution_timeout", wait_for_completion=True, deferrable=False, retries=0):
    RunGenRunJobOperator(task_id="run", input=INPUT, execution_timeout=timedelta(seconds=20))

with dag("linked", wait_for_completion=True, deferrable=True, retries=0):
    RunGenRunJobOperator(task_id="run", input=INPUT)
    RunGenRunJobOperator(
        task_id="failed", input={"prompt": "linked and failed", "emulator": {"seconds": 1, "fail": "no luck"}}
    )
    RunGenRunJobOperator(task_id="refused", app_id="no-such-app", input={"prompt": "linked and refused"})
    RunGenRunJobOperator.partial(task_id="mapped").expand(
        input=[{"prompt": f"linked {n}", "emulator": {"seconds": 45}} for n in range(2)]
    )
