"""A page of a task run shows its own rows, from its run log."""

from __future__ import annotations

import html
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import APP, table_of

from airflow_provider_rungen.execution.jobs.log_home import token_of
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.operators import RunGenRunTableOperator
from airflow_provider_rungen.runs.attempt_record import End
from airflow_provider_rungen.runs.rows import JobState, Totals
from plugins.conftest import (
    POLL,
    SERVER_WARNINGS,
    CountingStore,
    World,
    given,
    links,
    run_table,
    submit,
    words_of,
    write_log,
)

pytestmark = [pytest.mark.usefixtures("unsettled"), SERVER_WARNINGS]

DONE, FAILED, OPEN = JobState.COMPLETED, JobState.FAILED, JobState.OPEN
SIGNED = "https://files.example.org/a.png?X-Amz-Signature=SECRET"


def save_task(world: World, state: str = "success", folder: Any = None, **page: Any) -> str:
    """Write a task with a log, and return the path of its page."""
    record = {"connection": "none", "app": APP, "results": f"{folder or world.folder}/r.csv", "key": ["sku"]}
    failure = page.pop("failure", None)
    return world.save(
        state,
        xcoms={"rungen_page": record | page, "rungen_failure": failure}
        if failure
        else {"rungen_page": record | page},
    )


def table(world: World, *skus: str, **changes: Any) -> RunGenRunTableOperator:
    """Return a task that always writes to the same results."""
    to_input = changes.pop("to_input", lambda row: given(row["sku"]))
    options = {"results": f"{world.folder}/results.csv", **changes, **POLL}
    return RunGenRunTableOperator(
        table=[{"sku": sku} for sku in skus], key="sku", to_input=to_input, **options
    )


def tokens(world: World, names: str) -> list[Path]:
    """Return files of the log of the task."""
    return sorted((world.folder / ".rungen/runs" / token_of(world.ti)).glob(names))


# --- whose rows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_destination", [True, False])
def test_an_older_run_shows_its_own_rows(world: World, has_destination: bool) -> None:
    place = {"destination": world.folder.as_uri()} if has_destination else {}
    older = world.run(table(world, "shoe", "hat", **place))
    folder = world.folder
    newer = replace(world.again(), folder=folder)
    path = newer.run(table(newer, "coat", **place))
    assert "coat" in newer.get(path).text
    page = newer.get(older).text
    assert "shoe" in page
    assert "hat" in page
    assert "coat" not in page
    assert "2 jobs" in page
    assert len(links(page, "/files/")) == 2 * has_destination


def test_no_task_shows_the_log_of_another(world: World) -> None:
    write_log(world.ti, world.folder, [DONE])
    save_task(world)
    path = save_task(replace(world.again(), folder=world.folder), folder=world.folder.parent)
    page = world.get(path).text
    assert "s0" not in page
    assert "there is no run log in" in page


def test_a_plan_misses_no_log(world: World) -> None:
    record = {"connection": "none", "app": APP, "results": f"{world.folder}/r.csv"}
    path = world.save(xcoms={"rungen_page": record}, operator="RunGenPlanTableOperator")
    for page in (path, path.partition("/tasks/")[0]):
        assert "there is no run log in" not in world.get(page).text


def test_rows_are_shown_with_their_reasons_whether_they_have_a_job_or_not(world: World) -> None:
    inputs = {"fine": given("fine"), "bad": given("bad", fail="out of memory"), "skipped": None}
    path = world.run(table(world, *inputs, to_input=lambda row: inputs[row["sku"]], max_failed=1))
    page = world.get(path).text
    cards = page.split("<article")[1:]
    assert len(cards) == 3
    assert ("fine" in cards[0], "failed" in cards[0]) == (True, False)
    assert "out of memory" in cards[1]
    assert "skipped" in cards[2]
    assert "Failures" in page


def test_rows_are_shown_while_the_task_runs_and_too_many_are_not_counted(world: World) -> None:
    write_log(world.ti, world.folder, [DONE, OPEN, None])
    path = save_task(world, "running", rows=3)
    page = world.get(path).text
    assert "s2" in page
    assert "not submitted" not in page.partition("<article")[2]
    assert world.get(f"{path}/progress").json()["done"] == 1
    world = world.again()
    write_log(world.ti, world.folder, [DONE] * 6401)
    path = save_task(world, "running", rows=6401)
    page = world.get(path).text
    assert "too many rows to count" in page
    assert "of 6,401 done" not in page
    assert world.get(f"{path}/progress").json()["is_moving"] is True


