"""The ledger as one task run sees it: what a look-up costs, how it is used, and two runs at once."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import logging
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from conftest import FakeTime
from faulty_s3 import FaultyS3
from fsspec.implementations.memory import MemoryFileSystem
from object_store import ObjectStore, attach

from airflow_provider_rungen.exceptions import RunGenJobFailedError, RunGenOutputError, RunGenResultError
from airflow_provider_rungen.execution.archive.storage import Storage
from airflow_provider_rungen.execution.archive.stored_jobs import StoredJob, manifest_text
from airflow_provider_rungen.execution.ledger import files
from airflow_provider_rungen.execution.ledger.entries import Entry, entry_text, file_of
from airflow_provider_rungen.execution.ledger.store import LedgerStore
from airflow_provider_rungen.execution.sending import paid
from airflow_provider_rungen.execution.sending.paid import PaidInputs
from airflow_provider_rungen.ledger import Ledger
from airflow_provider_rungen.runs.jobs import Jobs
from airflow_provider_rungen.runs.rows import SUBMITTABLE, InputState, JobState, Writer

A, B = (task * 32 + "0002" for task in "ab")
BLOCK = 16


def key_of(number: int) -> str:
    return f"{number * 2654435761 % 2**32:08x}" + "0" * 56


def store(destination: str, job_id: str, app_id: str = "flux") -> StoredJob:
    """Store a job without outputs, as the archive does."""
    storage = Storage(destination)
    manifest = {"job_id": job_id, "app_id": app_id, "complete": True, "status": "COMPLETED", "outputs": []}
    storage.write_all({(job_id, "manifest.json"): manifest_text({**manifest, "result": job_id})})
    return StoredJob(app_id, job_id, storage.uri_of(job_id, "manifest.json"), [], job_id)


class Run:
    """
    A task run, and its ledger.

    :param base: where the ledger and the destination are.
    :param token: the token of the task run.
    :param turn: the attempt.
    """

    def __init__(
        self,
        base: str,
        token: str = A,
        *,
        turn: int = 1,
        count: int = 100,
        accepts: Callable[[StoredJob], bool] = lambda _: True,
        **options: Any,
    ) -> None:
        self.destination = f"{base}/photos"
        self.jobs = Jobs("a" * 32, Writer(turn, turn, "0" * 8), stores=True)
        self.jobs.load(range(count))
        self.taken: list[str] = []
        ledger = LedgerStore(Ledger(f"{base}/ledger", **options), "model", token)
        ledger.open()
        self.ledger = ledger
        self.paid = PaidInputs(
            *(ledger, self.jobs, self.destination, "flux"),
            key_of_number=key_of,
            accepts=accepts,
            on_stored=lambda job: self.taken.append(job.job_id),
        )

    def look_up(self, *numbers: int) -> list[int]:
        return self.paid.note(self.paid.find(numbers))

    def begin(self, count: int) -> list[int]:
        return self.paid.note(self.paid.find_all({key_of(number): number for number in range(count)}))

    def accept(self, number: int, job_id: str) -> None:
        self.jobs.announce([number])
        assert self.jobs.accept(number, job_id)

    def buy(self, number: int, job_id: str) -> None:
        self.accept(number, job_id)
        self.paid.add_pending({number: job_id})

    def buy_stored(self, number: int, job_id: str) -> None:
        self.buy(number, job_id)
        self.paid.add_done({number: store(self.destination, job_id)}).result()


@pytest.fixture
def base(tmp_path: Path) -> str:
    (tmp_path / "photos").mkdir()
    return str(tmp_path)


@pytest.fixture(autouse=True)
def _log_level(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "airflow_provider_rungen")


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records]
    return [message for message in found if not message.startswith("New ledger")]


# --- what a look-up costs, and what counts as missing -------------------------------------------------------


@pytest.fixture
def remote() -> Iterator[ObjectStore]:
    """The store of ``memory://…``."""
    yield (fs := attach())
    fs.store.clear()


