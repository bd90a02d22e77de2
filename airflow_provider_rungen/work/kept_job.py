"""What Airflow keeps of the job of a task, so that a retry resumes it."""

from __future__ import annotations

import logging
import math
from functools import partial
from typing import Any, Self

from pydantic import BaseModel, Field, ValidationError

from airflow_provider_rungen.exceptions import RunGenInputError
from airflow_provider_rungen.task.kill import KillGuard
from airflow_provider_rungen.task.report import Usage
from airflow_provider_rungen.task.xcom_keys import JOB_KEY

log = logging.getLogger(__name__)

# Seconds for which Airflow may refuse what the next attempt can do without.
_SAVE_TIME = 3.0


class KeptJob(BaseModel):
    """
    The job of a task run, and what its attempts have bought before.

    It has no part of the input.

    :param job: its id; empty without a job.
    :param app: its app.
    :param by: the attempt that bought it, or a job before it.
    :param key: the key of its input and app: see `input_key`.
    :param deadline: the time (seconds since 1970) at which it is canceled.
    :param max_tries: Airflow's number, which a clear changes and a retry does not.
    :param usage: this job, and those before it.
    :param lost: how many submissions got no answer, and may have cost.
    """

    job: str = ""
    app: str = ""
    by: str = ""
    key: str = ""
    deadline: float = 0.0
    max_tries: int = 0
    usage: Usage = Field(default_factory=Usage)
    lost: int = 0

    @classmethod
    def of(cls, found: Any) -> Self:
        """
        Return what was kept.

        :param found: ``None`` if nothing was.
        :raises RunGenInputError: somebody has changed it.
        """
        try:
            return cls.model_validate({} if found is None else found)
        except ValidationError:
            raise RunGenInputError(
                f"{JOB_KEY} in Airflow's database was changed; nothing more is sent",
                hint="Look at the app's jobs, remove that value, and clear the task",
            ) from None


class JobRecord:
    """
    What is kept of the job, and where: in Airflow's task state (3.3), over attempts.

    Before Airflow 3.3 it is an XCom, which lasts over a deferral, but not over attempts.

    :param ti: the task instance.
    :param store: Airflow's task state store; ``None`` before Airflow 3.3.
    :param guard: ends a call that hangs when the task is killed.
    """

    def __init__(self, ti: Any, store: Any, guard: KillGuard) -> None:
        self._ti, self._store, self._guard = ti, store, guard
        self.kept = KeptJob()
        self.is_saved = False  #: Whether a later attempt finds the job.

    def read(self) -> None:
        """
        Read which job an earlier attempt, or this one before a deferral, has run.

        :raises Exception: Airflow does not answer, or the task was killed meanwhile.
        """
        self.kept = KeptJob.of(self._guard.call_patiently("read the job of the task", self._get))
        self._guard.check()
        self.is_saved = self._store is not None and bool(self.kept.job)

    def _get(self) -> Any:
        if self._store is not None:
            return self._store.get(JOB_KEY)
        ti = self._ti
        return ti.xcom_pull(task_ids=ti.task_id, key=JOB_KEY, map_indexes=ti.map_index)

    def write(self, within: float = math.inf) -> None:
        """
        Write what is known.

        :param within: seconds for which Airflow may refuse it, if they are fewer than usual.
        :raises Exception: Airflow does not take it.
        """
        put = self._ti.xcom_push if self._store is None else self._store.set
        call = partial(put, JOB_KEY, self.kept.model_dump(mode="json"))
        self._guard.call_patiently("write the job of the task", call, within)
        self.is_saved = self._store is not None and bool(self.kept.job)

    def update(self, *, is_success: bool = False) -> None:
        """Write what is known, or remove it after a success. The task does not fail for it."""
        try:
            if not is_success:
                self.write(_SAVE_TIME)
            elif self._store is not None:
                remove = partial(self._store.delete, JOB_KEY)
                self._guard.call_patiently("remove the job of the task", remove, _SAVE_TIME)
        except Exception as error:
            log.warning("Airflow has an old record of the job: %s", type(error).__name__)