@pytest.mark.parametrize(("completed", "failed"), [(150, 3), (0, 0)])
def test_progress_counts_the_rows_of_all_pages(world: World, completed: int, failed: int) -> None:
    submitted = [DONE] * completed + [FAILED] * failed
    write_log(world.ti, world.folder, [*submitted, *[None] * (250 - len(submitted))])
    path = save_task(world, "running", rows=250)
    answer = world.get(f"{path}/progress").json()
    assert (answer["done"], answer["total"], answer["is_moving"]) == (completed + failed, 250, True)
    assert [part["count"] for part in answer["parts"][:2]] == [completed, failed]
    page = world.get(f"{path}?page=3").text
    assert f"{completed + failed} of 250 done" in page
    assert "too many rows" not in page


# --- the numbers --------------------------------------------------------------------------------------------


def test_the_numbers_of_all_pages_are_those_of_the_log(world: World) -> None:
    write_log(world.ti, world.folder, [DONE] * 240 + [FAILED] * 9 + [None], end=End.FAILED)
    path = save_task(world, "failed")
    for page in ("1", "3"):
        text = world.get(f"{path}?page={page}").text
        assert "249 of 250 jobs submitted" in text
        assert "<b>240</b> completed" in text
        assert "<b>9</b> failed" in text
    assert "not submitted" in text
    assert "out of memory" in text


@pytest.mark.parametrize("page", [1, 2])
def test_what_a_stop_left_is_counted_once_and_is_no_failure(world: World, page: int) -> None:
    # the attempt has not read the parts after the first
    totals = Totals(inputs=64, completed=40, failed=20, submitted=60, jobs_completed=40, jobs_failed=20)
    states = [DONE] * 40 + [FAILED] * 20 + [None] * 140
    write_log(world.ti, world.folder, states, why="model not loaded", end=End.FAILED, totals=totals)
    unsent = [{"index": number, "error": "it was not submitted"} for number in range(60, 200)]
    failed = [
        {"index": number, "job_id": f"job-{number}", "error": "model not loaded"} for number in range(40, 60)
    ]
    path = save_task(world, "failed", rows=200, failure={"try_number": 1, "error": "Stopped", "inputs": 200})
    world.database.push(world.ti, "failed", [*failed, *unsent])
    text = words_of(world.get(f"{path}?page={page}").text)
    assert "60 of 200 jobs submitted" in text
    assert "140 not submitted" in text
    assert "Failures 20 model not loaded" in text
    assert "it was not submitted" not in text.partition("Failures")[2].partition("Show")[0]


@pytest.mark.parametrize("page", [1, 12])
def test_failures_that_are_not_all_known_are_counted_alike_on_each_page(world: World, page: int) -> None:
    write_log(world.ti, world.folder, [FAILED] * 1200, why="out of memory", end=End.FAILED)
    path = save_task(world, "failed", failure={"try_number": 1, "error": "1200 failed", "inputs": 1200})
    failed = [{"index": number, "job_id": f"job-{number}", "error": "oom"} for number in range(1000)]
    world.database.push(world.ti, "failed", failed)
    text = words_of(world.get(f"{path}?page={page}").text)
    assert "1,200 failed" in text
    assert "Failures the first 1,000 1,000 oom" in text


def test_jobs_whose_cancellation_the_log_missed_are_counted_by_its_last_record(world: World) -> None:
    totals = Totals(inputs=3, completed=1, failed=2, submitted=3)
    write_log(world.ti, world.folder, [DONE, OPEN, OPEN], end=End.FAILED, totals=totals)
    page = world.get(save_task(world, "failed")).text
    assert "3 jobs" in page
    assert "<b>1</b> completed" in page
    assert "<b>2</b> failed" in page


