"""The sensor, without a database: poking, rescheduling, deferring, and Airflow's own ways to fail softly."""

from __future__ import annotations

import signal
import time
from datetime import timedelta
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
)
from airflow.providers.common.compat.version_compat import AIRFLOW_V_3_3_PLUS
from bad_answers import Fault
from conftest import APP, KEY, SOON, Outcome, run_task, signal_when
from rungen_emulator import Emulator
from wire import Connections

from airflow_provider_rungen.exceptions import RunGenForbiddenError
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.sensors import RunGenJobSensor

pytestmark = pytest.mark.usefixtures("unsettled")

INPUT = {"prompt": "a red fox"}
MODES = pytest.mark.parametrize("deferrable", [False, True], ids=["poking", "deferred"])
SINCE_3_3 = pytest.mark.skipif(
    not AIRFLOW_V_3_3_PLUS,
    reason="a worker defers it, since only Airflow 3.3 renders templates in the triggerer",
)
# The exception of a kill may strike in a finalizer, which swallows it. The task has to end anyway.
KILLED = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def sensor(job_id: Any, **options: Any) -> RunGenJobSensor:
    options = {"task_id": "wait", "poke_interval": 0.02, "timeout": 20, **options}
    return RunGenJobSensor(job_id=job_id, **options)


def submitted(*seconds: float, **steering: Any) -> list[str]:
    with RunGenHook() as hook:
        return [hook.run_job(input={**INPUT, "emulator": {"seconds": s, **steering}}).id for s in seconds]


def states(emulator: Emulator) -> list[str]:
    return [job["status"] for job in emulator.service.jobs()]


@pytest.mark.contract
@MODES
def test_the_sensor_waits_for_all(rungen_emulator: Emulator, context: Any, deferrable: bool) -> None:
    ids = submitted(0.3, 0, 0.2)
    outcome = run_task(sensor(ids, deferrable=deferrable), context)
    assert (outcome.value, outcome.error) == (None, None)
    assert states(rungen_emulator) == ["COMPLETED"] * 3
    assert len(outcome.events) == deferrable


@pytest.mark.contract
@MODES
def test_no_jobs_are_over_and_those_that_are_over_are_not_deferred_for(
    rungen_emulator: Emulator, context: Any, deferrable: bool
) -> None:
    assert run_task(sensor([], deferrable=deferrable), context) == Outcome()
    assert rungen_emulator.service.records() == []
    assert run_task(sensor(submitted(0, 0), deferrable=deferrable), context) == Outcome()


@pytest.mark.contract
def test_a_poke_looks_at_many_jobs_side_by_side(
    rungen_emulator: Emulator, connections: Connections, context: Any
) -> None:
    ids = submitted(*[0] * 20)
    assert sensor(ids).poke(context) is True
    assert rungen_emulator.service.count("get") == 20
    assert connections.most > 1


@pytest.mark.contract
def test_a_poke_is_one_look(rungen_emulator: Emulator, context: Any) -> None:
    quick, slow = submitted(0, 60)
    task = sensor([quick, slow])
    assert task.poke(context) is False
    assert task.poke(context) is False
    gets = [record.path for record in rungen_emulator.service.records() if record.operation == "get"]
    assert len(gets) == 3, "a job that is over is not looked at again"
    with RunGenHook() as hook:
        hook.cancel_job(job_id=slow)
    with pytest.raises(AirflowFailException, match=slow):
        task.poke(context)


@pytest.mark.contract
def test_rescheduling_frees_the_slot_between_two_looks(rungen_emulator: Emulator, context: Any) -> None:
    from airflow.exceptions import AirflowRescheduleException

    [job_id] = submitted(60)
    task = sensor(job_id, mode="reschedule", poke_interval=60)
    context["ti"].task_reschedule_count = 0
    context["ti"].get_first_reschedule_date = lambda *_, **__: None
    outcome = run_task(task, context)
    assert isinstance(outcome.error, AirflowRescheduleException)
    assert rungen_emulator.service.count("get") == 1
    assert states(rungen_emulator) == ["RUNNING"]


