"""What Airflow knows of one attempt of a task: its state, what it pushed, and what it waits for. No I/O."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

from airflow_provider_rungen.execution.task.page_record import PAGE_KEY
from airflow_provider_rungen.links import RunGenJobLink
from airflow_provider_rungen.plugins.bounded_json import parse_bounded

# The states in which a task is not over.
_MOVING = frozenset(
    {"scheduled", "queued", "running", "deferred", "restarting", "up_for_retry", "up_for_reschedule"}
)
_TUPLE = {"builtins.tuple", "builtins.set"}


def plain(value: Any) -> Any:
    """
    Return the value of an XCom as JSON values. What is serialized is not made an object again.

    :raises TooComplexError: it is JSON with more values than a page needs.
    """
    if isinstance(value, str):
        try:
            value = parse_bounded(value)
        except ValueError:
            return well_formed(value)
    return _without_envelopes(value)


def well_formed(text: str) -> str:
    """Return a text without half characters, which JSON may hold but no page and no URL."""
    return text if text.isascii() else text.encode(errors="replace").decode()


def _without_envelopes(value: Any) -> Any:
    if isinstance(value, list | tuple | set):  # the latter by an XCom backend
        return [_without_envelopes(each) for each in value]
    if isinstance(value, str):
        return well_formed(value)
    if not isinstance(value, dict):
        return value
    if value.get("__classname__") in _TUPLE and isinstance(value.get("__data__"), list):
        return _without_envelopes(value["__data__"])
    return {_without_envelopes(name): _without_envelopes(each) for name, each in value.items()}


def mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


@dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """
    One attempt of a task.

    :param xcoms: what it has pushed, by key: what pages need of it.
    :param notices: what of that is missing, and why.
    :param waits_for: the arguments of its trigger while it is deferred.
    :param own_conn_id: the connection that it names in its DAG. XComs may name another one.
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
    ended_at: datetime | None = None
    xcoms: Mapping[str, Any] = field(default_factory=dict)
    notices: Sequence[str] = ()
    waits_for: Mapping[str, Any] = field(default_factory=dict)
    own_conn_id: str = ""
    token: str = ""

    @cached_property
    def page(self) -> Mapping[str, Any]:
        """The XCom ``rungen_page``."""
        return mapping(self.xcoms.get(PAGE_KEY))

    def _text(self, name: str, in_trigger: str = "") -> str:
        value = self.page.get(name) or self.waits_for.get(in_trigger)
        return value if isinstance(value, str) else ""

    @property
    def conn_id(self) -> str:
        return self._text("connection", "rungen_conn_id")

    @property
    def app_id(self) -> str:
        return self._text("app", "app_id")

    @property
    def destination(self) -> str:
        return self._text("destination")

    @property
    def log(self) -> str:
        """The folder that has the run log, if the task runs jobs of its own, and has one in storage."""
        return "" if "jobs" in self.page else self.destination or self.results.rpartition("/")[0]

    @property
    def results(self) -> str:
        """The results table."""
        return self._text("results")

    @property
    def new_ledger(self) -> str:
        """The ledger, if the task had to create it."""
        return self._text("new_ledger")

    @property
    def key(self) -> list[str]:
        """The columns of the results table that identify a row."""
        return [name for name in sequence(self.page.get("key")) if isinstance(name, str)]

    @property
    def is_moving(self) -> bool:
        """Whether the task is not over."""
        return self.state in _MOVING

    @property
    def is_successful(self) -> bool:
        return self.state == "success"

    def count(self, name: str) -> int | None:
        """Return a number of the XCom ``rungen_page``."""
        value = self.page.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None

    # --- jobs ---

    @cached_property
    def job_ids(self) -> list[str | None]:
        """The job of each input, or ``None``, as far as the task has pushed them."""
        single, waits_for = self.xcoms.get("job_id"), self.waits_for.get("job_id")
        waits_for = [waits_for] if isinstance(waits_for, str) else sequence(waits_for)
        known = sequence(self.page.get("jobs"))  # not all of many
        others = waits_for if len(waits_for) > len(known) else known
        single = [single] if isinstance(single, str) else ()
        for pushed in (sequence(self.xcoms.get("job_ids")), single, others):
            if pushed:
                return [each if isinstance(each, str) and each else None for each in pushed]
        return []

    @cached_property
    def known_job_ids(self) -> frozenset[str]:
        """The jobs that the task has pushed."""
        ids = {each for each in self.job_ids if each}
        ids |= {each for each in sequence(self.waits_for.get("job_id")) if isinstance(each, str)}
        if isinstance(one := self.waits_for.get("job_id") or self.xcoms.get("job_id"), str):
            ids.add(one)
        linked = self.xcoms.get(RunGenJobLink.key)
        return frozenset(ids | ({_last_segment(linked)} if isinstance(linked, str) else set()))

    @cached_property
    def failures(self) -> Mapping[int, str]:
        """By index, the reason why an input failed; the reason may be empty."""
        failed = map(mapping, sequence(self.xcoms.get("failed")))
        indexed = ((each.get("index"), str(each.get("error") or "")) for each in failed)
        return {index: error for index, error in indexed if isinstance(index, int)}

    @property
    def has_reported(self) -> bool:
        """Whether the task has reported which inputs failed."""
        return "failed" in self.xcoms or (self.is_successful and "job_ids" not in self.xcoms)


def _last_segment(url: str) -> str:
    from urllib.parse import unquote

    return unquote(url.rstrip("/").rpartition("/")[2])
