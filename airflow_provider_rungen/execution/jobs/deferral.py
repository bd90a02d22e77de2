"""Keep what a deferred attempt has to know again, and go on from there."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.exceptions import RunGenError, RunGenInputError, RunGenJobTimeoutError
from airflow_provider_rungen.execution.jobs.log_state import keep_state, restore_state
from airflow_provider_rungen.execution.jobs.plans import Plan
from airflow_provider_rungen.execution.task.outcomes import error_to_json, event_error, read_error
from airflow_provider_rungen.execution.task.xcom_keys import LOG_KEY
from airflow_provider_rungen.runs.place import DamagedLogError
from airflow_provider_rungen.runs.plan import input_digest

if TYPE_CHECKING:
    from airflow_provider_rungen.client.models import Job
    from airflow_provider_rungen.execution.jobs.runner import MakeSource, Runner

log = logging.getLogger(__name__)

# Seconds by which the clocks of two machines may differ unnoticed.
_CLOCK_SKEW = 5.0


class Deferral:
    """
    The deferrals of one attempt.

    :param run: the attempt.
    :param stores: whether outputs are stored.
    """

    def __init__(self, run: Runner, *, stores: bool) -> None:
        self._run = run
        self._log = run.task_log
        self._stores = stores

    def keep_state(self, over: Collection[Job], left: int) -> dict[str, Any]:
        """
        Push what the next wave has to know.

        :param over: the jobs that are over.
        :param left: how many jobs may be in flight when more are submitted.
        :return: what the trigger has to know.
        """
        # a signal in the middle of a call to the supervisor would leave it out of step
        with self._run.guard.defer_signals():
            self._run.collecting.note_stored()
            self._run.collecting.note_over(over)
            unsent_error, errors = self._run.report.unsent_error, self._run.submitting.errors
            state = keep_state(self._log, lambda: self._run.guard.is_pending) | {
                "failures": self._run.collecting.failures,
                "refusals": self._run.submitting.refusals,
                # the log knows no refusal that may pass
                "may_pass": [
                    [number, error_to_json(each)] for number, each in errors.items() if each.retryable
                ],
                "allowance": self._run.submitting.allowance,
                "claims": self._run.ledger.watched(self._run.submitting.left_to_others),
                "submitted_at": self._run.submitting.submitted_at,
                "unsent_error": unsent_error and error_to_json(unsent_error),
                "is_single": self._run.is_single,
                "lost": self._run.submitting.unsaved_ids(),
                "in_flight": len(self._log.running),
            }
            self._run.report.push_ids()
            self._run.ti.xcom_push(key=LOG_KEY, value=state)
            ends = self._run.report.can_end_from_trigger(len(over))
        running = self._log.jobs.running
        return {
            "left": max(left, len(running) // 2) if self._stores else left,
            "attempt": state["attempt"],
            "on_clear": self._run.ending.on_clear,
            "end_from_trigger": ends,
        }

    def restore(self, make_source: MakeSource | None) -> None:
        """Restore the state from before the deferral."""
        state = self._run.xcom_pull(LOG_KEY)
        if not isinstance(state, Mapping) or "record" not in state:
            # where there is a log, it knows the jobs
            self._run.ending.look(self._run.ledger.exists)
            raise RunGenError(
                f"Could not go on after the deferral: the XCom {LOG_KEY} is gone",
                hint="Look at the app's jobs" if not self._run.ending.is_durable else "",
            )
        self._log.home.open()
        self._run.is_single = state["is_single"]
        self._run.collecting.failures = state["failures"]
        self._run.submitting.refusals = state["refusals"]
        errors = {number: read_error(each) for number, each in state["may_pass"]}
        self._run.submitting.errors = {number: each for number, each in errors.items() if each is not None}
        self._run.submitting.submitted_at = state["submitted_at"]
        self._run.submitting.allowance = state["allowance"]
        self._run.report.unsent_error = read_error(state["unsent_error"])
        self._run.ending.app_id = app_id = state["record"]["app_id"]
        self._run.note_app(app_id)
        self._run.submitting.note_lost(state["lost"])
        # the jobs first: without the plan, they still have to be left to the next attempt, or canceled
        try:
            restore_state(self._log, state)
        except DamagedLogError as error:
            if (lost := state["in_flight"] - len(self._log.running)) > 0:
                error.add_hint(f"{lost} jobs of app {app_id} may still run, whose ids only its files have")
            raise
        self._run.report.note_pushed()
        problem = self._restore_plan(state, make_source)
        self._run.ledger.reopen(state["claims"])
        if problem:
            self._run.report.stop_submitting(RunGenError(problem))
        self._run.collecting.find_unstored()

    def check_event(self, event: Any) -> Mapping[str, Any]:
        """
        Return a trigger's event, if the wait in the triggerer did not fail.

        :raises RunGenError: see `event_error`.
        """
        error = event_error(event)
        # a triggerer's clock may be ahead; with an execution_timeout, only the trigger knows the deadline
        is_checked = type(error) is RunGenJobTimeoutError and self._run.task.execution_timeout is None
        if error is not None and not (is_checked and time.time() < self._log.deadline - _CLOCK_SKEW):
            raise error
        checked: Mapping[str, Any] = event
        return checked

    def find_jobs(self) -> None:
        """Read which jobs may run, though the attempt cannot begin, or go on."""
        if self._log.has_begun or self._log.running:
            return
        with suppress(Exception):  # the first error counts
            if self._run.was_deferred:
                self.restore(None)
            else:
                self._run.ending.look(self._run.ledger.exists)

    def _restore_plan(self, state: Mapping[str, Any], make_source: MakeSource | None) -> str:
        """Restore the plan, as far as it is needed, and return why nothing more can be submitted."""
        digest, parts = state["record"]["plan"], state["parts"]
        if state["has_inputs"]:
            self._log.use_plan(Plan.saved(self._log.home.place, digest), parts)
        elif make_source is not None and state["has_unsent"]:
            try:
                self._run.source = source = make_source()
                app_id = state["record"]["app_id"]
                plan = Plan.of_source(
                    app_id, source.read(input_digest), lambda: self._run.report.about(source)
                )
            except RunGenInputError as error:
                return error.message
            if plan.digest != digest:
                return "the inputs changed while the task was deferred"
            self._log.use_plan(plan, parts)
        return ""
