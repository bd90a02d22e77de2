"""Jobs and apps as frozen values, read tolerantly, since the API's documentation leaves much open. No I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, TypeAlias

import pendulum

from airflow_provider_rungen.client import codec
from airflow_provider_rungen.client.texts import clean_text, error_text, format_ids
from airflow_provider_rungen.exceptions import (
    RunGenError,
    RunGenJobCanceledError,
    RunGenJobError,
    RunGenJobFailedError,
    RunGenResponseError,
)

#: What JSON can express.
JsonValue: TypeAlias = bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"] | None


class JobStatus(StrEnum):
    """The states of a job. A status that this version does not know counts as ``RUNNING``."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELED = "CANCELED"


# The documentation never shows the word for a failed job, so every usual one counts. It does show the word
# for success, so no other one counts.
_STATUSES = {
    **dict.fromkeys(("QUEUED", "IN_QUEUE", "PENDING"), JobStatus.QUEUED),
    **dict.fromkeys(("RUNNING", "IN_PROGRESS"), JobStatus.RUNNING),
    "COMPLETED": JobStatus.COMPLETED,
    **dict.fromkeys(("CANCELED", "CANCELLED"), JobStatus.CANCELED),
    **dict.fromkeys(("FAILED", "FAILURE", "FAIL", "ERROR", "ERRORED"), JobStatus.FAILED),
    **dict.fromkeys(("TIMED_OUT", "TIMEOUT"), JobStatus.FAILED),
}
# What tells an answer about a job or an app from other JSON: any gateway may answer with a ``status``.
_JOB_FIELDS = ("id", "job_id", "created_at", "execution_time", "request", "input")
_APP_FIELDS = ("id", "app_id", "name", "configuration", "active_workers", "workers", "jobs", "workflow")
GPU_TIERS = ("BASIC", "STANDARD", "PERFORMANCE")
_APP_STATUSES = ("STOPPED", "INITIALIZING", "RUNNING")


def normalize_status(status: str) -> str:
    """Return a status in capitals, with underscores."""
    return re.sub(r"[\s_-]+", "_", status.strip()).upper()


@dataclass(frozen=True, slots=True)
class Job:
    """
    One run of an app on one input.

    :param id: the job's id.
    :param app_id: the app it runs on.
    :param status: its state.
    :param result: the model's output; ``None`` until the job has completed. It may hold signed URLs, so it is
        not part of the ``repr``.
    :param error: the service's error text, cut and escaped.
    :param input: the job's input, if the answer has it. It may hold signed URLs, too.
    :param created_at: when the service accepted it (aware, in UTC).
    :param execution_time: seconds of work, if known; 0 if it was canceled before it ran.
    :param raw_status: the service's own word for the status.
    :param cause: the error that came in place of an answer, when many jobs were asked for.
    """

    id: str
    app_id: str
    status: JobStatus = JobStatus.QUEUED
    result: Any = field(default=None, repr=False)
    error: str = ""
    input: Any = field(default=None, repr=False)
    created_at: pendulum.DateTime | None = None
    execution_time: float | None = None
    raw_status: str = field(default="", repr=False)
    cause: RunGenError | None = field(default=None, repr=False)

    @property
    def is_terminal(self) -> bool:
        """Whether the job is over: completed, failed or canceled."""
        return self.status in (JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELED)

    @property
    def is_known_status(self) -> bool:
        """Whether this version knows the service's word for the status."""
        return not self.raw_status or normalize_status(self.raw_status) in _STATUSES

    @property
    def is_usable(self) -> bool:
        """Whether it has completed, and the answer that says so could be read."""
        return self.status is JobStatus.COMPLETED and self.cause is None

    def raise_for_status(self) -> None:
        """
        Raise an error unless the job has completed.

        :raises RunGenJobFailedError: it failed; the message has the service's error text.
        :raises RunGenJobCanceledError: it was canceled.
        :raises RunGenJobError: it is not over.
        :raises RunGenError: its ``cause``.
        """
        if self.cause is not None:
            raise self.cause
        if self.status is JobStatus.COMPLETED:
            return
        kinds = {JobStatus.FAILED: RunGenJobFailedError, JobStatus.CANCELED: RunGenJobCanceledError}
        kind = kinds.get(self.status, RunGenJobError)
        end = self.end_text if self.is_terminal else f"Not over yet: {self.status}"
        error = kind(f"{end} {format_ids(self.app_id, self.id)}", app_id=self.app_id, job_id=self.id)
        error.reason, error.execution_time = self.error, self.execution_time
        raise error

    @property
    def end_text(self) -> str:
        """How the job ended, without its ids: ``Failed: out of memory``."""
        reason = self.error.rstrip(".")
        if self.status is JobStatus.FAILED and not reason:
            reason = f"the service gave no reason (status {clean_text(self.raw_status, 50)})"
        return f"{self.status.capitalize()}: {reason}" if reason else self.status.capitalize()

    @classmethod
    def from_json(
        cls, body: Any, *, app_id: str, job_id: str | None = None, status: JobStatus | None = None
    ) -> Job:
        """
        Return the job of an answer, wrapped in ``data`` or not.

        :param body: the decoded answer.
        :param app_id: the app of the request.
        :param job_id: the job of the request. Without it, the answer must have an id.
        :param status: the status to assume if the answer has none.
        :raises RunGenResponseError: the answer lacks an id or a status, is about another job or app, or has
            none of the fields of a job.
        """
        item = codec.unwrap(body)
        codec.check_identity(item, ("app_id",), app_id, format_ids(app_id))
        if job_id is not None:
            codec.check_identity(item, ("job_id", "id"), job_id, format_ids(app_id, job_id))
            codec.check_fields(item, _JOB_FIELDS, "job", format_ids(app_id, job_id))
        job_id = job_id or codec.to_id(item.get("job_id")) or codec.to_id(item.get("id"))
        if not job_id:
            raise codec.missing("job id", format_ids(app_id), body)
        raw_status = item.get("status")
        if isinstance(raw_status, str) and raw_status.strip():
            status = _STATUSES.get(normalize_status(raw_status), JobStatus.RUNNING)
        elif status is None:
            raise codec.missing("status", format_ids(app_id, job_id), body)
        error = ""
        if status is JobStatus.FAILED:
            error = error_text({**codec.to_mapping(body), **item}) or error_text(item.get("result"))
        execution_time = codec.to_seconds(item.get("execution_time"))
        if execution_time is None and status is JobStatus.CANCELED:  # before it ran
            execution_time = 0.0
        return cls(
            id=job_id,
            app_id=app_id,
            status=status,
            result=item.get("result"),
            error=error,
            input=_input(item),
            created_at=codec.to_time(item.get("created_at")),
            execution_time=execution_time,
            raw_status=raw_status if isinstance(raw_status, str) else "",
        )


