"""One attempt of a task: its hook, kill guard, links and outcome."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from airflow_provider_rungen._airflow import AirflowException, AirflowSkipException, Asset, TaskInstanceState
from airflow_provider_rungen.client.money import Price
from airflow_provider_rungen.client.texts import clean_text, format_duration
from airflow_provider_rungen.exceptions import RunGenError, RunGenJobError
from airflow_provider_rungen.hooks.rungen import RunGenHook
from airflow_provider_rungen.links import (
    RunGenAppLink,
    RunGenJobLink,
    RunGenResultsLink,
    app_url,
    full_url,
    job_url,
    page_url,
)
from airflow_provider_rungen.task import attempts, xcom_keys
from airflow_provider_rungen.task.kill import KillGuard
from airflow_provider_rungen.task.options import RunOptions
from airflow_provider_rungen.task.outcomes import fail_without_retry
from airflow_provider_rungen.task.report import TaskOutcome, lineage_of, report_usage

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_rungen._airflow import Context

log = logging.getLogger(__name__)

# Characters of an error, and of its hint, on the page of the task.
_MAX_TEXT = 1000

Options = TypeVar("Options", bound=RunOptions)


class TaskRun(Generic[Options]):
    """
    One attempt of a task, made in ``execute()`` and again in ``execute_complete()``.

    :param task: the operator.
    :param context: Airflow's context of the attempt.
    :param options: the operator's parameters, if more of them are copied than those of every operator.
    """

    #: Whether the log says at the end what the jobs used.
    says_usage = True

    def __init__(self, task: Any, context: Context, options: Options | None = None) -> None:
        self.task = task
        self.options = cast("Options", options or RunOptions.of(task))
        self.context = context
        self.guard = KillGuard(self._clean_up)
        self.hook = RunGenHook(self.options.rungen_conn_id)
        self.hook.checkpoint = self.guard.check
        self.hook.is_interrupted = self.guard.is_interrupted
        self.hook.defer_signals = self.guard.defer_signals
        #: The links that were pushed, by XCom key.
        self.links: dict[str, str] = {}
        self.outcome: TaskOutcome | None = None
        #: The first rows that failed, for the callbacks of the task.
        self.failed_rows: list[dict[str, Any]] = []
        #: Returns what the jobs of the attempt used: see `Usage.to_json`. Not every task has jobs.
        self.used: Callable[[], Mapping[str, Any]] = dict
        self.is_connected = False  #: Whether a kill need not ask Airflow for the connection.
        self.is_done = False  #: Whether the task has done what it is for.
        self.note_app(self.options.app_id or "")

    @property
    def ti(self) -> Any:
        """The task instance."""
        return self.context["ti"]

    @property
    def attempt_id(self) -> str:
        """What tells this attempt from others, also after a deferral."""
        return str(getattr(self.ti, "id", None) or f"try-{self.ti.try_number}")

    @property
    def app_id(self) -> str:
        """The app of the task: the one that it names, or else the connection's."""
        return self.hook.resolve_app_id(self.options.app_id)

    def note_app(self, app_id: str, job_ids: Sequence[str] = ()) -> None:
        """Note the app and jobs of the attempt, for what is reported when it fails."""
        self.known_app_id, self._known_job_ids = app_id, job_ids

    @property
    def job_ids(self) -> Sequence[str]:
        """The jobs of the attempt, as far as they are known."""
        return self._known_job_ids

    @contextmanager
    def attempt(self, *also: type[RunGenError]) -> Iterator[None]:
        """
        Report what was used, and why the attempt fails, when it ends. A deferral does not end it.

        :param also: see `fail_without_retry`.
        """
        try:
            with fail_without_retry(*also, is_killed=lambda: self.guard.is_killed, explain=self.hook.explain):
                yield
        except Exception as error:
            if not self.guard.is_killed:
                self._push_usage()
                if not isinstance(error, AirflowSkipException):
                    self._push_failure(_message_of(error), _hint_of(error))
            raise
        self._push_usage()

    def _push_usage(self) -> None:
        if self.is_connected and (used := self.used()):
            report_usage(used, is_said=self.says_usage)
            self.push_quietly(xcom_keys.USAGE_KEY, dict(used), "what the jobs used")

    def fail_deferral(self, reason: str) -> None:
        """Clean up after a deferral that Airflow ended without an event."""

    def _push_failure(self, error: str, hint: str) -> None:
        """Push why the attempt fails, and keep it for the next one: it begins without XComs."""
        texts = {"error": clean_text(error, _MAX_TEXT), "hint": clean_text(hint, _MAX_TEXT)}
        value = {"try_number": self.ti.try_number, **texts, **self.failure_details()}
        if RunGenResultsLink.key not in self.links:
            self._link_to_page()
            self.push_page(self.known_app_id)
        self.push_quietly(xcom_keys.FAILURE_KEY, value, "why it failed")
        with suppress(Exception):
            if self._store is not None:
                self._store.set(xcom_keys.FAILURE_KEY, value)

    def _pass_on_failure(self) -> None:
        """Push why the last attempt failed, for the page of this one."""
        with suppress(Exception):
            if self._store is not None and (failure := self._store.get(xcom_keys.FAILURE_KEY)):
                self.push_quietly(xcom_keys.FAILURE_KEY, failure, "why the last attempt failed")

    def failure_details(self) -> dict[str, Any]:
        """Return what else the page of a failed task has to know; see `xcom_keys`."""
        return {}

    @property
    def _store(self) -> Any:
        """Airflow's task state store, where there is one."""
        return self.context.get("task_state_store")

    @contextmanager
    def opened(self) -> Iterator[RunGenHook]:
        """Open the hook for one stretch of work. A job that fails it gets the link."""
        with self.guard.working(), self.naming_jobs(), self.hook as hook:
            _ = hook.settings  # on_kill must not have to ask Airflow for them
            self.is_connected = True
            try:
                yield hook
            except RunGenJobError as error:
                if error.job_id:
                    self.link_to_job(error.app_id, error.job_id)
                raise

    @contextmanager
    def naming_jobs(self) -> Iterator[None]:
        """Note on an error which app and jobs it is about, for the callbacks of the task."""
        try:
            yield
        except BaseException as error:  # execution_timeout is no Exception
            self.name_jobs(error)
            raise

    def name_jobs(self, error: BaseException) -> None:
        """Note on an error which app and jobs it is about."""
        of_error: Any = error
        of_error.app_id = getattr(error, "app_id", "") or self.known_app_id
        of_error.job_ids = list(self.job_ids)
        of_error.failed_rows = self.failed_rows

    def deadline(self, end: float) -> float:
        """
        Return the time (seconds since 1970) to stop at: the task's ``execution_timeout`` counts, too.

        Airflow does not apply it to a deferred task.
        """
        limit = self.task.execution_timeout
        return end if limit is None else min(end, time.time() + limit.total_seconds())

    def kill(self) -> None:
        """End the attempt, unless the task is a success: Airflow ends a callback or listener that is slow."""
        if not self.is_done or attempts.ask_for_state(self.ti) not in (None, TaskInstanceState.SUCCESS):
            self.guard.kill()

    def cleanup(self) -> str:
        """
        Undo what a kill makes useless, within `KillGuard.time_left`. Airflow may not answer.

        :return: what the last line of the log says about what is left.
        """
        return ""

    def _clean_up(self) -> str:
        last_words = self.cleanup()
        why = self._why_killed()
        log.error("%s.\n%s.", *why)
        for push in (partial(self._push_failure, *why), self._push_usage):
            attempts.call_briefly(push, self.guard.time_left())
        return last_words

    def _why_killed(self) -> tuple[str, str]:
        """Return why the attempt was killed, and what to do."""
        if (limit := self.task.execution_timeout) and attempts.is_timing_out():
            why = f"execution_timeout ({format_duration(limit.total_seconds())}) is over"
            return f"Not over in time: {why}", "Raise execution_timeout if it needs longer"
        return (
            "It was stopped: a user marked or cleared it, or its worker was shut down",
            "Clear it if it is still needed, unless a retry follows",
        )

    def xcom_pull(self, key: str) -> Any:
        """Return what this task pushed in this attempt."""
        return self.ti.xcom_pull(task_ids=self.ti.task_id, key=key, map_indexes=self.ti.map_index)

    def link_to(self, app_id: str, job_ids: Sequence[str] = ()) -> None:
        """Push the links to the page of the task, to the app, and to the first job."""
        self.note_app(app_id, job_ids)
        self._push_link(RunGenAppLink.key, app_url(self.hook.settings, app_id))
        self._link_to_page()
        self.push_page(app_id, job_ids[: xcom_keys.MAX_PAGE_JOBS])
        self._pass_on_failure()
        for job_id in job_ids[:1]:
            self.link_to_job(app_id, job_id)

    def _link_to_page(self) -> None:
        """Push the link to the page of the task, and log where it leads."""
        self._push_link(RunGenResultsLink.key, url := page_url(self.ti))
        if url:
            log.info("Results: %s", full_url(url))

    def link_to_job(self, app_id: str, job_id: str) -> None:
        """Push the link to a job."""
        self._push_link(RunGenJobLink.key, job_url(self.ti, self.hook.settings, app_id, job_id))

    def push_page(self, app_id: str, job_ids: Sequence[str] = ()) -> None:
        """Push what the task is about: see `xcom_keys`."""
        details: dict[str, Any] = {"connection": self.options.rungen_conn_id, "app": app_id}
        price = self.find_price() if self.is_connected else None
        details |= {"jobs": list(job_ids) or None, "price": price and str(price), **self.page_details()}
        value = {name: each for name, each in details.items() if each is not None}
        self.push_quietly(xcom_keys.PAGE_KEY, value, "what the task is about")

    def find_price(self) -> Price | None:
        """Return what a worker costs, if the connection declares it."""
        return self.hook.settings.price

    def page_details(self) -> dict[str, Any]:
        """Return what else the page of the task has to know; see `xcom_keys`."""
        return {}

    def _push_link(self, key: str, url: str) -> None:
        """Push a link, if there is anything to lead to."""
        if not url:
            return
        self.links = self.links | {key: url}
        if self.context.get("task_reschedule_count"):
            return  # Airflow 3 pushes the links itself at the end of each look of a rescheduling sensor
        self.push_quietly(key, url, f"the link to {url}")

    def push(self, key: str, value: Any) -> None:
        """Push what a task fails without: again, if Airflow fails."""
        push = partial(self.ti.xcom_push, key=key, value=value)
        self.guard.call_patiently(f"push the XCom {key}", push)

    def push_quietly(self, key: str, value: Any, name: str) -> None:
        """Push what a task is not to fail for."""
        try:
            self.ti.xcom_push(key=key, value=value)
        except Exception as error:
            log.warning("Could not push %s: %s", name, type(error).__name__)

    def record_outcome(self, outcome: TaskOutcome) -> None:
        """Add what was done to the events of the task's outlets, and keep it for OpenLineage."""
        self.outcome = outcome = self._with_usage(outcome)
        for outlet in self.task.outlets:
            if isinstance(outlet, Asset):  # an alias has no event until it is given an asset
                event = self.context["outlet_events"][outlet]
                event.extra = {**event.extra, **outcome.extra()}

    def _with_usage(self, outcome: TaskOutcome) -> TaskOutcome:
        used = self.used()
        return replace(outcome, usage=dict(used)) if used and (used["jobs"] or used["reused"]) else outcome

    def lineage(self) -> OperatorLineage[Any, Any] | None:
        """Return what was read and stored; ``None`` where OpenLineage's provider is not installed."""
        # a task that failed, or has nothing else to report, is about its app
        known = TaskOutcome(self.known_app_id, self.job_ids) if self.known_app_id else None
        outcome, base_url = self.outcome or known, ""
        if outcome is not None:
            try:
                base_url = self.hook.settings.base_url
            except RunGenError:
                outcome = None
        return lineage_of(outcome and self._with_usage(outcome), base_url)


def _message_of(error: Exception) -> str:
    """Return why an attempt fails. Of what a user's function raises, the text alone may say little."""
    if isinstance(error, RunGenError | AirflowException):
        return getattr(error, "message", "") or str(error) or type(error).__name__
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def _hint_of(error: Exception) -> str:
    """Return what to do about an error, a user's own as well."""
    is_known = isinstance(error, RunGenError | AirflowException)
    return getattr(error, "hint", "") if is_known else "The log of the task has its traceback"
