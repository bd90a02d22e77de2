"""What every task has: the hook it works with, an end when it is killed, and errors in Airflow's way."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen._airflow import (
    AIRFLOW_V_3_3_PLUS,
    AirflowException,
    AirflowFailException,
    BaseOperator,
)
from airflow_provider_rungen.exceptions import (
    RunGenError,
    RunGenJobError,
)
from airflow_provider_rungen.hooks.rungen import RunGenHook
from airflow_provider_rungen.links.rungen import (
    RunGenAppLink,
    RunGenJobLink,
    app_url,
    job_url,
)

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import BaseOperatorLink, Context

# Airflow kills a task for good 5 s after the signal.
KILL_TIME = 4.0


class RunGenTask(BaseOperator):
    """A task that works with a hook until it is done or killed."""

    ui_color = "#e8e4ff"
    operator_extra_links: Collection[BaseOperatorLink] = (RunGenAppLink(),)
    rungen_conn_id: str

    _hook: RunGenHook | None = None
    _thread: int | None = None
    _is_killed = False
    # the state of the task that Airflow gave when it was killed, once it was asked for
    _state_at_kill: tuple[str | None] | None = None
    # what the last line of the log says about what a killed task leaves behind
    _last_words = ""

    def __init__(self, *, retry_policy: Any = None, **kwargs: Any) -> None:
        if AIRFLOW_V_3_3_PLUS:
            from airflow_provider_rungen.retries import RunGenRetryPolicy

            kwargs["retry_policy"] = retry_policy or RunGenRetryPolicy()
        super().__init__(**kwargs)
        #: The links pushed by this attempt, by XCom key.
        self.links: dict[str, str] = {}

    @contextmanager
    def _executing(self) -> Iterator[None]:
        """Let a kill end this thread's work."""
        before, self._thread = self._thread, threading.get_ident()
        try:
            yield
        finally:
            self._thread = before

    @contextmanager
    def _working(self, context: Context) -> Iterator[RunGenHook]:
        """Open the hook for one stretch of work on the worker; a job that fails it gets the link."""
        if self._hook is None or self._hook.rungen_conn_id != self.rungen_conn_id:
            self._hook = RunGenHook(self.rungen_conn_id)
            self._hook.checkpoint = self._before_step
            self._hook.is_interrupted = self._is_interrupted
            self._hook.around_lookup = self.defer_signals
        with self._executing(), self._hook as hook:
            _ = hook.settings  # on_kill must not have to ask Airflow for them
            try:
                yield hook
            except RunGenError as error:
                if isinstance(error, RunGenJobError) and error.job_id:
                    self._link_to_job(context, hook, error.app_id, error.job_id)
                raise

    def _link_to(self, context: Context, hook: RunGenHook, app_id: str, job_ids: Iterable[str] = ()) -> None:
        """Push the links to the app, and to the first job."""
        self._push_link(context, RunGenAppLink.key, app_url(hook.settings, app_id))
        for job_id in islice(job_ids, 1):
            self._link_to_job(context, hook, app_id, job_id)

    def _link_to_job(self, context: Context, hook: RunGenHook, app_id: str, job_id: str) -> None:
        self._push_link(context, RunGenJobLink.key, job_url(hook.settings, app_id, job_id))

    def _push_link(self, context: Context, key: str, url: str) -> None:
        self.links = self.links | {key: url}
        try:
            context["ti"].xcom_push(key=key, value=url)
        except Exception as error:  # a task is not to fail for its links
            self.log.warning("The link to %s was not kept: %s", url, type(error).__name__)

    @contextmanager
    def defer_signals(self) -> Iterator[None]:
        """
        Put kills and time limits off until the end, so that the id of a job that was paid for is kept.

        A request under way gets a second more for its answer then.
        """
        with _signals:
            yield
        if self._is_killed:
            self.on_kill()

    def _check_killed(self) -> None:
        """Let what was put off come now, between requests; a kill may have been swallowed, too."""
        _signals.deliver_pending()
        if self._is_killed and self._thread == threading.get_ident():
            raise AirflowException(" ".join(filter(None, ("The task was killed.", self._last_words))))

    def _before_step(self) -> None:
        """Do what is due before each request and each pause."""
        self._check_killed()
        self._between_polls()

    def _between_polls(self) -> None:
        """Do what is due now and then during a wait; it must not raise, and bounds its own time."""

    def _is_interrupted(self) -> bool:
        """Return whether a kill or a time limit was put off, or swallowed, and waits for a request to end."""
        return is_killed() or (self._is_killed and self._thread == threading.get_ident())

    def on_kill(self) -> None:
        """Abandon what was begun, and end the task."""
        self._is_killed = True
        if self._hook is not None:
            self._abandon(self._hook)
        # this may be a signal handler in the middle of execute(), which would go on if it returned
        self._check_killed()

    def _abandon(self, hook: RunGenHook) -> None:
        """Undo what a kill makes useless, within `kill_time`, asking nothing of Airflow."""


class _Signals:
    """Puts off the signals that Airflow ends a task with (its handlers raise, wherever the task is)."""

    def __init__(self) -> None:
        self._depth = 0
        self._handlers: dict[int, Any] = {}
        self._put_off: list[tuple[int, Any]] = []
        #: When (of the monotonic clock) the first of them came.
        self.since: float | None = None

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self._depth += 1
        if self._depth == 1:
            for number in (signal.SIGTERM, signal.SIGALRM):
                if callable(signal.getsignal(number)):
                    self._handlers[number] = signal.signal(number, self._put_it_off)

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self._depth -= 1
        if self._depth:
            return
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        try:
            self.deliver_pending()
        finally:
            self._handlers.clear()

    def _put_it_off(self, number: int, frame: Any) -> None:
        self._put_off.append((number, frame))
        self.since = self.since or time.monotonic()

    @property
    def is_pending(self) -> bool:
        return bool(self._put_off)

    def deliver_pending(self) -> None:
        """Hand what came to the handlers it was meant for."""
        try:
            while self._put_off:
                number, frame = self._put_off.pop(0)
                self._handlers[number](number, frame)
        finally:
            self.since = None


_signals = _Signals()


def kill_time() -> float:
    """Give the seconds that are left of `KILL_TIME`: a kill may have been put off."""
    return KILL_TIME if _signals.since is None else KILL_TIME + _signals.since - time.monotonic()


def is_killed() -> bool:
    """Tell whether a kill or a time limit waits for the end of an unbreakable block."""
    return _signals.is_pending


def deadline_of(task: BaseOperator, deadline: float) -> float:
    """Give the time (seconds since 1970) to stop waiting at: the task's execution_timeout counts, too."""
    if task.execution_timeout is None:
        return deadline
    # Airflow does not apply it to a deferred task
    return min(deadline, time.time() + task.execution_timeout.total_seconds())


@contextmanager
def fail_without_retry(*also: type[RunGenError]) -> Iterator[None]:
    """Convert errors that are not retryable, and those of the given types, to `AirflowFailException`."""
    try:
        yield
    except RunGenError as error:
        if not error.retryable or isinstance(error, also):
            raise AirflowFailException(str(error)) from error
        raise
