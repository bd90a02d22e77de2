"""What the API speaks of, as frozen values, tolerant of what the contract leaves open."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

import pendulum

from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.exceptions import (
    RunGenJobCanceledError,
    RunGenJobError,
    RunGenJobFailedError,
    RunGenResponseError,
)

MAX_TEXT = 500


class JobStatus(StrEnum):
    """The states of a job. A word never seen before counts as ``RUNNING``."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELED = "CANCELED"


# The contract has never seen the word for a failed job, so every usual one is taken for it. Success has
# been seen, and no other word is trusted to mean it.
_STATUS_WORDS = {
    "QUEUED": JobStatus.QUEUED,
    "IN_QUEUE": JobStatus.QUEUED,
    "PENDING": JobStatus.QUEUED,
    "RUNNING": JobStatus.RUNNING,
    "IN_PROGRESS": JobStatus.RUNNING,
    "COMPLETED": JobStatus.COMPLETED,
    "CANCELED": JobStatus.CANCELED,
    "CANCELLED": JobStatus.CANCELED,
    "FAILED": JobStatus.FAILED,
    "FAILURE": JobStatus.FAILED,
    "FAIL": JobStatus.FAILED,
    "ERROR": JobStatus.FAILED,
    "ERRORED": JobStatus.FAILED,
    "TIMED_OUT": JobStatus.FAILED,
    "TIMEOUT": JobStatus.FAILED,
}
_APP_STATUSES = ("STOPPED", "INITIALIZING", "RUNNING")
_ERROR_FIELDS = (
    "error",
    "error_message",
    "message",
    "msg",
    "detail",
    "details",
    "reason",
    "failure_reason",
    "errors",
    "error_code",
    "code",
)


def clean_text(text: str, limit: int = MAX_TEXT) -> str:
    """Make text from the service fit for a log: no secrets of URLs, no control characters, not long."""
    text = redact(text, most=limit * 20)
    cut = text if len(text) <= limit else text[:limit] + "…"
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode()
        for char in cut
    )


def error_text(body: Any, depth: int = 5) -> str:
    """Find the service's own words about what went wrong, wherever they stand; empty where there are none."""
    if isinstance(body, str):
        return clean_text(body.strip())
    if isinstance(body, list) and depth:
        return clean_text("; ".join(filter(None, (error_text(item, depth - 1) for item in body[:10]))))
    if isinstance(body, Mapping) and depth:
        return next(filter(None, (error_text(body.get(name), depth - 1) for name in _ERROR_FIELDS)), "")
    return ""


@dataclass(frozen=True, slots=True)
class Job:
    """
    One run of an app on one input.

    :param id: the job's id.
    :param app_id: the app it runs on.
    :param status: where it stands.
    :param result: what the model made; ``None`` until the job is completed. It may hold signed URLs, so it
        is not part of the ``repr``.
    :param error: the service's error text, cut and escaped.
    :param input: what it was given, where the answer tells it. It may hold signed URLs, too.
    :param created_at: when the service took it (aware, UTC; a time without a zone is taken as UTC).
    :param execution_time: seconds of work, where known.
    :param raw_status: the service's own word for the status.
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

    @property
    def is_terminal(self) -> bool:
        """Whether the job is over, one way or another."""
        return self.status in (JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELED)

    @property
    def is_known_status(self) -> bool:
        """Whether the service's word for the status is one this version knows."""
        return not self.raw_status or normalize_status(self.raw_status) in _STATUS_WORDS

    def raise_for_status(self) -> None:
        """
        Raise when the job did not complete.

        :raises RunGenJobFailedError: it failed; with the service's error text.
        :raises RunGenJobCanceledError: it was canceled.
        """
        name = f"RunGen job {self.id} of app {self.app_id}"
        said = f": {self.error.rstrip('.')}" if self.error else ""
        if self.status is JobStatus.FAILED:
            said = said or f" (status {clean_text(self.raw_status, 50)}; the service gave no reason)"
            raise RunGenJobFailedError(f"{name} failed{said}", app_id=self.app_id, job_id=self.id)
        if self.status is JobStatus.CANCELED:
            raise RunGenJobCanceledError(f"{name} was canceled{said}", app_id=self.app_id, job_id=self.id)
        if self.status is not JobStatus.COMPLETED:
            message = f"{name} is not over yet: it is {self.status}"
            raise RunGenJobError(message, app_id=self.app_id, job_id=self.id)

    @classmethod
    def from_json(
        cls, body: Any, *, app_id: str, job_id: str | None = None, status: JobStatus | None = None
    ) -> Job:
        """
        Read a job from an answer, wrapped in ``data`` or not.

        :param body: the decoded answer.
        :param app_id: the app that was asked.
        :param job_id: the job that was asked for; without it the answer must name one.
        :param status: what to assume where the answer names no status.
        :raises RunGenResponseError: the answer holds no id or no status and none is given, or it is about
            another job or app.
        """
        item = _unwrapped(body)
        _check_identity(item, ("app_id",), app_id, f"app {app_id}")
        if job_id is not None:
            _check_identity(item, ("job_id", "id"), job_id, f"job {job_id} of app {app_id}")
        job_id = job_id or _id(item.get("job_id")) or _id(item.get("id"))
        if not job_id:
            raise RunGenResponseError(
                f"RunGen's answer about a job of app {app_id} names no job id{_said(body)}"
            )
        word = item.get("status")
        if isinstance(word, str) and word.strip():
            # a word never seen counts as still running, never as success
            status = _STATUS_WORDS.get(normalize_status(word), JobStatus.RUNNING)
        elif status is None:
            raise RunGenResponseError(
                f"RunGen's answer about job {job_id} of app {app_id} names no status{_said(body)}"
            )
        error = ""
        if status is JobStatus.FAILED:
            error = error_text({**_mapping(body), **item}) or error_text(item.get("result"))
        return cls(
            id=job_id,
            app_id=app_id,
            status=status,
            result=item.get("result"),
            error=error,
            input=_input(item),
            created_at=_time(item.get("created_at")),
            execution_time=_number(item.get("execution_time")),
            raw_status=word if isinstance(word, str) else "",
        )


