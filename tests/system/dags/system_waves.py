"""Batches of many inputs, of which few are in flight."""

from __future__ import annotations

from airflow.providers.common.compat.sdk import DAG

from airflow_provider_rungen.operators import RunGenRunBatchOperator

for dag_id, deferrable in {"waves_blocking": False, "waves_deferred": True}.items():
    with DAG(dag_id, schedule=None):
        RunGenRunBatchOperator(
            task_id="run",
            inputs="{{ dag_run.conf['inputs'] }}",
            deferrable=deferrable,
            defer_after=1,
            poll_interval=1,
            retries=0,
        )
