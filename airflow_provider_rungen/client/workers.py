"""How many workers an app has, and how they are named in logs and errors. No I/O."""

from __future__ import annotations

from airflow_provider_rungen.client.models import App
from airflow_provider_rungen.client.texts import format_count

# The order in which the states of workers are named.
_WORKER_STATES = ("ready", "running", "idle", "initializing", "throttled", "unhealthy")
KNOWN_STATUSES = ("STOPPED", "INITIALIZING", "RUNNING", "")


def workers_of(app: App) -> int | None:
    """Return how many workers an app is paid for, where that is known."""
    if app.active_workers is not None:
        return app.active_workers
    return 0 if app.has_status("STOPPED") else None


def describe(app: App) -> str:
    """Return an app's status and workers as text: ``RUNNING, 1 worker: ready, idle``."""
    status = app.status or "No status"
    if app.status not in KNOWN_STATUSES:
        status = f"Unknown status {status}"
    workers = describe_workers(app)
    return f"{status}, {workers}" if workers else status


def describe_workers(app: App) -> str:
    """Return an app's workers as text: ``3 workers: 2 ready, 1 idle``. A worker may have two states."""
    states = {
        state: app.workers[state] for state in (*_WORKER_STATES, *app.workers) if app.workers.get(state)
    }
    is_single = app.active_workers == 1 and set(states.values()) == {1}
    counts = ", ".join(state if is_single else f"{count} {state}" for state, count in states.items())
    if app.active_workers is None:
        return f"workers: {counts}" if counts else ""
    count = format_count(app.active_workers, "worker")
    return f"{count}: {counts}" if counts else count