@dataclass(frozen=True, slots=True)
class App:
    """
    A deployed model.

    :param id: the app's id.
    :param name: its name.
    :param description: what it is for.
    :param status: ``STOPPED``, ``INITIALIZING``, ``RUNNING``, or another word of the service, in capitals.
    :param configuration: ``active_workers``, ``gpu_tier``, …, as the API gives them.
    :param workflow: ``model_url``, ``tools``, as the API gives them.
    :param jobs: counts by state, empty where the service gives none.
    :param workers: counts by state, empty where the service gives none.
    :param created_at: when it was made (aware, UTC).
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

    @property
    def active_workers(self) -> int | None:
        """How many workers the app is set to have, where it says so; the bill runs while there is one."""
        return _counts(self.configuration).get("active_workers")

    @property
    def busy(self) -> int | None:
        """How many jobs are queued or running, where the app counts them."""
        counts = [self.jobs[name] for name in ("in_queue", "in_progress") if name in self.jobs]
        return sum(counts) if counts else None

    def has_status(self, status: str) -> bool:
        """
        Whether the app has this status.

        Without a status, or with one that the contract does not know, its workers tell that it has stopped;
        without a status they tell that it runs.
        """
        if self.status == status or self.status in _APP_STATUSES:
            return self.status == status
        if status == "STOPPED":
            return self.active_workers == 0 and not any(self.workers.values())
        is_working = any(self.workers.get(name) for name in ("idle", "ready", "running"))
        return status == "RUNNING" and not self.status and is_working

    @classmethod
    def from_json(cls, body: Any, *, app_id: str | None = None) -> App:
        """
        Read an app from an answer, wrapped in ``data`` or not.

        :raises RunGenResponseError: the answer holds no id and none is given, or it is about another app.
        """
        item = _unwrapped(body)
        if app_id is not None:
            _check_identity(item, ("id", "app_id"), app_id, f"app {app_id}")
        app_id = app_id or _id(item.get("id")) or _id(item.get("app_id"))
        if not app_id:
            raise RunGenResponseError(f"RunGen's answer about an app names no app id{_said(body)}")
        return cls(
            id=app_id,
            name=_text(item.get("name")),
            description=_text(item.get("description")),
            status=normalize_status(_text(item.get("status"))),
            configuration={
                **({"active_workers": item["active_workers"]} if "active_workers" in item else {}),
                **_mapping(item.get("configuration")),
            },
            workflow=_mapping(item.get("workflow")),
            jobs=_counts(item.get("jobs")),
            workers=_counts(item.get("workers")),
            created_at=_time(item.get("created_at")),
        )

    @classmethod
    def list_from_json(cls, body: Any) -> list[App]:
        """Read the list of apps, wrapped in ``data`` or not."""
        items = body.get("data") if isinstance(body, Mapping) else body
        if not isinstance(items, list):
            raise RunGenResponseError("RunGen's answer to the question for the apps holds no list")
        return [cls.from_json(item) for item in items]


def _unwrapped(body: Any) -> Mapping[str, Any]:
    if isinstance(body, Mapping):
        data = body.get("data")
        return data if isinstance(data, Mapping) else body
    raise RunGenResponseError("RunGen's answer is JSON, but not an object")


def _check_identity(item: Mapping[str, Any], names: Sequence[str], wanted: str, what: str) -> None:
    """Refuse an answer that names ids, none of which is the one that was asked for."""
    named = [found for name in names if (found := _id(item.get(name)))]
    if named and all(each.casefold() != wanted.casefold() for each in named):
        raise RunGenResponseError(
            f"RunGen was asked about {what}, but its answer is about {clean_text(named[0], 80)}"
        )


def _input(item: Mapping[str, Any]) -> Any:
    request = item.get("request")
    if isinstance(request, Mapping):
        return request.get("input", request)
    return item.get("input") if request is None else request


def _said(body: Any) -> str:
    return f", but says: {text}" if (text := error_text(body)) else ""


def normalize_status(word: str) -> str:
    return re.sub(r"[\s_-]+", "_", word.strip()).upper()


def _id(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value.strip() if isinstance(value, str) else ""


def _text(value: Any) -> str:
    return clean_text(value) if isinstance(value, str) else ""


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _counts(value: Any) -> Mapping[str, int]:
    counts: dict[str, int] = {}
    for name, count in _mapping(value).items():
        if isinstance(count, str) and count.isascii() and count.isdigit() and len(count) < 10:
            counts[name] = int(count)
        elif isinstance(count, int) and not isinstance(count, bool) and count >= 0:
            counts[name] = count
    return counts


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _time(value: Any) -> pendulum.DateTime | None:
    if not isinstance(value, str):
        return None
    try:
        return pendulum.instance(datetime.fromisoformat(value.strip()), tz="UTC").in_timezone("UTC")
    except (ValueError, OverflowError):
        return None
