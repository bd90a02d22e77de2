"""Run the jobs of a task: submit, wait, collect as they end, defer, go on, stop."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn

from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.progress import WaitGoal
from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.exceptions import (
    RunGenError,
    RunGenInputError,
    RunGenJobTimeoutError,
    RunGenLimitError,
)
from airflow_provider_rungen.execution.jobs.advice import Advice
from airflow_provider_rungen.execution.jobs.collecting import Collecting
from airflow_provider_rungen.execution.jobs.deferral import Deferral
from airflow_provider_rungen.execution.jobs.ending import Ending
from airflow_provider_rungen.execution.jobs.job_wait import JobWait
from airflow_provider_rungen.execution.jobs.log_home import LogHome
from airflow_provider_rungen.execution.jobs.plans import read_plan
from airflow_provider_rungen.execution.jobs.quote import Limits
from airflow_provider_rungen.execution.jobs.resuming import Resuming
from airflow_provider_rungen.execution.jobs.run_ledger import RunLedger
from airflow_provider_rungen.execution.jobs.run_report import RunReport
from airflow_provider_rungen.execution.jobs.submitting import Submitting
from airflow_provider_rungen.execution.jobs.task_log import TaskLog
from airflow_provider_rungen.execution.sinks.batch_result import BatchResult
from airflow_provider_rungen.execution.task.job_ids import format_jobs
from airflow_provider_rungen.execution.task.options import JobOptions
from airflow_provider_rungen.execution.task.outcomes import in_flight_of
from airflow_provider_rungen.execution.task.run import TaskRun
from airflow_provider_rungen.runs.place import SupersededError

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import Context
    from airflow_provider_rungen.execution.sinks.batch_result import Sink
    from airflow_provider_rungen.execution.sources.inputs import Source

log = logging.getLogger(__name__)

MakeSource = Callable[[], "Source"]


class Runner(TaskRun[JobOptions]):
    """
    An attempt that runs the jobs of a task.

    :param task: the operator.
    :param context: Airflow's context of the attempt.
    :param make_source: returns the source; it is called once, and again after a deferral.
    :param make_sink: makes what takes the results of the jobs, given this attempt.
    :param folder: where the log is kept; ``None`` without a place of the user's.
    :param survives_clear: see `LogHome`.
    :param page: what else the page of the task has to know; see `xcom_keys`.
    :param can_read_again: whether the source can be read again after a deferral.
    """

    def __init__(
        self,
        task: Any,
        context: Context,
        make_source: MakeSource,
        make_sink: Callable[[Runner], Sink],
        *,
        folder: Any = None,
        survives_clear: bool = False,
        page: Mapping[str, Any] = MappingProxyType({}),
        can_read_again: bool = True,
    ) -> None:
        super().__init__(task, context, options := JobOptions.of(task))
        self.hook.checkpoint = self._checkpoint
        self._make_sink = make_sink
        self._sink: Sink | None = None
        self.make_source = make_source
        self.wait = JobWait(self, task.defer_for_jobs, are_known=True)
        home = LogHome(
            task,
            context,
            folder=folder,
            survives_clear=survives_clear,
            hook=self.hook,
        )
        self.task_log = TaskLog(home, stores=options.destination is not None)
        self.report = RunReport(self)
        self.wait.others = self.report.others
        self.ledger = RunLedger(self)
        self.submitting = Submitting(self)
        self.collecting = Collecting(self)
        self.deferral = Deferral(self)
        self.ending = Ending(self)
        self.advice = Advice(self)
        self.source: Source | None = None
        self._can_read_again = can_read_again
        self.was_deferred = False  #: Whether this process goes on after a deferral.
        self._page = page

    def execute(self) -> Any:
        """Run what has no job yet, and return what the sink makes of the jobs."""
        if not self.task_log.home.is_durable:
            log.info(
                "Not durable: a single job is remembered from Airflow 3.3 on. If this attempt dies, the next "
                "one submits again"
            )
        with self._working():
            self._begin()
            return self._go_on()

    def complete(self, event: Mapping[str, Any]) -> Any:
        """
        Go on after a wait in the triggerer.

        :param event: the trigger's event. It is a hint: the jobs are looked at again.
        """
        self.was_deferred, self.deferral.left = True, in_flight_of(event)
        with self._working():
            self.deferral.restore(self.make_source if self._can_read_again else None)
            return self._go_on(event)

    def fail_deferral(self, reason: str) -> NoReturn:
        """
        Decide about the jobs when Airflow ended the deferral without an event.

        :raises RunGenError: always.
        """
        self.was_deferred = True
        with self._working():
            self.deferral.restore(None)
            jobs = format_jobs(self.task_log.jobs.running)
            raise RunGenError(f"Airflow ended the wait for {jobs} in the triggerer: {reason}")
        raise AssertionError  # nothing swallows it

    @contextmanager
    def _working(self) -> Iterator[None]:
        """Open the hook, and decide about the jobs when the attempt ends."""
        self.used, self.times = self.report.usage, self.report.times
        try:
            with (
                self.attempt(),
                self._reporting_failure(),
                self.ending.recording(),
                self.opened(),
                self.submitting.naming_lost_jobs(),
                self.ending.canceling(),
            ):
                yield
        finally:
            if self._sink is not None:
                self._sink.close()

    @property
    def is_single(self) -> bool:
        """Whether there is one job, whose error is that of the task."""
        return self.task_log.state.is_single

    @property
    def sink(self) -> Sink:
        """What takes the results."""
        if self._sink is None:
            self._sink = self._make_sink(self)
        return self._sink

    @contextmanager
    def _reporting_failure(self) -> Iterator[None]:
        """Write what is known before an error ends the task."""
        try:
            yield
        except Exception as error:
            # what a later attempt, or the last task run, has written is not replaced
            is_kept = isinstance(error, SupersededError | RunGenLimitError)
            if self.task_log.has_begun and not (self.guard.is_killed or is_kept):
                self.task_log.check_successor()
                self.report.write_failure(error)
                self.name_jobs(error)  # more of them are known by now
            raise

    # --- the begin ---

    def _begin(self) -> None:
        self.ending.read_earlier()
        limits = Limits(self)
        self.deferral.outlast("write to the destination", self.sink.check)
        model = self.deferral.outlast("read the ledger", self.ledger.open)
        self.source = source = self.make_source()
        task_log, options = self.task_log, self.options
        app_id, sink, task_log.state.is_single = self.app_id, self.sink, source.is_single
        self.link_to(app_id)  # a table may take long to read
        plan = read_plan(app_id, source, self.ledger.key_of)
        self.report.rows = plan.count
        if plan.digest not in {record.plan for record in task_log.home.earlier}:
            try:
                source.check(options.max_failed)
            except RunGenInputError as error:
                self.push_page(app_id)
                sink.report(BatchResult([None] * plan.count), plan, error)  # a table says which do not fit
                raise
        self.deferral.outlast("read the ledger", lambda: self.ledger.look_up(plan))
        if not source.is_single:
            self.push_page(app_id)
        # not before the look-up, which has to notice that a folder is missing
        self.deferral.outlast("write to the destination", sink.prepare)
        now = time.time()
        task_log.begin(
            plan,
            self.deferral.outlast,
            app_id=app_id,
            model=model,
            deadline=now + options.timeout,
            saves_inputs=options.deferrable and options.wait_for_completion,
        )
        resuming = Resuming(self)
        resuming.adopt_earlier()
        self.ending.app_id = app_id  # no job of another app is left to decide about
        self.ledger.note_found()
        resuming.refetch()
        unnoted = self.ledger.add_resumed()
        self.collecting.find_unstored([*resuming.lost, *unnoted])
        resuming.warn_of_unknown()
        self.submitting.keep_within(limits)
        self.submitting.keep_deadline(now)

    # --- the work ---

    def _go_on(self, event: Mapping[str, Any] | None = None) -> Any:
        """Do what is left, and return what the sink makes of it. Jobs that end just as time is up count."""
        try:
            if event is not None and self.collecting.note_event(self.deferral.check_event(event)):
                self.ending.stop_failing()
            else:
                self._work()
        except RunGenJobTimeoutError:
            if not self.ending.are_over():
                raise
        return self._finish()

    def _work(self) -> None:
        """Submit, wait and collect in turns, until all inputs have a job and all jobs are over."""
        task_log, options = self.task_log, self.options
        deadline = self.deadline(task_log.state.deadline)
        while True:
            if self.submitting.renew_deadline():
                deadline = self.deadline(task_log.state.deadline)
            is_refused = self.submitting.submit(deadline)
            if not options.wait_for_completion:
                break
            if is_refused and task_log.has_unsent:
                self.ending.stop_refused(deadline)
                break
            is_failing = bool(task_log.jobs.running) and self.wait_for_part(deadline)
            if is_failing or self.collecting.store():
                self.ending.stop_failing()
                break
            self.collecting.let_go()
            if not task_log.has_unsent and not task_log.jobs.running:
                break

    def wait_for_part(self, deadline: float, *, may_defer: bool = True) -> bool:
        """Wait until more may be submitted or stored, or all is over; return whether everything fails."""
        task_log, options, running = self.task_log, self.options, self.task_log.jobs.running
        half = (options.max_in_flight or 0) // 2 if self.submitting.has_free else 0
        if self.submitting.has_free and len(running) <= half:  # refused inputs left room
            return False
        # outputs are stored while others run, some at a time
        in_flight = max(half, len(running) - max(len(running) // 4, 1)) if task_log.stores else half
        lookup_at, shared = self.submitting.next_lookup, frozenset(task_log.jobs.shared)
        failures = None if self.is_single else task_log.state.failures
        goal = WaitGoal(in_flight, failures, task_log.state.has_success, shared)
        ended: list[Job] = []
        try:
            ended = self.wait.wait(
                task_log.app_id,
                running,
                deadline=deadline,
                on_finished=self.sink.hold,
                goal=goal,
                # a trigger knows no ledger
                may_defer=may_defer
                and not lookup_at
                and (self._can_read_again or task_log.stores or not task_log.has_unsent),
                stop_at=lookup_at or math.inf,
                before_defer=lambda ended: self.deferral.keep_state(ended, half),
                ended=self.collecting.ended,
            )
        finally:
            self.collecting.ended = []
            # an error may end a wait in which jobs have ended
            self.collecting.note_ended([*ended, *self.wait.take_ended()])
        return goal.is_broken and bool(task_log.has_unsent or task_log.jobs.running)

    # --- the end ---

    def _finish(self) -> Any:
        task_log = self.task_log
        if self.options.wait_for_completion:
            self.collecting.collect_rest()
        task_log.save_end()
        value = self.sink.finish(self.report.result(self.ending.stopped), task_log.plan)
        task_log.remove_inputs()
        return value

    def _checkpoint(self) -> None:
        """End a killed attempt, and save during a wait what the log did not take before."""
        self.guard.check()
        if self.task_log.has_begun:
            with self.guard.defer_signals():
                self.task_log.saver.save_between_polls()

    def cleanup(self) -> str:
        if ended := self.wait.take_ended():
            self.collecting.note_ended(ended)
        return self.ending.clean_up(is_connected=self.is_connected)  # which it may just look up

    # --- what is reported ---

    @property
    def job_ids(self) -> Sequence[str]:
        """The jobs of the inputs, as far as they are known."""
        return self.report.job_ids()

    def failure_details(self) -> dict[str, Any]:
        return self.advice.outlook()

    def page_details(self) -> dict[str, Any]:
        destination = self.options.destination
        return {
            "waits": None if self.options.wait_for_completion else False,
            "new_ledger": self.ledger.new_ledger,
            "rows": self.report.rows or int(self.is_single),
            "reused": self.ledger.reused_count or None,
            "destination": None if destination is None else redact(str(destination)),
            **self._page,
            **(self.source.without_job if self.source else {}),
        }
