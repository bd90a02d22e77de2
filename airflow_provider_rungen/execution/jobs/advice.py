"""What a retry or a clear of a task submits, and the hints about it."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client.endpoints import FATE_UNKNOWN
from airflow_provider_rungen.exceptions import RunGenError, RunGenSubmissionUnknownError

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.jobs.runner import Runner

log = logging.getLogger(__name__)

# What tells already what a clear does.
_SAYS_SO = re.compile("clear the task|a clear (runs|submits)", re.IGNORECASE)
# So many of the jobs that may still run the page of a failed task names.
_MAX_LISTED = 1000


class Advice:
    """
    Knows what the attempts after this one would submit.

    :param run: the attempt.
    """

    def __init__(self, run: Runner) -> None:
        self._run = run
        self._log = run.task_log

    def outlook(self) -> dict[str, Any]:
        """Return which jobs may still run or exist, and how many inputs a retry and a clear submit."""
        if not self._log.knows_jobs:  # nor what is submitted
            return {"still_billing": self._log.running[:_MAX_LISTED], "inputs": 0}
        everything = self._log.state.count
        rest = self._unfinished if self._log.home.is_durable else everything
        return {
            "still_billing": self._log.running[:_MAX_LISTED],
            "unknown": len(self._log.unknown),
            "retry_submits": rest if self._may_buy_rest else 0,
            "clear_submits": rest if self._log.home.survives_clear else everything,
            "inputs": everything,
        }

    @property
    def _unfinished(self) -> int:
        """How many inputs a later attempt submits that finds the log of this one."""
        lost = len(self._run.submitting.unsaved_ids()) if self._log.home.is_durable else 0
        unfinished = max(self._log.unfinished_count - self._run.ledger.unloaded_count, 0)
        return min(unfinished + lost, self._log.state.count)

    @property
    def _may_buy_rest(self) -> bool:
        """Whether a retry is not refused because of ``max_jobs`` or ``max_cost``."""
        allowance = self._log.state.allowance
        return allowance is None or allowance >= self._unfinished

    def how_to_resume(self) -> str:
        """How to resume jobs that run on, once what stopped the attempt is mended."""
        has_next, survives = self._run.ending.has_next(), self._log.home.survives_clear
        is_saved = self._log.home.is_durable and not self._run.submitting.unsaved_ids()
        if not is_saved or self._log.unwanted() or not (has_next or survives):
            return "Then collect or cancel by id"
        return "A retry resumes" if has_next else "Then clear the task to resume, or cancel by id"

    def add_to(self, error: Exception) -> None:
        """Add what a clear submits to an error, unless a retry follows, or the error speaks of it."""
        if not self._log.knows_jobs or (isinstance(error, RunGenError) and _SAYS_SO.search(error.hint)):
            return
        has_next = self._log.home.numbers.has_next
        if isinstance(error, RunGenError) and not (error.retryable and has_next):
            error.add_hint(self.clear_hint(""))
        elif not has_next and not isinstance(error, RunGenError):  # that of Airflow, or of the user's code
            log.error("%s", self.clear_hint(""))

    @property
    def _awaited(self) -> int:
        """How many jobs of inputs run that the attempt cancels at its end, unless a retry follows."""
        awaited = set(self._log.jobs.running).intersection(self._log.running)
        awaited.difference_update(self._run.collecting.over)
        return len(awaited) if self._run.options.cancel_on_kill else 0

    def clear_hint(self, advice: str = "Correct them, and clear the task", *, is_last: bool = False) -> str:
        """
        Return what to do about inputs that no retry can help, and what that submits.

        :param advice: if empty, only what a clear submits is returned.
        :param is_last: whether no retry follows, and the jobs that run are not canceled yet.
        """
        everything = self._log.state.count
        some = min(self._unfinished + (self._awaited if is_last else 0), everything)
        if some >= everything or not self._log.home.survives_clear:
            return advice
        submits = f"{advice}. That submits" if advice else "A clear submits"
        return f"{submits} {f'only {some}' if some else 'none'} of {everything} inputs"

    def retry_hint(self, some: str, *, buys: bool = False) -> str:
        """
        Return what a retry of a table does, or else a clear if no retry follows.

        :param some: what it runs.
        :param buys: whether it has to buy jobs.
        """
        has_next = self._log.home.numbers.has_next
        if buys and not self._may_buy_rest:
            advice = "A retry is refused: raise max_jobs or max_cost, and clear the task"
            return self.clear_hint(advice, is_last=not has_next)
        again = f"A {'retry' if has_next else 'clear'} runs {some}"
        if not has_next and self._awaited:
            again = self.clear_hint("Clear the task", is_last=True)
        if not (unknown := self._log.unknown):
            return again
        inputs = f"{len(unknown)} input{'s' * (len(unknown) > 1)} of unknown fate"
        return f"{again}, and may pay twice for {inputs}. Look at the app's jobs first"

    def explain_unknown(self, error: RunGenSubmissionUnknownError) -> RunGenSubmissionUnknownError:
        """Return the error of an attempt that gives up submitting because of such errors."""
        task_log = self._log
        if task_log.state.count == 1:
            return error.revised(error.message, hint=error.hint, retryable=True)
        reason = error.message.removeprefix(f"{FATE_UNKNOWN}. ")
        return error.revised(
            f"Fate unknown: RunGen may have created the jobs of {len(task_log.unknown)} of "
            f"{task_log.state.count} inputs. {reason}",
            hint=self.retry_hint("only what has no job"),
            retryable=error.retryable,
        )