@pytest.mark.contract
@MODES
def test_a_failed_job_fails_the_sensor_for_good(
    rungen_emulator: Emulator, context: Any, deferrable: bool
) -> None:
    [bad] = submitted(0.2, fail="out of memory")
    [good] = submitted(0)
    outcome = run_task(sensor([good, bad], deferrable=deferrable), context)
    assert type(outcome.error) is AirflowFailException
    told = f"Failed: out of memory (job {bad}, app {APP}). "
    assert str(outcome.error) == told + "Correct its input if that is the reason, and run it again."


@pytest.mark.contract
@MODES
@pytest.mark.feature("schemas")
def test_a_result_that_does_not_fit_its_schema_is_hopeless(
    rungen_emulator: Emulator, context: Any, deferrable: bool
) -> None:
    options: dict[str, Any] = {"deferrable": deferrable, "output_type": "flux-schnell"}
    ids = submitted(0.1, 0.2, 0) + submitted(0.2, result={"images": []})
    assert run_task(sensor(ids[:3], **options), context).error is None
    outcome = run_task(sensor(ids, **options), context)
    assert type(outcome.error) is AirflowFailException
    assert str(outcome.error) == (
        f"The result of job {ids[3]} of app {APP} does not fit output_type flux-schnell: "
        "result.images: [] should be non-empty. Look at the result, or correct the schema."
    )


@pytest.mark.contract
def test_many_results_are_checked_after_a_deferral(rungen_emulator: Emulator, context: Any) -> None:
    rungen_emulator.service.scale(APP, 1000)
    ids = submitted(*[0.3] * 150)
    options: dict[str, Any] = {"deferrable": True, "output_type": "flux-schnell"}
    assert run_task(sensor(ids, **options), context).error is None
    ids[140:140] = submitted(3, result=None)  # not over at the first look, on a busy machine, too
    outcome = run_task(sensor(ids, **options), context)
    assert len(outcome.events) == 1
    assert ids[140] in str(outcome.error)


@pytest.mark.contract
def test_a_output_type_that_cannot_be_read_is_told_before_the_wait(
    rungen_emulator: Emulator, context: Any
) -> None:
    for deferrable in (False, True):
        outcome = run_task(sensor("job", deferrable=deferrable, output_type="/no/schema"), context)
        assert type(outcome.error) is AirflowFailException
        assert "output_type /no/schema cannot be read" in str(outcome.error)
    assert rungen_emulator.service.records() == []


@pytest.mark.contract
@MODES
@pytest.mark.parametrize("way", ["soft_fail", "never_fail"])
@pytest.mark.parametrize("what", ["failed", "canceled", "timeout", "hopeless", "misfit"])
def test_failing_softly_is_skipping(
    rungen_emulator: Emulator, context: Any, deferrable: bool, way: str, what: str
) -> None:
    ends: dict[str, dict[str, Any]] = {"failed": {"fail": "x"}, "misfit": {"result": 7}}
    [job_id] = submitted(0.2 if what in ends else 60, **ends.get(what, {}))
    if what == "canceled":
        with RunGenHook() as hook:
            hook.cancel_job(job_id=job_id)
    if what == "hopeless":
        rungen_emulator.service.inject(Fault(on="get", status=400, skip=1, times=None))
    task = sensor(job_id, deferrable=deferrable, timeout=0.3 if what == "timeout" else 60, **{way: True})
    task.output_type = "flux-schnell" if what == "misfit" else None
    outcome = run_task(task, context)
    if (way, what, deferrable) == ("never_fail", "timeout", False):
        # Airflow's own loop does not count a timeout in; its deferred sensors do
        assert isinstance(outcome.error, AirflowSensorTimeout | AirflowSkipException)
    else:
        assert isinstance(outcome.error, AirflowSkipException)


