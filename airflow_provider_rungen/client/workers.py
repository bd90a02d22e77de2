"""How many workers an app has, in words. No I/O."""

from __future__ import annotations

from airflow_provider_rungen.client.models import App
from airflow_provider_rungen.client.texts import format_count

# The order in which the states of workers are named.
_WORKER_STATES = ("ready", "running", "idle", "initializing", "throttled", "unhealthy")
# Those of a worker that takes jobs, or is about to.
_STARTED = ("ready", "running", "idle", "initializing")
KNOWN_STATUSES = ("STOPPED", "INITIALIZING", "RUNNING", "")


def workers_of(app: App) -> int | None:
    """Return how many workers an app is paid for, where that is known."""
    if app.active_workers is not None:
        return app.active_workers
    return 0 if app.has_status("STOPPED") else None


def counts_workers(app: App) -> bool:
    """Return whether the counters of an app name a worker in any state."""
    return any(app.workers.get(state) for state in _WORKER_STATES)


def has_no_worker(app: App) -> bool:
    """Return whether an app certainly has no worker, not even one that starts."""
    is_set_to_none = app.active_workers == 0 or app.has_status("STOPPED")
    return is_set_to_none and not any(app.workers.get(state) for state in _STARTED)


def describe(app: App) -> str:
    """Return an app's status and workers as text: ``RUNNING, 1 worker: ready, idle``."""
    status = app.status or "No status"
    if app.status not in KNOWN_STATUSES:
        status = f"Unknown status {status}"
    workers = describe_workers(app)
    return f"{status}, {workers}" if workers else status


def describe_workers(app: App) -> str:
    """Return an app's workers as text: ``3 workers: 2 running, 1 idle``. A worker may have two states."""
    states = worker_states(app)
    is_single = app.active_workers == 1 and set(states.values()) == {1}
    counts = ", ".join(state if is_single else f"{count} {state}" for state, count in states.items())
    if app.active_workers is None:
        return f"workers: {counts}" if counts else ""
    count = format_count(app.active_workers, "worker")
    return f"{count}: {counts}" if counts else count


def worker_states(app: App) -> dict[str, int]:
    """Return how many workers are in each state. One that runs or is idle is not counted as ready, too."""
    counts = {state: app.workers.get(state) or 0 for state in (*_WORKER_STATES, *app.workers)}
    counts["ready"] = max(0, counts["ready"] - counts["running"] - counts["idle"])
    return {state: count for state, count in counts.items() if count}
