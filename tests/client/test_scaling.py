"""Bringing an app to a number of workers and waiting for it: every answer the contract leaves open."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import pytest
from conftest import APP, FakeTime, Via
from rungen_emulator import Fault

from airflow_provider_rungen.client.app_polling import AppTarget, wait_for_app
from airflow_provider_rungen.client.flow import Flow, Request, Response
from airflow_provider_rungen.client.idleness import COUNTER_LAG
from airflow_provider_rungen.client.models import App
from airflow_provider_rungen.client.retry import ATTEMPTS, GONE_GRACE
from airflow_provider_rungen.client.scaling import CONFIRM_TIME, restore_workers, set_workers, stop_app
from airflow_provider_rungen.client.transport import drive
from airflow_provider_rungen.client.workers import ScaleRecord, WorkerHistory, describe_workers
from airflow_provider_rungen.exceptions import (
    RunGenAPIError,
    RunGenAppError,
    RunGenAppTimeoutError,
    RunGenForbiddenError,
    RunGenNotFoundError,
)


@pytest.fixture(autouse=True)
def _real_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_provider_rungen.client.retry.GONE_GRACE", GONE_GRACE)
    monkeypatch.setattr("airflow_provider_rungen.client.scaling.CONFIRM_TIME", CONFIRM_TIME)
    monkeypatch.setattr("airflow_provider_rungen.client.idleness.COUNTER_LAG", COUNTER_LAG)


def play(
    flow: Flow[Any], answers: Iterable[Any], clock: FakeTime | None = None, apps: list[Any] | int = 404
) -> tuple[Any, list[Request]]:
    """
    Perform a flow against answers written down; the last one is given again and again.

    :param apps: the answer to a request for the list of apps.
    """
    sent: list[Request] = []
    clock = clock or FakeTime()

    def each() -> Iterator[Any]:
        for answer in answers:
            last = answer
            yield answer
        while True:
            yield last

    stream = each()

    def send(request: Request) -> Response:
        sent.append(request)
        answer = apps if request.path == "app" else next(stream)
        if isinstance(answer, int):
            return Response(answer, {}, b'{"error": "no"}')
        return Response(200, {}, json.dumps(answer).encode())

    return drive(flow, send, clock.sleep, clock.time), sent


def app(status: Any = None, active_workers: Any = None, **more: Any) -> dict[str, Any]:
    configuration = None if active_workers is None else {"active_workers": active_workers}
    body = {"id": APP, "status": status, "configuration": configuration, **more}
    return {name: value for name, value in body.items() if value is not None}


def wait(
    goal: AppTarget, *answers: Any, within: float = 60, apps: list[Any] | int = 404
) -> tuple[Any, list[Request]]:
    clock = FakeTime()
    return play(wait_for_app(goal, poll_interval=5, deadline=clock.now + within), answers, clock, apps)


# --- waiting ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "there",
    [
        app("RUNNING", 2),
        {"data": app("running", "2")},
        app("Running"),
        app("RUNNING", 3, workers={"ready": 0}),
        app(None, 2, workers={"ready": 1, "initializing": 1}),
        app(None, None, workers={"idle": "1"}),
        app("", 2, workers={"running": 1}),
    ],
)
def test_every_way_to_say_that_an_app_runs(there: Any) -> None:
    found, sent = wait(AppTarget(APP, active_workers=2), app("STOPPED", 0), app("Initializing", 2), there)
    assert isinstance(found, App)
    assert len(sent) == 3
    assert {request.method for request in sent} == {"GET"}


@pytest.mark.parametrize(
    ("not_there", "said"),
    [
        (app("INITIALIZING", 2, workers={"initializing": 2}), "INITIALIZING"),
        *((app(status, 2), status) for status in ("STOPPED", "FAILED")),
        (app("UNHEALTHY", 2, workers={"unhealthy": 2, "ready": 2}), "UNHEALTHY, .* 2 ready, 2 unhealthy"),
        *((app(None, 2, workers=workers), "") for workers in (None, {"initializing": 2})),
        *(({"data": {}}, ""), (503, "")),
    ],
)
def test_an_app_that_does_not_get_there_is_an_error_that_says_where_it_is(not_there: Any, said: str) -> None:
    with pytest.raises(RunGenAppTimeoutError, match=rf"^Not RUNNING in time: .*{said}") as info:
        wait(AppTarget(APP, active_workers=2), not_there)
    assert info.value.app_id == APP


def test_an_app_that_gets_too_few_workers_is_an_error_that_says_how_many() -> None:
    message = r"^Only 2 of 3 workers in time: it is RUNNING, 2 workers "
    with pytest.raises(RunGenAppTimeoutError, match=message):
        wait(AppTarget(APP, active_workers=3), app("RUNNING", 2))


Log = pytest.LogCaptureFixture


def test_changes_are_logged_once_and_an_unknown_status_is_a_warning(caplog: Log) -> None:
    caplog.set_level(logging.INFO)
    loading = app("INITIALIZING", 2, workers={"initializing": 2})
    half = app("INITIALIZING", 2, workers={"initializing": 1, "ready": 1})
    wait(AppTarget(APP), loading, loading, half, half, app("warming up", 2), app("RUNNING", 2))
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO", "WARNING", "INFO"]
    assert caplog.messages[1] == f"INITIALIZING, 2 workers: 1 ready, 1 initializing (app {APP})"
    assert caplog.messages[2] == f"Unknown status WARMING_UP, 2 workers (app {APP})"


@pytest.mark.parametrize(
    ("workers", "said"),
    [
        ({"ready": 12, "running": 8, "idle": 4}, "12 workers: 8 running, 4 idle"),
        ({"ready": 5, "running": 3}, "12 workers: 2 ready, 3 running"),
        ({"ready": 12}, "12 workers: 12 ready"),
        ({"running": 12, "throttled": 1, "new": 2}, "12 workers: 12 running, 1 throttled, 2 new"),
    ],
)
def test_each_worker_is_counted_once(workers: dict[str, int], said: str) -> None:
    assert describe_workers(App.from_json(app("RUNNING", 12, workers=workers))) == said


def test_an_outage_does_not_end_the_waiting(caplog: pytest.LogCaptureFixture) -> None:
    found, _ = wait(AppTarget(APP), 503, 500, 502, app("RUNNING", 1))
    assert found.status == "RUNNING"
    assert sum("polling continues" in line for line in caplog.messages) == 1


def test_what_no_waiting_can_change_ends_it() -> None:
    with pytest.raises(RunGenNotFoundError):
        wait(AppTarget(APP), app("INITIALIZING", 1), *[404] * 20, within=600, apps=[])
    with pytest.raises(RunGenForbiddenError):
        wait(AppTarget(APP), 403)


def test_an_app_that_a_replica_does_not_know_yet_is_waited_for() -> None:
    """As after its creation, and while it initializes."""
    found, _ = wait(AppTarget(APP), 404, 404, app("INITIALIZING", 1), 404, app("RUNNING", 1))
    assert found.status == "RUNNING"
    found, _ = play(AppTarget(APP).poll_once(), [404, app("RUNNING", 1)])
    assert found.status == "RUNNING"
    # its time ends before it is known to be gone
    with pytest.raises(RunGenAppTimeoutError, match=r"^Not RUNNING in time: it is INITIALIZING"):
        wait(AppTarget(APP), app("INITIALIZING", 1), 404, within=20)


def test_an_app_that_somebody_lowers_is_not_waited_for() -> None:
    up, down = app("INITIALIZING", 2), app("STOPPED", 0)
    with pytest.raises(RunGenAppError, match="set the app to 0 workers on its way to 2"):
        wait(AppTarget(APP, active_workers=2), down, up, down)
    # as of a replica that lags behind
    wait(AppTarget(APP, active_workers=2), down, up, down, down, down, up, down, app("RUNNING", 2))


def test_a_deadline_in_the_past_allows_one_look() -> None:
    _, sent = wait(AppTarget(APP), app("RUNNING", 1), within=-100)
    assert len(sent) == 1
    with pytest.raises(RunGenAppTimeoutError):
        wait(AppTarget(APP), app("STOPPED", 0), app("RUNNING", 1), within=-100)


def test_a_single_poll_outlasts_a_stray_refusal_but_no_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    grace = 30.0
    monkeypatch.setattr("airflow_provider_rungen.client.retry.PATIENCE", grace)
    with pytest.raises(RunGenForbiddenError):
        play(AppTarget(APP).poll_once(), [403, app("RUNNING", 1)])
    known = partial(AppTarget, APP, is_known=True)
    found, _ = play(known().poll_once(), [403, 403, app("RUNNING", 1)])
    assert found.status == "RUNNING"
    assert play(known().poll_once(), [503])[0] is None
    clock = FakeTime()
    with pytest.raises(RunGenForbiddenError):
        play(known().poll_once(), [403], clock)
    assert play(known().poll_once(), [403, 503], clock)[0] is None
    assert sum(clock.slept) <= 2 * 1.2 * grace


# --- up and down --------------------------------------------------------------------------------------------


def puts(sent: list[Request]) -> list[Any]:
    bodies = [json.loads(request.body or b"") for request in sent if request.method == "PUT"]
    return [body["configuration"]["active_workers"] for body in bodies]


# An app that was set to none, and still has workers.
STOPS = app("RUNNING", 0, workers={"ready": 2, "idle": 2})
RAISED = ScaleRecord(APP, 3, 1, history=WorkerHistory(((0.0, 3),)))


@pytest.mark.parametrize(
    ("answer", "sent"),
    [
        *((app("INITIALIZING", count), [1]) for count in (3, "3")),
        (app("RUNNING", 1), [1]),  # the raise may still be on its way
        (app("RUNNING", 2), [1]),  # the service had no more
        *((answer, [1]) for answer in (app("RUNNING"), 503)),
        (404, [1]),  # a replica that lags behind
        (app("STOPPED", 0), []),  # somebody else stopped it
        (app("RUNNING", 5), []),  # somebody else needs more
    ],
)
def test_an_app_is_lowered_unless_somebody_else_has_set_it(answer: Any, sent: list[int]) -> None:
    record, requests = play(restore_workers(RAISED), [answer, app("RUNNING", 1)])
    assert puts(requests) == sent
    assert not record.was_raised
    assert record.history.changes[-1][1] == record.active_workers


@pytest.mark.parametrize(("has", "sent"), [(3, [2]), (2, [2]), (1, [])])
def test_an_app_is_lowered_to_what_others_need_though_an_old_answer_says_it_has_that(
    has: int, sent: list[int]
) -> None:
    record = ScaleRecord(APP, 3, 0)
    _, requests = play(restore_workers(record, needed=2), [app("RUNNING", has), app("RUNNING", 2)])
    assert puts(requests) == sent


def test_a_lowering_that_fails_or_has_no_number_is_loud(caplog: Log) -> None:
    record, _ = play(restore_workers(RAISED), [app("RUNNING", 3), 403])
    assert record.was_raised
    assert f"STILL BILLED: app {APP} may still have 3 workers: " in caplog.text
    assert any(line.levelname == "ERROR" for line in caplog.records)
    record, requests = play(restore_workers(ScaleRecord(APP, 3)), [app("RUNNING", 3)])
    assert (record.was_raised, puts(requests)) == (True, [])
    assert f"STILL BILLED: app {APP} may still have 3 workers: The number of workers before is" in caplog.text


def test_a_stray_refusal_of_the_key_keeps_no_workers() -> None:
    for flow in (set_workers(APP, 1), restore_workers(RAISED)):
        _, sent = play(flow, [403, 403, app("RUNNING", 1)])
        assert puts(sent)[-1] == 1
    clock = FakeTime()
    with pytest.raises(RunGenForbiddenError):
        play(set_workers(APP, 0), [403], clock)
    assert len(clock.slept) == ATTEMPTS - 1


@pytest.mark.parametrize("before", [0, 1])
def test_an_app_that_is_gone_needs_no_lowering(caplog: Log, before: int) -> None:
    caplog.set_level(logging.INFO)
    clock = FakeTime()
    began = clock.now
    record, sent = play(restore_workers(ScaleRecord(APP, 3, before)), [404], clock, apps=[{"id": "another"}])
    assert (record.was_raised, record.history.changes[-1][1]) == (False, 0)
    assert "BILLED" not in caplog.text
    assert caplog.messages[-1] == f"Gone already (app {APP})"
    assert GONE_GRACE <= clock.now - began < GONE_GRACE + 10
    assert [request.path for request in sent] == ["app/flux-schnell"] * 7 + ["app"], "some seconds apart"


@pytest.mark.parametrize(
    ("apps", "within"),
    [
        *((status, None) for status in (404, 503)),  # a proxy that knows nothing
        ([app("RUNNING", 3)], None),
        ([], 4.0),  # a kill leaves no time to be certain
    ],
)
def test_an_app_that_may_exist_is_not_taken_for_gone(apps: Any, within: float | None, caplog: Log) -> None:
    clock = FakeTime()
    began = clock.now
    record, _ = play(restore_workers(RAISED, within=within), [app("RUNNING", 3), 404], clock, apps)
    assert record.was_raised
    assert f"STILL BILLED: app {APP} may still have 3 workers: Could not change the app (404)" in caplog.text
    assert within is None or clock.now - began < within
    with pytest.raises(RunGenAPIError) as info:
        play(set_workers(APP, 0, retry_budget=within or 60), [404], apps=apps)
    assert info.value.retryable
    assert not isinstance(info.value, RunGenNotFoundError)


@pytest.mark.parametrize("fault", [503, 404])
def test_a_stray_answer_does_not_hide_what_somebody_else_has_set(fault: int) -> None:
    record, sent = play(restore_workers(RAISED), [fault, app("RUNNING", 7)])
    assert puts(sent) == []
    assert record.active_workers == 7


def test_what_confirms_a_number_is_asked_for_again() -> None:
    faults: list[Any] = [503, {}]
    for fault in faults:
        assert puts(play(set_workers(APP, 0), [app(), fault, app("STOPPED", 0)])[1]) == [0]


def test_a_number_of_workers_is_set_until_an_answer_confirms_it() -> None:
    clock = FakeTime()

    def lower(*answers: Any) -> list[Request]:
        flow = set_workers(APP, 0)
        return play(flow, answers, clock)[1]

    assert puts(lower(app("STOPPED", 0))) == [0]
    old = app("RUNNING", 2)
    assert puts(lower(old, app("STOPPED", 0))) == [0]
    assert puts(lower(old, old, old, app("STOPPED", 0))) == [0, 0]
    # an answer may only repeat the request
    assert puts(lower(app("STOPPED", 0), old, app("STOPPED", 0))) == [0, 0]
    # answers that name no number are no yes, and no no
    assert puts(lower(app("RUNNING"), app("RUNNING"), app("RUNNING"), app("STOPPED"))) == [0, 0]
    began = clock.now
    assert set(puts(lower(app("RUNNING")))) == {0}
    assert CONFIRM_TIME <= clock.now - began < CONFIRM_TIME + 10
    with pytest.raises(RunGenAppTimeoutError, match=r"^Not scaled to 0 workers: still RUNNING, 2 workers"):
        lower(old)
    assert clock.slept[-12:] == [5.0] * 12


@pytest.mark.parametrize(
    ("answers", "wants", "want"),
    [
        # answers of a replica that lags behind, and of one that is out, cost no time of the question
        ([503, app(), app("RUNNING", 2), app("STOPPED", 0)], [0], [0, 0, 0]),
        ([app(), STOPS, STOPS, app("STOPPED", 0)], [0], [0]),
        # what is wanted then is set, with all of the time again
        ([503, app(), app("RUNNING", 2), app("RUNNING", 3)], [3], [0, 3, 3]),
        ([app(), app("STOPPED", 0), app(), app("STOPPED", 0), app("RUNNING", 2)], [2], [0, 2, 2]),
        ([app(), *[STOPS] * 11, app("RUNNING", 3), app(), STOPS, app("RUNNING", 2)], [2], [0, 2, 2]),
        ([app(), app("STOPPED", 0), app(), app("RUNNING", 2), app(), app("STOPPED", 0)], [2, 0], [0, 2, 0]),
    ],
)
def test_who_needs_an_app_is_asked_before_a_request_is_repeated_and_at_the_end(
    answers: list[Any], wants: list[int], want: list[int]
) -> None:
    clock, asked = FakeTime(), list[int]()

    def ask() -> int:
        asked.append(wants[min(len(asked), len(wants) - 1)])
        clock.now += 61
        return asked[-1]

    found, sent = play(set_workers(APP, 0, ask=ask), answers, clock)
    assert puts(sent) == want
    assert found.active_workers == want[-1]
    assert len(asked) == len(want), "once for each that is repeated, and at the end"


def test_an_app_whose_workers_stay_is_not_down(caplog: Log) -> None:
    old = app("RUNNING", 2)
    for answers in ([old, STOPS, app("STOPPED", 0)], [old, STOPS, app("RUNNING", 0, workers={"idle": 0})]):
        assert puts(play(set_workers(APP, 0), answers)[1]) == [0]
    # that answer may have been old
    assert puts(play(set_workers(APP, 0), [old, STOPS, old, old, app("STOPPED", 0)])[1]) == [0, 0]
    assert not caplog.messages
    play(set_workers(APP, 0), [STOPS])
    said = f"STILL BILLED: app {APP} may still have workers: it was set to none, and is RUNNING, 0 workers: 2"
    assert said in caplog.text
    record, _ = play(restore_workers(ScaleRecord(APP, 2, 0)), [old, STOPS])
    assert record.was_raised


EMPTY = {"in_queue": 0, "in_progress": 0}


@pytest.mark.parametrize("operation", ["get_app", "update_app"])
def test_a_stray_404_keeps_no_workers(direct: Via, operation: str) -> None:
    flows: list[tuple[Callable[[], Flow[Any]], int]] = [
        (lambda: set_workers("app", 1), 1),
        (lambda: restore_workers(ScaleRecord("app", 3, 0)), 0),
        (lambda: stop_app("app", poll_interval=5, deadline=direct.clock.now + 600), 0),
    ]
    for flow, left in flows:
        direct.service.add_app("app", workers=3)
        direct.service.clear_faults()
        direct.service.inject(Fault(on=operation, status=404, times=2))
        # an answer that names no number, so that the app is asked for it
        direct.service.inject(Fault(on="update_app", status=200, body={"id": "app"}, taken=True))
        direct(flow())
        assert direct.service.stats()["active_workers"].get("app") == left
