"""Saves the job ids of a batch, so that the next attempt resumes it."""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from airflow_provider_rungen.execution import records
from airflow_provider_rungen.execution.attempts import Attempt, End, end_from_store
from airflow_provider_rungen.execution.batch.reuse import Reuse
from airflow_provider_rungen.execution.batch.saver import Backlog, Saver

KEY = "rungen_batch"
# Ids in one value of the state store: some 4 KB, where 64 KB are allowed.
CHUNK = 100
# Inputs that a record can be of.
MAX_INPUTS = 10_000_000
# Seconds that an attempt which does not submit any more waits for a store.
_SAVE_TIME = 10.0


@dataclass(frozen=True)
class BatchHeader:
    """
    What the store holds of a batch beside the ids. Times are seconds since 1970.

    :param app_id: the app.
    :param digest: the fingerprint of the inputs.
    :param count: the number of inputs.
    :param deadline: the time at which the jobs are canceled.
    :param attempt: the attempt that began the batch.
    :param end: how the last attempt ended.
    :param batch: an id that all values of this batch have in common.
    :param sent_upto: the inputs before this one count as sent.
    :param submitted_at: the time of the last submission.
    """

    app_id: str
    digest: str
    count: int
    deadline: float
    attempt: Attempt
    end: End = End.UNKNOWN
    batch: str = ""
    sent_upto: int = 0
    submitted_at: float = 0.0

    @classmethod
    def from_store(cls, value: Any) -> Self | None:
        """Return the header of a stored value; ``None``, with a warning, when it is not one."""
        return records.parse(KEY, value, cls._read, "all inputs are submitted anew")

    @classmethod
    def _read(cls, fields: Mapping[str, Any]) -> Self:
        count = records.count(fields, "count", most=MAX_INPUTS)
        return cls(
            app_id=records.identifier(fields, "app_id"),
            digest=records.digest(fields),
            count=count,
            deadline=records.moment(fields, "deadline"),
            attempt=Attempt.from_store(fields),
            end=end_from_store(fields),
            batch=records.text(fields, "batch", most=64),
            sent_upto=records.count(fields, "mark", most=count),
            submitted_at=records.moment(fields, "submitted_at") if "submitted_at" in fields else 0.0,
        )

    def to_store(self) -> dict[str, Any]:
        """Return the value to store."""
        return {
            "version": records.VERSION,
            "app_id": self.app_id,
            "digest": self.digest,
            "count": self.count,
            "deadline": self.deadline,
            **self.attempt.to_store(),
            "end": self.end.value,
            "batch": self.batch,
            "mark": self.sent_upto,
            "submitted_at": self.submitted_at,
        }


@dataclass(frozen=True)
class _Chunk:
    """The ids of some consecutive inputs of a batch."""

    batch: str
    ids: tuple[str, ...]

    @classmethod
    def from_store(cls, key: str, value: Any) -> Self | None:
        """Return the chunk of a stored value; ``None``, with a warning, when it is not one."""
        return records.parse(key, value, cls._read, "it is not known whether its inputs have jobs")

    @classmethod
    def _read(cls, fields: Mapping[str, Any]) -> Self:
        ids = fields.get("ids")
        if not isinstance(ids, list) or len(ids) > CHUNK:
            raise records.InvalidRecordError(f"ids is not a list of at most {CHUNK}")
        if not all(each in ("", Checkpoint.NOT_CREATED) or records.is_identifier(each) for each in ids):
            raise records.InvalidRecordError("ids holds something that is not an id")
        return cls(records.text(fields, "batch", most=64), tuple(ids))

    def to_store(self) -> dict[str, Any]:
        """Return the value to store."""
        return {"batch": self.batch, "ids": list(self.ids)}


