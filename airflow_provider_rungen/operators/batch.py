"""The operator that runs many jobs in one task."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_rungen._airflow import metrics
from airflow_provider_rungen.client import retry
from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.client.polling import VISIBILITY_GRACE, job_of, strip_payloads
from airflow_provider_rungen.exceptions import (
    RunGenError,
    RunGenJobError,
    RunGenJobFailedError,
    RunGenNotFoundError,
    RunGenSubmissionUnknownError,
)
from airflow_provider_rungen.execution.attempts import End
from airflow_provider_rungen.execution.batch import (
    KEY,
    BatchHeader,
    BatchSubmission,
    Checkpoint,
    Inputs,
)
from airflow_provider_rungen.execution.lineage import TaskOutcome
from airflow_provider_rungen.execution.submission import RESUBMISSION_GRACE
from airflow_provider_rungen.execution.task import deadline_of, is_killed
from airflow_provider_rungen.execution.tolerance import (
    checked_count,
    checked_max_failed,
    max_failures,
    told,
)
from airflow_provider_rungen.execution.waiting import read_event, refetch
from airflow_provider_rungen.operators.job import JobSubmitter, cancel_time
from airflow_provider_rungen.schemas import Schema

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import Context
    from airflow_provider_rungen.hooks.rungen import RunGenHook

log = logging.getLogger(__name__)

IDS_IN_A_LINE = 50


class RunGenRunBatchOperator(JobSubmitter):
    """
    Run many RunGen jobs in one task, and return their ids in the order of the inputs.

    Every input is checked before the first is sent. The id of an input that the service refused is ``None``.
    The ids are pushed under the XCom key ``job_ids`` when all are submitted, the indexes of the inputs that
    did not complete under ``failed`` at the end. A retry submits only what failed or was never sent.

    :param inputs: a list of JSON objects, or the URI of a JSON Lines file that ``ObjectStoragePath`` can read
        (templated).
    :param max_concurrency: how many submissions are under way at a time at most.
    :param max_failed: how many inputs may fail without failing the task: a number, or a share below 1.
    :param app_id: the app to run; the connection's ``app_id`` when left out (templated).
    :param rungen_conn_id: the Airflow connection (templated).
    :param wait_for_completion: wait until all jobs are over.
    :param deferrable: wait in the triggerer, without a worker slot. Only with ``wait_for_completion``.
    :param defer_after: seconds to look for the end on the worker first; a deferral takes longer than that.
    :param end_from_trigger: let a success end in the triggerer, with no second start of a worker, where
        Airflow can (3.3 and later; not with ``outlets``, nor when a task is mapped over the ids).
    :param poll_interval: seconds between two looks at the app.
    :param timeout: seconds the jobs may take together, submission included; after that they are canceled and
        the task fails. A retry that submits any of them has the whole time.
    :param cancel_on_kill: cancel the jobs when the task is killed, or cleared while they run.
    :param durable: keep the ids in Airflow's task state store (Airflow 3.3 and later) as they come.
    :param on_unknown_submission: what a retry does with inputs of which it is not known whether a job was
        created: ``resubmit`` them, with a warning, or ``fail``.
    :param on_clear: what the attempt after a clear does: run ``new`` jobs for all inputs, or ``resume`` those
        of before, if inputs and app are the same. Jobs that failed are run anew. Needs ``durable``.
    :param input_schema: the JSON Schema that every input has to fit before the first is sent: a dict, the
        path or URI of a file, or the name of a schema that comes with the package, such as ``flux-schnell``.
    """

    _record_key = KEY
    # what is kept of this attempt, or else of an earlier one
    _kept: Checkpoint | None = None

    template_fields: Sequence[str] = ("app_id", "inputs", "rungen_conn_id")
    template_fields_renderers: ClassVar[dict[str, str]] = {"inputs": "json"}

    def __init__(
        self,
        *,
        inputs: Any,
        max_concurrency: int = 16,
        max_failed: float = 0,
        wait_for_completion: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(wait_for_completion=wait_for_completion, **kwargs)
        self._is_incomplete = False
        self.inputs = inputs
        self.max_concurrency = checked_count(max_concurrency, "max_concurrency")
        self.max_failed = checked_max_failed(max_failed)

    def execute(self, context: Context) -> list[str | None]:
        """
        Submit what is not submitted yet, and wait for all of it when asked to.

        :return: the ids of the jobs, in the order of the inputs.
        """
        self._begin(context)
        self._warn_if_not_durable()
        self._kept = earlier = Checkpoint.found(self._raw_store)
        if earlier is not None:
            self._jobs = (earlier.header.app_id, earlier.job_ids)
        with self._owning(context) as hook:
            inputs = Inputs(self._given_inputs(context), Schema.of(self.input_schema, "input_schema"))
            app_id = hook.resolve_app_id(self.app_id)
            self._link_to(context, hook, app_id)
            header = BatchHeader(
                app_id=app_id,
                digest=inputs.digest,
                count=inputs.count,
                deadline=time.time() + self.timeout,
                attempt=self._attempt,
            )
            kept, over = self._prepare(hook, earlier, Checkpoint(self._raw_store, header))
            self._kept = kept
            deadline = deadline_of(self, kept.header.deadline)
            refused = self._submit(context, hook, inputs, kept, over=over, deadline=deadline)
            ids = _job_ids(kept)
            if not self.wait_for_completion:
                return self._finish(context, app_id, ids, refused, [])
            waiting = [job_id for job_id in kept.job_ids if job_id not in over]
            jobs = self._wait(
                hook,
                app_id,
                waiting,
                poll_interval=self.poll_interval,
                deadline=deadline,
                known_by=time.time() + VISIBILITY_GRACE,
                hand_over=lambda: self._hand_over(context, ids),
                take=strip_payloads,
            )
            return self._finish(context, app_id, ids, refused, jobs)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> list[str | None]:
        """
        Go on after the wait in the triggerer.

        :return: the ids of the jobs, in the order of the inputs.
        """
        self._begin(context)
        ids = self._pushed(context)
        job_ids = [job_id for job_id in ids if job_id]
        self._jobs = (event.get("app_id") or self.app_id or "", job_ids)
        with self._owning(context) as hook:
            app_id = event.get("app_id") or hook.resolve_app_id(self.app_id)
            self._jobs = (app_id, job_ids)
            jobs = read_event(event)
            if event.get("count", 0) > len(jobs):  # more failed than the event holds
                looks = self._look_at(hook, app_id, job_ids).items()
                jobs = [job_of(look, app_id, job_id) for job_id, look in looks]
            return self._finish(context, app_id, ids, self._pushed_refused(context), jobs)

    @property
    def _raw_store(self) -> Any:
        return self._context.get("task_state_store") if self.durable else None

    def _note_end(self, end: End) -> None:
        if self._kept is None:  # after a deferral
            header = BatchHeader.from_store(self._state.get(KEY)) if self._state.is_durable else None
        else:
            header = self._kept.header
        if header is not None:
            self._state.note(KEY, replace(header, end=end, attempt=self._attempt).to_store())

    def _save(self) -> list[str]:
        if self._kept is not None:
            self._kept.flush_patiently()
        return self._unsaved()

    def _unsaved(self) -> list[str]:
        return [] if self._kept is None else self._kept.unkept_job_ids

    def _given_inputs(self, context: Context) -> Any:
        return self.inputs

    def _prepare(
        self, hook: RunGenHook, earlier: Checkpoint | None, new: Checkpoint
    ) -> tuple[Checkpoint, set[str]]:
        """Give what is to be kept of this attempt, and the jobs of an earlier one that have completed."""
        if earlier is None:
            return new, set()
        new.known |= earlier.known
        is_cleared = self._attempt.was_cleared_since(earlier.header.attempt, earlier.header.end)
        if earlier.is_of(new.header) and (self._resumes_clears or not is_cleared):
            over = self._take_up(hook, new.header.app_id, earlier, is_cleared=is_cleared)
            self._renew(earlier, new.header, is_cleared=is_cleared)
            return earlier, over
        if earlier.job_ids:
            log.info("The task was cleared, or its inputs or app changed: submitting all of them anew")
            if self.cancel_on_kill:
                app_id, job_ids = self._jobs
                self._cancel_all(hook, app_id, job_ids, within=cancel_time(hook, job_ids))
        self._jobs = ("", [])
        return new, set()

    def _renew(self, kept: Checkpoint, new: BatchHeader, *, is_cleared: bool) -> None:
        """Grant jobs that are run anew the whole time; after a clear, those that run get it when it is up."""
        is_late = is_cleared and kept.header.deadline <= time.time()
        if is_late or not all(_job_ids(kept)):
            kept.header = replace(kept.header, deadline=new.deadline)
        if is_cleared:  # the retries of this attempt are to find it
            kept.header = replace(kept.header, attempt=self._attempt, end=End.UNKNOWN)
            if not kept.flush_patiently():
                log.warning("Could not save in Airflow's task state store that the batch is resumed")

    def _take_up(self, hook: RunGenHook, app_id: str, kept: Checkpoint, *, is_cleared: bool) -> set[str]:
        """Look at the jobs of an earlier attempt; those that failed are run again."""
        unknown = _unknown(kept)
        if unknown and self.on_unknown_submission == "fail" and not is_cleared:
            raise RunGenSubmissionUnknownError(
                f"An earlier attempt submitted up to {len(unknown)} inputs (the first is {unknown[0]}) to "
                f"app {app_id}, and it is not known whether their jobs were created",
                hint="Look at the app's jobs, then clear the task to submit all inputs again",
                retryable=False,
            )
        known_by = kept.header.submitted_at + RESUBMISSION_GRACE
        looks = self._look_at(hook, app_id, kept.job_ids, known_by)
        completed, again = set(), 0
        for index, job_id in enumerate(kept.ids):
            look = looks.get(job_id)
            if isinstance(look, RunGenNotFoundError) or (
                isinstance(look, Job) and look.status in (JobStatus.FAILED, JobStatus.CANCELED)
            ):
                kept.note(index, Checkpoint.NOT_CREATED)
                again += 1
            elif isinstance(look, RunGenError):
                raise look
            elif look is not None and look.status is JobStatus.COMPLETED:
                completed.add(job_id)
        running = len(kept.job_ids) - len(completed)
        metrics.incr("jobs.resumed", len(kept.job_ids))
        log.info(
            "Going on where an earlier attempt stopped: %d jobs completed, %d are taken up again, %d failed "
            "and are run again, the rest of %d inputs is submitted now",
            *(len(completed), running, again, len(kept.ids)),
        )
        if unknown:
            log.warning(
                "Of %d inputs it is not known whether their jobs were created: submitting them again, which "
                "may run and bill them twice",
                len(unknown),
            )
        return completed

    @staticmethod
    def _look_at(
        hook: RunGenHook, app_id: str, job_ids: Sequence[str], known_by: float = 0.0
    ) -> dict[str, Job | RunGenError]:
        found: dict[str, Job | RunGenError] = {}

        def take(job_id: str, look: Job | RunGenError) -> None:
            if isinstance(look, RunGenError) and retry.is_transient(look):
                raise look  # there is no use in asking for the rest now
            found[job_id] = look if isinstance(look, RunGenError) else strip_payloads(look)

        hook.perform_concurrently(refetch(app_id, job_ids, take, known_by=known_by))
        return found

    def _submit(
        self,
        context: Context,
        hook: RunGenHook,
        inputs: Inputs,
        kept: Checkpoint,
        *,
        over: set[str],
        deadline: float,
    ) -> dict[int, RunGenError]:
        """Submit what has no job yet; give the inputs that were refused, with the reason."""
        app_id = kept.header.app_id
        total = sum(1 for job_id in kept.ids if not job_id or job_id == Checkpoint.NOT_CREATED)
        todo = (
            (index, item)
            for index, item in enumerate(inputs)
            if kept.ids[index] in ("", Checkpoint.NOT_CREATED)
        )

        async def submit() -> dict[int, RunGenError]:
            submission = BatchSubmission(
                hook.aperform,
                app_id,
                kept,
                max_concurrency=self.max_concurrency,
                deadline=deadline,
                is_stopping=is_killed,
            )
            try:
                await submission.run(todo, total)
            finally:
                await hook.aclose()
                self._jobs = (app_id, [job_id for job_id in kept.job_ids if job_id not in over])
                if unknown := _unknown(kept):  # what ends the attempt may be another error
                    log.warning(
                        "Fate unknown: %d inputs of app %s (the first is inputs[%d]). RunGen may have "
                        "created their jobs; look at the app's jobs",
                        *(len(unknown), app_id, unknown[0]),
                    )
            return submission.refused

        refused: dict[int, RunGenError] = {}
        known_before = len(kept.job_ids)
        self._check_killed()
        with self._naming_lost_jobs(kept), self.defer_signals():
            if total:
                # the submission itself looks for a kill, and gives what is under way its last second
                before = hook.checkpoint, hook.is_interrupted
                hook.checkpoint = hook.is_interrupted = None
                try:
                    refused = asyncio.run(submit())
                except RunGenError:
                    raise
                except Exception:
                    kept.flush_patiently()
                    if self.cancel_on_kill and (lost := kept.unkept_job_ids):
                        self._cancel_all(hook, app_id, lost, within=cancel_time(hook, lost))
                    raise
                finally:
                    hook.checkpoint, hook.is_interrupted = before
                if len(kept.ids) == len(kept.job_ids) == 1:
                    log.info("Submitted RunGen job %s to app %s", kept.job_ids[0], app_id)
                else:
                    submitted = len(kept.job_ids) - known_before  # a kill leaves inputs without a job
                    log.info("Submitted %d of %d inputs to app %s", submitted, len(kept.ids), app_id)
            context["ti"].xcom_push(key="job_ids", value=_job_ids(kept))
            for job_id in kept.job_ids[:1]:
                self._link_to_job(context, hook, app_id, job_id)
            if refused:
                # for after a deferral; the first ten are all that is ever told
                reasons = [
                    (index, error.message if n < 10 else "", not error.retryable)
                    for n, (index, error) in enumerate(sorted(refused.items()))
                ]
                context["ti"].xcom_push(key="refused", value=reasons)
        self._is_incomplete = any(job_id == Checkpoint.NOT_CREATED or not job_id for job_id in kept.ids)
        return refused

    @contextmanager
    def _naming_lost_jobs(self, kept: Checkpoint) -> Iterator[None]:
        """Log the ids that nobody else learns when the attempt ends before it pushes them."""
        try:
            yield
        except Exception as error:
            lost = kept.unkept_job_ids if self._has_next(error) else kept.job_ids
            for start in range(0, len(lost), IDS_IN_A_LINE):
                some = ", ".join(lost[start : start + IDS_IN_A_LINE])
                log.warning("No retry resumes these jobs of app %s: %s", kept.header.app_id, some)
            raise

    def _can_end_from_trigger(self) -> bool:
        return super()._can_end_from_trigger() and not self._is_incomplete

    def _hand_over(self, context: Context, ids: list[str | None]) -> None:
        context["ti"].xcom_push(key="failed", value=[])
        self._push_result(context, ids)

    def _pushed(self, context: Context) -> list[str | None]:
        ti = context["ti"]
        return ti.xcom_pull(task_ids=ti.task_id, key="job_ids", map_indexes=ti.map_index) or []

    def _pushed_refused(self, context: Context) -> dict[int, RunGenError]:
        ti, refused = context["ti"], {}
        pushed = ti.xcom_pull(task_ids=ti.task_id, key="refused", map_indexes=ti.map_index) or ()
        for index, reason, is_permanent in pushed:
            refused[index] = RunGenError(reason, retryable=not is_permanent)
        return refused

    def _pushed_job_ids(self, context: Context) -> list[str]:
        return [job_id for job_id in self._pushed(context) if job_id]

    def _finish(
        self,
        context: Context,
        app_id: str,
        ids: list[str | None],
        refused: Mapping[int, RunGenError],
        jobs: Sequence[Job],
    ) -> list[str | None]:
        """Tell which inputs failed, and fail when they are too many."""
        reasons = {index: "it was not submitted" for index, job_id in enumerate(ids) if job_id is None}
        reasons |= {index: error.message for index, error in refused.items()}
        reason_of = {}
        for job in jobs:
            try:
                job.raise_for_status()
            except RunGenJobError as error:
                reason_of[job.id] = error.message
        reasons |= {index: reason_of[job_id] for index, job_id in enumerate(ids) if job_id in reason_of}
        failed = sorted(reasons)
        context["ti"].xcom_push(key="failed", value=failed)
        job_ids = [job_id for job_id in ids if job_id]
        if not failed:
            self._tell(context, TaskOutcome(app_id, job_ids))
            log.info(
                "All %d RunGen jobs %s",
                len(ids),
                "completed" if self.wait_for_completion else "were submitted",
            )
            return ids
        allowed = max_failures(self.max_failed, len(ids))
        if len(failed) <= allowed:
            log.warning(
                "%d of %d inputs failed, as max_failed allows: %s", len(failed), len(ids), told(reasons)
            )
            self._tell(context, TaskOutcome(app_id, job_ids, failed_count=len(failed)))
            return ids
        # a retry would be refused in the same way
        retryable = len(failed) > len(refused) or any(error.retryable for error in refused.values())
        again = f"A retry runs {'only these' if self._state.is_durable else 'all inputs'} again"
        raise RunGenJobFailedError(
            f"{len(failed)} of {len(ids)} inputs failed, {allowed} may (max_failed): {told(reasons)}",
            app_id=app_id,
            job_id=next((ids[index] or "" for index in failed if ids[index]), ""),
            hint=again if retryable else "Correct them, and clear the task",
            retryable=retryable,
        )


def _job_ids(kept: Checkpoint) -> list[str | None]:
    return [job_id if job_id and job_id != Checkpoint.NOT_CREATED else None for job_id in kept.ids]


def _unknown(kept: Checkpoint) -> list[int]:
    """Return the inputs of which it is not known whether a job was created."""
    return [index for index, job_id in enumerate(kept.ids[: kept.mark]) if not job_id]
