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
from typing import Any

from airflow_provider_rungen import api
from airflow_provider_rungen.exceptions import (
    RunGenBadRequestError,
    RunGenError,
    RunGenInputError,
    RunGenRateLimitedError,
    RunGenSubmissionUnknownError,
)
from airflow_provider_rungen.models import Job, clean_text
from airflow_provider_rungen.progress import pace
from airflow_provider_rungen.schemas import Schema

log = logging.getLogger(__name__)

KEY = "rungen_batch"
# Ids in one value of the state store: some 4 KB, where 64 KB are allowed.
CHUNK = 100
# Inputs that count as sent before they are, so that sending never waits for the store.
AHEAD = 64
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
            text = api.encode(item, self.name(index))
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
        from airflow_provider_rungen._airflow import ObjectStoragePath

        try:
            with ObjectStoragePath(self._source).open("rb") as file:
                # not every file system's files can be iterated over
                yield from self._parsed(iter(file.readline, b""))
        except (OSError, ImportError, ValueError) as error:
            if isinstance(error, RunGenInputError):
                raise
            failure = RunGenInputError(f"inputs: {clean_text(f'{self._source}: {error}')}")
            # a storage that cannot be reached may be the next time
            failure.hopeless = not isinstance(error, OSError) or isinstance(error, _NO_FILE)
            raise failure from None  # the library's own text may hold the URI, and would be in the log, too

    def _parsed(self, lines: Iterable[bytes]) -> Iterator[Any]:
        for number, line in enumerate(lines, 1):
            text = line.strip() if number > 1 else line.removeprefix(codecs.BOM_UTF8).strip()
            if text:
                try:
                    yield json.loads(text)
                except (ValueError, RecursionError):
                    raise RunGenInputError(f"inputs: line {number} of {self._name} is not JSON") from None


class Checkpoint:
    """
    The ids of a batch in Airflow's task state store, which are kept as they come.

    What stands for an input is its job's id, ``REFUSED`` when it certainly has no job that is of use, or
    nothing; with nothing, an input before ``mark`` may have been sent, and its fate is unknown. Each value
    names the batch it is of, since an earlier one, before a clear, may have left its own.

    :param store: the ``task_state_store`` of the context; without one nothing is kept.
    :param header: what makes it valid: app, digest and number of the inputs, ``max_tries``; and the deadline.
    """

    REFUSED = "-"

    def __init__(self, store: Any, header: dict[str, Any]) -> None:
        self._store = store
        self.header = {"batch": secrets.token_hex(8)} | header | {"mark": 0}
        self.ids = [""] * header["count"]
        self._kept_header: dict[str, Any] = {"mark": 0}
        # the indexes of what is not in the store yet, and of what is being written
        self._changed: set[int] = set()
        self._writing: set[int] = set()

    @classmethod
    def found(cls, store: Any) -> Checkpoint | None:
        """Read what an earlier attempt kept."""
        header = store.get(KEY) if store is not None else None
        if not isinstance(header, Mapping) or not isinstance(header.get("count"), int):
            return None
        kept = cls(store, dict(header))
        kept.header["mark"] = header.get("mark", 0)
        kept._kept_header = dict(kept.header)
        for start in range(0, len(kept.ids), CHUNK):
            chunk = store.get(f"{KEY}_{start // CHUNK}")
            if isinstance(chunk, Mapping) and chunk.get("batch") == kept.header["batch"]:
                kept.ids[start : start + len(chunk["ids"])] = chunk["ids"]
        return kept

    @property
    def job_ids(self) -> list[str]:
        """The jobs that are known."""
        return [job_id for job_id in self.ids if job_id and job_id != self.REFUSED]

    @property
    def unkept(self) -> int:
        """How many ids are not in the store yet."""
        return len(self._changed) + len(self._writing)

    @property
    def unkept_job_ids(self) -> list[str]:
        """The jobs that no other attempt would find."""
        if self._store is None:
            return self.job_ids
        return [self.ids[i] for i in self._changed | self._writing if self.ids[i] not in ("", self.REFUSED)]

    @property
    def mark(self) -> int:
        return int(self.header["mark"])

    @property
    def kept_mark(self) -> int:
        """The mark that is in the store."""
        return int(self._kept_header["mark"])

    def is_of(self, header: Mapping[str, Any]) -> bool:
        """Tell whether this is of the same inputs, app and try as ``header``."""
        return all(
            self.header.get(name) == header[name] for name in ("app_id", "digest", "count", "max_tries")
        )

    def note(self, index: int, job_id: str) -> None:
        """Keep what stands for an input, at the next flush."""
        self.ids[index] = job_id
        self._changed.add(index)

    def raise_mark(self, index: int) -> None:
        """Let the inputs before this one count as sent, from the next flush on."""
        self.header |= {"mark": max(self.mark, min(index, len(self.ids))), "submitted_at": time.time()}

    def flush(self) -> None:
        """Write what has changed."""
        while self._changed:  # one by one, since more may be noted meanwhile
            self._writing.add(self._changed.pop())
        header = dict(self.header)
        if self._store is not None:
            for chunk in sorted({index // CHUNK for index in self._writing}):
                ids = self.ids[chunk * CHUNK : (chunk + 1) * CHUNK]
                self._store.set(f"{KEY}_{chunk}", {"batch": self.header["batch"], "ids": ids})
            if header != self._kept_header:
                self._store.set(KEY, header)
        self._kept_header = header
        self._writing.clear()


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
        perform: Callable[[api.Flow[Job]], Awaitable[Job]],
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
        again = {index for index, job_id in enumerate(checkpoint.ids) if job_id == Checkpoint.REFUSED}
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
                LAST_ANSWERS if self._is_stopping() else api.PATIENCE
            ):
                await self._take_answers(0.1)
        finally:
            for task in self._under_way:
                task.cancel()
            unknown = {index for index, _ in self._under_way.values()} | set(self.refused)
            for index in {*again, *range(new_from, checkpoint.mark)} - unknown:
                if not checkpoint.ids[index]:  # counted as sent, but it was not, or not taken
                    checkpoint.note(index, Checkpoint.REFUSED)
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
                if self._is_stopping():
                    return
                await asyncio.sleep(0.002)
            task = asyncio.ensure_future(self._perform(api.run_job(self._app_id, job_input, attempts=1)))
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
            if api.was_not_taken(error):
                self._again.append((index, input))
                self._slow_down(error)
            elif isinstance(error, RunGenSubmissionUnknownError):
                self.refused[index] = error
                self._slow_down(error)
            elif isinstance(error, RunGenBadRequestError):
                self.refused[index] = error
                self._checkpoint.note(index, Checkpoint.REFUSED)
            else:
                self._checkpoint.note(index, Checkpoint.REFUSED)
                self._abort = error
        else:
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
            said = str(error).rstrip(".")
            log.warning("%s; going on with %d at a time", said, self._limit)
        self._not_before = max(self._not_before, now + api.pause_after(self._busy - 1, error))
        self._busy_since = self._busy_since or now
        # it may be full until some of our jobs have ended
        is_full = isinstance(error, RunGenRateLimitedError)
        if now - self._busy_since > api.PATIENCE and not is_full:
            self._abort = error

    async def _keep(self) -> None:
        """Write ids to the store as they come."""
        while not self._is_over:
            await self._news.wait()
            self._news.clear()
            await asyncio.to_thread(self._checkpoint.flush)
        await asyncio.to_thread(self._checkpoint.flush)
