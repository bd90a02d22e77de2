"""What operators and sensors share: waiting for jobs (blocking or deferred), being killed, and failing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.providers.common.compat.sdk import AirflowException, AirflowFailException, BaseOperator

from airflow_provider_rungen import api
from airflow_provider_rungen.exceptions import (
    RunGenError,
    RunGenInputError,
    RunGenJobError,
    RunGenJobTimeoutError,
)
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.models import Job, JobStatus

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import Context

# Airflow kills a task for good 5 s after the signal.
KILL_TIME = 4.0
# Airflow's own time limit of a deferral tells the task too little, so it only comes when ours did not.
GRACE = timedelta(minutes=10)


class JobWaiter(BaseOperator):
    """
    Waits for jobs, and cancels them when it is killed.

    Subclasses set ``rungen_conn_id``, ``app_id``, ``deferrable`` and ``cancel_on_kill``.
    """

    rungen_conn_id: str
    app_id: str | None
    deferrable: bool
    cancel_on_kill: bool

    _hook: RunGenHook | None = None
    _jobs: tuple[str, Sequence[str]] = ("", ())
    _thread: int | None = None
    _is_unbreakable = False
    _is_killed = False

    @contextmanager
    def _executing(self) -> Iterator[None]:
        """Let a kill end this thread's work."""
        before, self._thread = self._thread, threading.get_ident()
        try:
            yield
        finally:
            self._thread = before

    @contextmanager
    def _working(self) -> Iterator[RunGenHook]:
        """Open the hook for one stretch of work on the worker."""
        if self._hook is None or self._hook.rungen_conn_id != self.rungen_conn_id:
            self._hook = RunGenHook(self.rungen_conn_id)
        with self._executing(), self._hook as hook:
            _ = hook.settings  # on_kill must not have to ask Airflow for them
            yield hook

    @contextmanager
    def _unbreakable(self) -> Iterator[None]:
        """Put a kill off until the end of the block, so that the id of a job that was paid for is kept."""
        self._is_unbreakable = True
        try:
            yield
        finally:
            self._is_unbreakable = False
        if self._is_killed:
            self.on_kill()

    def on_kill(self) -> None:
        """Cancel the jobs (``cancel_on_kill``) and end the task, within 5 s, asking nothing of Airflow."""
        self._is_killed = True
        if self._is_unbreakable:
            return
        app_id, job_ids = self._jobs
        if self.cancel_on_kill and self._hook is not None:
            self._cancel_all(self._hook, app_id, job_ids)
        if self._thread == threading.get_ident():
            # this is a signal handler in the middle of execute(), which would go on if it returned
            raise AirflowException("The task was killed")

    def _cancel_all(self, hook: RunGenHook, app_id: str, job_ids: Iterable[str]) -> None:
        give_up_at = time.monotonic() + KILL_TIME
        for job_id in job_ids:
            try:
                hook.cancel_quickly(app_id, job_id, max(give_up_at - time.monotonic(), 0.1))
                self.log.info("Canceled RunGen job %s", job_id)
            except RunGenError as error:
                self.log.warning("RunGen job %s was not canceled: %s", job_id, error)

    def _wait(
        self, hook: RunGenHook, app_id: str, job_ids: list[str], *, poll_interval: float, deadline: float
    ) -> list[Job]:
        """Wait for the jobs here, or defer unless they are over already."""
        self._jobs = (app_id, job_ids)
        if not self.deferrable:
            return hook.perform(
                api.wait_for_jobs(app_id, job_ids, poll_interval=poll_interval, deadline=deadline)
            )
        try:
            # one look: the deadline is now
            return hook.perform(api.wait_for_jobs(app_id, job_ids, poll_interval=poll_interval, deadline=0))
        except RunGenJobTimeoutError:
            self._defer(app_id, job_ids, poll_interval, deadline)

    def _defer(self, app_id: str, job_ids: list[str], poll_interval: float, deadline: float) -> NoReturn:
        from airflow_provider_rungen.triggers import RunGenJobTrigger

        now = time.time()
        self.log.info("Waiting for %s in the triggerer", _names(job_ids))
        self.defer(
            trigger=RunGenJobTrigger(
                rungen_conn_id=self.rungen_conn_id,
                app_id=app_id,
                job_ids=job_ids,
                poll_interval=poll_interval,
                deadline=deadline,
                deferred_at=now,
                cancel_on_kill=self.cancel_on_kill,
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=max(deadline - now, 0)) + GRACE,
        )

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Go on, on a worker, after the trigger's event."""
        raise NotImplementedError


def deadline_of(task: BaseOperator, deadline: float) -> float:
    """Give the time (seconds since 1970) to stop waiting at: the task's execution_timeout counts, too."""
    if task.execution_timeout is None:
        return deadline
    # Airflow does not apply it to a deferred task
    return min(deadline, time.time() + task.execution_timeout.total_seconds())


def read_event(event: dict[str, Any], app_id: str) -> list[Job]:
    """
    Give the jobs that did not complete.

    :raises RunGenJobTimeoutError: the deadline passed.
    :raises RunGenError: the trigger could not go on.
    """
    if event["outcome"] == "over":
        return [
            Job(id=job["id"], app_id=app_id, status=JobStatus(job["status"]), error=job["error"])
            for job in event["unsuccessful"]
        ]
    if event["outcome"] == "timeout":
        raise RunGenJobTimeoutError(event["message"], app_id=app_id)
    failure = RunGenError(event["message"])
    failure.hopeless = event["hopeless"]
    raise failure


def raise_for_jobs(jobs: Iterable[Job]) -> None:
    """
    Raise if a job did not complete: its own error for one, an error that names the first ten for more.

    :raises RunGenJobError: as said.
    """
    errors: list[RunGenJobError] = []
    for job in jobs:
        try:
            job.raise_for_status()
        except RunGenJobError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        more = f"; and {len(errors) - 10} more" if len(errors) > 10 else ""
        told = "; ".join(str(error) for error in errors[:10])
        raise type(errors[0])(
            f"{len(errors)} RunGen jobs did not complete: {told}{more}",
            app_id=errors[0].app_id,
            job_id=errors[0].job_id,
        )


@contextmanager
def failing_for_good(*also: type[RunGenError]) -> Iterator[None]:
    """Say in Airflow's way that trying again cannot help: for hopeless errors, and those of given types."""
    try:
        yield
    except RunGenError as error:
        if error.hopeless or isinstance(error, also):
            raise AirflowFailException(str(error)) from error
        raise


def job_ids_of(job_id: Any) -> list[str]:
    """
    Give the list of ids for one id, a list, or the output of a mapped task.

    :raises RunGenInputError: something in it is no id.
    """
    try:
        ids: list[Any] = [job_id] if job_id is None or isinstance(job_id, str) else list(job_id)
    except TypeError:
        raise RunGenInputError(
            f"job_id must be an id or a list of ids, not a {type(job_id).__name__}"
        ) from None
    for item in ids:
        api.seg(item, "job_id")
    return ids


def _names(job_ids: Sequence[str]) -> str:
    return f"RunGen job {job_ids[0]}" if len(job_ids) == 1 else f"{len(job_ids)} RunGen jobs"
