"""A DAG that watches an app in the triggerer, and scales it to zero when it is idle."""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, Asset, AssetWatcher, task

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
