"""Run one operator in a test, without a database: `run_operator`."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from rungen_emulator.fakes import (
    RETURN_VALUE,
    TODAY,
    make_context,
    make_dag_run,
)
from rungen_emulator.performing import Performance, interrupting
from rungen_emulator.server import EMULATORS, including, variable

if TYPE_CHECKING:
    from rungen_emulator import Emulator

__all__ = ["TaskResult", "run_operator"]

_PACKAGE = "airflow_provider_rungen"


@dataclass
class TaskResult:
    """
    How a task ended.

    :param value: what it returned.
    :param error: what it raised, or ``None``.
    :param xcoms: what it pushed, by key. What it returned is ``return_value``.
    :param log: its log, with a level at the start of each line.
    :param rendered: its template fields, as they were at the end.
    :param events: what its triggers sent, an event for each deferral.
    :param timeouts: the time (a ``timedelta``, or ``None``) that Airflow would have given each deferral.
    """

    value: Any = None
    error: BaseException | None = None
    xcoms: dict[str, Any] = field(default_factory=dict, compare=False)
    log: str = field(default="", compare=False)
    rendered: dict[str, Any] = field(default_factory=dict, compare=False)
    events: list[Any] = field(default_factory=list)
    timeouts: list[Any] = field(default_factory=list)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """
        The rows of the results table that the task wrote. In a CSV, all values are texts.

        :raises ValueError: it wrote none.
        """
        summary = self.value if isinstance(self.value, Mapping) else self.xcoms.get("rungen_page") or {}
        if "results" not in summary:
            raise ValueError(f"the task wrote no results table; it raised {self.error!r}")
        return _read_rows(summary["results"])


def run_operator(
    operator: Any,
    *,
    upstream: Mapping[str, Any] | None = None,
    context: Mapping[str, Any] | None = None,
    emulator: Emulator | None = None,
    replace: Mapping[str, Any] | None = None,
    logical_date: datetime | None = TODAY,
    partition_key: str | None = None,
    timeout: float | None = 60,
) -> TaskResult:
    """
    Render the templates of an operator, execute it, and run its trigger after each deferral.

    An error is returned, not raised. Connections and variables come from the environment. Nothing is stored:
    the operator can be run again. A trigger fires as soon as it can, since no process has to end first. A
    sensor in mode ``reschedule`` pokes as in mode ``poke``. Hooks reach emulators only: that of a fixture, of
    ``emulator.connection()``, or ``emulator``. Without any, they reach a service on this machine that is in a
    connection of the environment.

    :param operator: the operator, or what a decorated function returned in a DAG. It needs no DAG.
    :param upstream: what earlier tasks returned, by task id, for ``.output`` and ``ti.xcom_pull``. A
        `TaskResult` also has what they pushed, and whether they failed. Other tasks have not run yet.
    :param context: entries of Airflow's context, such as ``{"params": {"color": "red"}}``, that replace those
        made here.
    :param emulator: its clock stands still until a deferrable operator has deferred, so that no job ends
        before.
    :param replace: parameters that the operator has in this run, such as ``{"destination": tmp_path}``. They
        are not templated. ``results`` moves to a new ``destination``. If the rows or a place are
        replaced, and another place is not, nothing is run.
    :param logical_date: the date of the run, from which ``ds`` and the like follow: today at midnight (UTC)
        when left out. ``None`` is a run without one, where these names are undefined.
    :param partition_key: the partition of the run (Airflow 3.2), which then has no logical date.
    :param timeout: seconds that the task may take; ``None`` for any. Only the main thread is interrupted.
    :raises TimeoutError: it took longer, and was ended as by ``execution_timeout``.
    """
    from rungen_emulator.names import AirflowTaskTimeout

    operator = operator if hasattr(operator, "execute") else getattr(operator, "operator", operator)
    if not hasattr(operator, "execute"):
        raise TypeError(f"{operator!r} is mapped: run its DAG with dag.test()")
    dag_run = make_dag_run(operator.dag_id, logical_date, partition_key)
    made = make_context(operator, dag_run, upstream or {})
    ready, result = {**made, **(context or {})}, TaskResult()
    before = list[str]()  # its log until it was interrupted
    emulators = including(emulator.url if emulator is not None else "")
    with variable(EMULATORS, emulators), _as_task_runner(operator, replace or {}), _recorded() as lines:
        performance = Performance(operator, ready, result, emulator)
        try:
            with interrupting(timeout, lambda: before.append(lines.getvalue().rstrip())) as interrupted:
                result.value = performance.run(replace or {})
        except Exception as error:
            result.error = error
        except AirflowTaskTimeout:
            if not interrupted:
                raise
            performance.end()
        if interrupted:
            raise _overrun(performance, timeout, before[0], lines.getvalue().rstrip())
        result.rendered = {name: getattr(performance.task, name, None) for name in operator.template_fields}
    result.log = lines.getvalue().rstrip()
    result.xcoms = {**getattr(ready["ti"], "xcoms", {})}
    if result.value is not None and performance.task.do_xcom_push:
        result.xcoms[RETURN_VALUE] = result.value
    return result


def _overrun(performance: Performance, timeout: float | None, before: str, log: str) -> TimeoutError:
    lines = before.split("\n") if before else ["nothing"]
    trouble = [line for line in lines if line.startswith(("WARNING ", "ERROR "))]
    last = (trouble or lines)[-1]
    error = TimeoutError(
        f"task {performance.task.task_id!r} did not end within {timeout:g} s: it was {performance.state}. "
        f"Its log: {last}. Let its jobs end sooner, or raise timeout"
    )
    error.add_note(f"Its log:\n{log}")
    return error


@contextlib.contextmanager
def _as_task_runner(operator: Any, replaced: Iterable[str]) -> Iterator[None]:
    """Allow the operator to be executed by itself, and to be run again: restore what a run changes."""
    from rungen_emulator.names import ExecutorSafeguard

    attributes = vars(operator)
    names = (*operator.template_fields, "mode", *replaced)
    before = {name: attributes[name] for name in names if name in attributes}
    attributes["_lock_for_execution"] = True  # or Airflow would treat a rendered field as one of the DAG
    try:
        with patch.object(ExecutorSafeguard, "test_mode", True):
            yield
    finally:
        attributes.update(before, _lock_for_execution=False)


@contextlib.contextmanager
def _recorded() -> Iterator[io.StringIO]:
    """Record what is logged: the package's messages from INFO, and others as they are configured."""
    lines, root, package = io.StringIO(), logging.getLogger(), logging.getLogger(_PACKAGE)
    recorder = logging.StreamHandler(lines)
    recorder.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    level = package.level
    if package.getEffectiveLevel() > logging.INFO:
        package.setLevel(logging.INFO)
    root.addHandler(recorder)
    try:
        yield lines
    finally:
        root.removeHandler(recorder)
        package.setLevel(level)


def _read_rows(uri: str) -> list[dict[str, Any]]:
    """Return the rows of a ``.jsonl``, ``.csv`` or ``.parquet`` file."""
    from rungen_emulator.names import ObjectStoragePath

    with ObjectStoragePath(uri).open("rb") as file:
        content = file.read()
    if uri.endswith(".parquet"):
        import pyarrow as pa
        from pyarrow import parquet

        rows: list[dict[str, Any]] = parquet.read_table(pa.BufferReader(content)).to_pylist()
        return rows
    text = content.decode()
    if uri.endswith(".csv"):
        csv.field_size_limit(max(csv.field_size_limit(), len(text)))
        return list(csv.DictReader(io.StringIO(text, newline="")))
    return [json.loads(line) for line in text.split("\n") if line]
