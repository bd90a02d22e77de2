"""The page of a task that failed says why, what to do, and what it costs, whatever the task is."""

from __future__ import annotations

import re
import signal
import traceback
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from conftest import APP, SOON, table_of
from rungen_emulator import Fault
from rungen_emulator.fakes import FakeStore

from airflow_provider_rungen._airflow import AirflowTaskTimeout
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.operators import (
    RunGenCancelJobOperator,
    RunGenCollectResultsOperator,
    RunGenDeleteAppOperator,
    RunGenRunJobOperator,
    RunGenRunTableOperator,
    RunGenScaleAppOperator,
)
from airflow_provider_rungen.runs.attempt_record import End
from airflow_provider_rungen.runs.rows import JobState
from airflow_provider_rungen.sensors import RunGenJobSensor
from plugins.conftest import POLL, SERVER_WARNINGS, World, given, submit, words_of, write_log

pytestmark = [pytest.mark.usefixtures("unsettled"), SERVER_WARNINGS]

BARE: dict[str, Any] = {"task_id": "task"}
WAITS: dict[str, Any] = {**POLL, "wait_for_completion": True}


def box_of(page: str) -> str:
    """Return the words of the red box."""
    assert 'aria-label="What failed"' in page
    return words_of(page.partition('aria-label="What failed"')[2].partition("</section>")[0])


def place_of(world: World, has_log: bool) -> dict[str, Any]:
    return {"destination": world.folder.as_uri()} if has_log else {}


@pytest.mark.parametrize("has_log", [True, False])
def test_a_key_that_was_revoked_is_named_where_nothing_was_submitted(world: World, has_log: bool) -> None:
    world.emulator.service.configure({"api_key": "another"})
    place = place_of(world, has_log)
    op: Any = RunGenRunJobOperator(input=given(), **WAITS)
    op = table_of(inputs=[given()], **place, **POLL) if has_log else op
    assert world.perform(op).error is not None
    page = world.get(world.save("failed", operator=op.task_type)).text
    box = box_of(page)
    assert "(403)" in box
    assert "Check the password of connection" in box
    assert "Spent nothing" in box
    assert "A clear submits the job again" in box
    for wrong in ("No jobs yet", "0 of 1 done", "there is no run log"):
        assert wrong not in words_of(page)


@pytest.mark.parametrize(
    ("op", "fault"),
    [
        (RunGenCollectResultsOperator(job_id="nobody-knows-it", **BARE), None),
        (RunGenCancelJobOperator(job_id="nobody-knows-it", **BARE), None),
        (RunGenJobSensor(job_id="nobody-knows-it", poke_interval=0.02, **BARE), None),
        (RunGenScaleAppOperator(active_workers=4, **BARE), "update_app"),
        (RunGenDeleteAppOperator(app_id="flux-schnell", **BARE), "delete_app"),
    ],
    ids=lambda each: getattr(each, "task_type", None),
)
def test_each_kind_of_task_says_why_it_failed(world: World, op: Any, fault: str | None) -> None:
    if fault:
        world.emulator.service.inject(Fault(on=fault, status=403, times=None))
    assert world.perform(op).error is not None
    assert world.ti.xcoms["rungen_results_link"]
    page = world.get(world.save("failed", operator=op.task_type)).text
    box = box_of(page)
    assert ("403" if fault else "404") in box
    is_about_jobs = any(word in op.task_type for word in ("Job", "Collect"))
    assert ("A retry or a clear submits no jobs" in box) == is_about_jobs
    assert "No jobs" not in words_of(page.partition("</section>")[2])


def test_a_task_that_did_not_run_says_so(world: World) -> None:
    assert "It did not run: a task before it failed." in world.get(world.save("upstream_failed")).text


def test_a_connection_that_is_missing_leads_to_a_page(world: World) -> None:
    op = RunGenRunJobOperator(input=given(), rungen_conn_id="nowhere", **WAITS)
    assert world.perform(op).error is not None
    assert world.ti.xcoms["rungen_results_link"]
    assert "nowhere" in box_of(world.get(world.save("failed")).text)


