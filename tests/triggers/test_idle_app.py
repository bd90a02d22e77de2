"""The watchdog's trigger against the emulator: it scales down what is idle, and nothing ends it."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable
from contextlib import aclosing
from datetime import timedelta
from typing import Any

import pytest
from bad_answers import Fault
from client_mistakes import early_retries
from conftest import APP, KEY
from rungen_emulator import Emulator
from wire import Connections

from airflow_provider_rungen._airflow import BaseEventTrigger
from airflow_provider_rungen.triggers import RunGenIdleAppTrigger

IDLE_FOR = 0.3
OTHER = "llama-text"


def trigger(app_ids: Any = APP, **options: Any) -> RunGenIdleAppTrigger:
    """Return a trigger as the triggerer makes it."""
    _, kwargs = RunGenIdleAppTrigger(
        app_ids, **{"idle_for": IDLE_FOR, "poll_interval": 0.02, **options}
    ).serialize()
    return RunGenIdleAppTrigger(**json.loads(json.dumps(kwargs)))


def run(*triggers: RunGenIdleAppTrigger, until: Callable[[list[Any]], bool]) -> list[dict[str, Any]]:
    """Run triggers side by side until something holds of their events."""
    events: list[dict[str, Any]] = []

    async def consume(one: RunGenIdleAppTrigger) -> None:
        async with aclosing(one.run()) as stream:  # type: ignore[type-var]  # Airflow's type is too wide
            async for event in stream:
                events.append(event.payload)

    async def work() -> None:
        tasks = [asyncio.create_task(consume(one)) for one in triggers]
        give_up_at = time.monotonic() + 20
        while not until(events):
            assert time.monotonic() < give_up_at, events
            assert not any(task.done() for task in tasks), "a trigger ended"
            await asyncio.sleep(0.005)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(work())
    return events


def workers(emulator: Emulator, app_id: str = APP) -> int:
    count: int = emulator.service.stats()["active_workers"][app_id]
    return count


def polled(emulator: Emulator, times: int) -> Callable[[Any], bool]:
    """Return whether apps were polled so many more times than by now."""
    enough = emulator.service.count("get_app") + times
    return lambda _: emulator.service.count("get_app") >= enough


@pytest.mark.contract
def test_it_is_the_same_after_the_way_through_the_database() -> None:
    before = RunGenIdleAppTrigger(["a", "b"], timedelta(minutes=15), scale_down=False, poll_interval=30)
    path, kwargs = before.serialize()
    assert path == "airflow_provider_rungen.triggers.RunGenIdleAppTrigger"
    assert RunGenIdleAppTrigger(**json.loads(json.dumps(kwargs))).serialize() == (path, kwargs)
    assert (kwargs["app_ids"], kwargs["idle_for"], kwargs["scale_down"]) == (["a", "b"], 900.0, False)


@pytest.mark.contract
def test_airflow_takes_it_for_an_asset_watcher() -> None:
    from airflow.sdk import AssetWatcher

    one = RunGenIdleAppTrigger(APP, 900)
    assert AssetWatcher(name="idle", trigger=one).trigger is one  # it validates its trigger
    same, other = RunGenIdleAppTrigger([APP], timedelta(minutes=15)), RunGenIdleAppTrigger(APP, 901)
    hashes = [BaseEventTrigger.hash(*each.serialize()) for each in (one, same, other)]
    assert hashes[0] == hashes[1] != hashes[2]


@pytest.mark.contract
@pytest.mark.parametrize(
    "wrong",
    [{"app_ids": []}, {"app_ids": ["a", 5]}, {"idle_for": 0}, {"idle_for": "15"}, {"poll_interval": 0}],
)
def test_parameters_are_checked_when_the_dag_is_parsed(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RunGenIdleAppTrigger(**{"app_ids": APP, "idle_for": 900, **wrong})


@pytest.mark.contract
@pytest.mark.parametrize("count", [1, 2], ids=["one triggerer", "two triggerers"])
def test_an_idle_app_is_scaled_to_zero_and_its_bill_stands_still(
    rungen_emulator: Emulator, count: int
) -> None:
    events = run(*(trigger() for _ in range(count)), until=lambda e: bool(e) and not workers(rungen_emulator))
    assert 1 <= len(events) <= count
    assert 0.3 <= events[0].pop("idle_seconds") < 10
    assert events[0] == {"app_id": APP, "active_workers": 2, "scaled_down": True}
    bill = rungen_emulator.service.stats()["worker_seconds"][APP]
    assert run(trigger(), until=polled(rungen_emulator, 5)) == []
    assert rungen_emulator.service.stats()["worker_seconds"][APP] == bill


def test_no_answer_ends_it_and_a_refusal_to_scale_down_is_loud(
    rungen_emulator: Emulator, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for status in (500, 403, 404, 429, 503):
        rungen_emulator.service.inject(Fault(on="get_app", status=status))
    for kind in ("html", "garbage", "reset_before"):
        rungen_emulator.service.inject(Fault(on="get_app", kind=kind))
    rungen_emulator.service.inject(Fault(on="update_app", status=400, times=4))
    [event] = run(trigger(), until=bool)
    assert event["scaled_down"]
    assert workers(rungen_emulator) == 0
    assert caplog.text.count(f"STILL BILLED: app {APP}") >= 2
    outages = [line for line in caplog.messages if line.endswith("polling continues")]
    assert len(outages) == 2, "each outage is logged once"
    assert "RunGen answers again" in caplog.messages
    assert KEY not in caplog.text


@pytest.mark.contract
def test_a_service_that_asks_for_a_pause_gets_it(rungen_emulator: Emulator) -> None:
    rungen_emulator.service.inject(Fault(on="get_app", status=429, headers={"Retry-After": "1"}, times=1))
    run(trigger(idle_for=0.05), until=bool)
    assert early_retries(rungen_emulator.service) == 0


@pytest.mark.contract
def test_a_connection_that_is_missing_is_waited_for(
    rungen_emulator: Emulator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("AIRFLOW_CONN_RUNGEN_DEFAULT")

    def create(events: list[Any]) -> bool:
        if "'rungen_default' does not exist" in caplog.text:
            os.environ["AIRFLOW_CONN_RUNGEN_DEFAULT"] = rungen_emulator.airflow_connection()
        return bool(events)

    [event] = run(trigger(), until=create)
    assert event["scaled_down"]


@pytest.mark.contract
def test_an_app_that_hangs_does_not_disturb_the_others_and_no_connection_is_left_open(
    rungen_emulator: Emulator, connections: Connections
) -> None:
    rungen_emulator.service.inject(Fault(on="get_app", kind="hang"))
    [event] = run(trigger([APP, OTHER]), until=bool)
    assert event["scaled_down"]
    give_up_at = time.monotonic() + 10
    while connections.open and time.monotonic() < give_up_at:
        time.sleep(0.005)
    assert connections.open == 0
    assert connections.opened > 0
