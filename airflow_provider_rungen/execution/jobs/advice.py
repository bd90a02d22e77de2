"""What a retry or a clear of a task submits, and the hints about it."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen import _airflow
from airflow_provider_rungen.client.endpoints import FATE_UNKNOWN
from airflow_provider_rungen.exceptions import RunGenError, RunGenSubmissionUnknownError
from airflow_provider_rungen.execution.jobs.places import StoragePlace
from airflow_provider_rungen.execution.task.outcomes import rules_out_retry

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
        retry = rest = self._unfinished if self._run.ending.is_durable else everything
        fails = bool(self._log.unknown) and self._run.options.on_unknown_submission == "fail"
        if fails or not self._may_buy_rest:
            retry = 0
        return {
            "still_billing": self._log.running[:_MAX_LISTED],
            "unknown": len(self._log.unknown),
            "retry_submits": retry,
            "clear_submits": everything if self._clear_buys_all else rest,
            "inputs": everything,
        }

    @property
    def _unfinished(self) -> int:
        """How many inputs a later attempt submits that finds the log of this one."""
        lost = len(self._run.submitting.unsaved_ids()) if self._run.ending.is_durable else 0
        unfinished = max(self._log.unfinished_count - self._run.ledger.unloaded_count, 0)
        return min(unfinished + lost, self._log.state.count)

    @property
    def _may_buy_rest(self) -> bool:
        """Whether a retry is not refused because of ``max_jobs`` or ``max_cost``."""
        allowance = self._log.state.allowance
        return allowance is None or allowance >= self._unfinished

    @property
    def _clear_buys_all(self) -> bool:
        """Whether the attempt after a clear resumes nothing."""
        on_clear, home = self._run.ending.on_clear, self._log.home
        # from 3.4 on, Airflow forgets then what it has of a log
        is_forgotten = _airflow.CLEAR_DISCARDS_STATE and not isinstance(home.place, StoragePlace)
        return on_clear == "new" or (on_clear == "resume" and (is_forgotten or not home.is_durable))

    def how_to_resume(self) -> str:
        """How to resume jobs that run on, once what stopped the attempt is mended."""
        ending, has_next = self._run.ending, self._run.ending.has_next()
        is_saved = ending.is_durable and not self._run.submitting.unsaved_ids()
        unwanted = set(self._log.unwanted(ending.on_clear)).intersection(self._log.running)
        if unwanted.issuperset(self._log.running):
            is_canceled = has_next and self._run.options.cancel_on_kill
            return "A retry cancels them" if is_canceled else "Then cancel by id"
        if has_next and is_saved:
            return f"A retry resumes{' those from after the clear' if unwanted else ''}"
        if not is_saved or (self._clear_buys_all and not self._log.home.is_durable):
            return "Then collect or cancel by id"
        how = f" {_how_to_keep()}" if self._clear_buys_all else ""
        return f"Then clear the task{how} to resume, or cancel by id"

    def add_to(self, error: Exception) -> None:
        """Add what a clear submits to an error, unless a retry follows, or the error speaks of it."""
        if not self._log.knows_jobs or (isinstance(error, RunGenError) and _SAYS_SO.search(error.hint)):
            return
        has_next = self._log.home.numbers.has_next
        if isinstance(error, RunGenError) and (rules_out_retry(error) or not has_next):
            error.add_hint(self.clear_hint(""))
        elif not has_next and not isinstance(error, RunGenError):  # that of Airflow, or of the user's code
            log.error("%s", self.clear_hint(""))

    @property
    def how_to_submit_again(self) -> str:
        """How to submit inputs of unknown fate again."""
        if self._log.state.count == 1:
            return "Look at the app's jobs, then clear the task to submit it again"
        what = "all inputs" if self._clear_buys_all else "these"
        return f"Look at the app's jobs, then clear the task to submit {what} again"

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
        if some >= everything:
            return advice
        submits = f"{advice}. That submits" if advice else "A clear submits"
        again = f"{submits} {f'all {everything} inputs' if everything > 1 else 'its input'} again"
        only = f"only {some}" if some else "none"
        if self._clear_buys_all and not self._log.home.is_durable:
            return again
        if self._clear_buys_all:
            return f"{again}; {_how_to_keep()}, {only}"
        return f"{submits} {f'{only} of {everything} inputs' if everything > 1 else 'nothing'}"

    def retry_hint(self, some: str, everything: str, *, buys: bool = False) -> str:
        """
        Return what a retry does, or else a clear if no retry follows.

        :param some: what it runs if it finds what this attempt did.
        :param everything: what it runs if it does not.
        :param buys: whether it has to buy jobs.
        """
        ending, has_next = self._run.ending, self._log.home.numbers.has_next
        if buys and not self._may_buy_rest:
            advice = "A retry is refused: raise max_jobs or max_cost, and clear the task"
            return self.clear_hint(advice, is_last=not has_next)
        again = f"A {'retry' if has_next else 'clear'} runs {some if ending.is_durable else everything}"
        if not has_next and (self._clear_buys_all or self._awaited):
            again = self.clear_hint("Clear the task", is_last=True)
        if not ending.is_durable or not (unknown := self._log.unknown):
            return again
        inputs = f"{len(unknown)} input{'s' * (len(unknown) > 1)} of unknown fate"
        if self._run.options.on_unknown_submission == "fail" and self._log.home.is_durable:
            vain = f"A retry submits nothing, and fails because of {inputs} (on_unknown_submission). "
            return f"{vain if has_next else ''}{self.how_to_submit_again}"
        return f"{again}, and may pay twice for {inputs}. Look at the app's jobs first"

    def explain_unknown(self, error: RunGenSubmissionUnknownError) -> RunGenSubmissionUnknownError:
        """Return the error of an attempt that gives up submitting because of such errors."""
        task_log = self._log
        if task_log.state.count == 1:
            is_resubmitted = self._run.options.on_unknown_submission == "resubmit"
            return error.revised(error.message, hint=error.hint, retryable=is_resubmitted)
        reason = error.message.removeprefix(f"{FATE_UNKNOWN}. ")
        return error.revised(
            f"Fate unknown: RunGen may have created the jobs of {len(task_log.unknown)} of "
            f"{task_log.state.count} inputs. {reason}",
            hint=self.retry_hint("only what has no job", "all inputs again"),
            retryable=error.retryable,
        )


def _how_to_keep() -> str:
    """How to clear a task so that its jobs are resumed."""
    return "with its task state kept" if _airflow.CLEAR_DISCARDS_STATE else "with on_clear='resume'"
