"""The log of a task run as one attempt uses it: where it is, what earlier attempts left, and its jobs."""

from __future__ import annotations

import logging
import secrets
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.execution.jobs.adopting import Unwanted, adopt_earlier
from airflow_provider_rungen.execution.jobs.log_home import LogHome
from airflow_provider_rungen.execution.jobs.plans import Plan
from airflow_provider_rungen.execution.jobs.storage_place import StoragePlace
from airflow_provider_rungen.execution.sending.saver import Saver
from airflow_provider_rungen.runs.attempt_record import AttemptRecord, next_turn
from airflow_provider_rungen.runs.jobs import Jobs
from airflow_provider_rungen.runs.log import RunLog
from airflow_provider_rungen.runs.part_files import PART_ROWS
from airflow_provider_rungen.runs.rows import SUBMITTABLE, InputState, JobState, Writer

if TYPE_CHECKING:
    from collections.abc import Callable


log = logging.getLogger(__name__)

# Seconds that the log may take at a deferral, and at the end.
_END_TIME = 30.0


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
        self.plan = Plan.unread("", 0)
        self.jobs = Jobs("0" * 8, Writer(1, 1, "0" * 8))
        #: The inputs to submit that are loaded, in order.
        self.todo: deque[int] = deque()
        #: The deadline of the jobs (seconds since 1970).
        self.deadline = 0.0
        #: Called with the inputs that were loaded.
        self.on_load: Callable[[Collection[int]], None] = lambda numbers: None
        #: How many inputs need a job.
        self.count = 0
        #: The next part to load, unless it was loaded for what is known of it.
        self.next_part = 0
        #: The parts that were loaded, those that were let go among them.
        self.loaded: set[int] = set()
        #: Whether a later wave finds the inputs in storage.
        self.has_inputs = False
        #: Whether nothing more is submitted, whatever is left.
        self.has_stopped = False

    # --- what earlier attempts left ---

    def look(self, has_ledger: Callable[[], bool]) -> None:
        """
        Read what the last attempt left, as far as it may still run, before the source is read.

        :param has_ledger: see `LogHome.find_attempts`.
        :raises RunGenError: it cannot be read, or is in a place that cannot be used now.
        """
        self.home.find_attempts(has_ledger)
        plans = [record.plan for record in self.home.earlier if record.plan]
        if plans and self.home.is_durable:
            last = self.home.earlier[-1]
            self.jobs = Jobs(plans[-1], last.writer, since=last.since, stores=self.stores)
            self._read_parts(self.jobs, lambda part: ())

    def begin(
        self, plan: Plan, *, app_id: str, model: str, deadline: float, resumes: bool, saves_inputs: bool
    ) -> list[Unwanted]:
        """
        Begin the attempt, and take over what earlier ones know.

        :param plan: what is to be done.
        :param app_id: the app.
        :param model: the identity of its model, if known.
        :param deadline: the deadline (seconds since 1970) of jobs that are submitted now.
        :param resumes: whether jobs from before a clear count.
        :param saves_inputs: whether a later wave needs the inputs, and cannot read the source.
        :return: the jobs of earlier plans that nobody waits for any more.
        """
        self.home.confirm_attempts()
        is_cleared, earlier = self.home.is_cleared, self.home.earlier
        turn = next_turn(earlier, self.home.numbers.try_number, self.home.began)
        is_new = not earlier or not self.home.is_durable or (is_cleared and not resumes)
        record = AttemptRecord(
            turn=turn,
            nonce=secrets.token_hex(4),
            since=turn if is_new else earlier[-1].since,
            **asdict(self.home.numbers),
            app_id=app_id,
            model=model,
            plan=plan.digest,
            began=time.time(),
            deadline=deadline,
        )
        run_log = RunLog(self.home.place, record, clock=time.time)
        run_log.note()
        self.home.write_head(record.writer, plan.digest)
        # that of one input is known by its name
        in_storage = isinstance(self.home.place, StoragePlace)
        if self.home.place.is_durable and (plan.count > 1 or in_storage):
            self.has_inputs = saves_inputs and in_storage
            plan.save(self.home.place, with_inputs=self.has_inputs)
        self.plan, self.deadline = plan, deadline
        self.count = sum(row.needs_job for row in plan.rows())
        self.jobs = Jobs(plan.digest, record.writer, since=record.since, stores=self.stores)
        self.known_saver = Saver(self.jobs, run_log)
        # `look` has loaded parts of the last plan
        self.todo.clear()
        self.loaded.clear()
        if not earlier:
            return []
        self._read_parts(self.jobs, plan.numbers)
        unwanted = adopt_earlier(self, app_id)
        self.todo = deque(self.jobs.inputs(*SUBMITTABLE))
        return unwanted

    def _read_parts(self, jobs: Jobs, numbers_of: Callable[[int], Collection[int]]) -> None:
        """Load the parts that writers know something of. What is over is let go at once."""
        for part, files in self.home.read_parts(jobs.plan, is_whole=True):
            jobs.load(numbers_of(part), *files)
            self.loaded.add(part)
        jobs.close_parts()
        self.todo.extend(jobs.inputs(*SUBMITTABLE))

    # --- the inputs to submit ---

    @property
    def part_count(self) -> int:
        """How many parts of the log the plan has."""
        return -(-self.plan.count // PART_ROWS)

    def load_next(self) -> list[int] | None:
        """Load the next part of which nothing was known, and return its inputs; ``None`` after the last."""
        while self.next_part < self.part_count:
            part = self.next_part
            self.next_part += 1
            if part not in self.loaded:
                self.loaded.add(part)
                numbers = self.plan.numbers(part)
                self.jobs.load(numbers)
                self.todo.extend(numbers)
                self.on_load(numbers)
                return numbers
        return None

    def load_all(self) -> None:
        """Load all parts."""
        while self.load_next() is not None:
            pass

    @property
    def has_unsent(self) -> bool:
        """Whether inputs are still to be submitted."""
        return self.unsent_count > 0

    @property
    def unsent_count(self) -> int:
        """How many inputs are still to be submitted."""
        if self.has_stopped:
            return 0
        loaded = self.jobs.closed.inputs + len(self.jobs.table.rows)
        return self.count - loaded + len(self.todo)

    def stop_submitting(self) -> int:
        """Submit nothing more, and return how many inputs are left out."""
        left = self.unsent_count
        self.has_stopped = True
        return left

    def drop(self, numbers: Collection[int]) -> None:
        """Do not submit inputs that need no job of their own any more."""
        found = set(numbers)
        self.todo = deque(number for number in self.todo if number not in found)

    def requeue(self, numbers: Iterable[int]) -> None:
        """Submit inputs again whose job turned out to be of no use."""
        known = {*self.todo, *numbers}
        self.todo = deque(number for number in sorted(known) if self.jobs.state(number) in SUBMITTABLE)

    def take(self, most: int) -> Iterator[int]:
        """Yield the next inputs to submit."""
        for _ in range(most):
            while not self.todo:
                if self.load_next() is None:
                    return
            yield self.todo.popleft()

    # --- the jobs ---

    @property
    def running(self) -> list[str]:
        """The jobs of this task run that may run, the latest first."""
        table = self.jobs.table
        rows = (row for _, row in sorted(table.rows.items(), reverse=True))
        jobs = (job for row in rows for job in row.jobs)
        return [job.id for job in jobs if job.state is JobState.OPEN and self.jobs.may_cancel(job.id)]

    @property
    def shared(self) -> list[str]:
        """The jobs of other task runs that may run."""
        jobs = (job for row in self.jobs.table.rows.values() for job in row.jobs)
        return [job.id for job in jobs if job.state is JobState.OPEN and job.is_shared]

    def end(self, job_id: str, state: JobState, *, seconds: float | None = None, why: str = "") -> None:
        """Note how a job ended, unless it is none of the loaded ones, or the service contradicts itself."""
        table = self.jobs.table
        if job_id not in table.input_of:
            return
        if table.job(job_id).state is state or table.job(job_id).may_become(state):
            self.jobs.end(job_id, state, seconds=seconds, why=why)
        else:
            table.contradictory.add(job_id)

    def end_useless(self, job_id: str, state: JobState, *, seconds: float | None, why: str) -> None:
        """Note that the result of a job cannot be used, so that a retry runs its input again."""
        table = self.jobs.table
        if job_id in table.input_of and table.job(job_id).state is not JobState.COMPLETED:
            self.end(job_id, state, seconds=seconds, why=why)
        if job_id in table.input_of and table.job(job_id).state is JobState.COMPLETED:
            self.end(job_id, JobState.INVALID, why=why)

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

    def keep_deadline(self, now: float) -> None:
        """Keep the deadline of the last attempt, if this one only waits for what that one submitted."""
        if not self.home.earlier or not self.running or self.has_unsent:
            return
        deadline = self.home.earlier[-1].deadline
        if deadline > now or not self.home.is_cleared:
            self.deadline = deadline
            self.note(deadline=deadline)

    def remove_inputs(self) -> None:
        """Remove the inputs from where they were saved: the run is over."""
        place = self.home.place
        if self.has_inputs and isinstance(place, StoragePlace):
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
        parts = self.jobs.unsaved.parts
        if isinstance(self.home.place, StoragePlace):
            self.run_log.save(self.jobs, parts)
            self.run_log.fence()
        else:  # no results are there, and it is not worth a failure
            self.saver.save(parts, within=_END_TIME)

    def let_go(self) -> None:
        """Save the parts that are over, and keep only what they amount to."""
        try:
            self.run_log.save(self.jobs, [*self.jobs.unsaved.due, *self.jobs.over_unsaved])
        except Exception as error:
            log.debug("What is over was not saved yet: %s", type(error).__name__)
        self.jobs.close_parts()

    def note(self, **changes: Any) -> None:
        """Change the record of the attempt. It is not worth a failure."""
        if not self.has_begun:
            return
        try:
            self.run_log.note(**changes)
        except Exception as error:
            log.debug("The record of the attempt was not saved: %s", type(error).__name__)

    @property
    def open_parts(self) -> set[int]:
        """The parts that are in memory."""
        return {number // PART_ROWS for number in self.jobs.table.rows}

    # --- a deferral ---

    def summary(self) -> dict[str, Any]:
        """Return which attempts submitted the jobs that this one waits for."""
        resumed = [record for record in self.home.earlier if record.turn >= self.jobs.since]
        return {"attempt": str(self.jobs.writer), "resumes": [str(each.writer) for each in resumed]}

    def use_plan(self, plan: Plan, parts: Iterable[int]) -> None:
        """
        Go on with a plan after a deferral.

        :param parts: the parts that are not over.
        """
        self.plan = plan
        for part in parts:
            self.jobs.load(plan.numbers(part))
        self.todo = deque(self.jobs.inputs(*SUBMITTABLE))