@pytest.mark.parametrize("has_log", [True, False])
def test_jobs_that_were_canceled_are_counted_as_canceled(world: World, has_log: bool) -> None:
    inputs = [given(str(number), seconds=0.02 if number < 4 else 60) for number in range(12)]
    world.emulator.service.scale("flux-schnell", 12)
    op = table_of(inputs=inputs, timeout=1, **place_of(world, has_log), **POLL)
    assert world.perform(op).error is not None
    world.ti.xcoms["rungen_page"]["price"] = "3600 USD/h"
    page = world.get(path := world.save("failed")).text
    text = words_of(page)
    assert "12 jobs" in text
    assert ("4 completed" in text, "8 canceled" in text) == (True, True)
    assert "8 failed" not in text
    assert "timeout (now 1 s)" in box_of(page)
    # what was canceled had worked, too
    costs = sum(map(float, re.findall(r"([0-9.]+) USD", words_of(page.partition("<article")[2]))))
    assert costs > 4
    for query in ("", "?status=completed"):
        [spent] = re.findall("Spent 12 jobs, .*: about ([0-9.]+) USD", box_of(world.get(path + query).text))
        # each of the twelve is rounded to a cent, and so is what they cost together
        assert float(spent) == pytest.approx(costs, abs=13 * 0.005)
        of_run = words_of(world.get(path.partition("/tasks/")[0] + query).text)
        assert f"jobs of all tasks: about {spent} USD" in of_run


def test_many_rows_count_those_that_were_canceled(world: World) -> None:
    inputs = [given(str(number), seconds=0.02 if number < 100 else 60) for number in range(120)]
    world.emulator.service.scale("flux-schnell", 120)
    op = table_of(inputs=inputs, timeout=2, destination=world.folder.as_uri(), **POLL)
    assert world.perform(op).error is not None
    world.ti.xcoms["rungen_page"]["price"] = "3600 USD/h"
    path = world.save("failed")
    text = words_of(world.get(path).text)
    assert ("100 completed" in text, "20 canceled" in text) == (True, True)
    # what a task spent does not depend on the page
    [spent] = re.findall(r"Spent 120 jobs, .*: (about [0-9.]+ USD)", text)
    assert spent in words_of(world.get(f"{path}?page=2").text)
    assert f"jobs of all tasks: {spent}" in words_of(world.get(path.partition("/tasks/")[0]).text)


def test_a_time_limit_of_airflow_is_named(world: World) -> None:
    op = table_of(
        inputs=[given("one", seconds=60)] * 2,
        destination=world.folder.as_uri(),
        execution_timeout=timedelta(minutes=3),
        **POLL,
    )

    def end(*_: Any) -> None:
        raise AirflowTaskTimeout

    def time_out(key: str, value: Any) -> None:
        if key == "rungen_job_link":
            signal.raise_signal(signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, end)
    world.ti.on_push = time_out
    try:
        op.execute(world.context)
    except AirflowTaskTimeout:
        op.on_kill()
    finally:
        signal.signal(signal.SIGALRM, before)
    page = world.get(world.save("failed")).text
    assert "execution_timeout (3 min) is over" in box_of(page)
    assert "2 canceled" in words_of(page)


def test_a_retry_that_runs_says_why_the_last_attempt_failed(world: World) -> None:
    world.context["task_state_store"] = FakeStore()
    op = RunGenRunJobOperator(input=given(fail="out of memory"), retries=1, **WAITS)
    world.ti.max_tries = 1
    assert world.perform(op).error is not None
    page = world.get(world.save("up_for_retry")).text
    assert "A retry follows. Attempt 1 failed: Failed: out of memory" in box_of(page)
    # Airflow wipes the XComs
    world = world.again()
    world.ti.pushed.clear()
    world.ti.try_number = 2
    seen: list[str] = []

    def look(key: str, value: Any) -> None:
        if key == "job_id":
            seen.append(world.get(world.save("running", try_number=2)).text)

    world.ti.on_push = look
    world.perform(RunGenRunJobOperator(input=given(fail="out of memory"), retries=1, **WAITS))
    [page] = seen
    assert "Attempt 2 runs. Attempt 1 failed: Failed: out of memory" in box_of(page)


def test_a_retry_that_succeeds_has_no_box(world: World) -> None:
    failure = {"try_number": 1, "error": "out of memory"}
    page = world.get(world.save("success", xcoms={"rungen_failure": failure})).text
    assert "out of memory" not in page


