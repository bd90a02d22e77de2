"""Keep what a deferred attempt has to know again, and go on from there."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from airflow_provider_rungen.client.daemon_threads import begin, ends_within
from airflow_provider_rungen.client.texts import format_count
from airflow_provider_rungen.exceptions import RunGenError, RunGenInputError, RunGenJobTimeoutError
from airflow_provider_rungen.execution.jobs.attempt_state import AttemptState
from airflow_provider_rungen.execution.jobs.places import MemoryPlace, UnopenedPlace
from airflow_provider_rungen.execution.jobs.plans import Plan, read_plan
from airflow_provider_rungen.execution.sending.log_writer import END_TIME, Saver
from airflow_provider_rungen.execution.task.outcomes import error_to_json, event_error, read_error
from airflow_provider_rungen.execution.task.store_writer import call_patiently
from airflow_provider_rungen.execution.task.xcom_keys import LOG_KEY
from airflow_provider_rungen.runs.attempt_record import AttemptRecord
from airflow_provider_rungen.runs.jobs import Jobs
from airflow_provider_rungen.runs.log import RunLog
from airflow_provider_rungen.runs.place import Place
from airflow_provider_rungen.runs.plan import input_digest
from airflow_provider_rungen.runs.rows import InputState, Totals

if TYPE_CHECKING:
    from airflow_provider_rungen.client.models import Job
    from airflow_provider_rungen.execution.jobs.runner import MakeSource, Runner

log = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds by which the clocks of two machines may differ unnoticed.
_CLOCK_SKEW = 5.0
# Seconds for the question whether another worker has gone on from the same deferral.
_BRIEFLY = 5.0


class Deferral:
    """
    The deferrals of one attempt.

    :param run: the attempt.
    """

    def __init__(self, run: Runner) -> None:
        self._run = run
        self._log = run.task_log
        #: How many jobs the trigger left in flight, if it says so.
        self.left: int | None = None
        # how many were when the attempt deferred
        self._in_flight: int | None = None

    # --- before ---

    def keep_state(self, ended: Collection[Job], in_flight: int) -> dict[str, Any]:
        """
        Push what the next round has to know.

        :param ended: the jobs that have ended.
        :param in_flight: how many jobs may be in flight when more are submitted.
        :return: what the trigger has to know.
        """
        run, task_log = self._run, self._log
        run.collecting.note_stored()  # it may take a minute
        # a signal in the middle of a call to the supervisor would leave it out of step
        with run.guard.defer_signals():
            run.collecting.note_ended(ended)
            errors, unsent_error = run.submitting.errors.items(), run.report.unsent_error
            state = self._state_of_log() | {
                # the log knows no refusal that may pass
                "may_pass": [[number, error_to_json(each)] for number, each in errors if each.retryable],
                "claims": run.ledger.watched(run.submitting.claimed_by_others),
                "unsent_error": unsent_error and error_to_json(unsent_error),
                "lost": run.submitting.unsaved_ids(),
                "in_flight": len(task_log.running),
            }

            def push() -> None:
                run.report.push_ids()
                run.ti.xcom_push(key=LOG_KEY, value=state)

            run.guard.call_patiently("push what the next round needs", push)
        # storing takes time, and others run meanwhile
        half = len(task_log.jobs.running) // 2 if task_log.stores else 0
        return {
            "left": max(in_flight, half),
            "attempt": state["attempt"],
            "survives_clear": task_log.home.survives_clear,
        }

    def _state_of_log(self) -> dict[str, Any]:
        """Return what `_restore_log` needs: what could not be saved, too."""
        task_log, jobs, run_log = self._log, self._log.jobs, self._log.run_log
        # after the deferral, only the files of this attempt are read
        due = {*jobs.unsaved_parts, *run_log.missing(jobs, task_log.open_parts)}
        task_log.saver.save(sorted(due), within=END_TIME, is_stopping=self._run.guard.is_stopping)
        jobs.close_parts()
        parts = sorted(task_log.open_parts)
        unsaved = sorted({*jobs.unsaved_parts, *run_log.missing(jobs, parts)})
        # one part is short, and so no outage can hide it
        carried = run_log.snapshots(jobs, parts if task_log.plan.part_count == 1 else unsaved)
        earlier, place = task_log.home.earlier, task_log.home.place
        running = [jobs.table.row(number).current(jobs.since) for number in jobs.inputs(InputState.RUNNING)]
        return {
            "attempt": str(jobs.writer),
            "state": asdict(task_log.state),
            "record": asdict(run_log.attempt),
            "earlier": [asdict(record) for record in earlier],
            "log": run_log.handover(parts, carried.values()),
            "unsaved": unsaved,
            "closed": asdict(jobs.closed),
            "parts": parts,
            "loaded": sorted(task_log.loaded.difference(range(task_log.state.next_part))),
            "rows": task_log.plan.count,
            # a job of an earlier attempt that fails is bought again
            "needs_inputs": task_log.has_unsent or any(job.turn < jobs.writer.turn for job in running if job),
            "memory": place.to_json() if isinstance(place, MemoryPlace) else None,
        }

    # --- after ---

    def restore(self, make_source: MakeSource | None) -> None:
        """Restore the state from before the deferral."""
        run = self._run
        try:
            pull = partial(run.xcom_pull, LOG_KEY)
            state = run.guard.call_patiently("read what the deferral left", pull)
            if not isinstance(state, Mapping) or "record" not in state:
                raise RunGenError(f"Could not go on after the deferral: the XCom {LOG_KEY} is gone")
        except Exception:
            if not run.guard.is_killed:
                run.ending.read_earlier()  # a durable log has the jobs that were saved
            raise
        run.ending.app_id, self._in_flight = state["record"]["app_id"], state["in_flight"]
        run.note_app(run.ending.app_id)
        self._log.state = AttemptState(**state["state"])
        errors = {number: read_error(each) for number, each in state["may_pass"]}
        run.submitting.errors = {number: each for number, each in errors.items() if each is not None}
        run.submitting.note_lost(state["lost"])
        run.report.unsent_error = read_error(state["unsent_error"])
        # the jobs first: without the plan, they still have to be left to the next attempt, or canceled
        self._restore_log(state)
        self._log.knows_jobs = True
        run.report.note_pushed()
        problem = self._restore_plan(state, make_source)
        run.ledger.reopen(state["claims"])
        if problem:
            run.report.stop_submitting(RunGenError(problem))
        run.collecting.find_unstored()

    def _restore_log(self, state: Mapping[str, Any]) -> None:
        """
        Restore the jobs: first those that were handed over, since no outage can hide them.

        :raises DamagedLogError: the log is not as this attempt left it.
        """
        task_log, home = self._log, self._log.home
        record, *home.earlier = map(AttemptRecord.of_fields, [state["record"], *state["earlier"]])
        place: Place = UnopenedPlace()
        if state["memory"] is not None:
            place = home.place = MemoryPlace(state["memory"])
        closed = Totals(**state["closed"])
        task_log.jobs = Jobs(
            record.plan, record.writer, since=record.since, stores=task_log.stores, closed=closed
        )
        run_log = RunLog(place, record, clock=time.time)
        names = run_log.resume(task_log.jobs, state["log"], state["unsaved"])
        task_log.known_saver = Saver(task_log.jobs, run_log)
        task_log.plan = Plan.of_count(record.plan, state["rows"])
        task_log.loaded = {*range(task_log.state.next_part), *state["loaded"]}
        self._run.guard.call_patiently("open the run log", home.open)
        run_log.place = home.place
        contents = self._read("read the run log", names)
        try:
            contents |= self._read_briefly(run_log.carried)
        except Exception:
            if self._run.guard.is_killed:
                raise  # otherwise no other worker is known to have gone on
        run_log.take(task_log.jobs, contents)

    def _read(self, purpose: str, names: Sequence[str]) -> dict[str, bytes]:
        """Read files of the log for as long as it may fail: nobody else knows the jobs, which are fine."""
        get = partial(self._log.home.place.get, names)
        return self._run.guard.call_patiently(purpose, get) if names else {}

    def _read_briefly(self, names: Sequence[str]) -> dict[str, bytes]:
        if not names:
            return {}
        read = begin(self._log.home.place.get, names)
        if not ends_within(_BRIEFLY, read, self._run.guard.is_stopping):
            raise RunGenError("Could not read the run log: no answer")
        return read.result()

    def _restore_plan(self, state: Mapping[str, Any], make_source: MakeSource | None) -> str:
        """Restore the plan, as far as it is needed, and return why nothing more can be submitted."""
        digest, plan = state["record"]["plan"], None
        if self._log.state.has_inputs:
            plan = Plan.saved(partial(self._read, "read the plan"), digest)
        elif state["needs_inputs"] and make_source is None:
            return "the inputs cannot be read again after a deferral"
        elif state["needs_inputs"] and make_source is not None:
            try:
                self._run.source = make_source()
                plan = read_plan(state["record"]["app_id"], self._run.source, input_digest)
            except RunGenInputError as error:
                return error.message
            if plan.digest != digest:
                return "the inputs changed while the task was deferred"
        if plan is not None:
            self._log.plan = plan
            for part in state["parts"]:
                self._log.jobs.load(plan.numbers(part))
        return ""

    def check_event(self, event: Any) -> Mapping[str, Any]:
        """
        Return a trigger's event, if the wait in the triggerer did not fail.

        :raises RunGenError: see `event_error`.
        """
        error = event_error(event)
        # a triggerer's clock may be ahead; with an execution_timeout, only the trigger knows the deadline
        is_checked = type(error) is RunGenJobTimeoutError and self._run.task.execution_timeout is None
        if error is not None and not (is_checked and time.time() < self._log.state.deadline - _CLOCK_SKEW):
            raise error
        checked: Mapping[str, Any] = event
        return checked

    def find_jobs(self) -> None:
        """Read which jobs may run, though the attempt cannot begin, or go on."""
        if self._log.has_begun or self._log.running:
            return
        try:
            if self._run.was_deferred:
                self.restore(None)
            else:
                self._run.ending.read_earlier()
        except Exception:
            if self._run.guard.is_killed:
                raise  # otherwise the first error counts

    @property
    def follows_others(self) -> bool:
        """Whether jobs may have been submitted before this process."""
        home = self._log.home
        return self._run.was_deferred or (home.is_durable and home.numbers.try_number > 1)

    @property
    def is_last(self) -> bool:
        """Whether nobody after this attempt learns of the jobs that were submitted before."""
        return self.follows_others and not self._run.ending.has_next()

    def outlast(self, purpose: str, call: Callable[[], T]) -> T:
        """Call, on the last attempt again while it fails. A try may take long."""
        return call_patiently(purpose, call, self._run.guard.is_stopping) if self.is_last else call()

    @property
    def unread(self) -> str:
        """What to say of jobs that may run, and that this process does not know."""
        count, app_id = self._lost_count, self._run.ending.app_id
        if self._log.knows_jobs or not self.follows_others or count == 0:
            return ""
        jobs = f"{format_count(count, 'job')} of app {app_id}" if count else "Jobs submitted before"
        return f"{jobs} may still run: their ids could not be read. Look at the app's jobs"

    @property
    def _lost_count(self) -> int | None:
        """How many jobs may run, of which nothing could be restored; ``None`` if that is not known."""
        if self._in_flight is None:
            return self.left
        lost = max(self._in_flight - len(self._log.running), 0)
        return lost if self.left is None else min(lost, self.left)