def test_a_block_costs_a_read_for_each_input_however_large_the_ledger_is(remote: ObjectStore) -> None:
    run = Run("memory://bucket/x", B)
    entry = Entry("flux", "job", A, datetime.now(UTC))
    for number in range(100_000):
        key = key_of(number)
        path = f"/bucket/x/ledger/{key[:2]}/{key}.json"
        remote.pipe_file(path, entry_text(key, replace(entry, job_id=f"job-{number}")))
    remote.counts.clear()
    numbers = range(BLOCK // 2, BLOCK + BLOCK // 2)
    run.jobs.load(range(100_000, 100_000 + BLOCK))
    assert run.look_up(*numbers) == list(numbers)
    assert run.look_up(*range(100_000, 100_000 + BLOCK)) == []
    # and the header, which proves that what is missing is missing
    assert (remote.counts["read"], remote.counts["list"]) == (BLOCK + 4, 0)


def test_a_block_in_s3_costs_a_put_for_each_input_and_a_get_for_each_that_is_known(
    faulty_s3: FaultyS3, s3: str
) -> None:
    base = s3.replace("my_s3", "faulty_s3")
    one, other = Run(base, A), Run(base, B)
    for number in range(4):
        one.buy(number, f"job-{number}")
    assert other.look_up(20) == []  # the first one finds out what the store can do
    faulty_s3.reset()
    assert other.look_up(*range(BLOCK)) == [0, 1, 2, 3]
    # the header twice
    assert Counter(request.operation for request in faulty_s3.requests) == {"PUT": BLOCK, "GET": 4 + 2}


@pytest.mark.parametrize("is_mount", [True, False])
@pytest.mark.parametrize("count", [1, 300])
def test_nothing_is_missing_in_a_folder_that_is_gone(
    base: str, tmp_path: Path, is_mount: bool, count: int
) -> None:
    run = Run(base)
    Run(base, B).buy(0, "job-0")
    (tmp_path / "ledger").rename(tmp_path / "elsewhere")
    if is_mount:
        (tmp_path / "ledger").mkdir()
    with pytest.raises(RunGenOutputError, match="ledger") as outage:
        run.look_up(*range(count))
    assert outage.value.retryable
    if is_mount:
        (tmp_path / "ledger").rmdir()
    (tmp_path / "elsewhere").rename(tmp_path / "ledger")
    assert run.look_up(0) == [0]


# --- how it is used -----------------------------------------------------------------------------------------


def test_a_job_of_another_run_is_shared_and_one_of_this_task_is_adopted(base: str) -> None:
    Run(base, B).buy(0, "job-b")
    Run(base, "a" * 32 + "0001").buy(1, "job-a")  # before a clear
    run = Run(base, A, turn=2)
    assert run.look_up(0, 1, 2) == [0, 1]
    assert run.jobs.running == ["job-b", "job-a"]
    assert [run.jobs.table.job(job_id).is_shared for job_id in ("job-b", "job-a")] == [True, False]
    assert (run.jobs.totals().submitted, run.jobs.totals().shared) == (1, 1)
    run.jobs.end("job-a", JobState.FAILED)
    assert run.jobs.state(1) is InputState.TO_REPEAT


def test_a_stored_job_is_taken_when_it_is_noted(base: str) -> None:
    other, own = Run(base, B), Run(base, A)
    other.buy_stored(0, "job-b")
    own.buy_stored(1, "job-a")
    run = Run(base, A, turn=2)
    found = run.paid.find([0, 1])
    assert run.taken == []
    assert run.paid.note(found) == [0, 1]
    assert sorted(run.taken) == ["job-a", "job-b"]
    assert run.jobs.table.job("job-b").stored == f"{base}/photos/job-b/manifest.json"
    assert run.jobs.table.job("job-a").stored == "."
    assert {run.jobs.state(number) for number in (0, 1)} == {InputState.COMPLETED}


def test_a_pending_job_of_another_app_is_not_waited_for_but_a_stored_one_is_used(base: str) -> None:
    other = Run(base, B)
    other.paid = PaidInputs(
        *(other.paid.ledger, other.jobs, other.destination, "flux-of-yesterday"),
        key_of_number=key_of,
        accepts=lambda _: True,
        on_stored=print,
    )
    other.buy(0, "job-0")
    other.buy(1, "job-1")
    other.paid.add_done({1: store(other.destination, "job-1", "flux-of-yesterday")}).result()
    run = Run(base)
    assert run.look_up(0, 1) == [1]
    # after a deferral, the log does not say which app it was
    again = Run(base)
    assert again.paid.read_again({1: run.jobs.table.job("job-1")}) == set()
    assert again.taken == ["job-1"]
    Storage(run.destination).remove([("job-1", "manifest.json")])
    store(run.destination, "job-9")
    assert again.paid.read_again({1: run.jobs.table.job("job-1")}) == {1}


def test_an_input_that_has_a_job_by_now_keeps_it(base: str) -> None:
    run, other = Run(base), Run(base, B)
    for number in range(3):
        other.buy(number, f"job-{number}")
    found = run.paid.find([0, 1, 2])
    run.accept(0, "job-own")
    run.accept(3, "job-1")  # somebody has written the id of another input's job
    assert run.paid.note(found) == [2]


@pytest.mark.parametrize("end", [JobState.FAILED, JobState.CANCELED, JobState.LOST, JobState.INVALID])
def test_an_input_whose_shared_job_has_no_use_runs_once_itself(base: str, end: JobState) -> None:
    one, run = Run(base, B), Run(base, A)
    one.buy(0, "job-z")
    assert run.look_up(0) == [0]
    run.jobs.end("job-z", end)
    assert run.jobs.state(0) is InputState.TO_REPEAT
    assert run.look_up(0) == []  # the other run has not forgotten it yet
    run.buy(0, "job-a")
    assert run.jobs.running == ["job-a"]
    one.paid.forget(dict.fromkeys(["job-z"]))
    assert Run(base, B).look_up(0) == [0]  # the entry names the new job
    run.jobs.end("job-a", JobState.FAILED)
    assert run.jobs.state(0) is InputState.FAILED
    later = Run(base, A, turn=2)
    later.jobs.load((), run.jobs.snapshot(0, save=1, nth=0, at=0))
    assert later.jobs.state(0) is InputState.TO_REPEAT


@pytest.mark.parametrize("next_token", [A, B], ids=["retry", "next run"])
def test_what_does_not_fit_runs_again(base: str, next_token: str, caplog: pytest.LogCaptureFixture) -> None:
    first = Run(base)
    for number in range(2):
        first.buy(number, f"job-{number}")
    job = store(first.destination, "job-0")
    first.paid.add_done({0: job}).result()
    store(first.destination, "job-1")  # a kill came before the ledger was written
    caplog.clear()
    run = Run(base, next_token, turn=2, accepts=lambda _: False)
    assert run.begin(2) == run.look_up(0) == []
    assert messages(caplog) == ["2 stored results do not fit output_type, and their inputs run again"]
    assert run.taken == []
    run.buy(0, "job-2")
    # a task with another schema may use what was bought last
    run.paid.forget_useless({"job-2": RunGenResultError("bad"), "job-1": RunGenJobFailedError("x")})
    assert Run(base, B).look_up(0) == [0]


def test_a_plan_is_looked_up_at_once(base: str, caplog: pytest.LogCaptureFixture) -> None:
    one = Run(base, B)
    for number in range(3):
        one.buy(number, f"job-{number}")
    one.paid.add_done({0: store(one.destination, "job-0")}).result()
    store(one.destination, "job-1")  # a kill came before the ledger was written
    caplog.clear()
    run = Run(base)
    found = run.paid.find_all({key_of(number): number for number in range(4)}, {key_of(0): 2, key_of(3): 1})
    assert run.paid.note(found) == [0, 1, 2]
    assert run.jobs.inputs(InputState.UNSENT)[0] == 3
    assert messages(caplog) == [
        "Reused 4 of 7 inputs, which are stored already",
        "3 of 7 inputs are equal to others, whose jobs they share",
    ]
    # the entry says so now
    assert Run(f"{base}", A).look_up(1) == [1]
    elsewhere = Run(base)
    elsewhere.destination = f"{base}/elsewhere"
    assert elsewhere.look_up(1) == [1]
    assert elsewhere.taken == ["job-1"]


# --- what the ledger learns ---------------------------------------------------------------------------------


def test_what_an_outage_kept_from_the_ledger_is_written_again(base: str) -> None:
    run = Run(base)
    run.buy_stored(0, "job-0")
    run.accept(1, "job-1")
    later = Run(base, turn=2)
    later.paid.add_missing({0: "job-0", 1: "job-1"})
    other = Run(base, B)
    assert other.look_up(0, 1) == [0, 1]
    assert other.taken == ["job-0"]


def test_a_job_that_failed_or_expired_is_forgotten(base: str, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(base)
    for number in range(4):
        run.buy(number, f"job-{number}")
    caplog.clear()
    expired = RunGenOutputError("gone")
    expired.is_expired = True
    run.paid.forget(dict.fromkeys(["job-0", "nobody's"]))
    run.paid.forget_useless({"job-1": expired, "job-2": RunGenOutputError("for now")})
    assert Run(base, B).look_up(0, 1, 2, 3) == [2, 3]
    assert messages(caplog) == ["Outputs expired: job job-1; its input is paid for again"]


# --- claims -------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    """The monotonic clock of this machine."""
    fake = FakeTime()
    for module in (files, paid):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: fake.now - 1e9, time=fake.time))
    return fake


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the file system one without hard links."""

    def link(_: str, target: str) -> NoReturn:
        # Linux looks whether the name is free before it looks whether it can link
        error = errno.EEXIST if os.path.lexists(target) else errno.EPERM
        raise OSError(error, os.strerror(error), target)

    monkeypatch.setattr(os, "link", link)


def crash(*_: object) -> NoReturn:
    raise OSError("the worker was killed")


def claimed(run: Run, count: int) -> set[int]:
    return {number for number in range(count) if run.paid.is_claimed(number)}


def check_claims(base: str, *, is_replaced: bool) -> None:
    """Have four runs claim the same inputs at once, and check that each is claimed by one of them."""
    options: dict[str, Any] = {"expires": 1e-9} if is_replaced else {}
    if is_replaced:
        first = Run(base, "c" * 36)
        for number in range(12):
            first.buy_stored(number, f"job-{number}")
    runs = [Run(base, f"{digit}" * 36, count=12, **options) for digit in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for run, found in zip(runs, pool.map(lambda run: run.paid.find(range(12)), runs), strict=True):
            assert run.paid.note(found) == []
    while len(rest := set(range(12)).difference(*(claimed(run, 12) for run in runs))) > 0:
        # each has seen that another one was replacing it
        assert is_replaced
        runs[0].look_up(*rest)
    assert sum(len(claimed(run, 12)) for run in runs) == 12


@pytest.mark.parametrize("is_replaced", [False, True])
@pytest.mark.parametrize("has_links", [False, True])
def test_an_input_is_claimed_by_one_run(
    base: str, request: pytest.FixtureRequest, has_links: bool, is_replaced: bool
) -> None:
    if not has_links:
        request.getfixturevalue("no_links")
    check_claims(base, is_replaced=is_replaced)


@pytest.mark.parametrize("is_replaced", [False, True])
def test_an_input_in_s3_is_claimed_by_one_run(s3: str, is_replaced: bool) -> None:
    check_claims(s3, is_replaced=is_replaced)


def test_what_another_run_has_claimed_is_waited_for(base: str) -> None:
    one, other, third = Run(base, A), Run(base, B), Run(base, "c" * 36)
    assert one.look_up(0, 1, 2) == other.look_up(0, 1, 2, 3) == []
    assert (claimed(one, 4), claimed(other, 4)) == ({0, 1, 2}, {3})
    one.buy(0, "job-0")
    one.paid.release([1, 3])
    assert other.look_up(0, 1, 2) == [0]
    assert other.jobs.running == ["job-0"]
    assert claimed(other, 4) == {1, 3}
    # a retry goes on with what its task run has claimed
    assert Run(base, A, turn=2).look_up(2) == []
    assert third.look_up(1, 2) == []
    assert not claimed(third, 4)


def test_the_claim_of_a_run_that_was_killed_ends(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    killed, run, late = Run(base, A), Run(base, B), Run(base, "c" * 36)
    killed.look_up(0, 1)
    run.look_up(0)
    assert not claimed(run, 2)
    monkeypatch.setattr(files, "CLAIM_TIME", 0.0)
    # it has not changed while this run looked at it
    assert run.look_up(0) == []
    assert claimed(run, 2) == {0}
    # one that thaws asks again before it submits
    assert killed.look_up(0) == []
    assert claimed(late, 2) == set()


def test_inputs_that_a_killed_run_may_have_bought_are_warned_of_once(
    base: str, clock: FakeTime, caplog: pytest.LogCaptureFixture
) -> None:
    killed, retry, run = Run(base, A), Run(base, A, turn=2), Run(base, B)
    killed.look_up(0, 1, 2, 3)
    retry.look_up(0, 1, 2, 3)
    retry.buy(2, "job-2")
    retry.paid.release([3])
    run.look_up(0, 1, 2, 3)
    assert not messages(caplog)
    clock.now += files.CLAIM_TIME
    run.look_up(0, 1, 3)
    run.paid.renew([0, 1])
    assert claimed(run, 4) == {0, 1, 3}
    Run(base, "c" * 36, refresh=True).look_up(0, 1, 3)  # it buys all again anyway
    assert messages(caplog) == [
        "Fate unknown: another run may have created the jobs for 2 inputs. Submitting again, which may "
        "run and bill twice (app flux)"
    ]


@pytest.mark.parametrize("is_renewed", [False, True])
def test_the_time_that_a_claim_is_waited_for_counts_over_deferrals(
    base: str, clock: FakeTime, is_renewed: bool
) -> None:
    killed, run = Run(base, A), Run(base, B)
    killed.look_up(0)
    for _ in range(3):
        run.look_up(0)
        assert not claimed(run, 1)
        clock.now += 0.4 * files.CLAIM_TIME
        if is_renewed:
            killed.paid.renew([0])
        watched, run = run.ledger.files.watched([key_of(0)]), Run(base, B)
        run.ledger.files.watch(json.loads(json.dumps(watched)))
    run.look_up(0)
    assert claimed(run, 1) == (set() if is_renewed else {0})


@pytest.mark.parametrize("days_ago", [-400, -1, 0, 1, 3])
def test_a_claim_lasts_whatever_the_clock_of_its_worker_says(
    base: str, clock: FakeTime, days_ago: int
) -> None:
    other, run = Run(base, A), Run(base, B)
    claim = Entry("flux", "", A, datetime.now(UTC) - timedelta(days=days_ago))
    Storage(f"{base}/ledger").write(*file_of(key_of(0)), entry_text(key_of(0), claim))
    if days_ago < 3:  # no clock is so wrong
        for _ in range(3):
            run.look_up(0)
            assert not claimed(run, 1)
            clock.now += 0.4 * files.CLAIM_TIME
    run.look_up(0)
    assert claimed(run, 1) == {0}
    other.look_up(0)
    assert not claimed(other, 1)


def test_a_claim_that_is_renewed_does_not_end(base: str, clock: FakeTime) -> None:
    run, other = Run(base, A), Run(base, B)
    run.look_up(0, 1, 2)
    run.buy(2, "job-2")
    for _ in range(4):
        other.look_up(0, 1)
        clock.now += 0.4 * files.CLAIM_TIME
        run.paid.renew([0, 2])
        assert claimed(run, 3) == {0}
    other.look_up(0, 1, 2)
    # the first is in flight, the second was never sent, and the third has a job
    assert claimed(other, 3) == {1}
    assert other.jobs.running == ["job-2"]


@pytest.mark.usefixtures("no_links")
def test_what_is_being_written_without_links_is_held(
    base: str, clock: FakeTime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    killed, run = Run(base, A), Run(base, B)
    with monkeypatch.context() as context:
        context.setattr(os, "replace", crash)
        with pytest.raises(RunGenOutputError):
            killed.look_up(0)
    caplog.clear()
    for _ in range(3):
        assert run.look_up(0, 1) == []
        assert claimed(run, 2) <= {1}
        clock.now += 0.4 * files.CLAIM_TIME
    run.look_up(0)
    assert claimed(run, 2) == {0}
    assert not messages(caplog)
    run.buy(0, "job-0")
    assert killed.look_up(0) == [0]


def forget_at_once(remote: ObjectStore, base: str, step: int, **kept: Any) -> tuple[list[str], bool]:
    """
    Have two runs forget the same failed job, the second one at a request of the first.

    :return: the jobs that they buy in its place, and whether the first made so many requests.
    """
    Run(base, "c" * 36, **kept).buy(0, "job-0")
    runs = {f"job-{name}": Run(base, token, **kept) for name, token in (("a", A), ("b", B))}
    requests, bought, failure = itertools.count(), list[str](), RunGenJobFailedError("no memory")
    for run in runs.values():
        assert run.look_up(0) == [0]
        run.jobs.end("job-0", JobState.FAILED)

    def go_on(job_id: str) -> None:
        run = runs[job_id]
        if run.jobs.inputs(*SUBMITTABLE)[:1] == [0] and not run.look_up(0) and run.paid.is_claimed(0):
            run.buy(0, job_id)
            bought.append(job_id)

    def overtake(*_: str) -> None:
        if next(requests) == step:
            remote.refuse("", failure)
            runs["job-b"].paid.forget({"job-0": failure})
            go_on("job-b")

    remote.before = overtake
    runs["job-a"].paid.forget({"job-0": failure})
    remote.refuse("", failure)
    for job_id in [*runs, *runs]:
        go_on(job_id)
    assert Run(base, "d" * 36, **kept).look_up(0) == [0]
    return bought, next(requests) > step


@pytest.mark.parametrize("kept", [{}, {"max_attempts": 3}], ids=["removed", "counted"])
def test_of_two_runs_that_forget_a_job_at_once_one_buys_another(
    remote: ObjectStore, kept: dict[str, Any]
) -> None:
    for step in itertools.count():
        bought, has_overtaken = forget_at_once(remote, f"memory://bucket/{step}", step, **kept)
        assert len(bought) == 1
        if not has_overtaken:
            break
    assert step > 3


def test_a_job_that_fails_leaves_what_it_was_to_replace(base: str) -> None:
    first = Run(base, A)
    first.buy_stored(0, "job-0")
    failure = RunGenJobFailedError("no memory")
    for options in ({"refresh": True}, {"expires": 1e-9}, {"expires": 1e-9, "max_attempts": 9}):
        for token, reason in ((B, None), ("d" * 36, failure), ("e" * 36, failure)):
            run = Run(base, token, **options)
            assert run.look_up(0) == []
            run.buy(0, f"job-{token[0]}")
            run.paid.forget({f"job-{token[0]}": reason})
        again = Run(base, "c" * 36)
        assert again.look_up(0) == [0]
        assert again.taken == ["job-0"]


def test_a_failure_does_not_expire(base: str) -> None:
    options: dict[str, Any] = {"expires": 1e-9, "max_attempts": 2}
    for token, job_id in ((A, "job-0"), (B, "job-1")):
        run = Run(base, token, **options)
        assert run.look_up(0) == []
        run.buy(0, job_id)
        run.paid.forget({job_id: RunGenJobFailedError("no memory")})
    assert Run(base, "c" * 36, **options).look_up(0) == [0]


def test_a_job_that_an_outage_kept_from_the_ledger_leaves_what_it_was_to_replace(base: str) -> None:
    first = Run(base, A)
    first.buy_stored(0, "job-0")
    run = Run(base, B, refresh=True)
    run.look_up(0)
    run.accept(0, "job-1")
    retry = Run(base, B, turn=2, refresh=True)
    retry.jobs.adopt(0, run.jobs.table.rows[0])
    retry.paid.add_missing({0: "job-1"})
    retry.paid.forget({"job-1": None})
    assert Run(base, "c" * 36).look_up(0) == [0]


def test_a_job_that_failed_while_nobody_looked_leaves_what_it_was_to_replace(base: str) -> None:
    first = Run(base, A)
    first.buy_stored(0, "job-0")
    run = Run(base, B, refresh=True)
    for number, job_id in enumerate(["job-1", "job-2"], 1):
        assert run.look_up(0) == []
        run.buy(0, job_id)
        run.jobs.end(job_id, JobState.FAILED, why="no memory")
        earlier, run = run, Run(base, B, turn=number + 1, refresh=True)
        run.jobs.adopt(0, earlier.jobs.table.rows[0])
    assert run.look_up(0) == []
    again = Run(base, "c" * 36)
    assert again.look_up(0) == [0]
    assert again.taken == ["job-0"]


@pytest.mark.parametrize("is_submitted", [True, False])
def test_a_stored_job_that_is_replaced_counts_for_others(base: str, is_submitted: bool) -> None:
    first, refresh = Run(base, A), Run(base, B, refresh=True)
    for number in range(3):
        first.buy_stored(number, f"job-{number}")
    refresh.look_up(0, 1, 2)
    if is_submitted:
        for number in range(3):
            refresh.buy(number, f"job-{number + 3}")
    Storage(first.destination).remove([("job-2", "manifest.json")])
    other = Run(base, "c" * 36, accepts=lambda job: job.job_id != "job-1")
    # the second does not fit, and the third is gone: for these, it waits
    assert other.look_up(0, 1, 2) == ([0, 2] if is_submitted else [0])
    assert other.look_up(*other.jobs.inputs(InputState.UNSENT)[:2]) == ([1] if is_submitted else [])
    assert other.taken == ["job-0"]
    assert not claimed(other, 3)
    assert other.jobs.running == (["job-4", "job-5"] if is_submitted else [])
    # neither a retry of the task that replaces it uses it, nor a task that wants a new one
    retry = Run(base, B, turn=2, refresh=True)
    assert retry.look_up(0) == ([0] if is_submitted else [])
    assert Run(base, "d" * 36, expires=1e-9).look_up(0) == ([0] if is_submitted else [])
    assert Run(base, "e" * 36, refresh=True).look_up(0) == []
    assert not retry.taken


def test_a_replacement_that_was_killed_halfway_is_made_later(
    base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Run(base, A)
    first.buy(0, "job-0")
    entry = Path(base, "ledger", key_of(0)[:2], f"{key_of(0)}.json")
    lock = f"{key_of(0)}.{hashlib.sha256(entry.read_bytes()).hexdigest()[:16]}"
    entry.with_name(lock).write_text("killed")
    run = Run(base, B, refresh=True)
    run.look_up(0)
    assert not claimed(run, 1)
    monkeypatch.setattr(files, "CLAIM_TIME", 0.0)
    run.look_up(0)
    run.look_up(0)
    monkeypatch.undo()
    run.look_up(0)
    assert claimed(run, 1) == {0}


@pytest.mark.parametrize(
    ("refusal", "is_told"),
    [
        *((None, True), (NotImplementedError(), True), (OSError(errno.ENOSYS, "501"), True)),
        (OSError(errno.EINVAL, "InvalidArgument"), False),
    ],
)
def test_a_store_that_cannot_create_exclusively_is_written_to_and_says_so(
    remote: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    refusal: Exception | None,
    is_told: bool,
) -> None:
    write = MemoryFileSystem.pipe_file

    def pipe_file(fs: Any, path: str, value: bytes, **options: Any) -> None:
        if refusal and options:
            raise refusal
        write(fs, path, value)

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", pipe_file)
    one, other = Run("memory://bucket/y", A), Run("memory://bucket/y", B)
    caplog.clear()
    one.look_up(0)
    other.look_up(0, 1)
    assert (claimed(one, 2), claimed(other, 2)) == ({0}, {1})
    warned = [line for line in messages(caplog) if "cannot create a file only if it is missing" in line]
    assert (len(warned), len(messages(caplog))) == ((2, 2) if is_told else (0, 0)), "each run says so once"


# --- two runs at once ---------------------------------------------------------------------------------------


@dataclass
class Made:
    """A job of the fake service, with the steps at which it was created, remembered and over."""

    id: str
    number: int
    run: str
    state: JobState = JobState.OPEN
    remembered: float = float("inf")
    over: float = float("inf")


@dataclass
class Service:
    """A service that runs what it was sent, and fails some of it."""

    chance: random.Random
    failing: float
    step: int = 0
    made: dict[str, Made] = field(default_factory=dict)

    def post(self, number: int, run: str) -> Made:
        for job in self.made.values():
            # one that has a result or may have one
            if job.number == number and job.state in (0, JobState.COMPLETED):
                raise AssertionError(f"{run} bought input {number}, which {job.run} has bought")
        job = Made(f"job-{len(self.made)}", number, run)
        self.made[job.id] = job
        return job

    def tick(self) -> None:
        self.step += 1
        for job in self.made.values():
            if job.state is JobState.OPEN and self.chance.random() < 0.02:
                failed = self.chance.random() < self.failing
                job.state = JobState.FAILED if failed else JobState.COMPLETED


def live(run: Run, name: str, service: Service, *, is_atomic: bool) -> Iterator[None]:
    """
    Perform a task run. At each step, the other one may go on.

    :param is_atomic: whether a block is found, sent and remembered in one step.
    """
    jobs, paid = run.jobs, run.paid
    run.begin(len(jobs.table.rows))
    yield
    while True:
        room = min(4, 10 - len(jobs.running))
        if numbers := jobs.inputs(*SUBMITTABLE)[:room]:
            found = paid.find(numbers)
            if not is_atomic:
                yield
            noted = paid.note(found)
            announced = [each for each in numbers if each not in noted and paid.is_claimed(each)]
            jobs.announce(announced)
            new = [service.post(number, name) for number in announced]
            for job in new:
                assert jobs.accept(job.number, job.id)
            if not is_atomic:
                yield
            paid.add_pending({job.number: job.id for job in new})
            for job in new:
                job.remembered = service.step
        for job_id in jobs.running:
            state = service.made[job_id].state
            jobs.end(job_id, state)
            if state is JobState.COMPLETED:
                paid.add_done({service.made[job_id].number: store(run.destination, job_id)})
                jobs.store(job_id)
            elif state is JobState.FAILED and service.chance.random() < 0.5:
                paid.forget(dict.fromkeys([job_id]))
        if not jobs.running and not jobs.inputs(*SUBMITTABLE):
            return
        yield


@pytest.mark.parametrize("is_atomic", [True, False])
@pytest.mark.parametrize("failing", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(4))
def test_a_run_buys_nothing_that_another_has_submitted(
    base: str, seed: int, failing: float, is_atomic: bool
) -> None:
    chance = random.Random(seed)  # noqa: S311 - not for secrets
    service = Service(chance, failing)
    runs = {token: Run(base, token, count=60) for token in (A, B)}
    lives = [live(run, token, service, is_atomic=is_atomic) for token, run in runs.items()]
    for _ in range(chance.randrange(10)):  # the first one has begun
        next(lives[0])
        service.tick()
    while lives:
        current = chance.choice(lives)
        service.tick()
        if next(current, lives) is lives:
            lives.remove(current)
    for run in runs.values():
        assert set(map(run.jobs.state, range(60))) <= {InputState.COMPLETED, InputState.FAILED}
    bought = [job.number for job in service.made.values() if job.state is JobState.COMPLETED]
    if is_atomic:
        assert len(bought) == len(set(bought))
    if not failing:
        assert set(bought) == set(range(60))
        assert all(run.jobs.totals().completed == 60 for run in runs.values())
