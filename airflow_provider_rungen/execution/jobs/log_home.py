"""Where the log of a task run is, and which attempts have written it."""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen import _airflow
from airflow_provider_rungen._airflow import conf
from airflow_provider_rungen.exceptions import RunGenError
from airflow_provider_rungen.execution.jobs.places import MemoryPlace, StoragePlace, StorePlace
from airflow_provider_rungen.execution.task.attempts import Attempt, loop_position
from airflow_provider_rungen.runs import records
from airflow_provider_rungen.runs.attempt_record import AttemptRecord, End
from airflow_provider_rungen.runs.log import read_attempts, read_parts
from airflow_provider_rungen.runs.place import DamagedLogError
from airflow_provider_rungen.runs.rows import Writer

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import BaseOperator, Context
    from airflow_provider_rungen.execution.jobs.plans import Plan
    from airflow_provider_rungen.hooks.rungen import RunGenHook
    from airflow_provider_rungen.runs.log import RunLog
    from airflow_provider_rungen.runs.part_files import PartFile

log = logging.getLogger(__name__)

_HEAD_KEY = "rungen_log"
_ANY_PART = range(1 << 30)
_TOKEN_DIGITS = 32
_LOST_LOG = (
    "Without it nobody knows which jobs run. Look at the app's jobs, then clear the task to go on "
    "without them"
)


def token_of(ti: Any) -> str:
    """Return the token of a task run: the same in all of its attempts, and in no other Airflow."""
    base_url = conf.get("api", "base_url", fallback="").rstrip("/")
    map_index = -1 if ti.map_index is None else ti.map_index
    region = "/".join(map(str, loop_position(ti)))
    task = records.to_json([base_url, ti.dag_id, ti.run_id, ti.task_id, map_index, region])
    return hashlib.sha256(task.encode("utf-8", "surrogatepass")).hexdigest()[:_TOKEN_DIGITS]


