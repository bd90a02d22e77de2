"""What Airflow knows of one attempt of a task: its state, and what it pushed. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any
from urllib.parse import unquote

from airflow_provider_rungen.execution.costs.bill import BILL_KEY
from airflow_provider_rungen.execution.costs.scale_state import KEY as SCALE_KEY
from airflow_provider_rungen.execution.task.page_record import PAGE_KEY
from airflow_provider_rungen.execution.task.usage import USAGE_KEY
from airflow_provider_rungen.links import RunGenJobLink
from airflow_provider_rungen.plugins.xcoms import BillXCom, Failure, PageXCom, ScaledXCom, Usage

# The states in which a task has not ended.
_MOVING = frozenset(
    {"scheduled", "queued", "running", "deferred", "restarting", "up_for_retry", "up_for_reschedule"}
)


@dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """
    One attempt of a task.

    :param xcoms: what it has pushed, by key: what pages need of it.
    :param notices: what of that is missing, and why.
    :param dag_conn_id: the connection that it names in its DAG. XComs may name another one.
    :param token: the token of the task run, which names its log.
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1
    state: str = ""
    try_number: int = 1
    operator: str = ""
    started_at: datetime | None = None
    xcoms: Mapping[str, Any] = field(default_factory=dict)
    notices: Sequence[str] = ()
    dag_conn_id: str = ""
    token: str = ""

    @property
    def is_moving(self) -> bool:
        """Whether the task has not ended."""
        return self.state in _MOVING

    @property
    def is_successful(self) -> bool:
        return self.state == "success"

    # --- what it pushed ---

    @property
    def page(self) -> PageXCom:
        return self.xcoms.get(PAGE_KEY) or PageXCom()

    @property
    def usage(self) -> Usage:
        return self.xcoms.get(USAGE_KEY) or Usage()

    @property
    def bill(self) -> BillXCom:
        return self.xcoms.get(BILL_KEY) or BillXCom()

    @property
    def scaled(self) -> ScaledXCom:
        return self.xcoms.get(SCALE_KEY) or ScaledXCom()

    @property
    def conn_id(self) -> str:
        return self.page.connection

    @property
    def app_id(self) -> str:
        return self.page.app

    @property
    def destination(self) -> str:
        return self.page.destination

    @property
    def log(self) -> str:
        """The folder that has the run log, if the task runs jobs of its own, and has one in storage."""
        return "" if self.page.jobs is not None else self.destination or self.page.results.rpartition("/")[0]

    @property
    def job_ids(self) -> Sequence[str | None]:
        """The job of each input, or ``None``, as far as the task has pushed them."""
        single = self.xcoms.get("job_id")
        return self.xcoms.get("job_ids") or ([single] if single else self.page.jobs or ())

    @cached_property
    def known_job_ids(self) -> frozenset[str | None]:
        """The jobs that the task has pushed, and the one that its link leads to."""
        linked = unquote(self.xcoms.get(RunGenJobLink.key, "").rstrip("/").rpartition("/")[2])
        return frozenset({*self.job_ids, linked} - {None, ""})

    @property
    def failures(self) -> Sequence[Failure]:
        """The inputs that failed, as far as the task has pushed them."""
        failures: Sequence[Failure] = self.xcoms.get("failed", ())
        return failures

    @property
    def has_reported(self) -> bool:
        """Whether the task has reported which inputs failed."""
        return "failed" in self.xcoms or (self.is_successful and "job_ids" not in self.xcoms)