def test_an_end_that_nobody_recorded_is_explained(world: World) -> None:
    page = world.get(world.save("failed", xcoms={})).text
    assert "The task did not report why: a user marked it" in box_of(page)


@pytest.mark.parametrize("value", [{"error": 1}, "text", {"try_number": -1, "error": "x"}, [], None])
def test_a_reason_that_is_none_is_left_out(world: World, value: Any) -> None:
    answer = world.get(world.save("failed", xcoms={"rungen_failure": value}))
    assert answer.status_code == 200


# --- what is spent, and what runs ---------------------------------------------------------------------------

DONE, CANCELED, OPEN = JobState.COMPLETED, JobState.CANCELED, JobState.OPEN


def save_failure(world: World, state: str = "failed", *, page: Any = None, **xcoms: Any) -> str:
    """Write a task that failed, and return the words of its page."""
    about = {"connection": "none", "app": APP, "price": "36 USD/h", "destination": world.folder.as_uri()}
    xcoms["rungen_page"] = about if page is None else page
    return words_of(world.get(world.save(state, xcoms=xcoms)).text)


@pytest.mark.parametrize(("state", "label"), [("failed", "A clear"), ("up_for_retry", "The retry")])
def test_an_attempt_that_was_killed_says_what_ran_and_that_the_rest_is_unknown(
    world: World, state: str, label: str
) -> None:
    write_log(world.ti, world.folder, [DONE] * 4 + [OPEN] * 8)
    text = save_failure(world, state)
    assert "it was killed, or its worker was lost" in text
    assert "Spent at least 12 jobs, at least 6 s of execution: at least 0.06 USD" in text
    assert f"{label} submits unknown, up to all 12 inputs" in text
    assert "no jobs" not in text
    listed = text.partition("May still run, and be billed:")[2]
    assert [f"job-{number}" in listed for number in (4, 11)] == [True, True]


def test_a_task_that_was_marked_while_it_ran_says_what_it_spent(world: World) -> None:
    failure = {"try_number": 1, "error": "It was stopped", "inputs": 12, "clear_submits": 12}
    write_log(world.ti, world.folder, [DONE] * 4 + [CANCELED] * 8, end=End.FAILED)
    text = save_failure(world, rungen_failure=failure)
    assert "Spent 12 jobs, " in text
    assert "A clear submits all 12 inputs" in text
    assert "nothing" not in text


@pytest.mark.parametrize("has_log", [True, False])
def test_jobs_whose_answers_were_lost_are_not_counted_as_not_submitted(world: World, has_log: bool) -> None:
    world.emulator.service.inject(Fault(on="run", kind="reset_after", skip=2, times=3))
    inputs = [given(str(number)) for number in range(5)]
    op = table_of(inputs=inputs, **place_of(world, has_log), **POLL)
    assert world.perform(op).error is not None
    assert world.emulator.service.stats()["jobs_created"] == 5
    text = words_of(world.get(world.save("failed")).text)
    assert "Spent at least 2 jobs, up to 3 more jobs whose ids are not known" in text
    assert "At least 2 of 5 jobs submitted" in text
    assert "3 of unknown fate" in text
    assert "3 not submitted" not in text


def test_a_job_whose_answer_was_lost_is_not_counted_as_not_submitted(world: World) -> None:
    world.emulator.service.inject(Fault(on="run", kind="reset_after"))
    assert world.perform(RunGenRunJobOperator(input=given(), **WAITS)).error is not None
    text = words_of(world.get(world.save("failed")).text)
    assert "1 of unknown fate" in text
    assert "not submitted" not in text


@pytest.mark.parametrize("page", [1, 3])
def test_jobs_of_a_lost_worker_are_counted_alike_on_each_page(world: World, page: int) -> None:
    write_log(world.ti, world.folder, [DONE] * 150 + [OPEN] * 100)
    destination = {"connection": "none", "app": APP, "destination": world.folder.as_uri(), "price": "1 USD/s"}
    path = world.save("failed", xcoms={"rungen_page": destination})
    text = words_of(world.get(f"{path}?page={page}").text)
    spent = r"at least [0-9.]+ USD without 100 jobs whose time is not known"
    assert re.search(f"Spent at least 250 jobs, .*: {spent}", text)
    assert re.search(spent, words_of(world.get(path.partition("/tasks/")[0]).text))
    assert ("150 completed" in text, "100 may still run" in text) == (True, True)
    listed = text.partition("May still run, and be billed:")[2].partition("To stop them now")[0]
    assert "job-150 job-151 " in listed
    assert listed.endswith("and 60 more ")
    assert "A retry uses the jobs that it submitted, and so does a clear of a table" in text


