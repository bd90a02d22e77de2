"""What operators and sensors that wait for jobs share: the wait, blocking or deferred, and its outcome."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn

from airflow_provider_rungen._airflow import AIRFLOW_V_3_3_PLUS, Asset, conf, metrics
from airflow_provider_rungen.client import codec, endpoints
from airflow_provider_rungen.client.flow import Flow, Gather
from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.polling import (
    COUNTER_THRESHOLD,
    JobPoller,
    identity,
    log_line,
    log_quietly,
    look_once,
    strip_payloads,
    timeout_error,
    wait_for_jobs,
)
from airflow_provider_rungen.exceptions import (
    RunGenAPIError,
    RunGenAppError,
    RunGenAppTimeoutError,
    RunGenConflictError,
    RunGenError,
    RunGenForbiddenError,
    RunGenInputError,
    RunGenJobCanceledError,
    RunGenJobError,
    RunGenJobFailedError,
    RunGenJobTimeoutError,
)
from airflow_provider_rungen.execution.lineage import TaskOutcome, lineage_of
from airflow_provider_rungen.execution.task import RunGenTask, kill_time
from airflow_provider_rungen.hooks.connection import seconds
from airflow_provider_rungen.hooks.rungen import RunGenHook
from airflow_provider_rungen.links.rungen import JOB_AND_APP

if TYPE_CHECKING:
    from airflow.providers.openlineage.extractors import OperatorLineage

    from airflow_provider_rungen._airflow import Context
    from airflow_provider_rungen.schemas import Schema

# Airflow's own time limit of a deferral tells the task too little, so it only comes when ours did not.
GRACE = timedelta(minutes=10)
_FINAL = (RunGenJobFailedError, RunGenJobCanceledError)
# The text of a refused API key, as `codec.error_for` writes it.
_REFUSAL = re.compile(r"^Could not get (?:job|app) \S+(?: of app \S+)? \((401|403)\): ")
# Seconds to the second look at a job that may be over before a deferral is worth it.
BRISKLY = 0.3
# Results that are fetched again, and held, at a time.
AT_ONCE = 64


class JobWaiter(RunGenTask):
    """Waits for jobs of one app, and cancels them when it is killed."""

    template_fields: Sequence[str] = ("app_id", "rungen_conn_id")
    operator_extra_links = JOB_AND_APP
    end_from_trigger = False

    _jobs: tuple[str, Sequence[str]] = ("", ())
    _done: TaskOutcome | None = None
    # those of them that are known to be over
    _over: Collection[str] = ()

    def __init__(
        self,
        *,
        app_id: str | None = None,
        rungen_conn_id: str = RunGenHook.default_conn_name,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        defer_after: float | timedelta = 5,
        cancel_on_kill: bool,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.app_id = app_id
        self.rungen_conn_id = rungen_conn_id
        self.deferrable = deferrable
        self.defer_after = seconds(defer_after, "defer_after", or_none=True)
        self.cancel_on_kill = cancel_on_kill

    def _abandon(self, hook: RunGenHook) -> None:
        """Cancel the jobs (``cancel_on_kill``)."""
        app_id, job_ids = self._jobs
        if self.cancel_on_kill and job_ids:
            self._cancel_all(hook, app_id, job_ids, within=max(kill_time(), 1))

    def _cancel_all(
        self, hook: RunGenHook, app_id: str, job_ids: Sequence[str], *, within: float
    ) -> list[str]:
        """Cancel jobs, and return those that may still run."""
        job_ids = [job_id for job_id in job_ids if job_id not in self._over]
        outcomes = hook.cancel_jobs(app_id, job_ids, within=within)
        if canceled := [job_id for job_id, error in outcomes.items() if error is None]:
            self.log.info("Canceled %s", names_of(canceled))
        failures = [
            (job_id, error)
            for job_id, error in outcomes.items()
            if error is not None and not isinstance(error, RunGenConflictError)  # that one is over
        ]
        for job_id, error in failures[:10]:
            self.log.warning("RunGen job %s of app %s was not canceled: %s", job_id, app_id, error)
        if len(failures) > 10:
            more = len(failures) - 10
            self.log.warning("%d more RunGen jobs of app %s were not canceled", more, app_id)
        return [job_id for job_id, _ in failures]

    @metrics.timing("wait.worker")
    def _wait(
        self,
        hook: RunGenHook,
        app_id: str,
        job_ids: list[str],
        *,
        poll_interval: float,
        deadline: float,
        known_by: float = 0.0,
        hand_over: Callable[[], None] = lambda: None,
        take: Callable[[Job], Job] = identity,
    ) -> list[Job]:
        """
        Wait for the jobs here, or defer when they are not over soon.

        :param known_by: the time (seconds since 1970) until which the service may not know the jobs yet.
        :param hand_over: called before a deferral whose trigger may end the task.
        :param take: what to keep of a job that is over here.
        """
        self._jobs = (app_id, job_ids)
        is_wide = len(job_ids) > COUNTER_THRESHOLD
        perform = hook.perform_concurrently if is_wide else hook.perform
        watch = JobPoller(
            app_id,
            log_quietly if is_wide else log_line,
            take=metrics.counting(take),
            is_lean=take is strip_payloads,
        )
        self._over = watch.over
        if not self.deferrable:
            return perform(
                wait_for_jobs(
                    app_id,
                    job_ids,
                    poll_interval=poll_interval,
                    deadline=deadline,
                    known_by=known_by,
                    watch=watch,
                )
            )
        defer_at = min(time.time() + self.defer_after, deadline)
        pause = BRISKLY
        for job_id in job_ids:
            codec.path_segment(job_id, "job_id")
        watch.add(job_ids, time.time(), known_by)
        while True:
            left = deadline - time.time()
            look = look_once(watch, job_ids, poll_interval=pause, left=left, is_full=left <= 0)
            jobs = perform(look)
            if jobs is not None:
                return jobs
            if left <= 0:
                raise timeout_error(watch, job_ids)
            now = time.time()
            if defer_at <= now < deadline:
                if end := self._can_end_from_trigger():
                    hand_over()
                known_by = 0.0 if watch.has_seen_all else known_by
                self._defer(
                    app_id,
                    job_ids,
                    poll_interval,
                    deadline,
                    known_by=known_by,
                    held_back=watch.held_back(now),
                    end=end,
                )
            self._before_step()
            hook.sleep(min(max(pause, watch.not_before - now), max(defer_at - now, 0)))
            pause = min(pause * 1.5, poll_interval)

    def _can_end_from_trigger(self) -> bool:
        """Tell whether a success needs no worker: asset events and lengths to map over are made there."""
        if not self.end_from_trigger or not AIRFLOW_V_3_3_PLUS or self.outlets:
            return False
        return next(iter(self.iter_mapped_dependants()), None) is None

    def _defer(
        self,
        app_id: str,
        job_ids: list[str],
        poll_interval: float,
        deadline: float,
        *,
        known_by: float,
        held_back: dict[str, float],
        end: bool,
    ) -> NoReturn:
        from airflow_provider_rungen.triggers.rungen import RunGenJobTrigger

        now = time.time()
        self.log.info("Waiting for %s in the triggerer", names_of(job_ids))
        self.defer(
            trigger=RunGenJobTrigger(
                rungen_conn_id=self.rungen_conn_id,
                app_id=app_id,
                job_id=job_ids,
                poll_interval=poll_interval,
                deadline=deadline,
                deferred_at=now,
                known_by=known_by,
                held_back=held_back,
                cancel_on_kill=self.cancel_on_kill,
                on_clear=getattr(self, "on_clear", "new"),
                end_from_trigger=end,
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=max(deadline - now, 0)) + GRACE,
        )

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Go on, on a worker, after the trigger's event."""
        raise NotImplementedError

    def _tell(self, context: Context, done: TaskOutcome) -> None:
        """Tell what was done to the events of the task's outlets, and keep it for OpenLineage."""
        self._done = done
        for outlet in self.outlets:
            if isinstance(outlet, Asset):  # an alias has no event until it is given an asset
                event = context["outlet_events"][outlet]
                event.extra = {**event.extra, **done.extra()}

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> OperatorLineage[Any, Any] | None:
        """Tell OpenLineage what was read and stored; ``None`` where its provider is not installed."""
        if self._done is None or self._hook is None:
            return None
        return lineage_of(self._done, self._hook.settings.base_url)


