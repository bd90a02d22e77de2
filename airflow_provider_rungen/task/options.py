"""
The parameters of a task as its run sees them: frozen copies of the operator's attributes.

All fields are named and described as the parameters are, apart from ``job_label``, the parameter ``label``.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import BaseOperator


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What every run needs."""

    rungen_conn_id: str
    app_id: str | None = None

    @classmethod
    def of(cls, task: BaseOperator) -> Self:
        """Copy the parameters of an operator, templates rendered."""
        names = [each.name for each in fields(cls) if hasattr(task, each.name)]
        return cls(**{name: getattr(task, name) for name in names})


@dataclass(frozen=True, kw_only=True)
class JobOptions(RunOptions):
    """How a run waits for jobs, and how it submits, keeps and cancels them if it does."""

    poll_interval: float
    deferrable: bool
    queued_timeout: float | None = None
    cancel_on_kill: bool
    wait_for_completion: bool = True
    timeout: float
    job_label: Any = None
    destination: Any = None
    results: Any = None
    check: Any = None
    max_jobs: Any = None
    max_cost: Any = None
    max_in_flight: int | None = None
    max_failed: float | str = 0