@dataclass(frozen=True, slots=True)
class App:
    """
    A deployed model.

    :param id: the app's id.
    :param name: its name.
    :param description: its description.
    :param status: ``STOPPED``, ``INITIALIZING``, ``RUNNING``, or another word of the service, in capitals.
    :param configuration: ``active_workers``, ``gpu_tier``, …, as the API returns them.
    :param workflow: ``model_url``, ``tools``, as the API returns them.
    :param jobs: the number of jobs by state; empty if the service returns none.
    :param workers: the number of workers by state; empty if the service returns none.
    :param created_at: when it was created (aware, in UTC).
    :param updated_at: when it was changed last (aware, in UTC).
    """

    id: str
    name: str = ""
    description: str = ""
    status: str = ""
    configuration: Mapping[str, Any] = field(default_factory=dict, repr=False)
    workflow: Mapping[str, Any] = field(default_factory=dict, repr=False)
    jobs: Mapping[str, int] = field(default_factory=dict)
    workers: Mapping[str, int] = field(default_factory=dict)
    created_at: pendulum.DateTime | None = None
    updated_at: pendulum.DateTime | None = None

    @property
    def label(self) -> str:
        """Its name and its id, which is what tasks and connections need."""
        return f"{self.name[:60]} ({self.id})" if self.name else self.id

    @property
    def active_workers(self) -> int | None:
        """The number of workers the app is set to, if known. It is billed while there is one."""
        return codec.to_counts(self.configuration).get("active_workers")

    @property
    def pending_jobs(self) -> int | None:
        """The number of jobs that are queued or running, if the service counts them."""
        counts = [self.jobs[name] for name in ("in_queue", "in_progress") if name in self.jobs]
        return sum(counts) if counts else None

    def has_status(self, status: str) -> bool:
        """
        Return whether the app has this status.

        An app without a known status is judged by its workers: it is ``STOPPED`` if it has none. An app
        without any status is ``RUNNING`` if a worker is.

        :param status: a status, in capitals.
        """
        if self.status == status or self.status in _APP_STATUSES:
            return self.status == status
        if status == "STOPPED":
            return self.active_workers == 0 and not any(self.workers.values())
        is_working = any(self.workers.get(name) for name in ("idle", "ready", "running"))
        return status == "RUNNING" and not self.status and is_working

    @classmethod
    def from_json(cls, body: Any, *, app_id: str | None = None, is_change: bool = False) -> App:
        """
        Return the app of an answer, wrapped in ``data`` or not.

        :param body: the decoded answer.
        :param app_id: the app of the request. Without it, the answer must have an id.
        :param is_change: whether the request changed the app: then the answer may have nothing of it.
        :raises RunGenResponseError: the answer lacks an id, is about another app, or has none of the fields
            of an app.
        """
        item = codec.unwrap(body)
        if app_id is not None:
            codec.check_identity(item, ("id", "app_id"), app_id, format_ids(app_id))
            if not is_change:
                codec.check_fields(item, _APP_FIELDS, "app", format_ids(app_id))
        app_id = app_id or codec.to_id(item.get("id")) or codec.to_id(item.get("app_id"))
        if not app_id:
            raise codec.missing("app id", "", body)
        outside = {"active_workers": item["active_workers"]} if "active_workers" in item else {}
        return cls(
            id=app_id,
            name=codec.to_text(item.get("name")),
            description=codec.to_text(item.get("description")),
            status=normalize_status(codec.to_text(item.get("status"))),
            configuration=outside | dict(codec.to_mapping(item.get("configuration"))),
            workflow=codec.to_mapping(item.get("workflow")),
            jobs=codec.to_counts(item.get("jobs")),
            workers=codec.to_counts(item.get("workers")),
            created_at=codec.to_time(item.get("created_at")),
            updated_at=codec.to_time(item.get("updated_at")),
        )

    @classmethod
    def list_from_json(cls, body: Any) -> list[App]:
        """
        Return the apps of an answer, wrapped in ``data`` or not.

        :param body: the decoded answer.
        :raises RunGenResponseError: the answer is not a list of apps.
        """
        items = body.get("data") if isinstance(body, Mapping) else body
        if not isinstance(items, list):
            raise RunGenResponseError("GET /app did not return a list")
        return [cls.from_json(item) for item in items]


def _input(item: Mapping[str, Any]) -> Any:
    request = item.get("request")
    if isinstance(request, Mapping):
        return request.get("input", request)
    return item.get("input") if request is None else request
