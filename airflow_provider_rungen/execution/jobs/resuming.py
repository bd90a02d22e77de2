"""Resume or adopt the jobs of earlier attempts, and cancel those that nobody waits for."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from airflow_provider_rungen._airflow import metrics
from airflow_provider_rungen.client import retry
from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.poll_state import concerns_one_job
from airflow_provider_rungen.client.texts import format_count, format_ids
from airflow_provider_rungen.exceptions import (
    RunGenBadRequestError,
    RunGenError,
    RunGenInputError,
    RunGenNotFoundError,
)
from airflow_provider_rungen.execution.jobs.job_ends import ENDS
from airflow_provider_rungen.execution.jobs.plans import read_digests
from airflow_provider_rungen.execution.task.job_ids import log_jobs, warn_of_resubmission
from airflow_provider_rungen.runs import rows
from airflow_provider_rungen.runs.adoption import adopt_rows
from airflow_provider_rungen.runs.jobs import Jobs
from airflow_provider_rungen.runs.plan import are_of_one_kind, input_digest
from airflow_provider_rungen.runs.rows import InputState, JobState

if TYPE_CHECKING:
    from airflow_provider_rungen.execution.jobs.log_home import LogHome
    from airflow_provider_rungen.execution.jobs.runner import Runner

log = logging.getLogger(__name__)

#: The fingerprints of inputs, with what is known of each.
_Rows: TypeAlias = Sequence[tuple[str, rows.Row]]
# Seconds that the jobs of earlier plans have to be canceled.
CANCEL_TIME = 10.0
# Seconds without an answer after which a job is left to the wait, so that it holds up no submission.
LOOK_TIME = 10.0


@dataclass(frozen=True, slots=True)
class _Unwanted:
    """
    A job of an earlier plan that no input wants.

    :param digest: the fingerprint of its input, if that is known.
    :param is_ours: whether it is certainly one of this task run.
    """

    app_id: str
    job: rows.Job
    digest: str
    is_ours: bool

    @property
    def may_run(self) -> bool:
        return self.job.state is JobState.OPEN and not self.job.is_shared


class Resuming:
    """
    Resumes what earlier attempts left.

    :param run: the attempt, whose log has begun.
    """

    def __init__(self, run: Runner) -> None:
        self._run = run
        self._log = run.task_log
        self._app_id = run.task_log.app_id
        #: The jobs that the service does not know. Their outputs may be stored.
        self.lost: list[str] = []

    def adopt_earlier(self) -> None:
        """Adopt the jobs of earlier plans whose input the new plan has, too, and cancel the others."""
        home, jobs = self._log.home, self._log.jobs
        if home.earlier:
            self._adopt(home, jobs)
        self._log.undecided = ()

    def _adopt(self, home: LogHome, jobs: Jobs) -> None:
        # before parts are dropped: the jobs of those that are done may be known from other plans, too
        self._log.bought = jobs.unknown_since(home.first_turn)
        unwanted = self._find_unwanted()
        of_plan = [job for row in jobs.table.rows.values() for job in row.jobs]
        bought = [*of_plan, *(each.job for each in unwanted)]
        self._log.bought += sum(job.turn >= home.first_turn and not job.is_shared for job in bought)
        jobs.close_parts()
        self._cancel_unwanted(unwanted)

    def _find_unwanted(self) -> list[_Unwanted]:
        task_log, home, unwanted = self._log, self._log.home, dict[str, _Unwanted]()
        plans = {record.plan: record.app_id for record in home.earlier}
        others = {plan: app for plan, app in plans.items() if plan not in ("", task_log.plan.digest)}
        if others:
            while task_log.load_next() is not None:
                pass
            digests = {number: row.digest for number, row in enumerate(task_log.plan.rows()) if row.needs_job}
        for other, app_id in others.items():
            ours = digests
            known = Jobs(other, task_log.jobs.writer, since=task_log.jobs.since)
            for _, files in home.read_parts(other):
                known.load((), *files)
            task_log.bought += known.unknown_since(home.first_turn)
            planned = read_digests(home.place, other)
            if planned and app_id == self._app_id and not are_of_one_kind(planned, digests.values()):
                ours = self._digests_without_ledger(digests, known)
            if planned is not None and other == home.earlier[-1].plan:
                then, now = set(planned) - {""}, set(ours.values())
                if then != now and are_of_one_kind(then, now):
                    changes = len(now - then), len(then - now)
                    log.warning("Inputs changed since the last attempt: %d new, %d gone", *changes)
            numbered = sorted(known.table.rows.items())
            pairs = [("" if planned is None else planned[number], row) for number, row in numbered]
            left: _Rows = pairs
            if app_id == self._app_id:
                trusted = set(known.table.input_of) - known.table.unchecked
                left = adopt_rows(task_log.jobs, ours, pairs, trusted)
            self._warn_of_gone(app_id, left, ours)
            for digest, row in left:
                for job in row.jobs:
                    is_ours = job.id not in known.table.unchecked
                    unwanted.setdefault(job.id, _Unwanted(app_id, job, digest, is_ours))
        # a later one of the earlier plans may have had the same job, for an input that the new plan has, too
        return [each for job_id, each in unwanted.items() if job_id not in task_log.jobs.table.input_of]

    def _digests_without_ledger(self, digests: dict[int, str], known: Jobs) -> dict[int, str]:
        """
        Return the fingerprints that inputs have without a ledger, as in a plan from before there was one.

        :param known: the jobs of that plan.
        :raises RunGenInputError: it was made with a ledger, now there is none, and it has jobs that count.
        """
        if self._run.options.ledger is not None:
            return {number: input_digest(self._log.plan.input(number)) for number in digests}
        states = {row.state(known.writer, known.since) for row in known.table.rows.values()}
        if states.isdisjoint((InputState.RUNNING, InputState.COMPLETED, InputState.UNKNOWN)):
            return digests
        self._log.jobs.bill(job for row in known.table.rows.values() for job in row.jobs)
        raise RunGenInputError(
            "An earlier attempt had a ledger, and without it its jobs cannot be resumed; nothing was sent",
            hint="Set ledger again, or choose another destination",
            retryable=True,
        )

    def _warn_of_gone(self, app_id: str, left: _Rows, digests: Mapping[int, str]) -> None:
        """Warn of inputs that are gone, were not submitted again, and may have a job."""
        jobs = self._log.jobs
        ours = jobs.table.rows.items() if app_id == self._app_id else ()
        turns = sorted((job.turn, digests[number]) for number, row in ours for job in row.jobs)
        submitted = {digest: turn for turn, digest in turns}
        open_rows = [each for each in left if each[1].state(jobs.writer, jobs.since) is InputState.UNKNOWN]
        unknown = sum(submitted.get(each, 0) <= row.intents[-1].writer.turn for each, row in open_rows)
        _warn_of_left(unknown, "that are gone", app_id)

    def _cancel_unwanted(self, unwanted: Sequence[_Unwanted]) -> None:
        """Cancel jobs of earlier plans (``cancel_on_kill``) that are certainly ours, and bill all of them."""
        if running := [each for each in unwanted if each.may_run]:
            log.info("Inputs or app changed: jobs of the last attempt are not resumed")
        ends, seconds = dict[str, Job](), dict[str, float]()
        for app_id in dict.fromkeys(each.app_id for each in running):
            of_app = [each for each in running if each.app_id == app_id]
            ours = self._ours(of_app)
            strange = [each.job.id for each in of_app if each.job.id not in ours]
            log_jobs(f"Not canceled, since they may be of others, jobs of app {app_id}", strange)
            if self._run.options.cancel_on_kill:
                seconds |= self._cancel(app_id, ours)
            self._note_ends(app_id, [each for each in ours if each not in self._run.wait.canceled], ends)
        stored = self._run.ledger.stored_ids  # they count with the inputs that reuse them
        for job in (each.job for each in unwanted if each.job.id not in stored):
            state, took = job.state, job.seconds
            if job.id in self._run.wait.canceled:
                state, took = JobState.CANCELED, seconds.get(job.id)
            elif (end := ends.get(job.id)) is not None:
                state, took = ENDS[end.status], end.execution_time
            self._log.jobs.bill([replace(job, state=state, seconds=took)])

    def _note_ends(self, app_id: str, job_ids: Sequence[str], ends: dict[str, Job]) -> None:
        """Note those of some jobs that have ended, as far as the service answers."""

        def note(job_id: str, outcome: Job | RunGenError) -> None:
            if isinstance(outcome, Job) and outcome.is_terminal:
                ends[job_id] = outcome

        try:
            self._run.wait.refetch(app_id, job_ids, note, LOOK_TIME, have_ended=False)
        except RunGenError as error:
            log.warning("%s; it is unknown how jobs ended that no input uses", error.message)
        if not self._run.options.cancel_on_kill:
            log_jobs(f"May still run, jobs of app {app_id}", [each for each in job_ids if each not in ends])

    def _ours(self, unwanted: Sequence[_Unwanted]) -> list[str]:
        """Return the jobs of an app that are ours. The service has the inputs of those that may not be."""
        ours = [each.job.id for each in unwanted if each.is_ours]
        digests = {each.job.id: each.digest for each in unwanted if not each.is_ours}

        def note(job_id: str, outcome: Job | RunGenError) -> None:
            if isinstance(outcome, Job):
                job_input = outcome.input
                keys = (self._run.ledger.key_of, input_digest) if isinstance(job_input, Mapping) else ()
                if digests[job_id] in [key_of(job_input) for key_of in keys]:
                    ours.append(job_id)
            elif retry.is_transient(outcome):
                raise outcome

        self._run.wait.refetch(unwanted[0].app_id, list(digests), note, have_ended=False)
        return ours

    def _cancel(self, app_id: str, job_ids: Sequence[str]) -> dict[str, float]:
        """Cancel jobs, and return how long they ran, as far as that is known."""
        wait = self._run.wait
        wait.cancel(app_id, job_ids, within=CANCEL_TIME + len(job_ids) / 10)
        return wait.seconds_of(app_id, sorted(wait.canceled.intersection(job_ids)))

    def warn_of_unknown(self) -> None:
        """Warn of inputs of which it is unknown whether they have a job. They are submitted again."""
        jobs = self._log.jobs
        _warn_of_left(jobs.unknown_count_of_shared, "that another run has bought since", self._app_id)
        if unknown := jobs.inputs(InputState.UNKNOWN):
            is_one = self._log.state.count == 1
            created = "job" if is_one else f"jobs for {format_count(len(unknown), 'input')}"
            warn_of_resubmission("an earlier attempt", created, self._app_id)

    def refetch(self) -> None:
        """Ask the service how the jobs are that may run, and whose they are. Cancel the outdated ones."""
        jobs = self._log.jobs
        known = list(dict.fromkeys([*jobs.running, *jobs.unchecked, *jobs.outdated]))
        if known:
            try:
                self._run.wait.refetch(self._app_id, known, self._note, LOOK_TIME, have_ended=False)
            except RunGenError as error:
                # a wait outlasts what this does not; but whose a job is has to be known first
                is_strange = any(map(self._is_strange, jobs.unchecked))
                if is_strange or not self._run.options.wait_for_completion or not retry.is_transient(error):
                    raise
                log.warning("%s; polled again with the others", error.message)
        self._log_found(known)
        log_jobs(f"Not known any more to app {self._app_id} (another API key or team_id?)", self.lost)
        outdated = [job_id for job_id in jobs.outdated if jobs.may_cancel(job_id)]
        if not self._run.options.cancel_on_kill:
            log_jobs(f"May still run from before the clear, jobs of app {self._app_id}", outdated)
        elif outdated:
            log.info("The task was cleared: canceling its earlier jobs, which nobody waits for")
            seconds = self._cancel(self._app_id, outdated)
            for job_id in self._run.wait.canceled.intersection(outdated):
                jobs.end(job_id, JobState.CANCELED, seconds=seconds.get(job_id))

    def _note(self, job_id: str, outcome: Job | RunGenError) -> None:
        jobs = self._log.jobs
        is_ours = isinstance(outcome, Job) and self._is_ours(job_id, outcome)
        is_strange = self._is_strange(job_id)
        if isinstance(outcome, RunGenNotFoundError | RunGenBadRequestError):
            jobs.end(job_id, JobState.LOST)
            self.lost.append(job_id)
        elif isinstance(outcome, RunGenError):
            if is_strange or not concerns_one_job(outcome):
                raise outcome
            log.warning("%s; polled again with the others", outcome.message)
        elif is_strange and not is_ours:
            log.warning("Ignored a job that the log names, but whose input is another %s", job_id)
            jobs.check(job_id, is_ours=False)
        else:
            if job_id not in jobs.table.unchecked or (is_ours and isinstance(outcome.input, Mapping)):
                jobs.check(job_id, is_ours=True)
            else:
                jobs.disown(job_id)
            if outcome.is_terminal:
                state = ENDS[outcome.status]
                jobs.end(job_id, state, seconds=outcome.execution_time, why=outcome.error or "")

    def _is_strange(self, job_id: str) -> bool:
        """Return whether only storage names a job."""
        return job_id in self._log.jobs.table.unchecked and not self._run.ledger.is_remembered(job_id)

    def _is_ours(self, job_id: str, job: Job) -> bool:
        ours = self._log.plan.input(self._log.jobs.table.input_of[job_id])
        # the service may add what was left out
        return not isinstance(job.input, Mapping) or all(
            job.input.get(name) == value for name, value in ours.items()
        )

    def _log_found(self, known: Sequence[str]) -> None:
        jobs, totals = self._log.jobs, self._log.jobs.totals()
        running, completed = set(jobs.running).intersection(known), max(totals.completed - totals.shared, 0)
        metrics.incr("jobs.resumed", len(running) + completed)
        if self._log.state.count == 1:
            if not known and completed:
                known = [job.id for _, row in self._log.rows() if (job := row.current(jobs.since))]
                log.info("Resuming a job that is COMPLETED %s", format_ids(self._app_id, known[0]))
                return
            for job_id in known:
                self._log_single(job_id)
        elif known:
            log.info(
                "Resuming %d inputs: %d jobs completed, %d are resumed, %d failed and run again. "
                "The rest is submitted now",
                *(self._log.state.count, totals.completed, len(running)),
                len(jobs.inputs(InputState.TO_REPEAT)),
            )

    def _log_single(self, job_id: str) -> None:
        jobs, ids = self._log.jobs, format_ids(self._app_id, job_id)
        row = jobs.table.rows.get(jobs.table.input_of.get(job_id, -1))
        if row is None or (job := row.current(jobs.since)) is None or job.id != job_id:
            return
        match job.state:
            case JobState.LOST:
                log.info("Submitting a new job: that of an earlier attempt is gone %s", ids)
            case JobState.FAILED | JobState.CANCELED as state:
                log.info("Submitting a new job: that of an earlier attempt is %s %s", state.name, ids)
            case state:
                status = "COMPLETED" if state is JobState.COMPLETED else "not over"
                log.info("Resuming a job that is %s %s", status, ids)


def _warn_of_left(count: int, which: str, app_id: str) -> None:
    if count:
        line = "Fate unknown: jobs may exist for %s %s, and nobody waits. Look at the jobs of app %s"
        log.warning(line, format_count(count, "input"), which, app_id)
