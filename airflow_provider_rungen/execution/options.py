"""The parameters of a task as its run sees them: frozen copies of the operator's attributes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, Self

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import BaseOperator
    from airflow_provider_rungen.ledger import Ledger


@dataclass(frozen=True)
class Options:
    """Parameters. The fields of all these classes are named and described as the parameters are."""

    @classmethod
    def of(cls, task: BaseOperator) -> Self:
        """Copy the parameters of an operator, templates rendered."""
        names = (each.name for each in fields(cls))
        return cls(**{name: getattr(task, name) for name in names if hasattr(task, name)})


@dataclass(frozen=True, kw_only=True)
class RunOptions(Options):
    """What every run needs."""

    rungen_conn_id: str
    app_id: str | None


@dataclass(frozen=True, kw_only=True)
class WaitOptions(RunOptions):
    """How a run waits for jobs."""

    poll_interval: float
    deferrable: bool
    defer_after: float
    end_from_trigger: bool = False
    cancel_on_kill: bool


@dataclass(frozen=True, kw_only=True)
class SubmitOptions(WaitOptions):
    """How a run submits, keeps and cancels jobs."""

    wait_for_completion: bool
    timeout: float
    durable: bool
    on_unknown_submission: Literal["resubmit", "fail"]
    on_clear: Literal["new", "resume"]
    input_schema: Any


@dataclass(frozen=True, kw_only=True)
class BatchOptions(SubmitOptions):
    """How a run submits many jobs."""

    format: str | None = None
    destination: Any = None
    ledger: Ledger | None = None
    max_concurrency: int
    max_failed: float


@dataclass(frozen=True, kw_only=True)
class TableOptions(Options):
    """What a table is made of, and where its results go."""

    table: Any
    key: Sequence[str]
    columns: Sequence[str]
    results: Any
    destination: Any


@dataclass(frozen=True, kw_only=True)
class CollectOptions(Options):
    """What is done with results."""

    destination: Any
    contact_sheet: bool = False
    results: Any = None
    result_schema: Any
    max_failed: float
    max_concurrency: int
    max_output_bytes: int
    max_outputs: int
    max_total_bytes: int | None
    max_xcom_bytes: int