def read_event(event: Mapping[str, Any]) -> list[Job]:
    """
    Return the jobs that did not complete; another version of the package may have written the event.

    :raises RunGenJobTimeoutError: the deadline passed.
    :raises RunGenForbiddenError: RunGen refuses the API key.
    :raises RunGenError: the trigger could not go on.
    """
    app_id, outcome = event.get("app_id") or "", event.get("outcome")
    if outcome == "over":
        return [
            Job(
                id=str(job.get("id") or ""),
                app_id=app_id,
                status=JobStatus.CANCELED if job.get("status") == JobStatus.CANCELED else JobStatus.FAILED,
                error=job.get("error") or "",
            )
            for job in event.get("unsuccessful") or ()
        ]
    message = event.get("message") or f"The trigger gave an event that cannot be read ({outcome!r})"
    if outcome == "timeout":
        job_id = next(iter(event.get("job_ids") or ()), "")
        raise RunGenJobTimeoutError(message, app_id=app_id, job_id=job_id)
    raise failure_in_event(message, event)


def is_event_retryable(event: Mapping[str, Any]) -> bool:
    """Return whether another try may help; older versions of the package wrote the opposite."""
    return bool(event.get("retryable", not event.get("hopeless")))


def raise_for_event(event: Mapping[str, Any]) -> None:
    """
    Raise if the app did not get there in the triggerer.

    :raises RunGenAppTimeoutError: the deadline passed.
    :raises RunGenError: the trigger could not go on.
    """
    app_id, outcome = event.get("app_id") or "", event.get("outcome")
    if outcome == "there":
        return
    message = event.get("message") or f"The trigger gave an event that cannot be read ({outcome!r})"
    if outcome == "timeout":
        raise RunGenAppTimeoutError(message, app_id=app_id)
    raise RunGenAppError(message, app_id=app_id, hint=event.get("hint"), retryable=is_event_retryable(event))


