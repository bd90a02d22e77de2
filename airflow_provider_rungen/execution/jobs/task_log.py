"""The log of a task run as one attempt uses it: where it is, what earlier attempts left, and its jobs."""

from __future__ import annotations

import logging
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import islice
from typing import Any

from airflow_provider_rungen.client.daemon_threads import begin
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.execution.jobs.attempt_state import AttemptState
from airflow_provider_rungen.execution.jobs.log_home import LogHome
from airflow_provider_rungen.execution.jobs.places import StoragePlace
from airflow_provider_rungen.execution.jobs.plans import Plan
from airflow_provider_rungen.execution.sending.log_writer import END_TIME, Saver
from airflow_provider_rungen.runs.attempt_record import AttemptRecord, next_turn
from airflow_provider_rungen.runs.jobs import Jobs
from airflow_provider_rungen.runs.log import RunLog, missing_part, read_attempts
from airflow_provider_rungen.runs.part_files import PART_ROWS, PartFile
from airflow_provider_rungen.runs.place import SupersededError
from airflow_provider_rungen.runs.rows import SUBMITTABLE, InputState, JobState, Row, Writer

log = logging.getLogger(__name__)

# Seconds for the question whether there is a later attempt, before jobs are canceled.
_CHECK_TIME = 5.0
# So many parts are read back at a time.
_PARTS_AT_A_TIME = 64


