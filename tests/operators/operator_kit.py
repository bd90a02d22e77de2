"""What the tests of operators share: jobs at the service, and attempts that are killed."""

from __future__ import annotations

import itertools
import math
import signal
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import AirflowException
from conftest import (
    SOON,
    Died,
    FakeStore,
    Outcome,
    OutletEvents,
    TrackedTaskInstance,
    rows_in,
    run_task,
    signal_when,
)
from rungen_emulator import Emulator
from rungen_emulator.fakes import TODAY, make_context, make_dag_run
from rungen_emulator.testing import run_operator

from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.operators import RunGenRunTableOperator

MODES = pytest.mark.parametrize("deferrable", [False, True], ids=["blocking", "deferred"])
#: Polls at once, and defers at once.
FAST: dict[str, Any] = {"poll_interval": 0.02}
# The exception of a kill may strike in a finalizer, which swallows it. The task has to end anyway.
KILLED = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, for a minute at most."""
    give_up_at = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


def die(*_: Any, **__: Any) -> None:
    raise Died


def failing(call: Callable[..., Any], times: float = math.inf) -> Callable[..., Any]:
    """Return a call to a store of Airflow that fails so many times at first."""
    numbers = itertools.count()

    def fail(*args: Any, **kwargs: Any) -> Any:
        if next(numbers) < times:
            raise OSError("out of order")
        return call(*args, **kwargs)

    return fail


def hang(*_: Any, **__: Any) -> None:
    threading.Event().wait()


def taking(seconds: float, **emulator: Any) -> dict[str, Any]:
    """Return an input whose job takes so many seconds."""
    return {"prompt": "a red fox", "emulator": {"seconds": seconds, **emulator}}


def submitted(*inputs: dict[str, Any]) -> list[str]:
    """Return the ids of jobs that somebody else has submitted."""
    with RunGenHook() as hook:
        return [hook.run_job(input=one).id for one in inputs]


def statuses(emulator: Emulator) -> list[str]:
    return [job["status"] for job in emulator.service.jobs()]


def workers(emulator: Emulator, app_id: str = "gpu") -> int:
    count: int = emulator.service.stats()["active_workers"][app_id]
    return count


def kill_when(
    op: Any, context: Any, condition: Callable[[], bool], kind: type[Exception] = AirflowException
) -> Outcome:
    """Run a task that Airflow kills as soon as a condition holds, and check that it ends in time."""
    with signal_when(signal.SIGTERM, condition, op.on_kill) as sent:
        outcome = run_task(op, context)
    assert time.monotonic() - sent[0] < SOON
    assert isinstance(outcome.error, kind)
    assert "killed" in str(outcome.error)
    return outcome


class Stage:
    """A service, and the context that tasks are run with."""

    def __init__(self, emulator: Emulator, context: Any) -> None:
        self.emulator, self.service = emulator, emulator.service
        self.context, self.ti = context, context["ti"]

    def run(self, op: Any, **options: Any) -> Outcome:
        return run_task(op, self.context, **options)

    def error(self, op: Any, kind: type[BaseException]) -> Any:
        """Run a task that fails, and return its error, which is of this very kind."""
        error = self.run(op).error
        assert type(error) is kind
        return error

    def kill_when(self, op: Any, condition: Callable[[], bool]) -> Outcome:
        return kill_when(op, self.context, condition)

    @property
    def statuses(self) -> list[str]:
        return statuses(self.emulator)


class Attempts:
    """
    A task that is attempted again and again.

    :param kind: makes its operator.
    """

    def __init__(self, emulator: Emulator, kind: Callable[..., Any], **options: Any) -> None:
        emulator.service.scale("flux-schnell", 1000)
        self.emulator, self.kind = emulator, kind
        self.options: dict[str, Any] = FAST | options
        self.store: Any = FakeStore()
        self.dag_id, self.run_id = "dag", "night 1"
        #: When Airflow started the DAG run.
        self.run_began: datetime | None = None
        self.max_tries, self.tries, self.clears = 2, 0, 0
        self.state: str | None = "running"
        self.ti = TrackedTaskInstance()
        self.on_push: Callable[[str, Any], None] | None = None

    def begin(self, **changes: Any) -> Any:
        """Return the operator of the next attempt."""
        self.tries += 1
        self.ti = ti = TrackedTaskInstance(self.state)
        ti.dag_id, ti.run_id = self.dag_id, self.run_id
        ti.try_number, ti.max_tries = self.tries, self.max_tries
        ti.on_push = self.on_push
        self.events = OutletEvents()
        self.op = self.kind(task_id="task", **self.options | changes)
        return self.op

    @property
    def context(self) -> Any:
        dag_run = SimpleNamespace(clear_number=self.clears, start_date=self.run_began)
        context = {"ti": self.ti, "dag_run": dag_run, "outlet_events": self.events}
        return context | {"task_state_store": self.store}

    def attempt(self, **changes: Any) -> Outcome:
        """Run the next attempt."""
        return run_task(self.begin(**changes), self.context)

    def attempt_until(self, key: str, **changes: Any) -> None:
        """Run the next attempt, which is killed when it pushes this XCom."""
        self.on_push = lambda pushed, _: die() if pushed == key else None
        with pytest.raises(Died):
            self.attempt(**changes)
        self.on_push = None

    def attempt_killed(self, condition: Callable[[], bool], **changes: Any) -> str:
        """Run the next attempt, which Airflow kills as soon as a condition holds, and return its error."""
        op = self.begin(**changes)
        return str(kill_when(op, self.context, condition).error)

    def clear(self) -> None:
        """Clear the task, as a user does."""
        self.max_tries, self.clears = self.tries + 1, self.clears + 1

    def next_run(self, run_id: str) -> None:
        self.run_id, self.tries, self.max_tries = run_id, 0, 1
        self.store = None if self.store is None else FakeStore()

    @property
    def created(self) -> int:
        return int(self.emulator.service.stats()["jobs_created"])

    def statuses(self) -> list[str]:
        return statuses(self.emulator)

    def ids(self) -> list[str]:
        return [job["id"] for job in self.emulator.service.jobs()]


def products(count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"sku": f"sku-{n}", "title": f"product {n}", "price": n + 0.5, **more} for n in range(count)]


def picture(row: dict[str, Any]) -> dict[str, Any]:
    return {"prompt": f"photo of {row['title']}"}


class Table(Attempts):
    """A table task, with its runs and attempts, in a folder of its own."""

    def __init__(self, emulator: Emulator, folder: Path, rows: Any, **options: Any) -> None:
        own: dict[str, Any] = {
            "table": rows,
            "key": "sku",
            "to_input": picture,
            "destination": (folder / "photos").as_uri(),
            "results": (folder / "photos" / "results.jsonl").as_uri(),
        }
        super().__init__(emulator, RunGenRunTableOperator, **own | options)
        # a deferral comes before the first has ended, also on a slow machine
        emulator.service.job_seconds = 0.3
        self.folder = folder
        self.store = None
        self.max_tries = 1

    @property
    def written(self) -> list[dict[str, Any]]:
        """The results table."""
        return rows_in(self.folder / "photos")

    def column(self, name: str) -> list[Any]:
        return [row[name] for row in self.written]


def run_mapped(
    op: Any,
    index: int,
    *,
    upstream: Mapping[str, Any] | None = None,
    context: Mapping[str, Any] | None = None,
) -> Outcome:
    """Run one of the tasks of a mapped operator, with the values that it is mapped over."""
    values = op._get_specified_expand_input().value

    def resolve(value: Any) -> Any:
        task = getattr(value, "operator", None)
        return value if task is None else (upstream or {})[task.task_id]

    given = resolve(values)
    if isinstance(given, dict):
        rows = itertools.product(*map(resolve, given.values()))
        given = [dict(zip(given, row, strict=True)) for row in rows]
    given = given[index]
    task = op.unmap(given)
    made = make_context(task, make_dag_run(task.dag_id, TODAY, None), upstream or {}) | dict(context or {})
    made["ti"].map_index = index
    return run_operator(task, upstream=upstream, context=made, timeout=200)


class Inputs(Attempts):
    """A table task of a list of inputs, without a key, in a folder of its own."""

    def __init__(self, emulator: Emulator, folder: Path, inputs: Any, **options: Any) -> None:
        own: dict[str, Any] = {
            "table": inputs,
            "destination": f"{folder.as_uri()}/bought",
            "results": f"{folder.as_uri()}/results.jsonl",
        }
        super().__init__(emulator, RunGenRunTableOperator, **own | options)
        self.folder = folder

    @property
    def written(self) -> list[dict[str, Any]]:
        """The results table."""
        return rows_in(self.folder)

    def column(self, name: str) -> list[Any]:
        return [row[name] for row in self.written]

    @property
    def failed(self) -> list[int]:
        return [each["index"] for each in self.ti.xcoms["failed"]]

    def prompts(self) -> list[str]:
        """Return the prompts of the jobs in the results table, in its order."""
        by_id = {job["id"]: job["input"]["prompt"] for job in self.emulator.service.jobs()}
        return [by_id[row["job_id"]] for row in self.written]
