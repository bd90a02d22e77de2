"""DAGs that scale idle apps to zero: one watches an app in the triggerer, one polls twice in each run."""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, Asset, AssetWatcher, task

from airflow_provider_rungen.operators import RunGenScaleDownIdleAppsOperator
from airflow_provider_rungen.triggers import RunGenIdleAppTrigger

# longer than the pauses between the tasks of a run, on a busy machine
watcher = AssetWatcher(
    name="idle", trigger=RunGenIdleAppTrigger("watched-app", idle_for=10, poll_interval=0.5)
)

with DAG("watch_idle_apps", schedule=[Asset("idle_apps", watchers=[watcher])], catchup=False):

    @task
    def report(triggering_asset_events: Any = None) -> None:
        for events in triggering_asset_events.values():
            for event in events:
                app = event.extra["payload"]
                print(
                    f"Idle for {app['idle_seconds']} s: {app['app_id']} had {app['active_workers']} workers, "
                    f"scaled down: {app['scaled_down']}"
                )

    report()


with DAG("scale_down_idle_apps", schedule=None, render_template_as_native_obj=True):
    RunGenScaleDownIdleAppsOperator(task_id="run", app_ids="{{ dag_run.conf['app_ids'] }}", idle_for=10)