class TaskLog:
    """
    The log of a task run, and the table of its jobs.

    :param home: where it is, and what earlier attempts left there.
    :param stores: whether outputs are stored.
    """

    def __init__(self, home: LogHome, *, stores: bool) -> None:
        self.home = home
        #: Whether outputs are stored.
        self.stores = stores
        #: What saves, if the attempt has begun.
        self.known_saver: Saver | None = None
        self.plan = Plan.of_count("", 0)
        self.jobs = Jobs("0" * 8, Writer(1, 1, "0" * 8))
        self.state = AttemptState()
        #: Called with the inputs that were loaded.
        self.on_load: Callable[[Collection[int]], object] = lambda numbers: None
        #: How many jobs earlier attempts submitted since the last clear, or may have submitted.
        self.bought = 0
        #: The parts that were loaded, those that were let go among them.
        self.loaded: set[int] = set()
        #: Whether it is known which jobs may run that were submitted before this process.
        self.knows_jobs = False
        #: The jobs of earlier plans that may run, until it is decided which of them are resumed.
        self.undecided: Sequence[str] = ()

    def read_earlier(self) -> None:
        """
        Read what earlier attempts left, as far as it may still run, before the source is read.

        :raises RunGenError: it cannot be read, or is in a place that cannot be used now.
        """
        self.home.find_attempts()
        known = [record for record in self.home.earlier if record.plan] if self.home.is_durable else []
        of_app = [record.plan for record in known if record.app_id == known[-1].app_id]
        # the last attempt may have ended before it adopted the jobs of the plan before its own
        for plan in reversed(dict.fromkeys(reversed(of_app))):
            last = self.home.earlier[-1]
            before, self.jobs = self.running, Jobs(plan, last.writer, since=last.since, stores=self.stores)
            self._read_parts(self.jobs, lambda part: ())
            self.undecided = [job_id for job_id in before if job_id not in self.jobs.table.input_of]
            self.jobs.close_parts()
        self.knows_jobs = self.home.is_durable

    def begin(
        self,
        plan: Plan,
        outlast: Callable[[str, Callable[[], Any]], Any],
        *,
        app_id: str,
        model: str,
        deadline: float,
        saves_inputs: bool,
    ) -> None:
        """
        Begin the attempt, and load what earlier ones know of its plan.

        :param outlast: reads and saves; see `Deferral.outlast`.
        :param app_id: the app.
        :param model: the identity of its model, if known.
        :param deadline: the deadline (seconds since 1970) of jobs that are submitted now.
        :param saves_inputs: whether the attempt needs the inputs after a deferral.
        """
        # it may be written to by now, and so tells for certain what it has
        self.home.earlier = self.home.earlier or read_attempts(self.home.place)
        is_cleared, earlier = self.home.is_cleared, self.home.earlier
        turn = next_turn(earlier, self.home.numbers.try_number, self.home.began)
        is_new = not earlier or not self.home.is_durable or (is_cleared and not self.home.survives_clear)
        record = AttemptRecord(
            turn=turn,
            nonce=secrets.token_hex(4),
            since=turn if is_new else earlier[-1].since,
            **asdict(self.home.numbers),
            app_id=app_id,
            model=model,
            plan=plan.digest,
            # the clock of a worker may be behind that of the run, whose start tells a deleted one apart
            began=max(time.time(), self.home.began),
            deadline=deadline,
        )
        run_log = RunLog(self.home.place, record, clock=time.time)
        save = partial(self.home.save, run_log, plan, with_inputs=saves_inputs)
        self.state.has_inputs = outlast("write the run log", save)
        self.plan, self.state.deadline = plan, deadline
        self.state.count = sum(row.needs_job for row in plan.rows())

        def load() -> Jobs:
            self.loaded.clear()  # `read_earlier` has loaded parts of the last plan
            jobs = Jobs(plan.digest, record.writer, since=record.since, stores=self.stores)
            if earlier:
                self._read_parts(jobs, plan.numbers)
            return jobs

        jobs = outlast("read the run log", load)
        self.undecided, self.jobs, self.knows_jobs = self.running, jobs, True
        self.known_saver = Saver(jobs, run_log)

    def _read_parts(self, jobs: Jobs, numbers_of: Callable[[int], Collection[int]]) -> None:
        """Load the parts that writers know something of."""
        for part, files in self.home.read_parts(jobs.plan):
            jobs.load(numbers_of(part), *files)
            self.loaded.add(part)

    # --- the inputs to submit ---

    def load_next(self) -> list[int] | None:
        """Load the next part of which nothing was known, and return its inputs; ``None`` after the last."""
        while self.state.next_part < self.plan.part_count:
            part = self.state.next_part
            self.state.next_part += 1
            if part not in self.loaded:
                self.loaded.add(part)
                numbers = self.plan.numbers(part)
                self.jobs.load(numbers)
                self.on_load(numbers)
                return numbers
        return None

    def take(self, most: int, limit: int | None, without: Collection[int]) -> list[int]:
        """
        Return the next inputs to submit.

        :param most: how many at the most.
        :param limit: how many jobs may be in flight, those of other runs included; ``None``: any number.
        """
        found = [number for number in self.jobs.inputs(*SUBMITTABLE) if number not in without]
        free = self.state.count if limit is None else limit - len(self.jobs.running)
        while len(found) < min(most, free) and (numbers := self.load_next()) is not None:
            states = [self.jobs.state(number) for number in numbers]
            found += [number for number, state in zip(numbers, states, strict=True) if state in SUBMITTABLE]
            free -= states.count(InputState.RUNNING)  # jobs of other runs
        return found[: max(min(most, free), 0)]

    @property
    def has_unsent(self) -> bool:
        """Whether inputs are still to be submitted."""
        return self.unsent_count > 0

    @property
    def unsent_count(self) -> int:
        """How many inputs are still to be submitted."""
        if self.state.has_stopped:
            return 0
        loaded = self.jobs.closed.inputs + len(self.jobs.table.rows)
        return self.state.count - loaded + len(self.jobs.inputs(*SUBMITTABLE))

    @property
    def unfinished_count(self) -> int:
        """How many inputs have no job that completed, or that may still run, and are not given up."""
        totals, running = self.jobs.totals(), len(self.jobs.running) + len(self._others)
        return max(self.state.count - totals.completed - totals.given_up - running, 0)

    def stop_submitting(self) -> int:
        """Submit nothing more, and return how many inputs are not submitted."""
        unsent = self.unsent_count
        self.state.has_stopped = True
        return unsent

    # --- the jobs ---

    @property
    def running(self) -> list[str]:
        """The jobs of this task run that may run, the latest first."""
        table = self.jobs.table
        rows = (row for _, row in sorted(table.rows.items(), reverse=True))
        jobs = (job for row in rows for job in row.jobs)
        known = [job.id for job in jobs if job.state is JobState.OPEN and self.jobs.may_cancel(job.id)]
        return [*known, *self._others]

    @property
    def _others(self) -> list[str]:
        """The jobs that are undecided, without those of this plan."""
        return [job_id for job_id in self.undecided if job_id not in self.jobs.table.input_of]

    def unwanted(self) -> Sequence[str]:
        """Return the jobs that may run, and that nobody waits for: replaced, or from before a clear."""
        if self.has_begun:
            return self.jobs.outdated
        return self.running if self.home.is_cleared and not self.home.survives_clear else ()

    def is_stored(self, job_id: str) -> bool:
        """Return whether a job is known to be stored. It is if nothing is left to do in its part."""
        return job_id not in self.jobs.table.input_of or bool(self.jobs.table.job(job_id).stored)

    @property
    def completed(self) -> list[str]:
        """The jobs that completed, and whose outputs are not stored."""
        rows = (self.jobs.table.rows[number] for number in self.jobs.inputs(InputState.COMPLETED))
        jobs = (row.current(self.jobs.since) for row in rows)
        return [job.id for job in jobs if job is not None and not job.stored]

    @property
    def unknown(self) -> list[int]:
        """The inputs of which it is unknown whether they have a job."""
        return self.jobs.inputs(InputState.ANNOUNCED, InputState.UNKNOWN)

    @property
    def has_begun(self) -> bool:
        """Whether the attempt has begun."""
        return self.known_saver is not None

    @property
    def saver(self) -> Saver:
        """What saves in the log, once the attempt has begun."""
        if self.known_saver is None:
            raise RuntimeError("the attempt has not begun")
        return self.known_saver

    @property
    def run_log(self) -> RunLog:
        """The log, once the attempt has begun."""
        return self.saver.run_log

    @property
    def app_id(self) -> str:
        """The app of the attempt."""
        return self.run_log.attempt.app_id if self.has_begun else ""

    def fence(self) -> None:
        """Raise an error if a later attempt has begun, or if that is not known: see `RunLog.fence`."""
        self.run_log.note()  # with Airflow's store, only a write tells
        self.run_log.fence()

    def check_successor(self) -> None:
        """
        Find out in a few seconds whether a later attempt has begun.

        :raises SupersededError: one has. If that is not known, it goes on.
        """
        try:
            if self.has_begun:
                begin(self.fence).result(_CHECK_TIME)
        except SupersededError:
            raise
        except Exception as error:
            log.debug("It is unknown whether a later attempt has begun: %s", type(error).__name__)

    def remove_inputs(self) -> None:
        """Remove the inputs from where they were saved, at the end of the run."""
        place = self.home.place
        if self.state.has_inputs and isinstance(place, StoragePlace):
            try:
                self.plan.remove_inputs(place)
            except RunGenError as error:
                log.debug("The inputs were not removed: %s", error.message)

    def save_end(self) -> None:
        """
        Save all that has changed, before results are replaced.

        :raises SupersededError: a later attempt has begun, and replaces them.
        :raises Exception: the log cannot be written, or read, where the results are.
        """
        parts = self.jobs.unsaved_parts
        if isinstance(self.home.place, StoragePlace):
            self.run_log.save(self.jobs, parts)
            self.run_log.fence()
        else:  # no results are there, and it is not worth a failure
            self.saver.save(parts, within=END_TIME)

    def note(self, **changes: Any) -> None:
        """Change the record of the attempt. It is not worth a failure."""
        if not self.has_begun:
            return
        try:
            begin(self.run_log.note, **changes).result(END_TIME)
        except Exception as error:
            log.debug("The record of the attempt was not saved: %s", type(error).__name__)

    def reopen(self, job_ids: Collection[str]) -> None:
        """
        Load the parts again that were let go, and that have jobs of which more is to be noted.

        :raises DamagedLogError: see `rows`.
        """
        wanted = set(job_ids) - self.jobs.table.input_of.keys()
        closed = self.rows(sorted(self.loaded - self.open_parts)) if wanted else ()
        of_jobs = (number for number, row in closed if any(job.id in wanted for job in row.jobs))
        if parts := {number // PART_ROWS for number in of_jobs}:
            found: defaultdict[int, list[PartFile]] = defaultdict(list)  # the log may have some, and Airflow
            for part, files in self.home.read_parts(self.jobs.plan, parts, also=[self.jobs.writer]):
                found[part] += files
            for part, files in found.items():
                self.jobs.reopen(part, *files)
                self.run_log.reopen(files)

    @property
    def open_parts(self) -> set[int]:
        """The parts that are in memory."""
        return {number // PART_ROWS for number in self.jobs.table.rows}

    def rows(self, parts: Iterable[int] | None = None) -> Iterator[tuple[int, Row]]:
        """
        Yield what is known of inputs, in order. What was dropped is read again.

        :param parts: the parts of the log that have them; all if left out.
        :raises DamagedLogError: nothing is there any more of a part that was dropped.
        """
        open_parts, parts = self.open_parts, iter(range(self.plan.part_count) if parts is None else parts)
        while some := list(islice(parts, _PARTS_AT_A_TIME)):
            known = Jobs(self.jobs.plan, self.jobs.writer, since=self.jobs.since, stores=self.stores)
            if closed := set(some) - open_parts:
                for _, files in self.home.read_parts(known.plan, closed, also=[self.jobs.writer]):
                    known.load((), *files)
            for part in some:
                rows = list((self.jobs if part in open_parts else known).table.part(part))
                # what is done has a job, or was refused
                if not rows and part in self.loaded and self.plan.numbers(part):
                    raise missing_part(known.plan, part)
                yield from rows
