"""Saves the job ids of a batch, so that the next attempt resumes it."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from airflow_provider_rungen.execution import records
from airflow_provider_rungen.execution.attempts import Attempt, End, end_from_store
from airflow_provider_rungen.execution.batch.reuse import Reuse
from airflow_provider_rungen.execution.state_store import PAUSES

log = logging.getLogger(__name__)

KEY = "rungen_batch"
# Ids in one value of the state store: some 4 KB, where 64 KB are allowed.
CHUNK = 100
# Inputs that a record can be of.
MAX_INPUTS = 10_000_000


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
        # the indexes of what is not in the store yet, and of what is being written
        self._changed: set[int] = set()
        self._writing: set[int] = set()

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
        """How many entries are not in the store yet."""
        return len(self._changed) + len(self._writing)

    @property
    def unsaved_job_ids(self) -> list[str]:
        """The jobs that no other attempt would find."""
        if self._store is None and self.reuse.book is None:
            return self.job_ids
        return [self.ids[index] for index in self._changed | self._writing if self._has_job(index)]

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

    def ids_again(self, jobs: Mapping[int, str]) -> None:
        """Set the jobs of inputs that the ledger had, and has no more. They are not saved."""
        for index, job_id in jobs.items():
            self.ids[index] = job_id

    def note(self, index: int, job_id: str) -> None:
        """Set the entry of an input. It is saved at the next flush."""
        self.ids[index] = job_id
        if job_id not in ("", self.NOT_CREATED):
            self.known.add(job_id)
        self._changed.add(index)

    def count_as_sent(self, index: int) -> None:
        """Count the inputs before this one as sent, from the next flush on."""
        sent_upto = max(self.sent_upto, min(index, len(self.ids)))
        self.header = replace(self.header, sent_upto=sent_upto, submitted_at=time.time())

    def flush(self) -> None:
        """Save what has changed. After a failure, it can be called again."""
        while self._changed:  # one by one, since more may be noted meanwhile
            self._writing.add(self._changed.pop())
        header = self.header
        jobs = {index: self.ids[index] for index in self._writing if self._has_job(index)}
        self.reuse.save_submitted(header.app_id, jobs)
        if self._store is not None:
            for chunk in sorted({index // CHUNK for index in self._writing}):
                # what others submitted is in the ledger, and not the next attempt's to cancel
                ids = tuple(
                    self.NOT_CREATED if job_id in self.reuse.borrowed else job_id
                    for job_id in self.ids[chunk * CHUNK : (chunk + 1) * CHUNK]
                )
                self._store.set(f"{KEY}_{chunk}", _Chunk(header.batch, ids).to_store())
            if header != self._saved_header:
                self._store.set(KEY, header.to_store())
        self._saved_header = header
        self._writing.clear()

    def flush_with_retries(self) -> bool:
        """Try a few times to save what has changed, and return whether it is saved."""
        for pause in (*PAUSES, 0.0):
            try:
                self.flush()
            except Exception as error:
                log.warning("Could not save job ids: %s", type(error).__name__)
                time.sleep(pause)
            else:
                return True
        return False
