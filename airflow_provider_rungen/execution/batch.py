"""Submits many inputs, so many at a time, and keeps every id as it comes, so that a killed task goes on."""

from __future__ import annotations

import asyncio
import codecs
import hashlib
import json
import logging
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from airflow_provider_rungen.client import codec, endpoints, retry
from airflow_provider_rungen.client.flow import Flow
from airflow_provider_rungen.client.models import Job, clean_text
from airflow_provider_rungen.client.progress import pace
from airflow_provider_rungen.client.redaction import redact_error
from airflow_provider_rungen.exceptions import (
    RunGenBadRequestError,
    RunGenError,
    RunGenInputError,
    RunGenRateLimitedError,
    RunGenSubmissionUnknownError,
)
from airflow_provider_rungen.execution import records
from airflow_provider_rungen.execution.attempts import Attempt, End, end_from_store
from airflow_provider_rungen.execution.state_store import PAUSES
from airflow_provider_rungen.schemas import Schema

log = logging.getLogger(__name__)

KEY = "rungen_batch"
# Ids in one value of the state store: some 4 KB, where 64 KB are allowed.
CHUNK = 100
# Inputs that count as sent before they are, so that sending never waits for the store.
AHEAD = 64
# Inputs that a record can be of.
MOST_INPUTS = 10_000_000
# Seconds that submitting pauses for a store that fails.
STORE_PATIENCE = 60.0
PROGRESS_EVERY = 10.0
# Seconds to let requests under way end in when the task is killed.
LAST_ANSWERS = 1.0
_NO_FILE = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)


class Inputs:
    """
    The inputs of a batch, from a list or from a JSON Lines file, which is read as a stream, each time anew.

    :param source: a list of objects, or a URI that `ObjectStoragePath` can open.
    :param schema: what every input has to fit.
    :raises RunGenInputError: it is neither, or an input does not fit.
    """

    def __init__(self, source: Any, schema: Schema | None = None) -> None:
        if isinstance(source, Mapping | bytes) or not isinstance(source, Iterable):
            raise RunGenInputError(f"inputs must be a list or a URI, not a {type(source).__name__}")
        self._source: Any = source if isinstance(source, str) else list(source)
        # a URI may be signed
        self._name = clean_text(source) if isinstance(source, str) else ""
        digest, self.count = hashlib.sha256(), 0
        for index, item in enumerate(self):
            if not isinstance(item, dict):
                kind = type(item).__name__
                raise RunGenInputError(f"{self.name(index)} is a {kind}, not an object; nothing was sent")
            text = codec.encode(item, self.name(index))
            if schema is not None:
                schema.check_input(json.loads(text), self.name(index))
            digest.update(hashlib.sha256(text).digest())
            self.count += 1
        self.digest = digest.hexdigest()

    def name(self, index: int) -> str:
        """Name an input in an error."""
        return f"{self._name}: inputs[{index}]" if self._name else f"inputs[{index}]"

    def __iter__(self) -> Iterator[Any]:
        if not isinstance(self._source, str):
            yield from self._source
            return
        from airflow_provider_rungen._airflow import AirflowNotFoundException, ObjectStoragePath

        try:
            with ObjectStoragePath(self._source).open("rb") as file:
                # not every file system's files can be iterated over
                yield from self._parsed(iter(file.readline, b""))
        except (OSError, ImportError, ValueError, AirflowNotFoundException) as error:
            if isinstance(error, RunGenInputError):
                raise
            reason = redact_error(error, self._source)
            failure = RunGenInputError(
                f"inputs: {clean_text(f'{self._source}: {reason}')}",
                retryable=isinstance(error, OSError) and not isinstance(error, _NO_FILE),
            )
            raise failure from None  # the library's own text may hold the URI, and would be in the log, too

    def _parsed(self, lines: Iterable[bytes]) -> Iterator[Any]:
        for number, line in enumerate(lines, 1):
            text = line.strip() if number > 1 else line.removeprefix(codecs.BOM_UTF8).strip()
            if text:
                try:
                    yield json.loads(text)
                except (ValueError, RecursionError):
                    raise RunGenInputError(f"inputs: line {number} of {self._name} is not JSON") from None


