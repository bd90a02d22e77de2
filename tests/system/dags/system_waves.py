"""Tables of many inputs, of which few are in flight."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_rungen.operators import RunGenRunTableOperator

for dag_id, deferrable in {"waves_blocking": False, "waves_deferred": True}.items():
    with DAG(dag_id, schedule=None):
        RunGenRunTableOperator(
            task_id="run",
            table="{{ dag_run.conf['inputs'] }}",
            results="{{ dag_run.conf['inputs'] }}.results.jsonl",
            deferrable=deferrable,
            poll_interval=1,
            retries=0,
        )