class Checkpoint:
    """
    The job ids of a batch, saved as they come: in Airflow's task state store, and in the ledger.

    ===============  ==================================================================
    entry            meaning
    ===============  ==================================================================
    an id            the job of this input
    ``NOT_CREATED``  certainly no useful job
    empty            not sent yet, or, before ``sent_upto``, its fate is unknown
    ===============  ==================================================================

    The ids are saved in chunks. Each chunk names its batch, since an earlier batch may have left its own.

    :param store: the ``task_state_store`` of the context, or ``None``.
    :param header: the batch, and its deadline.
    """

    NOT_CREATED = "-"

    def __init__(self, store: Any, header: BatchHeader) -> None:
        self._store = store
        #: What the ledger knows, which saves the ids, too.
        self.reuse = Reuse()
        self.header = header if header.batch else replace(header, batch=secrets.token_hex(8))
        self.ids = [""] * header.count
        #: Every job that was ever that of an input, in this batch or an earlier one.
        self.known: set[str] = set()
        self._saved_header: BatchHeader | None = None
        #: What each store does not have yet. One that fails, or hangs, keeps nothing from the other.
        self.backlogs = (
            Backlog("Airflow's task state store", self._write_to_store),
            Backlog("the ledger", self._write_to_ledger),
        )

    @classmethod
    def found(cls, store: Any) -> Checkpoint | None:
        """Return what an earlier attempt saved, or ``None``."""
        header = BatchHeader.from_store(store.get(KEY)) if store is not None else None
        if header is None:
            return None
        found = cls(store, header)
        found._saved_header = header
        for start in range(0, header.sent_upto, CHUNK):
            key = f"{KEY}_{start // CHUNK}"
            chunk = _Chunk.from_store(key, store.get(key))
            if chunk is not None and chunk.batch == header.batch:
                for index, job_id in enumerate(chunk.ids[: header.count - start], start):
                    found._load(index, job_id)
        return found

    @classmethod
    def restored(
        cls,
        store: Any,
        header: BatchHeader,
        ids: Sequence[str | None],
        unknown: Collection[int],
        reuse: Reuse,
    ) -> Checkpoint:
        """
        Return the checkpoint of an attempt that was deferred.

        :param ids: the job of each input.
        :param unknown: the inputs whose fate is unknown.
        :param reuse: what the ledger knows, without jobs to resume.
        """
        restored = cls(store, header)
        restored._saved_header, restored.reuse = header, reuse
        for index, job_id in enumerate(ids):
            if not reuse.needs_no_job(index):
                is_absent = index < header.sent_upto and index not in unknown
                restored.ids[index] = job_id or (cls.NOT_CREATED if is_absent else "")
        restored.known = set(restored.job_ids)
        return restored

    def _load(self, index: int, job_id: str) -> None:
        # an id that is there already is that of the input before it
        self.ids[index] = "" if job_id in self.known else job_id
        if job_id not in ("", self.NOT_CREATED):
            self.known.add(job_id)

    @property
    def job_ids(self) -> list[str]:
        """The jobs that are known."""
        return [job_id for job_id in self.entries if job_id]

    @property
    def entries(self) -> list[str | None]:
        """The job of each input, or ``None``."""
        return [None if job_id in ("", self.NOT_CREATED) else job_id for job_id in self.ids]

    @property
    def submitted_count(self) -> int:
        """How many inputs have a job that this task run submitted, in whatever wave or attempt."""
        return sum(job_id not in self.reuse.borrowed for job_id in self.job_ids)

    def _has_job(self, index: int) -> bool:
        return self.ids[index] not in ("", self.NOT_CREATED)

    @property
    def unknown(self) -> list[int]:
        """The inputs whose fate is unknown."""
        sent = enumerate(self.ids[: self.sent_upto])
        return [index for index, job_id in sent if not job_id and not self.reuse.needs_no_job(index)]

    @property
    def absent(self) -> list[int]:
        """The inputs that need a job and have none."""
        return [
            index
            for index, job_id in enumerate(self.entries)
            if job_id is None and not self.reuse.needs_no_job(index)
        ]

    @property
    def unsaved(self) -> int:
        """How many entries are not in each store yet."""
        in_store, in_ledger = (backlog.pending for backlog in self.backlogs)
        return len(in_store.keys() | in_ledger.keys())

    @property
    def unsaved_job_ids(self) -> list[str]:
        """The jobs that no other attempt would find: those in neither store."""
        exists = (self._store is not None, self.reuse.book is not None)
        missing = [
            dict(each.pending) for each, is_there in zip(self.backlogs, exists, strict=True) if is_there
        ]
        if not missing:
            return self.job_ids
        first, *others = missing
        lost = sorted(index for index in first if all(index in other for other in others))
        return [self.ids[index] for index in lost if self._has_job(index)]

    @property
    def is_announced(self) -> bool:
        """Whether the task state store has everything, if there is one."""
        return self.header == self._saved_header and not self.backlogs[0].pending

    @property
    def is_saved(self) -> bool:
        """Whether the next attempt finds everything in one of the stores."""
        return self.is_announced and not self.unsaved_job_ids

    @property
    def sent_upto(self) -> int:
        return self.header.sent_upto

    @property
    def saved_upto(self) -> int:
        """The ``sent_upto`` that is in the store."""
        return 0 if self._saved_header is None else self._saved_header.sent_upto

    def matches(self, header: BatchHeader) -> bool:
        """Return whether this is a batch of the same inputs and app."""
        ours = self.header
        return (ours.app_id, ours.digest, ours.count) == (header.app_id, header.digest, header.count)

    def begin_with(self, reuse: Reuse) -> None:
        """Save ids in the ledger from now on, and resume the jobs that it knows of this app."""
        self.reuse = reuse
        for index, entry in reuse.pending.items():
            if not self._has_job(index) and entry.app_id == self.header.app_id:
                self.note(index, entry.job_id)
        if reuse.book is not None:  # an outage may have kept some from it
            self.backlogs[1].pending |= {
                index: job_id
                for index, job_id in enumerate(self.ids)
                if self._has_job(index) and index not in reuse.pending and not reuse.needs_no_job(index)
            }

    def ids_again(self, jobs: Mapping[int, str]) -> None:
        """Set the jobs of inputs that the ledger had, and has no more. They are not saved."""
        for index, job_id in jobs.items():
            self.ids[index] = job_id

    def note(self, index: int, job_id: str) -> None:
        """Set the entry of an input. It is saved at the next flush."""
        self.ids[index] = job_id
        if job_id not in ("", self.NOT_CREATED):
            self.known.add(job_id)
        for backlog in self.backlogs:
            backlog.pending[index] = job_id

    def count_as_sent(self, index: int) -> None:
        """Count the inputs before this one as sent, from the next flush on."""
        sent_upto = max(self.sent_upto, min(index, len(self.ids)))
        self.header = replace(self.header, sent_upto=sent_upto, submitted_at=time.time())

    def _write_to_store(self, entries: Mapping[int, str]) -> None:
        header = self.header
        if self._store is not None:
            for chunk in sorted({index // CHUNK for index in entries}):
                # what others submitted is in the ledger, and not the next attempt's to cancel
                ids = tuple(
                    self.NOT_CREATED if job_id in self.reuse.borrowed else job_id
                    for job_id in self.ids[chunk * CHUNK : (chunk + 1) * CHUNK]
                )
                self._store.set(f"{KEY}_{chunk}", _Chunk(header.batch, ids).to_store())
            if header != self._saved_header:
                self._store.set(KEY, header.to_store())
        self._saved_header = header

    def _write_to_ledger(self, entries: Mapping[int, str]) -> None:
        jobs = {index: job_id for index, job_id in entries.items() if job_id not in ("", self.NOT_CREATED)}
        self.reuse.save_submitted(self.header.app_id, jobs)

    def save(self) -> bool:
        """Try a few times to save what has changed, in each store at once. Return whether no job is lost."""
        savers = [Saver(backlog, _SAVE_TIME) for backlog in self.backlogs]
        for saver in savers:
            saver.finish()
        end = time.monotonic() + _SAVE_TIME
        while any(saver.is_alive for saver in savers) and time.monotonic() < end:
            time.sleep(0.005)
        return self.is_saved