def failure_in_event(message: str, event: Mapping[str, Any]) -> RunGenError:
    """Return the error that ended the wait in the triggerer."""
    code = event.get("status_code")
    if "status_code" not in event and (found := _REFUSAL.search(message)):
        code = int(found[1])  # the event of an older version holds it only in its text
    hint, retryable = event.get("hint") or "", is_event_retryable(event)
    if isinstance(code, int):
        kind = RunGenForbiddenError if code in (401, 403) else RunGenAPIError
        return kind(message, status_code=code, hint=hint, retryable=retryable)
    return RunGenError(message, hint=hint, retryable=retryable)


def raise_for_jobs(jobs: Iterable[Job], count: int = 0, schema: Schema | None = None) -> None:
    """
    Raise if a job did not complete: its own error for one, an error that names the first ten for more.

    :param count: how many did not complete, when ``jobs`` does not hold all of them.
    :param schema: what the results have to fit.
    :raises RunGenJobError: as said.
    """
    errors: list[RunGenJobError] = []
    for job in {job.id: job for job in jobs}.values():
        try:
            job.raise_for_status()
            if schema is not None:
                schema.check_result(job)
        except RunGenJobError as error:
            errors.append(error)
    if errors:
        fitting = "" if schema is None else " with a result that fits"
        raise failure_of(errors, max(count, len(errors)), f"did not complete{fitting}")


def failure_of(errors: Iterable[RunGenError], count: int, said: str) -> RunGenError:
    """
    Give the error of a job, or one for many jobs that names the first ten.

    :param count: how many jobs failed.
    :param said: what they did not do.
    """
    # those that are over come first: they decide whether trying again can help
    errors = sorted(errors, key=lambda error: not is_final(error))
    first = errors[0]
    if len(errors) == 1:
        return first
    more = f"; and {count - 10} more" if count > 10 else ""
    reasons = "; ".join(error.message for error in errors[:10])
    message = f"{count} RunGen jobs {said}: {reasons}{more}"
    if not isinstance(first, RunGenJobError):
        return RunGenError(message, hint=first.hint, retryable=first.retryable)
    return type(first)(message, app_id=first.app_id, job_id=first.job_id, retryable=first.retryable)


def is_final(error: RunGenError) -> bool:
    """Tell whether a job will be as it is at the next look, too."""
    return not error.retryable or isinstance(error, _FINAL)


def refetch(
    app_id: str,
    job_ids: Sequence[str],
    take: Callable[[str, Job | RunGenError], None],
    *,
    known_by: float = 0.0,
) -> Flow[None]:
    """
    Look at jobs that are over, so many at a time.

    :param take: takes a job, or the error in its place, as it comes; what it raises ends the looking.
    :param known_by: the time (seconds since 1970) until which the service may not know the jobs yet.
    """

    def look(job_id: str) -> Flow[None]:
        try:
            outcome: Job | RunGenError = yield from endpoints.get_job_when_visible(
                app_id, job_id, known_by=known_by
            )
        except RunGenError as error:
            outcome = error
        take(job_id, outcome)

    for start in range(0, len(job_ids), AT_ONCE):
        for refused in (yield Gather([look(job_id) for job_id in job_ids[start : start + AT_ONCE]])):
            if refused is not None:
                raise refused


def job_ids_of(job_id: Any, *, or_none: bool = False) -> list[Any]:
    """
    Give the list of ids for one id, a list, or the output of a mapped task.

    :param or_none: whether ``None`` may stand in a list, for what has no job.
    :raises RunGenInputError: something in it is no id.
    """
    if isinstance(job_id, Iterator):
        raise RunGenInputError(
            "job_id must be an id or a list of ids, not an iterator, which is used up by one look"
        )
    try:
        ids: list[Any] = [job_id] if job_id is None or isinstance(job_id, str) else list(job_id)
    except TypeError:
        raise RunGenInputError(
            f"job_id must be an id or a list of ids, not a {type(job_id).__name__}"
        ) from None
    for item in ids:
        if item is not None or job_id is None or not or_none:
            codec.path_segment(item, "job_id")
    return ids


def known_job_ids_of(job_id: Any) -> list[str]:
    """
    Do the same, and leave out what is ``None`` in a list; but not all of it.

    :raises RunGenInputError: something in it is no id, or nothing is.
    """
    ids = job_ids_of(job_id, or_none=True)
    known = [item for item in ids if item is not None]
    if ids and not known:
        raise RunGenInputError("job_id: none of the inputs before has a job")
    return known


def names_of(job_ids: Sequence[str]) -> str:
    """Name one job by its id, more by their number."""
    return f"RunGen job {job_ids[0]}" if len(job_ids) == 1 else f"{len(job_ids)} RunGen jobs"