def test_without_a_record_of_the_end_no_number_is_made_up(world: World) -> None:
    write_log(world.ti, world.folder, [DONE] * 6500)
    page = world.get(save_task(world, "failed")).text
    assert "only the rows of this page are known" in page
    assert "of 6,500 done" not in page
    assert "it was killed, or its worker was lost" in page
    # an attempt without anything to submit has recorded its end
    again = world.again()
    write_log(again.ti, again.folder, [None] * 6500, end=End.SUCCEEDED, totals=Totals())
    assert "only the rows of this page are known" not in again.get(save_task(again)).text


def test_only_what_a_page_shows_is_read_and_nothing_is_written(world: World, counting: CountingStore) -> None:
    folder = "memory://counts@bucket/results"
    write_log(world.ti, folder, ([DONE] * 49 + [FAILED]) * 200, end=End.SUCCEEDED)
    path = save_task(world, folder=folder)
    counting.is_read_only = True
    for page in (20, 50, 100):
        counting.reads = []
        answer = world.get(f"{path}?page={page}").text
        assert f"s{100 * page - 1}" in answer
        assert "10,000 jobs" in answer
        read = sorted(each.rpartition(token_of(world.ti))[2].split("/")[1] for each in counting.reads)
        assert set(read) == {"attempts", "jobs", "plans"}
        assert len(read) <= 6
        # nor again for the jobs of the page
        count = len(counting.reads)
        assert world.get(f"{path}/jobs/job-{100 * page - 50}?task_page={page}").status_code == 200
        assert len(counting.reads) == count
    # without a log, too
    assert "there is no run log" in world.get(save_task(world.again(), folder=folder)).text


def test_jobs_of_any_page_and_their_files_are_those_of_the_task(world: World) -> None:
    skus = (f"sku-{number}" for number in range(120))
    path = world.run(table(world, *skus, destination=world.folder.as_uri()))
    second = world.get(f"{path}?page=2").text
    pictures, jobs = links(second, "/files/"), links(second, "/jobs/")
    assert len(pictures) == 20
    for each in (pictures[-1], next(job for job in jobs if "/files/" not in job)):
        assert world.get(each).status_code == 200
        # each is named with its page
        assert world.get(each.partition("?")[0]).status_code == 404
        assert world.get(each.replace("task_page=2", "task_page=1")).status_code == 404
    assert world.get(f"{path}/jobs/other/files/0").status_code == 404


# --- how it ended -------------------------------------------------------------------------------------------


def test_a_failed_task_says_why_and_what_to_do(world: World) -> None:
    op = table(world, "fine", "bad", to_input=lambda row: given(row["sku"], fail="out of memory"))
    error = world.perform(op).error
    page = html.unescape(world.get(world.save("failed")).text)
    assert "2 of 2 rows failed" in page
    assert "out of memory" in page
    assert str(error).rpartition(". ")[2].rstrip(".") in page
    assert "No jobs yet" not in page
    assert "May still run" not in page


def test_a_failed_task_says_what_a_retry_and_a_clear_pay_for(world: World) -> None:
    inputs = [given("one"), given("two"), given("bad", fail="out of memory")]
    op = table_of(inputs=inputs, destination=world.folder.as_uri(), **POLL)
    assert world.perform(op).error is not None
    text = words_of(world.get(path := world.save("failed")).text)
    assert "A clear submits 1 of 3 inputs" in text
    assert "retry" not in text, "none follows"
    [job] = links(world.get(f"{path}?status=failed").text, "/jobs/")
    assert "A clear of the task submits 1 of 3 inputs." in words_of(world.get(job).text)
    assert "Spent 3 jobs" in text


def test_a_failed_task_names_the_jobs_that_may_still_run(world: World) -> None:
    billing = [f"open-{number}" for number in range(60)]
    failure = {"try_number": 1, "error": "it was stopped", "hint": "Cancel them", "still_billing": billing}
    write_log(world.ti, world.folder, [DONE, OPEN], end=End.FAILED)
    path = save_task(world, "failed", failure=failure)
    page = world.get(path).text
    for words in ("it was stopped", "Cancel them", "May still run, and be billed", "open-0", "and 20 more"):
        assert words in page
    assert world.get(f"{path}/jobs/open-0").status_code == 200
    assert "it was stopped" not in world.get(save_task(replace(world.again(), folder=world.folder))).text