@pytest.mark.contract
@MODES
@pytest.mark.parametrize("limit", [0.3, timedelta(milliseconds=300)])
def test_the_sensor_ends_in_time_and_leaves_the_jobs(
    rungen_emulator: Emulator, context: Any, deferrable: bool, limit: Any
) -> None:
    ids = submitted(60, 60)
    started = time.monotonic()
    outcome = run_task(sensor(ids, deferrable=deferrable, timeout=limit), context)
    assert 0.2 < time.monotonic() - started < SOON
    assert isinstance(outcome.error, AirflowSensorTimeout)
    message = str(outcome.error)
    assert message.startswith("Not over in time: RUNNING for ")
    assert f" (job {ids[0]} and 1 more, app {APP}). " in message
    assert message.endswith("Raise timeout (now 0.3 s) if it needs longer.")
    assert states(rungen_emulator) == ["RUNNING", "RUNNING"]


@pytest.mark.contract
@MODES
def test_what_is_no_id_is_hopeless_and_sends_nothing(
    rungen_emulator: Emulator, context: Any, deferrable: bool
) -> None:
    for bad in (None, "", "a/b", 7, ["good", ""], [None, None]):
        waiting = sensor("x", deferrable=deferrable)
        waiting.job_id = bad  # as the output of a task may be
        outcome = run_task(waiting, context)
        assert type(outcome.error) is AirflowFailException
        assert "job_id" in str(outcome.error)
    assert rungen_emulator.service.records() == []


@MODES
def test_a_refusal_that_lasts_leaves_the_job_to_a_retry(
    rungen_emulator: Emulator, context: Any, deferrable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_rungen.client.retry.PATIENCE", 0.5)
    [job_id] = submitted(60)
    rungen_emulator.service.inject(Fault(on="get", status=403, skip=1, times=None))
    outcome = run_task(sensor(job_id, deferrable=deferrable), context)
    # the policy of Airflow 3.3 decides by what it says itself
    assert type(outcome.error) is RunGenForbiddenError
    assert outcome.error.retryable
    assert states(rungen_emulator) == ["RUNNING"]
    assert KEY not in str(outcome.error)


@pytest.mark.contract
@KILLED
@pytest.mark.parametrize(("cancel", "state"), [(False, "RUNNING"), (True, "CANCELED")])
def test_a_kill_ends_the_sensor(rungen_emulator: Emulator, context: Any, cancel: bool, state: str) -> None:
    [job_id] = submitted(60)
    task = sensor(job_id, cancel_on_kill=cancel, poke_interval=0.05, timeout=60)
    with signal_when(signal.SIGTERM, lambda: rungen_emulator.service.count("get") > 1, task.on_kill) as sent:
        outcome = run_task(task, context)
    assert sent
    assert time.monotonic() - sent[0] < SOON
    assert isinstance(outcome.error, AirflowException)
    assert states(rungen_emulator) == [state]


# --- a poke -------------------------------------------------------------------------------------------------


def test_a_poke_in_a_new_process_reports_a_refusal_that_lasts(
    rungen_emulator: Emulator, context: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In reschedule mode each poke is the first: none may leave it to the next whether the refusal lasts."""
    monkeypatch.setattr("airflow_provider_rungen.client.retry.PATIENCE", 0.3)
    [job_id] = submitted(60)
    rungen_emulator.service.inject(Fault(on="get", status=401, times=None))
    with pytest.raises(AirflowFailException, match="401"):
        sensor(job_id, mode="reschedule").poke(context)
    assert rungen_emulator.service.count("get") == 1, "nothing has worked before"
    with pytest.raises(RunGenForbiddenError, match="401"):
        sensor(job_id, mode="reschedule").poke(context | {"task_reschedule_count": 1})
    assert rungen_emulator.service.count("get") > 2