class LogHome:
    """
    The place of the log of a task run.

    :param task: the operator.
    :param context: Airflow's context of the attempt.
    :param folder: the URI of the folder to keep the log in; ``None`` for Airflow's task state store, or the
        memory of this process where there is none.
    :param survives_clear: whether the attempt after a clear resumes what is known, as a retry does.
    :param hook: has the API key, which files in the folder are sealed with.
    """

    def __init__(
        self,
        task: BaseOperator,
        context: Context,
        *,
        folder: Any,
        survives_clear: bool,
        hook: RunGenHook,
    ) -> None:
        self._hook = hook
        ti, store = context["ti"], context.get("task_state_store")
        self.numbers = Attempt.of(context, task)
        self.began = getattr(getattr(context.get("dag_run"), "start_date", None), "timestamp", float)()
        self._store = store
        #: Whether Airflow knows of the log. From Airflow 3.4 on, a clear makes it forget.
        self.has_head = False
        self._head: Mapping[str, Any] = {}
        # what only Airflow knows of this log, so that files are believed after the API key was replaced
        self._secret = secrets.token_hex(32)
        self.token = token_of(ti)
        self._folder = folder
        #: Whether the attempt after a clear resumes what is known, as a retry does.
        self.survives_clear = survives_clear
        #: Where it is, and where ids go that this place does not take.
        self.place: StoragePlace | StorePlace | MemoryPlace = MemoryPlace()
        self.fallback: StorePlace | None = None
        #: Whether a later attempt finds what this one leaves.
        self.is_durable = folder is not None or store is not None
        #: The attempts before this one.
        self.earlier: list[AttemptRecord] = []

    def open(self) -> None:
        """
        Find the place of the log.

        :raises RunGenInputError: there can be no such place.
        """
        self.read_head()
        self._secret = str(self._head.get("secret", self._secret))
        state = None if self._store is None else StorePlace(self._store, self.numbers.try_number)
        if self._folder is not None:
            self.place, self.fallback = StoragePlace(self._folder, self.token, *self._seal_keys()), state
        elif state is not None:
            self.place = state

    def _seal_keys(self) -> Iterator[bytes]:
        """Yield a key that only those have who have the API key, and one that Airflow keeps from 3.3 on."""
        with suppress(RunGenError):
            api_key = self._hook.settings.api_key
            yield hashlib.sha256(b"the run log of " + api_key.encode()).digest()
        if self._store is not None:
            yield self._secret.encode()

    def find_attempts(self) -> None:
        """
        Find the attempts before this one, without writing anything.

        :raises RunGenError: they cannot be read, or are in a place that cannot be used now.
        """
        self.open()
        place = self.place
        # nothing is created before the inputs are checked
        if not isinstance(place, StoragePlace) or place.has_begun():
            self.earlier = read_attempts(place)
        if not self.is_durable or (not self.has_head and self.numbers.try_number == 1):
            return
        if not self.earlier or self._is_elsewhere:
            self._check_missing(place)

    def save(self, run_log: RunLog, plan: Plan, *, with_inputs: bool) -> bool:
        """
        Save that an attempt began, and what it is to do.

        :param with_inputs: whether the attempt needs the inputs after a deferral.
        :return: whether these were saved.
        """
        run_log.note()
        if self._store is not None:  # Airflow is to know that there is a log
            head: dict[str, Any] = {"attempt": str(run_log.attempt.writer), "plan": plan.digest}
            head |= {"place": self._place_digest, "secret": self._secret, "numbers": asdict(self.numbers)}
            self._store.set(_HEAD_KEY, head)
        if not isinstance(self.place, StoragePlace):  # the plan of one input is known by its name
            return False
        plan.save(self.place, with_inputs=with_inputs)
        return with_inputs

    def _check_missing(self, place: StoragePlace | StorePlace | MemoryPlace) -> None:
        """
        Find out why there is no log of the last attempt.

        :raises DamagedLogError: it was removed, or is elsewhere. After a clear, nobody needs it.
        """
        if not self.has_head:
            # Airflow knows of no log before 3.3, nor after a clear from 3.4 on
            is_forgotten = _airflow.CLEAR_DISCARDS_STATE and self.numbers.max_tries != self.numbers.retries
            if (self._store is None or is_forgotten) and isinstance(place, StoragePlace):
                # an earlier attempt may have failed before it had one
                log.warning(
                    "Earlier attempts left no log in %s. If they submitted jobs, these are not known here: "
                    "check that it is mounted and has not changed, and look at the app's jobs",
                    place.shown,
                )
            return
        numbers = self._head.get("numbers")
        if not isinstance(numbers, Mapping):
            return
        if self.numbers.was_cleared_since(Attempt(**numbers), End.UNKNOWN):
            if self._is_elsewhere:
                log.warning(
                    "The destination is another one than before the clear. Jobs from before it are not known "
                    "here, and may still run: look at the app's jobs"
                )
            return
        if self._is_elsewhere:
            raise DamagedLogError(
                "The destination is another one than in an earlier attempt; nothing was sent",
                hint=f"Set it back, and retry. {_LOST_LOG}",
            )
        if isinstance(place, StoragePlace):
            place.check_reachable()
            raise DamagedLogError(
                f"The log of the task run is missing in {place.shown}; nothing was sent",
                hint=f"Restore its folder in .rungen/runs, and retry. {_LOST_LOG}",
            )

    @property
    def _is_elsewhere(self) -> bool:
        """Whether Airflow knows that the log of the last attempt is in another place."""
        return str(self._head.get("place", self._place_digest)) != self._place_digest

    @property
    def _place_digest(self) -> str:
        """What tells one destination from another. A changed one has no log yet."""
        return hashlib.sha256(str(self._folder).encode()).hexdigest()[:16]

    def read_head(self) -> None:
        """Find out whether Airflow knows of the log."""
        head = None if self._store is None else self._store.get(_HEAD_KEY)
        self.has_head = head is not None
        self._head = head if isinstance(head, Mapping) else {}

    @property
    def is_cleared(self) -> bool:
        """Whether the task was cleared since the last attempt, so that its jobs may be unwanted."""
        if not self.earlier:
            return False
        last = self.earlier[-1]
        if last.try_number >= self.numbers.try_number and last.began < self.began:
            return True  # the DAG run was deleted, and made again
        is_forgotten = self._store is not None and not self.has_head
        return is_forgotten or self.numbers.was_cleared_since(_numbers_of(last), last.end)

    @property
    def first_turn(self) -> int:
        """The first attempt since the last clear (see `AttemptRecord.turn`). It may be this one."""
        first, attempt = self.earlier[-1].turn + 1, self.numbers
        for record in () if self.is_cleared else reversed(self.earlier):
            numbers = _numbers_of(record)
            if record.began < self.began or attempt.was_cleared_since(numbers, record.end):
                break
            first, attempt = record.turn, numbers
        return first

    @property
    def run_token(self) -> str:
        """What names this task run in a ledger; each clear changes its end."""
        return f"{self.token}{self.numbers.max_tries & 0xFFFF:04x}"

    def read_parts(
        self, plan: str, only: Collection[int] | None = None, *, also: Collection[Writer] = ()
    ) -> Iterator[tuple[int, list[PartFile]]]:
        """
        Yield what attempts know of a plan, part by part. Exhaust it before anything is sent.

        :param only: the parts to read; all if left out. Only then is it an error if a file is missing.
        :param also: other attempts than the earlier ones.
        :raises DamagedLogError: a file is missing, or cannot be read.
        """
        writers = {*(record.writer for record in self.earlier), *also}
        least = {record.writer: record.begun for record in self.earlier if record.plan == plan}
        if self.fallback is not None:
            # nobody knows what it should have
            parts = _ANY_PART if only is None else only
            yield from read_parts(self.fallback, plan, writers, only=parts, ignores_others=True)
        # Airflow's store has the logs of all destinations that the task has had
        is_shared = isinstance(self.place, StorePlace)
        yield from read_parts(self.place, plan, writers, only=only, least=least, ignores_others=is_shared)


def _numbers_of(record: AttemptRecord) -> Attempt:
    return Attempt(record.try_number, record.max_tries, record.retries, record.clear_number)