@dataclass(frozen=True)
class BatchHeader:
    """
    What the store holds of a batch beside the ids.

    :param app_id: the app.
    :param digest: the fingerprint of the inputs.
    :param count: the number of inputs.
    :param deadline: the time (seconds since 1970) at which all jobs have to be over.
    :param attempt: the attempt that began the batch.
    :param end: how the last attempt ended.
    :param batch: what the values of this batch have in common.
    :param mark: the inputs before this one count as sent.
    :param submitted_at: the time (seconds since 1970) of the last submission.
    """

    app_id: str
    digest: str
    count: int
    deadline: float
    attempt: Attempt
    end: End = End.UNKNOWN
    batch: str = ""
    mark: int = 0
    submitted_at: float = 0.0

    @classmethod
    def from_store(cls, value: Any) -> Self | None:
        """Return the header of a stored value; ``None``, with a warning, when it is not one."""
        return records.parse(KEY, value, cls._read, "all inputs are submitted anew")

    @classmethod
    def _read(cls, fields: Mapping[str, Any]) -> Self:
        count = records.count(fields, "count", most=MOST_INPUTS)
        return cls(
            app_id=records.identifier(fields, "app_id"),
            digest=records.digest(fields),
            count=count,
            deadline=records.moment(fields, "deadline"),
            attempt=Attempt.from_store(fields),
            end=end_from_store(fields),
            batch=records.text(fields, "batch", most=64),
            mark=records.count(fields, "mark", most=count),
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
            "mark": self.mark,
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
    The ids of a batch in Airflow's task state store, which are kept as they come.

    What stands for an input is its job's id, ``NOT_CREATED`` when it certainly has no job that is of use, or
    nothing; with nothing, an input before ``mark`` may have been sent, and its fate is unknown. Each value
    names the batch it is of, since an earlier one, before a clear, may have left its own.

    :param store: the ``task_state_store`` of the context; without one nothing is kept.
    :param header: what makes it valid, and the deadline.
    """

    NOT_CREATED = "-"

    def __init__(self, store: Any, header: BatchHeader) -> None:
        self._store = store
        self.header = header if header.batch else replace(header, batch=secrets.token_hex(8))
        self.ids = [""] * header.count
        #: Every job that was ever known to be of an input, here or before.
        self.known: set[str] = set()
        self._kept_header: BatchHeader | None = None
        # the indexes of what is not in the store yet, and of what is being written
        self._changed: set[int] = set()
        self._writing: set[int] = set()

    @classmethod
    def found(cls, store: Any) -> Checkpoint | None:
        """Read what an earlier attempt kept."""
        header = BatchHeader.from_store(store.get(KEY)) if store is not None else None
        if header is None:
            return None
        kept = cls(store, header)
        kept._kept_header = header
        for start in range(0, header.mark, CHUNK):
            key = f"{KEY}_{start // CHUNK}"
            chunk = _Chunk.from_store(key, store.get(key))
            if chunk is not None and chunk.batch == header.batch:
                for index, job_id in enumerate(chunk.ids[: header.count - start], start):
                    kept._load(index, job_id)
        return kept

    def _load(self, index: int, job_id: str) -> None:
        # an id that is there already is that of the input before it
        self.ids[index] = "" if job_id in self.known else job_id
        if job_id not in ("", self.NOT_CREATED):
            self.known.add(job_id)

    @property
    def job_ids(self) -> list[str]:
        """The jobs that are known."""
        return [job_id for job_id in self.ids if job_id and job_id != self.NOT_CREATED]

    @property
    def unkept(self) -> int:
        """How many ids are not in the store yet."""
        return len(self._changed) + len(self._writing)

    @property
    def unkept_job_ids(self) -> list[str]:
        """The jobs that no other attempt would find."""
        if self._store is None:
            return self.job_ids
        return [
            self.ids[i] for i in self._changed | self._writing if self.ids[i] not in ("", self.NOT_CREATED)
        ]

    @property
    def mark(self) -> int:
        return self.header.mark

    @property
    def kept_mark(self) -> int:
        """The mark that is in the store."""
        return 0 if self._kept_header is None else self._kept_header.mark

    def is_of(self, header: BatchHeader) -> bool:
        """Return whether this is of the same inputs and app as ``header``."""
        ours = self.header
        return (ours.app_id, ours.digest, ours.count) == (header.app_id, header.digest, header.count)

    def note(self, index: int, job_id: str) -> None:
        """Keep what stands for an input, at the next flush."""
        self.ids[index] = job_id
        if job_id not in ("", self.NOT_CREATED):
            self.known.add(job_id)
        self._changed.add(index)

    def raise_mark(self, index: int) -> None:
        """Let the inputs before this one count as sent, from the next flush on."""
        mark = max(self.mark, min(index, len(self.ids)))
        self.header = replace(self.header, mark=mark, submitted_at=time.time())

    def flush(self) -> None:
        """Write what has changed; after a failure, it can be called again."""
        while self._changed:  # one by one, since more may be noted meanwhile
            self._writing.add(self._changed.pop())
        header = self.header
        if self._store is not None:
            for chunk in sorted({index // CHUNK for index in self._writing}):
                ids = tuple(self.ids[chunk * CHUNK : (chunk + 1) * CHUNK])
                self._store.set(f"{KEY}_{chunk}", _Chunk(header.batch, ids).to_store())
            if header != self._kept_header:
                self._store.set(KEY, header.to_store())
        self._kept_header = header
        self._writing.clear()

    def flush_patiently(self) -> bool:
        """Try a few times to write what has changed; return whether it is written."""
        for pause in (*PAUSES, 0.0):
            try:
                self.flush()
            except Exception as error:
                log.warning("Could not save job ids in Airflow's task state store: %s", type(error).__name__)
                time.sleep(pause)
            else:
                return True
        return False


class BatchSubmission:
    """
    Submits inputs, so many at a time, slower when the service is busy or in trouble.

    :param perform: performs a flow in the running event loop.
    :param app_id: the app to run.
    :param checkpoint: where to keep the ids.
    :param max_concurrency: how many submissions are under way at a time at most.
    :param deadline: the time (seconds since 1970) from which on to begin no more of them.
    :param is_stopping: tells whether to stop at once.
    """

    def __init__(
        self,
        perform: Callable[[Flow[Job]], Awaitable[Job]],
        app_id: str,
        checkpoint: Checkpoint,
        *,
        max_concurrency: int,
        deadline: float,
        is_stopping: Callable[[], bool],
    ) -> None:
        self._perform = perform
        self._app_id = app_id
        self._checkpoint = checkpoint
        self._deadline = deadline
        self._is_stopping = is_stopping
        self._most = self._limit = max_concurrency
        self._not_before = 0.0
        self._busy_since: float | None = None
        self._busy = 0
        self._under_way: dict[asyncio.Task[Job], tuple[int, Any]] = {}
        self._again: deque[tuple[int, Any]] = deque()
        self._abort: RunGenError | None = None
        self._submitted = 0
        self._news = asyncio.Event()
        self._is_exhausted = self._is_over = False
        self.refused: dict[int, RunGenError] = {}

    async def run(self, todo: Iterable[tuple[int, Any]], total: int) -> None:
        """
        Submit the inputs; those that are refused one by one go to ``refused``.

        :param todo: the inputs, with their indexes.
        :param total: how many they are.
        :raises RunGenError: no input can be submitted.
        :raises Exception: an id cannot be kept.
        """
        checkpoint = self._checkpoint
        new_from = checkpoint.mark
        again = {index for index, job_id in enumerate(checkpoint.ids) if job_id == Checkpoint.NOT_CREATED}
        for index in again:  # from now on they may be sent
            checkpoint.note(index, "")
        self._keeping = asyncio.create_task(self._keep())
        if checkpoint.unkept:  # what is noted already takes up room
            self._news.set()
        failure: Exception | None = None
        try:
            await self._begin_all(iter(todo), total)
        except Exception as error:  # the inputs cannot be read, or the ids not be kept
            failure = error
        try:
            begun_at = time.monotonic()
            while self._under_way and time.monotonic() < begun_at + (
                LAST_ANSWERS if self._is_stopping() else retry.RETRY_BUDGET
            ):
                await self._take_answers(0.1)
        finally:
            for task in self._under_way:
                task.cancel()
            unknown = {index for index, _ in self._under_way.values()} | set(self.refused)
            for index in {*again, *range(new_from, checkpoint.mark)} - unknown:
                if not checkpoint.ids[index]:  # counted as sent, but it was not, or not taken
                    checkpoint.note(index, Checkpoint.NOT_CREATED)
            if self._under_way:
                log.warning(
                    "%d submissions to app %s got no answer in time: it is not known whether their jobs were "
                    "created, and nobody can cancel them",
                    *(len(self._under_way), self._app_id),
                )
            self._is_over = True
            self._news.set()
            await self._keeping
        if failure := failure or self._abort:
            raise failure

    async def _begin_all(self, rest: Iterator[tuple[int, Any]], total: int) -> None:
        begun_at = said_at = time.monotonic()
        while not self._is_stopping() and self._abort is None and time.time() < self._deadline:
            if self._keeping.done():  # it ends early only when the store fails
                await self._keeping
            await self._begin(rest)
            if self._is_exhausted and not self._under_way and not self._again:
                break
            await self._take_answers(0.1)
            if (now := time.monotonic()) - said_at >= PROGRESS_EVERY:
                said_at, left = now, total - self._submitted - len(self.refused)
                how_fast = pace(total - left, left, now - begun_at)
                log.info("Submitted %d of %d inputs%s", self._submitted, total, how_fast)

    async def _begin(self, rest: Iterator[tuple[int, Any]]) -> None:
        """Begin as many submissions as may be under way; one counts until its id is in the store."""
        while (
            len(self._under_way) + self._checkpoint.unkept < self._limit
            and time.monotonic() >= self._not_before
        ):
            item = self._again.popleft() if self._again else next(rest, None)
            if item is None:
                self._is_exhausted = True
                return
            index, job_input = item
            if index + AHEAD // 2 >= self._checkpoint.mark:
                self._checkpoint.raise_mark(index + AHEAD)
                self._news.set()
            while self._checkpoint.kept_mark <= index:  # nothing is sent before it counts as sent
                if self._keeping.done():
                    await self._keeping
                if self._is_stopping() or time.time() >= self._deadline:
                    return
                await asyncio.sleep(0.002)
            task = asyncio.ensure_future(
                self._perform(endpoints.run_job(self._app_id, job_input, attempts=1))
            )
            self._under_way[task] = item

    async def _take_answers(self, within: float) -> None:
        """Take the answers that came."""
        if self._checkpoint.unkept:
            within = 0.005  # the store makes room soon
        if not self._under_way:
            await asyncio.sleep(within)
            return
        done, _ = await asyncio.wait(self._under_way, timeout=within, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            self._take(*self._under_way.pop(task), task)
        if done:
            self._news.set()

    def _take(self, index: int, input: Any, task: asyncio.Task[Job]) -> None:
        try:
            job = task.result()
        except RunGenError as error:
            if retry.was_not_accepted(error):
                self._again.append((index, input))
                self._slow_down(error)
            elif isinstance(error, RunGenSubmissionUnknownError):
                self.refused[index] = error
                self._slow_down(error)
            elif isinstance(error, RunGenBadRequestError):
                self.refused[index] = error
                self._checkpoint.note(index, Checkpoint.NOT_CREATED)
            else:
                self._checkpoint.note(index, Checkpoint.NOT_CREATED)
                self._abort = error
        else:
            if job.id in self._checkpoint.known:
                # the first keeps it: one of the two has no job, or one that nobody knows
                self.refused[index] = RunGenSubmissionUnknownError(
                    f"It is not known whether RunGen created the job of app {self._app_id}: the answer names "
                    f"job {job.id}, which is that of another input",
                    hint="Look at the app's jobs first",
                )
                return
            self._checkpoint.note(index, job.id)
            self._submitted += 1
            self._busy, self._busy_since = 0, None
            if self._submitted % self._limit == 0:
                self._limit = min(self._limit + 1, self._most)

    def _slow_down(self, error: RunGenError) -> None:
        now = time.monotonic()
        if now >= self._not_before:  # once for all that were under way together
            self._busy += 1
            self._limit = max(1, self._limit // 2)
            log.warning("%s; going on with %d at a time", error.message, self._limit)
        self._not_before = max(self._not_before, now + retry.retry_delay(self._busy - 1, error))
        self._busy_since = self._busy_since or now
        # it may be full until some of our jobs have ended
        is_full = isinstance(error, RunGenRateLimitedError)
        if now - self._busy_since > retry.RETRY_BUDGET and not is_full:
            self._abort = error

    async def _keep(self) -> None:
        """Write ids to the store as they come."""
        while not self._is_over:
            await self._news.wait()
            self._news.clear()
            await self._flush()
        await self._flush()

    async def _flush(self) -> None:
        """Write what has changed; try a store that fails again for a while, in which submitting pauses."""
        give_up_at, pause = 0.0, retry.BACKOFF
        while True:
            try:
                return await asyncio.to_thread(self._checkpoint.flush)
            except Exception as error:
                now = time.monotonic()
                if not give_up_at:
                    log.warning(
                        "Could not save job ids in Airflow's task state store: %s; submitting pauses",
                        clean_text(f"{type(error).__name__}: {error}"),
                    )
                give_up_at = give_up_at or now + STORE_PATIENCE
                if now >= give_up_at or self._is_stopping():
                    raise
            for _ in range(int(pause / 0.05)):
                if not self._is_stopping():
                    await asyncio.sleep(0.05)
            pause = min(pause * 2, 5.0)