def test_a_job_that_has_ended_is_not_named_as_one_that_may_run(world: World) -> None:
    ended, running = submit(given(seconds=60), given(seconds=60))
    with RunGenHook() as hook:
        hook.cancel_job(job_id=ended)
    failure = {"try_number": 1, "error": "it was killed", "still_billing": [ended, running]}
    write_log(world.ti, world.folder, [DONE], end=End.FAILED)
    page = world.get(save_task(world, "failed", failure=failure, connection="rungen_default")).text
    assert "May still run, and be billed" in page
    assert running in page
    assert ended not in page


def test_a_log_that_is_gone_is_explained(world: World) -> None:
    path = run_table(world, given("one"))
    shutil.rmtree(world.folder / ".rungen")
    page = world.get(path).text
    assert f"there is no run log in {world.folder.as_uri()}" in page


# --- what anybody may have written --------------------------------------------------------------------------


def make_large(path: Path) -> None:
    path.write_bytes(b"[" + b"[]," * 1_300_000 + b"[]]\n")


def make_huge(path: Path) -> None:
    os.truncate(path, 1 << 36)


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def make_link(path: Path) -> None:
    path.rename(path.with_name("moved"))
    path.symlink_to("moved")


def make_other(path: Path) -> None:
    path.write_text('{"version":1}\n[]\n')


@pytest.mark.parametrize("make", [make_large, make_huge, make_pipe, make_link, make_other])
@pytest.mark.parametrize("names", ["attempts/*", "jobs/*/*", "plans/*"])
def test_a_file_that_is_none_of_the_log_is_explained(
    world: World, parsed: list[int], names: str, make: Callable[[Path], None]
) -> None:
    write_log(world.ti, world.folder, [DONE], end=End.SUCCEEDED)
    path = save_task(world)
    for file in tokens(world, names):
        make(file)
    parsed.clear()
    started = time.process_time()
    page = world.get(path)
    assert time.process_time() - started < 1
    assert page.status_code == 200
    # a part of which no file is there is one of which nothing is known
    is_missing = names == "jobs/*/*" and make in (make_pipe, make_link)
    assert ("not submitted" if is_missing else "Results are missing") in page.text
    assert max(parsed, default=0) < 100_000
    assert world.get(f"{path}/jobs/job-0").status_code == 404
    assert world.get(f"{path}/jobs/job-0/files/0").status_code == 404


def test_a_part_of_a_plan_of_some_megabytes_is_read(world: World) -> None:
    write_log(world.ti, world.folder, [DONE] * 300, key="s{number}" + "x" * 10_000, end=End.SUCCEEDED)
    assert "s299x" in world.get(f"{save_task(world)}?page=3").text


def test_many_files_are_read_up_to_a_size_together(world: World) -> None:
    write_log(world.ti, world.folder, [DONE], end=End.SUCCEEDED)
    [record] = tokens(world, "attempts/*")
    for number in range(2, 200):
        record.with_name(f"0001-0001-{number:08d}.json").write_bytes(b"x" * (1 << 20))
    page = world.get(save_task(world)).text
    assert "too large for this page" in page


@pytest.mark.parametrize("text", ["\ud800", SIGNED, "<script>alert(1)</script>"])
def test_texts_of_a_log_are_harmless(world: World, text: str) -> None:
    failure = {"try_number": 1, "error": text, "hint": text, "still_billing": [text]}
    write_log(world.ti, world.folder, [FAILED], key=text, why=text, end=End.FAILED)
    path = save_task(world, "failed", failure=failure)
    for each in (path, f"{path}/jobs/job-0"):
        page = world.get(each)
        assert page.status_code == 200
        assert "SECRET" not in page.text
        assert "<script>alert" not in page.text


@pytest.mark.parametrize("page", ["0", "-1", "99999999", "9" * 30])
def test_a_page_that_no_log_has_is_empty(world: World, page: str) -> None:
    write_log(world.ti, world.folder, [DONE], end=End.SUCCEEDED)
    path = save_task(world)
    assert world.get(f"{path}?page={page}").status_code == 200
    assert world.get(f"{path}/jobs/job-0?task_page={page}").status_code in (200, 404)
