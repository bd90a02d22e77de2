"""The numbers of an attempt that outlast a deferral."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class AttemptState:
    """
    What an attempt has to know after a deferral, beside its log and its plan: numbers only.

    :param count: how many inputs need a job.
    :param deadline: the deadline of the jobs (seconds since 1970).
    :param next_part: the next part to load, unless it was loaded for what is known of it.
    :param has_inputs: whether the inputs are in storage after a deferral.
    :param has_stopped: whether nothing more is submitted, whatever is not submitted yet.
    :param is_single: whether there is one job, whose error is that of the task.
    :param failures: how many jobs failed since the last success, those without a usable result included.
    :param has_success: whether a job completed.
    :param refusals: how many inputs in a row were refused.
    :param allowance: how many more jobs the attempt may buy; ``None`` without a limit.
    :param submitted: how many jobs it submitted.
    :param paid: how many inputs of each part need no job, as the ledger had it at the begin.
    :param keeps_deadline: whether the deadline is that of the last attempt, whose jobs alone are waited for.
    """

    count: int = 0
    deadline: float = 0.0
    next_part: int = 0
    has_inputs: bool = False
    has_stopped: bool = False
    is_single: bool = False
    failures: int = 0
    has_success: bool = False
    refusals: int = 0
    allowance: int | None = None
    submitted: int = 0
    paid: list[int] = field(default_factory=list)
    keeps_deadline: bool = False
