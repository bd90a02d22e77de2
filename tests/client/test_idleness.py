"""The rule when an app is idle, on a clock of the tests: all that the counters and workers may say."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from conftest import APP, KEY, Via
from rungen_emulator import Fault

from airflow_provider_rungen.client.idleness import IdleWatch, check_app_ids, poll_idle_app, why_not_idle
from airflow_provider_rungen.client.models import App
from airflow_provider_rungen.exceptions import RunGenAPIError, RunGenInputError

IDLE_FOR = 600.0
JOBS = {"in_queue": 0, "in_progress": 0, "completed": 7, "failed": 1, "retried": 0}
WORKERS = {"idle": 2, "initializing": 0, "ready": 2, "running": 0, "throttled": 0, "unhealthy": 0}


def app(
    *,
    status: str | None = "RUNNING",
    active_workers: Any = 2,
    jobs: Any = (),
    workers: Any = (),
    without: str = "",
) -> App:
    """Return an idle app, except for what is given. ``without`` is a part that is absent, or a counter."""
    body: dict[str, Any] = {
        "id": APP,
        "status": status,
        "configuration": {"active_workers": active_workers},
        "jobs": JOBS | dict(jobs),
        "workers": WORKERS | dict(workers),
    }
    part, _, counter = without.partition(".")
    (body[part] if counter else body).pop(counter or part, None)
    return App.from_json(body)


def note(*answers: tuple[float, App]) -> list[bool]:
    """Record answers, each with its minute."""
    watch = IdleWatch(APP, IDLE_FOR)
    return [watch.note(answer, minute * 60) for minute, answer in answers]


def test_an_app_is_idle_when_it_was_so_for_long_enough() -> None:
    idle = note((0, app()), (5, app()), (9.9, app()), (10, app()), (11, app()))
    assert idle == [False, False, False, True, True]


NONE_UP = {"idle": 0, "ready": 0}


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (app(active_workers=0), "no workers"),
        (app(status="STOPPED", without="configuration"), "no workers"),
        *((app(status="INITIALIZING", without=part), "initializing") for part in ("", "jobs")),
        (app(workers={"initializing": 1}), "initializing"),
        (app(jobs={"in_queue": 3}), "3 jobs are queued or running"),
        (app(jobs={"in_progress": 1}), "1 jobs are queued or running"),
        (app(workers={"running": 1}), "1 workers are running"),
        *((app(status=word, workers=NONE_UP), "no worker is up") for word in ("STOPPED", "LOADING", None)),
        *((app(without=f"jobs.{each}"), f"jobs.{each}") for each in JOBS if each != "retried"),
        (app(jobs={"completed": "many"}), "jobs.completed"),
        (app(without="jobs"), "jobs.in_queue, jobs.in_progress, jobs.completed, jobs.failed"),
        *((app(without=part), "workers.running") for part in ("workers", "workers.running")),
        (app(without="configuration"), "active_workers"),
    ],
)
def test_what_speaks_against_it(answer: App, reason: str) -> None:
    assert reason in (why_not_idle(answer) or "")
    assert note((0, answer), (10, answer), (1000, answer)) == [False] * 3
    # in the middle of a period, too
    assert note((0, app()), (5, answer), (10, app()), (19, app()), (20, app())) == [False] * 4 + [True]


@pytest.mark.parametrize(
    "change",
    [
        *({"jobs": jobs} for jobs in ({"completed": 8}, {"failed": 2}, {"retried": 1})),
        *({"jobs": {"completed": 0, "failed": 0}}, {"active_workers": 3}),
    ],
    ids=["completed", "failed", "retried", "reset", "scaled"],
)
def test_what_changes_begins_a_new_period(change: dict[str, Any]) -> None:
    answer = app(**change)
    assert note((0, app()), (10, answer), (19, answer), (20, answer)) == [False, False, False, True]


def test_absent_counters_are_a_warning_once(caplog: Log) -> None:
    new = App.from_json({"id": APP, "status": "STOPPED", "configuration": {"active_workers": 0}})
    starting = app(status="INITIALIZING", without="jobs")
    with caplog.at_level(logging.WARNING):
        note((0, new), (1, starting), (2, app(without="jobs")), (3, app(without="workers")))
    [line] = caplog.messages
    assert line.startswith("Not idle: the service does not report jobs.in_queue")


def test_apps_are_named_one_or_a_list() -> None:
    assert [*map(check_app_ids, ("a", ("a",), iter(["a"]), ["a", "b", "a"]))] == [*[["a"]] * 3, ["a", "b"]]
    for given in ([], "", None, 5, [""], ["a", None], ["a/b"], [["a"]]):
        with pytest.raises(RunGenInputError, match="app_ids"):
            check_app_ids(given)


# --- what is sent -------------------------------------------------------------------------------------------


Poll = Callable[..., Any]
Log = pytest.LogCaptureFixture


@pytest.fixture
def poll(direct: Via) -> Poll:
    """Poll the app after so many minutes."""
    watch = IdleWatch(APP, IDLE_FOR)

    def poll(after: float = 0, *, scale_down: bool = True) -> Any:
        direct.clock.now += after * 60
        return direct(poll_idle_app(watch, scale_down=scale_down))

    return poll


def scaled_down(idle_seconds: float = 600.0) -> dict[str, Any]:
    return {"app_id": APP, "idle_seconds": idle_seconds, "active_workers": 2, "scaled_down": True}


def workers(via: Via) -> int:
    count: int = via.service.stats()["active_workers"][APP]
    return count


def submit(via: Via, seconds: float) -> None:
    body = json.dumps({"input": {"prompt": "x", "emulator": {"seconds": seconds}}}).encode()
    headers = {"x-api-key": KEY, "Content-Type": "application/json"}
    assert via.service.handle("POST", f"/app/{APP}/run_async", headers, body).status == 201


def test_an_idle_app_is_scaled_to_zero(direct: Via, poll: Poll, caplog: Log) -> None:
    caplog.set_level(logging.INFO)
    assert [poll(), poll(5), workers(direct)] == [None, None, 2]
    assert poll(5) == scaled_down()
    assert workers(direct) == 0
    assert f"Scaled from 2 workers to 0, idle for 10 min (app {APP})" in caplog.text
    assert [poll(20), poll(20)] == [None, None]
    assert direct.service.count("update_app") == 1
    direct.service.scale(APP, 1)
    assert poll(10) is None
    assert poll(10)["active_workers"] == 1, "a new period"


def test_without_scaling_down_each_period_is_reported_once(direct: Via, poll: Poll) -> None:
    poll(scale_down=False)
    assert poll(12, scale_down=False) == scaled_down(720.0) | {"scaled_down": False}
    assert poll(12, scale_down=False) is None
    submit(direct, 1)
    assert [poll(scale_down=False), poll(1, scale_down=False)] == [None, None]
    assert poll(10, scale_down=False)["idle_seconds"] == 600.0
    assert (workers(direct), direct.service.count("update_app")) == (2, 0)


def test_a_failed_poll_or_scaling_is_loud_and_ends_no_period(direct: Via, poll: Poll, caplog: Log) -> None:
    poll()
    for operation in ("get_app", "update_app"):
        direct.service.inject(Fault(on=operation, status=400, times=None))
        with pytest.raises(RunGenAPIError):
            poll(5)
        direct.service.clear_faults()
    assert f"STILL BILLED: app {APP} is idle" in caplog.text
    assert poll(1)["idle_seconds"] == pytest.approx(660, abs=5)
    assert workers(direct) == 0


def test_a_lost_answer_is_sent_again(direct: Via, poll: Poll) -> None:
    poll()
    direct.service.inject(Fault(on="update_app", status=504, taken=True))
    assert poll(10) == scaled_down()
    assert (workers(direct), direct.service.count("update_app")) == (0, 2)
