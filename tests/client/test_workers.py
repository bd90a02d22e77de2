"""How many workers an app has and had, as far as they were set and seen."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from conftest import APP, Via
from rungen_emulator import Fault

from airflow_provider_rungen.client.models import App
from airflow_provider_rungen.client.scaling import ask_app
from airflow_provider_rungen.client.workers import ScaleRecord, WorkerHistory, describe, workers_of

UP = WorkerHistory(((1000.0, 0), (1001.0, 2)))


def app(workers: int | None = None, changed_at: float | None = None) -> App:
    told: dict[str, Any] = {} if workers is None else {"configuration": {"active_workers": workers}}
    if changed_at is not None:
        told["updated_at"] = datetime.fromtimestamp(changed_at, UTC).isoformat()
    return App.from_json({"id": APP, **told})


def test_worker_seconds_are_workers_times_seconds() -> None:
    history = UP.changed(3, 1011.0).changed(0, 1021.0)
    assert (history.worker_seconds(5000.0), history.seconds_up(5000.0)) == (2 * 10 + 3 * 10, 20)
    assert (history.up_at, history.down_at) == (1001.0, 1021.0)
    assert (UP.worker_seconds(1002.5), UP.down_at) == (3, None)
    for never_up, down_at in ((WorkerHistory(), None), (WorkerHistory(((1000.0, 0),)), 1000.0)):
        assert never_up.worker_seconds(2000.0) == 0
        assert (never_up.up_at, never_up.down_at) == (None, down_at)


@pytest.mark.parametrize(
    ("now", "changes"),
    [
        *((app(*told), UP.changes) for told in ((2, 1001.0), (2,), (1, 900.0))),
        *((told, ()) for told in (app(2, 5000.0), app(0, 1051.0), app(0), app(None), None)),
    ],
)
def test_after_a_clear_a_history_counts_if_the_app_has_been_up_since(
    now: App | None, changes: tuple[Any, ...]
) -> None:
    record = ScaleRecord(APP, 2, 0, history=UP).after_clear(now)
    assert (record.history.changes, record.was_cleared) == (changes, True)


def test_the_second_in_which_workers_were_raised_is_that_of_no_later_change() -> None:
    record = ScaleRecord(APP, 2, 0, history=WorkerHistory(((1000.0, 0), (1001.4, 2))))
    assert record.seen(app(0, 1001.0), 1101.4).history.worker_seconds(1101.4) == pytest.approx(2 * 100)


@pytest.mark.parametrize(
    ("seen", "worker_seconds"),
    [
        *((app(*told), 2 * 100) for told in ((2, 1001.0), (None,))),
        (app(0, 1051.0), 2 * 50),  # set to zero by somebody else, or by a triggerer
        (app(5, 1051.0), 2 * 50 + 5 * 50),  # set to another number
        # a clock that is slow, and one that is fast
        *((app(0, 990.0), 0), (app(0, 1120.0), 2 * 100)),
        # a service that does not say when
        *((app(0), 2 * 100), (app(0, 500.0), 2 * 100), (app(0, 1001.0), 2 * 100)),
    ],
)
def test_another_number_counts_since_the_app_was_changed(seen: App, worker_seconds: float) -> None:
    record = ScaleRecord(APP, 2, 0, history=UP).seen(seen, 1101.0)
    assert record.history.worker_seconds(1101.0) == worker_seconds


@pytest.mark.parametrize(
    ("seen", "worker_seconds"),
    [
        # it was raised, and the answer was lost
        *((app(*told), 2 * 99.5) for told in ((2, 1001.0), (None,))),
        (app(0, 1050.5), 2 * 50),  # raised and lowered again
        *((app(*told), 0) for told in ((0, 500.0), (0,), (0, 999.0))),  # never raised
    ],
)
def test_a_scaling_of_unknown_fate_counts_if_the_app_was_changed(seen: App, worker_seconds: float) -> None:
    before = WorkerHistory(((1000.5, 0),))
    record = ScaleRecord(APP, 2, 0, 1000.5, before).seen(seen, 1100.0)
    assert record.history.worker_seconds(1100.0) == worker_seconds
    # what an answer decided stays so
    assert record.seen(app(), 1200.0).history == record.history


def test_an_app_that_was_up_before_counts_from_the_first_answer() -> None:
    assert ScaleRecord(APP).seen(app(4, 10.0), 1000.0).history.worker_seconds(1010.0) == 40


def test_a_state_of_workers_that_nobody_knows_is_fit_for_a_log() -> None:
    states = {"ready\n[error] forged": 1, "https://h.example/x?X-Amz-Signature=SECRET": 2}
    line = describe(App.from_json({"id": APP, "status": "RUNNING", "workers": states}))
    assert line.isprintable()
    assert "SECRET" not in line
    assert "workers: 1 ready" in line


@pytest.mark.parametrize("status", [404, 500])
def test_an_answer_that_does_not_come_is_not_waited_for(direct: Via, status: int) -> None:
    direct.service.inject(Fault(on="get_app", status=status, times=1))
    assert direct(ask_app(APP)).active_workers is None
    assert direct.service.count("get_app") == 1


def test_how_many_workers_an_app_is_paid_for() -> None:
    answers: list[tuple[dict[str, Any], int | None]] = [
        ({"status": "RUNNING", "active_workers": "1"}, 1),
        ({"status": "STOPPED", "active_workers": 1}, 1),
        *(({"status": "STOPPED"}, 0), ({"active_workers": 0}, 0), ({"status": "RUNNING"}, None), ({}, None)),
    ]
    for answer, workers in answers:
        assert workers_of(App.from_json({"id": APP, **answer})) == workers, answer


def test_an_app_was_raised_if_it_had_fewer_workers() -> None:
    raised = [ScaleRecord(APP, 2, before).was_raised for before in (0, 1, 2, 3, None)]
    assert raised == [True, True, False, False, True]
