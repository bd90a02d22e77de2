"""The jobs of a task run, as one attempt sees and changes them. The only place where a state changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import KW_ONLY, dataclass, field, replace
from enum import IntEnum

from airflow_provider_rungen.runs.part_files import PART_ROWS, PartFile, Table
from airflow_provider_rungen.runs.rows import (
    SUBMITTABLE,
    InputState,
    Intent,
    Job,
    JobState,
    Row,
    Totals,
    Writer,
)

_MAX_REASON = 300


class Change(IntEnum):
    """What is lost if a change is not saved. Of several changes, the greatest counts."""

    #: One request: the service knows how a job ended, and the destination knows what is stored.
    OUTCOME = 0
    #: Whether there may be a job: the input is submitted again, or the retry stops.
    INTENT = 1
    #: A job, whose id is nowhere else. It keeps its slot until the id is saved.
    ID = 2


@dataclass(eq=False)
class Jobs:
    """
    The parts of a plan that an attempt has loaded.

    A method that changes something raises `ValueError` for a step that no correct caller takes.

    :param plan: the digest of the plan.
    :param writer: the attempt.
    :param since: the first attempt whose jobs count. Jobs of earlier ones are billed, and canceled.
    :param stores: whether outputs are stored.
    :param closed: the totals of the parts that were dropped.
    """

    plan: str
    writer: Writer
    _: KW_ONLY
    since: int = 1
    stores: bool = False
    closed: Totals = Totals()  # noqa: RUF009 - it is frozen
    #: The rows, and what other writers know of them.
    table: Table = field(init=False, default_factory=Table)
    # the inputs whose rows have changed since they were saved
    _changes: dict[int, Change] = field(init=False, default_factory=dict)

    def load(self, numbers: Iterable[int], *files: PartFile) -> None:
        """
        Add the inputs of a part, and what writers know of them.

        :param numbers: the inputs that need a job.
        :param files: see `Table.merge`.
        """
        for file in files:
            self.table.merge(file)
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
        """Note that announced inputs were certainly not accepted."""
        for number in numbers:
            self._expect(number, InputState.ANNOUNCED)
            self._set_intent(number, None)

    def refuse(self, number: int, why: str) -> None:
        """Note that the service refused an input that was announced."""
        self._expect(number, InputState.ANNOUNCED)
        self._set_intent(number, Intent(self.writer, why[:_MAX_REASON]))

    def give_up(self, number: int, why: str) -> None:
        """Note that an input gets no job, since several failed before."""
        self._expect(number, *SUBMITTABLE)
        self._set_intent(number, Intent(self.writer, why[:_MAX_REASON], is_given_up=True))

    def accept(self, number: int, job_id: str) -> bool:
        """
        Note the job of an input that was announced.

        :return: ``False`` if the job is known as that of another input. Then the fate of this one is unknown.
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
        :return: ``False`` if the job is known as that of another input.
        """
        self._expect(number, *SUBMITTABLE)
        state = JobState.COMPLETED if stored else JobState.OPEN
        job = Job(job_id, self.writer.turn, state, stored=stored, is_shared=True)
        return self._add(number, job, Change.OUTCOME)

    def adopt(self, number: int, earlier: Row, trusted: Collection[str] = ()) -> None:
        """
        Note what is known of an equal input of an earlier plan.

        :param trusted: the jobs that are certainly of this task run.
        """
        for job in earlier.jobs:
            self.table.merge_job(number, job, is_trusted=job.id in trusted)
            self._note(number, Change.OUTCOME)
        for intent in earlier.intents:
            self.table.rows[number] = self.table.rows[number].with_intent(intent.writer, intent)

    def bill(self, jobs: Iterable[Job]) -> None:
        """Count jobs of earlier plans that no input of this plan uses. They are paid for."""
        totals = Totals.of(Row(tuple(jobs)), self.writer, self.since)
        self.closed += replace(totals, inputs=0, completed=0, failed=0, canceled=0, shared=0, own=0)

    # --- what happens to a job ---

    def check(self, job_id: str, *, is_ours: bool) -> None:
        """Note whether the service has this input for a job. If not, the job is forgotten."""
        self.table.unchecked.discard(job_id)
        if not is_ours:
            self.table.foreign.add(job_id)
            self._note(self.table.drop(job_id), Change.OUTCOME)

    def disown(self, job_id: str) -> None:
        """Note that it cannot be known whose job it is. It is waited for, and neither canceled nor billed."""
        self.table.unchecked.discard(job_id)
        self._set_job(replace(self.table.job(job_id), is_shared=True))

    def end(self, job_id: str, state: JobState, *, seconds: float | None = None, why: str = "") -> None:
        """Note how a job ended, or how long it ran. A state that cannot follow the known one is ignored."""
        if job_id not in self.table.input_of:
            return
        job = self.table.job(job_id)
        is_timed = job.state is state and job.seconds is None and seconds is not None
        if not job.may_become(state) and not is_timed:
            return
        seconds = job.seconds if seconds is None else round(float(seconds), 3)
        ended = replace(job, state=state, seconds=seconds, why=why[:_MAX_REASON])
        self._set_job(ended)

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
    def shared(self) -> list[str]:
        """The jobs of other task runs that may run."""
        jobs = (job for row in self.table.rows.values() for job in row.jobs)
        return [job.id for job in jobs if job.state is JobState.OPEN and job.is_shared]

    @property
    def outdated(self) -> list[str]:
        """Jobs that may run, and are not waited for: from before a clear, or replaced by a later job."""
        return [job.id for row in self.table.rows.values() for job in row.outdated(self.since)]

    @property
    def unchecked(self) -> list[str]:
        """Jobs that may run, and are named only in storage. Ask the service first whose they are."""
        return sorted(each for each in self.table.unchecked if self.table.job(each).state is JobState.OPEN)

    def may_cancel(self, job_id: str) -> bool:
        """Return whether a job is certainly one of this task run."""
        return job_id not in self.table.unchecked and not self.table.job(job_id).is_shared

    @property
    def unknown_count_of_shared(self) -> int:
        """How many inputs use a job of another task run, and may have one of this run whose id is unknown."""
        rows = ((row, row.current(self.since)) for row in self.table.rows.values())
        shared = (row for row, job in rows if job is not None and job.is_shared)
        return sum(any(intent.refusal is None for intent in row.intents) for row in shared)

    def unknown_since(self, turn: int) -> int:
        """Return how many submissions since an attempt may have created a job whose id is not known."""
        intents = (intent for row in self.table.rows.values() for intent in row.intents)
        return sum(intent.refusal is None and intent.writer.turn >= turn for intent in intents)

    def totals(self) -> Totals:
        """Return the totals of all inputs that were loaded so far."""
        rows = self.table.rows.values()
        return sum((Totals.of(row, self.writer, self.since) for row in rows), self.closed)

    # --- saving ---

    @property
    def unsaved_parts(self) -> list[int]:
        """All parts with changes that are not saved."""
        return sorted({number // PART_ROWS for number in self._changes})

    @property
    def due_parts(self) -> list[int]:
        """The parts to save now: those with a new id or intent, and those of which half the rows changed."""
        urgent = {number // PART_ROWS for number, change in self._changes.items() if change > Change.OUTCOME}
        counts = Counter(number // PART_ROWS for number in self._changes)
        return sorted(urgent.union(part for part, count in counts.items() if 2 * count >= PART_ROWS))

    @property
    def done_unsaved(self) -> list[int]:
        """The parts that are done, and not saved yet."""
        return [part for part in self.unsaved_parts if self._is_done(part)]

    @property
    def unsaved_ids(self) -> set[str]:
        """The jobs whose ids a kill would lose now."""
        rows = (self.table.row(number) for number, each in self._changes.items() if each is Change.ID)
        return {job.id for row in rows for job in row.jobs}

    def note_unsaved(self, part: int) -> None:
        """Note that storage may not have what was loaded of a part."""
        self._note(part * PART_ROWS, Change.INTENT)
        for number, row in self.table.part(part):
            if row.jobs:
                self._note(number, Change.ID)

    def snapshot(self, part: int, *, save: int, nth: int, at: int) -> PartFile:
        """Return what to save of a part."""
        rows = ((number, self._saved_row(row)) for number, row in self.table.part(part))
        known = {number: row for number, row in rows if row != Row()}
        return PartFile(self.plan, part, self.writer, save, nth, at, known)

    def note_saved(self, file: PartFile) -> None:
        """Note that a snapshot is durable. What changed meanwhile is still to be saved."""
        first = file.number * PART_ROWS
        for number in range(first, first + PART_ROWS):
            if self._saved_row(self.table.row(number)) == file.rows.get(number, Row()):
                self._changes.pop(number, None)

    def close_parts(self) -> list[int]:
        """Drop the parts that are done and saved, keep their totals, and return their numbers."""
        loaded = {number // PART_ROWS for number in self.table.rows}
        done = sorted(part for part in loaded.difference(self.unsaved_parts) if self._is_done(part))
        for part in done:
            for number, row in list(self.table.part(part)):
                self.closed += Totals.of(row, self.writer, self.since)
                self.table.forget(number)
        return done

    def reopen(self, part: int, *files: PartFile) -> None:
        """
        Load a part again that was dropped, since something in it is to change.

        :param files: all that storage has of it.
        """
        self.load((), *files)
        for _, row in self.table.part(part):
            self.closed -= Totals.of(row, self.writer, self.since)

    # --- internal ---

    def _note(self, number: int, change: Change) -> None:
        self._changes[number] = max(change, self._changes.get(number, change))

    def _is_done(self, part: int) -> bool:
        rows = self.table.part(part)
        return all(row.is_done(self.writer, self.since, stores=self.stores) for _, row in rows)

    def _saved_row(self, row: Row) -> Row:
        intent = row.intent_of(self.writer)
        return Row(row.jobs, (intent,) if intent else ())

    def _expect(self, number: int, *states: InputState) -> None:
        if (state := self.state(number)) not in states:
            raise ValueError(f"input {number} is {state.name}")

    def _add(self, number: int, job: Job, change: Change) -> bool:
        if job.id in self.table.input_of or job.id in self.table.foreign:
            return False
        self.table.put(number, job)
        self._note(number, change)
        return True

    def _set_intent(self, number: int, intent: Intent | None) -> None:
        self.table.rows[number] = self.table.rows[number].with_intent(self.writer, intent)
        self._note(number, Change.INTENT)

    def _set_job(self, job: Job) -> None:
        number = self.table.input_of[job.id]
        self.table.put(number, job)
        self._note(number, Change.OUTCOME)
