"""
The parameters of a task as its run sees them: frozen copies of the operator's attributes.

All fields are named and described as the parameters are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypeVar

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import BaseOperator
    from airflow_provider_rungen.ledger import Ledger


T = TypeVar("T")


def _copied(cls: type[T], task: BaseOperator) -> T:
    """Copy the parameters of an operator, templates rendered."""
    names = (each.name for each in fields(cls))  # type: ignore[arg-type]  # it is a dataclass
    return cls(**{name: getattr(task, name) for name in names if hasattr(task, name)})


class Connected(Protocol):
    """What every run needs."""

    @property
    def rungen_conn_id(self) -> str:
        """The Airflow connection."""

    @property
    def app_id(self) -> str | None:
        """The app, if it is not the connection's."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Nothing but what every run needs."""

    rungen_conn_id: str
    app_id: str | None

    @classmethod
    def of(cls, task: BaseOperator) -> Self:
        return _copied(cls, task)


@dataclass(frozen=True, kw_only=True)
class WaitOptions:
    """How a run waits for jobs."""

    rungen_conn_id: str
    app_id: str | None
    poll_interval: float
    deferrable: bool
    defer_after: float
    end_from_trigger: bool = False
    queued_timeout: float | None = None
    cancel_on_kill: bool

    @classmethod
    def of(cls, task: BaseOperator) -> Self:
        return _copied(cls, task)


@dataclass(frozen=True, kw_only=True)
class SubmitOptions(WaitOptions):
    """How a run submits, keeps and cancels jobs."""

    wait_for_completion: bool
    timeout: float
    durable: bool
    on_unknown_submission: Literal["resubmit", "fail"]
    on_clear: Literal["new", "resume"]
    input_schema: Any
    format: str | None = None
    destination: Any = None
    ledger: Ledger | None = None
    max_concurrency: int = 1
    max_in_flight: int | None = None
    max_failed: float = 0
    stop_after: int | None = None


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """What a table is made of, and where its results go."""

    table: Any
    key: Sequence[str]
    columns: Sequence[str]
    results: Any
    destination: Any

    @classmethod
    def of(cls, task: BaseOperator) -> Self:
        return _copied(cls, task)


@dataclass(frozen=True, kw_only=True)
class CollectOptions:
    """What is done with results."""

    destination: Any
    contact_sheet: bool = False
    results: Any = None
    result_schema: Any
    max_failed: float
    max_concurrency: int
    max_output_bytes: int
    max_xcom_bytes: int

    @classmethod
    def of(cls, task: BaseOperator) -> Self:
        return _copied(cls, task)
