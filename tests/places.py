"""A place in memory that fails, tears and hides files as storage does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, ClassVar

from airflow_provider_rungen.runs.jobs import Jobs
from airflow_provider_rungen.runs.log import RunLog


class Died(BaseException):
    """Ends a process as abruptly as a test can."""


class OutageError(OSError):
    """Storage does not answer, or refuses to."""


@dataclass(frozen=True)
class Trouble:
    """
    What happens at the nth request of a kind.

    :param what: ``forbidden``, ``lost`` (not done, no answer), ``unanswered`` (done, no answer), ``late`` (no
        answer; done some requests later), ``half`` (half of it is in a temporary file, and the process dies).
    :param requests: for how many requests.
    """

    on: str
    nth: int
    what: str
    requests: int = 1


@dataclass
class MemoryPlace:
    """
    Files in memory.

    :param troubles: what goes wrong.
    :param before: called before each request, with its kind and the file.
    :param shuffle: puts the files of a put in the order in which they are written.
    """

    is_durable: ClassVar[bool] = True

    troubles: tuple[Trouble, ...] = ()
    before: Callable[[str, str], None] = lambda kind, name: None
    shuffle: Callable[[list[str]], None] = lambda names: None
    files: dict[str, bytes] = field(default_factory=dict)
    hidden: set[str] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    written: int = 0
    asked: list[int] = field(default_factory=list)
    _late: list[tuple[int, str, bytes]] = field(default_factory=list)

    def vouches(self, name: str) -> bool:
        return False

    def get(self, names: Sequence[str]) -> dict[str, bytes]:
        self.asked.append(len(names))
        found = {}
        for name in names:
            self._request("get", name)
            if name in self.files and name not in self.hidden:
                found[name] = self.files[name]
        return found

    def put(self, files: Mapping[str, bytes], check: Callable[[], None] = lambda: None) -> None:
        """
        Put all files in any order. A kill leaves some of them; one that fails does not stop the rest.

        :param check: called at the moment in which a file is put. It may raise an error.
        """
        names = list(files)
        self.shuffle(names)
        troubles = [trouble for name in names if (trouble := self._put(name, files[name], check))]
        if troubles:
            raise OutageError(troubles[0])

    def _put(self, name: str, content: bytes, check: Callable[[], None]) -> str:
        trouble = self._request("put", name, may_raise=False)
        check()
        self.written += len(content)
        if trouble == "half":
            self.files[f"{name}.3f5a.part"] = content[: len(content) // 2]
            raise Died
        if trouble == "late":
            self._late.append((self.counts.total() + 7, name, content))
        elif trouble not in ("lost", "forbidden"):
            self.files[name] = content
        return trouble

    def remove(self, names: Collection[str]) -> None:
        for name in names:
            self._request("remove", name)
            self.files.pop(name, None)

    def list(self, folder: str) -> list[str]:
        self._request("list", folder)
        names = [name.rpartition("/") for name in self.files if name not in self.hidden]
        return [name for parent, _, name in names if parent == folder]

    def settle(self) -> None:
        """Do what is late now."""
        for _, name, content in self._late:
            self.files[name] = content
        self._late.clear()

    def _request(self, kind: str, name: str, *, may_raise: bool = True) -> str:
        self.before(kind, name)
        self.counts[kind] += 1
        while self._late and self._late[0][0] <= self.counts.total():
            _, late_name, content = self._late.pop(0)
            self.files[late_name] = content
        for trouble in self.troubles:
            if trouble.on == kind and 0 <= self.counts[kind] - trouble.nth < trouble.requests:
                if may_raise:
                    raise OutageError(trouble.what)
                return trouble.what
        return ""


class GoneError(Exception):
    """What Airflow answers to an attempt whose task instance has another id by now."""

    error = SimpleNamespace(detail={"status_code": 404})


@dataclass
class AttemptStore:
    """
    Airflow's task state store, as one attempt sees it.

    :param store: the store of the task.
    :param is_over: returns whether a later attempt has begun. Then it is empty, and takes nothing.
    """

    store: Any
    is_over: Callable[[], bool]

    def get(self, key: str) -> Any:
        return None if self.is_over() else self.store.get(key)

    def set(self, key: str, value: Any) -> None:
        if self.is_over():
            raise GoneError
        self.store.set(key, value)


def announce(log: RunLog, jobs: Jobs, numbers: Collection[int]) -> None:
    """Make the intent to submit inputs durable, as `LogWriter` does for many that wait."""
    jobs.announce(numbers)
    try:
        log.save(jobs)
        log.fence()
    except BaseException:
        jobs.withdraw(numbers)
        with suppress(Exception):
            log.save(jobs, jobs.unsaved_parts)
        raise