@pytest.mark.parametrize("page", [1, 2])
def test_jobs_that_ended_after_a_task_was_marked_are_counted_by_how_they_ended(
    world: World, page: int
) -> None:
    world.emulator.service.scale(APP, 12)
    ended = [given("completed"), *[given("failed", fail="out of memory")] * 3]
    ids = submit(*ended, *[given(str(number), seconds=60) for number in range(7)])
    with RunGenHook() as hook:
        for job_id in ids[:4]:
            hook.wait_for_job(job_id=job_id, poll_interval=0.02, timeout=SOON)
        for job_id in ids[4:9]:
            hook.cancel_job(job_id=job_id)
    write_log(world.ti, world.folder, [OPEN] * 11 + [DONE] * 109, ids=ids)
    about = {"connection": "rungen_default", "app": APP, "destination": world.folder.as_uri()}
    path = world.save("failed", xcoms={"rungen_page": about})
    text = words_of(world.get(f"{path}?page={page}").text)
    for words in ("110 completed", "3 failed", "5 canceled", "2 may still run"):
        assert words in text


@pytest.mark.parametrize("count", [6, 120])
def test_jobs_that_are_stored_are_not_named_as_running(world: World, count: int) -> None:
    inputs = [given(str(number)) for number in range(5)]
    op = table_of(inputs=inputs, destination=world.folder.as_uri(), **POLL)
    assert world.perform(op).error is None
    ids = world.ids
    ids += submit(given(seconds=60))
    folder = world.folder
    again = replace(world.again(), folder=folder)
    write_log(again.ti, again.folder, [OPEN] * 6 + [DONE] * (count - 6), ids=ids, end=End.FAILED)
    failure = {"try_number": 1, "error": "503", "inputs": count, "still_billing": ids}
    text = save_failure(again, rungen_failure=failure)
    listed = text.partition("May still run, and be billed:")[2].partition(" jobs")[0]
    assert [job_id in listed for job_id in ids] == [False] * 5 + [True]
    assert "1 may still run" in text


# --- the log ------------------------------------------------------------------------------------------------


def test_the_log_names_the_page_first(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.example.org")
    caplog.set_level("INFO")
    inputs = [given(f"bad {number}", fail="out of memory " * 9) for number in range(3)]
    error = world.perform(table_of(inputs=inputs, **POLL)).error
    address = f"Results: https://airflow.example.org{world.ti.xcoms['rungen_results_link']}"
    assert address in caplog.messages[:2]
    # Airflow logs the error last
    assert str(error).startswith("3 of 3 rows failed")


@pytest.mark.parametrize("retries", [0, 1])
def test_an_error_has_one_traceback(world: World, retries: int) -> None:
    world.emulator.service.inject(Fault(on="run", status=400, times=None))
    error = world.perform(RunGenRunJobOperator(input=given(), retries=retries, **WAITS)).error
    assert error is not None
    text = "".join(traceback.format_exception(error))
    assert text.count("Traceback (most recent call last)") == 1
    assert text.splitlines()[-1].endswith(str(error))


def test_an_error_of_the_code_of_a_user_shows_no_signed_url(world: World) -> None:
    def pictures() -> Iterator[dict[str, Any]]:
        yield given()
        raise KeyError(f"https://bucket.example/a.png?X-Amz-Signature={'5ec2e7' * 4}")

    options = BARE | {"results": f"{world.folder}/results.jsonl"}
    outcome = world.perform(RunGenRunTableOperator(table=pictures, **options))
    assert isinstance(outcome.error, KeyError)
    page = world.get(world.save("failed", operator="RunGenRunTableOperator")).text
    assert "bucket.example" in box_of(page)
    assert "The log of the task has its traceback." in box_of(page)
    for text in (page, repr(outcome.xcoms), outcome.log):
        assert "5ec2e7" not in text
