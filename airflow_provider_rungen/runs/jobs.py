"""The jobs of a task run, as one attempt sees and changes them. The only place where a state changes."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from airflow_provider_rungen.runs.part_files import PART_ROWS, PartFile
from airflow_provider_rungen.runs.rows import SUBMITTABLE, InputState, Intent, Job, JobState, Row, Writer
from airflow_provider_rungen.runs.table import Table
from airflow_provider_rungen.runs.totals import Totals
from airflow_provider_rungen.runs.unsaved import Change, Unsaved

_MAX_REASON = 300


class Jobs:
    """
    The parts of a plan that an attempt has loaded.

    A method that changes something raises `ValueError` for a step that no correct caller takes.

    :param plan: the digest of the plan.
    :param writer: the attempt.
    :param since: the first attempt whose jobs count. Jobs of earlier ones are billed, and canceled.
    :param stores: whether outputs are stored.
    :param closed: what the parts amount to that were let go before a deferral.
    """

    def __init__(
        self,
        plan: str,
        writer: Writer,
        *,
        since: int = 1,
        stores: bool = False,
        closed: Totals = Totals(),  # noqa: B008 - it is frozen
    ) -> None:
        self.plan = plan
        self.writer = writer
        self.since = since
        self._stores = stores
        #: The rows, and what other writers know of them.
        self.table = Table()
        #: What is not in storage yet.
        self.unsaved = Unsaved()
        #: What the parts amount to that were let go.
        self.closed = closed
        #: When the jobs that were loaded had been submitted (seconds since 1970), according to storage. The
        #: service may not know a job until some seconds later.
        self.submitted_by = 0.0

    def load(self, numbers: Iterable[int], *files: PartFile) -> None:
        """
        Add the inputs of a part, and what writers know of them.

        :param numbers: the inputs that need a job.
        :param files: see `Table.merge`.
        """
        for file in files:
            self.table.merge(file)
            self.submitted_by = max(self.submitted_by, file.at)
        for number in numbers:
            self.table.rows.setdefault(number, Row())

    # --- what happens to an input ---

    def announce(self, numbers: Collection[int]) -> None:
        """Note the intent to submit inputs. Nothing is sent before it is saved."""
        for number in numbers:
            self._expect(number, *SUBMITTABLE)
        for number in numbers:
            self._set_intent(number, Intent(self.writer))

    def withdraw(self, numbers: Iterable[int]) -> None:
        """Note that inputs which were announced were certainly not accepted."""
        for number in numbers:
            self._expect(number, InputState.ANNOUNCED)
            self._set_intent(number, None)

    def refuse(self, number: int, why: str) -> None:
        """Note that the service refused an input that was announced."""
        self._expect(number, InputState.ANNOUNCED)
        self._set_intent(number, Intent(self.writer, why[:_MAX_REASON]))

    def accept(self, number: int, job_id: str) -> bool:
        """
        Note the job of an input that was announced.

        :return: ``False`` if the job is that of another input: then the fate of this one is unknown.
        """
        self._expect(number, InputState.ANNOUNCED)
        if not self._add(number, Job(job_id, self.writer.turn), Change.ID):
            return False
        self._set_intent(number, None)
        return True

    def share(self, number: int, job_id: str, *, stored: str = "") -> bool:
        """
        Note a job of another task run that an input shares.

        :param stored: the URI of its manifest; empty while it runs.
        :return: ``False`` if the job is that of another input.
        """
        self._expect(number, *SUBMITTABLE)
        state = JobState.COMPLETED if stored else JobState.OPEN
        job = Job(job_id, self.writer.turn, state, stored=stored, is_shared=True)
        return self._add(number, job, Change.OUTCOME)

    def adopt(self, number: int, earlier: Row) -> None:
        """Note what is known of an equal input of an earlier plan."""
        self._expect(number, *SUBMITTABLE)
        for job in earlier.jobs:
            self.table.merge_job(number, job)
            self.unsaved.note(number, Change.OUTCOME)
        for intent in earlier.intents:
            self.table.rows[number] = self.table.rows[number].with_intent(intent.writer, intent)

    def bill(self, jobs: Iterable[Job]) -> None:
        """Count jobs of earlier plans that no input wants: they are paid for."""
        totals = Totals.of(Row(tuple(jobs)), self.writer, self.since)
        self.closed += replace(totals, inputs=0, completed=0, failed=0, shared=0)

    # --- what happens to a job ---

    def check(self, job_id: str, *, is_ours: bool) -> None:
        """Note whether the service says that a job is one of its input. A foreign one is forgotten."""
        self.table.unchecked.discard(job_id)
        if not is_ours:
            self.table.foreign.add(job_id)
            self.unsaved.note(self.table.drop(job_id), Change.OUTCOME)

    def disown(self, job_id: str) -> None:
        """Note that nobody can tell whose job it is. It is waited for, and neither canceled nor billed."""
        self.table.unchecked.discard(job_id)
        self._set_job(replace(self.table.job(job_id), is_shared=True))

    def end(self, job_id: str, state: JobState, *, seconds: float | None = None, why: str = "") -> None:
        """Note how a job ended. To learn it again changes nothing."""
        job = self.table.job(job_id)
        if job.state is state:
            return
        if not job.may_become(state):
            raise ValueError(f"a job that is {job.state.name} cannot become {state.name}")
        seconds = job.seconds if seconds is None else round(float(seconds), 3)
        self._set_job(replace(job, state=state, seconds=seconds, why=why[:_MAX_REASON]))

    def store(self, job_id: str, place: str = ".") -> None:
        """Note that the outputs of a completed job are stored."""
        job = self.table.job(job_id)
        if job.state is not JobState.COMPLETED:
            raise ValueError(f"a job that is {job.state.name} cannot be stored")
        self._set_job(replace(job, stored=place))

    # --- questions ---

    def state(self, number: int) -> InputState:
        """Return what this attempt has to do about an input."""
        return self.table.rows[number].state(self.writer, self.since)

    def inputs(self, *states: InputState) -> list[int]:
        """Return the inputs in these states, in order."""
        return [number for number in sorted(self.table.rows) if self.state(number) in states]

    @property
    def running(self) -> list[str]:
        """The jobs to wait for, those of other task runs included."""
        rows = (self.table.rows[number] for number in self.inputs(InputState.RUNNING))
        return [job.id for row in rows if (job := row.current(self.since))]

    @property
    def outdated(self) -> list[str]:
        """Jobs that may run, and that nobody waits for: from before a clear, or replaced by a later job."""
        return [job.id for row in self.table.rows.values() for job in row.outdated(self.since)]

    @property
    def unchecked(self) -> list[str]:
        """Jobs that may run, and that only storage names. Ask the service first whose they are."""
        return sorted(each for each in self.table.unchecked if self.table.job(each).state is JobState.OPEN)

    def may_cancel(self, job_id: str) -> bool:
        """Return whether a job is certainly one of this task run."""
        return job_id not in self.table.unchecked and not self.table.job(job_id).is_shared

    def totals(self) -> Totals:
        """Return what all inputs amount to that were loaded so far."""
        rows = self.table.rows.values()
        return sum((Totals.of(row, self.writer, self.since) for row in rows), self.closed)

    # --- saving ---

    @property
    def unsaved_ids(self) -> set[str]:
        """The jobs that a kill would lose now, as far as nothing else knows them."""
        rows = (self.table.row(number) for number in self.unsaved.numbers(Change.ID))
        return {job.id for row in rows for job in row.jobs}

    def note_unsaved(self, part: int) -> None:
        """Note that storage may not have what was loaded of a part."""
        self.unsaved.note(part * PART_ROWS, Change.INTENT)
        for number, row in self.table.part(part):
            if row.jobs:
                self.unsaved.note(number, Change.ID)

    def snapshot(self, part: int, *, save: int, nth: int, at: int) -> PartFile:
        """Return what to save of a part."""
        rows = ((number, self._saved_row(row)) for number, row in self.table.part(part))
        known = {number: row for number, row in rows if row != Row()}
        return PartFile(self.plan, part, self.writer, save, nth, at, known)

    def note_saved(self, file: PartFile) -> None:
        """Note that a snapshot is durable. What changed meanwhile is still to be saved."""

        def is_current(number: int) -> bool:
            return self._saved_row(self.table.row(number)) == file.rows.get(number, Row())

        self.unsaved.note_saved(file.number, is_current)

    @property
    def over_unsaved(self) -> list[int]:
        """The parts that are over, and not saved yet."""
        return [part for part in self.unsaved.parts if self._is_over(part)]

    def close_parts(self) -> list[int]:
        """Drop the parts that are over and saved, keep what they amount to, and return their numbers."""
        loaded = {number // PART_ROWS for number in self.table.rows}
        over = sorted(part for part in loaded.difference(self.unsaved.parts) if self._is_over(part))
        for part in over:
            for number, row in list(self.table.part(part)):
                self.closed += Totals.of(row, self.writer, self.since)
                self.table.forget(number)
        return over

    def _is_over(self, part: int) -> bool:
        rows = self.table.part(part)
        return all(row.is_over(self.writer, self.since, stores=self._stores) for _, row in rows)

    # --- internal ---

    def _saved_row(self, row: Row) -> Row:
        own = row.intent_of(self.writer)
        return Row(row.jobs, (own,) if own else ())

    def _expect(self, number: int, *states: InputState) -> None:
        if (state := self.state(number)) not in states:
            raise ValueError(f"input {number} is {state.name}")

    def _add(self, number: int, job: Job, change: Change) -> bool:
        if job.id in self.table.input_of or job.id in self.table.foreign:
            return False
        self.table.put(number, job)
        self.unsaved.note(number, change)
        return True

    def _set_intent(self, number: int, intent: Intent | None) -> None:
        self.table.rows[number] = self.table.rows[number].with_intent(self.writer, intent)
        self.unsaved.note(number, Change.INTENT)

    def _set_job(self, job: Job) -> None:
        number = self.table.input_of[job.id]
        self.table.put(number, job)
        self.unsaved.note(number, Change.OUTCOME)
