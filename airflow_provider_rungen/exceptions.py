"""The errors of the provider, all picklable, none holding a key or the query string of a URL.

::

    RunGenError
    ├── RunGenConfigError              the Airflow connection is wrong; the message names the field
    ├── RunGenInputError               an input, id or schema that cannot be used; nothing was sent
    ├── RunGenLimitError               more would be bought than ``max_jobs`` or ``max_cost`` allows
    ├── RunGenConnectionError          the service could not be reached, or its answer never came
    ├── RunGenResponseError            an answer that cannot be read
    ├── RunGenAPIError                 the API refused: ``status_code``, and the service's own words
    │   ├── RunGenBadRequestError      400, 413, 422
    │   ├── RunGenForbiddenError       401, 403
    │   ├── RunGenNotFoundError        404
    │   ├── RunGenConflictError        409
    │   ├── RunGenRateLimitedError     429
    │   └── RunGenServerError          5xx
    ├── RunGenSubmissionUnknownError   a job may or may not have been created
    ├── RunGenAppError                 an app is not as it is needed: ``app_id``
    │   └── RunGenAppTimeoutError      it did not get there in the time it was given
    └── RunGenJobError                 ``app_id``, ``job_id``
        ├── RunGenJobFailedError
        ├── RunGenJobCanceledError
        ├── RunGenJobTimeoutError
        │   └── RunGenJobQueuedTimeoutError    the app had no worker for ``queued_timeout``
        ├── RunGenResultError          the job completed, but its result does not fit ``output_type``
        ├── RejectRow                  raised by the function ``check`` of a table
        └── RunGenOutputError          the job completed, but an output cannot be fetched or stored

Every error has a ``message``, a ``hint`` (what to do next), and ``retryable``: whether the same call may
succeed later. ``str(error)`` is the message and the hint. An error that ends a task has its ``app_id`` and
``job_ids``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, TypeVar

Error = TypeVar("Error", bound=BaseException)


class RunGenError(Exception):
    """
    The root of everything this provider raises.

    :param message: what failed, and why.
    :param hint: what to do next. Each class has a default.
    :param retryable: whether the same call may succeed later. Each class has a default.
    :param app_id: the app, if it is known.
    :param job_id: the job, if it is about a single one.
    :param retry_after: the seconds that the service asked to wait before it is asked again, where it did.
    """

    default_hint: ClassVar[str] = ""
    default_retryable: ClassVar[bool] = True

    #: The jobs of the task that raised it, in order.
    job_ids: Sequence[str] = ()
    #: The first rows that failed, if a table raised it: ``key``, ``status``, ``error`` and more of each.
    failed_rows: Sequence[Mapping[str, Any]] = ()

    def __init__(
        self,
        message: str = "",
        *,
        hint: str | None = None,
        retryable: bool | None = None,
        app_id: str = "",
        job_id: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.app_id = app_id
        self.job_id = job_id
        self.retry_after = retry_after
        self.message = message.strip().removesuffix(".")
        self.hint = (self.default_hint if hint is None else hint).strip().removesuffix(".")
        self.retryable = self.default_retryable if retryable is None else retryable

    def __str__(self) -> str:
        return f"{self.message}. {self.hint}." if self.hint else self.message

    def add_hint(self, hint: str) -> None:
        """Add what else to do, or to know."""
        self.hint = ". ".join(filter(None, (self.hint, hint.strip().removesuffix("."))))

    def revised(self, message: str, *, hint: str, retryable: bool) -> Self:
        """Return a copy of the error with another message and hint."""
        revised = copy.copy(self)
        revised.args = (message,)
        revised.message, revised.hint, revised.retryable = message, hint, retryable
        return revised

    def named_in(self, error: Error) -> Error:
        """Return an error that is raised in place of this one, with its texts, its app and its jobs."""
        for name in ("message", "hint", "app_id", "job_id", "job_ids", "failed_rows"):
            setattr(error, name, getattr(self, name))
        return error


class RunGenConfigError(RunGenError):
    """The Airflow connection cannot be used as it is."""

    default_retryable = False


class RunGenInputError(RunGenError, ValueError):
    """An input, id or schema cannot be used; no request was made."""

    default_retryable = False


class RunGenLimitError(RunGenError):
    """A task would buy more than ``max_jobs`` or ``max_cost`` allows; no job was submitted."""

    default_retryable = False


class RunGenConnectionError(RunGenError):
    """
    The service could not be reached, or the connection was lost before the whole answer came.

    :param sent: whether the request may have reached the service.
    """

    default_hint = "Check Base URL and Proxy of the Airflow connection, or try again later"

    def __init__(
        self, message: str, *, sent: bool = True, hint: str | None = None, retryable: bool | None = None
    ) -> None:
        super().__init__(message, hint=hint, retryable=retryable)
        self.sent = sent


class RunGenResponseError(RunGenError):
    """
    The service answered with something that cannot be read.

    :param is_too_large: whether it is beyond a limit of this side. The service has what was asked for.
    """

    default_hint = "Check the Base URL of the Airflow connection, or try again later"

    def __init__(
        self,
        message: str = "",
        *,
        is_too_large: bool = False,
        hint: str | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message, hint=hint, retryable=retryable)
        self.is_too_large = is_too_large


class RunGenAPIError(RunGenError):
    """
    The API refused the request.

    :param status_code: the HTTP status.
    :param is_from_service: whether the answer is certainly the service's own, and not that of a proxy, which
        may have passed the request on.
    """

    def __init__(
        self,
        message: str,
        *,
        status_code: int = 0,
        retry_after: float | None = None,
        is_from_service: bool = False,
        hint: str | None = None,
        retryable: bool | None = None,
        app_id: str = "",
    ) -> None:
        super().__init__(message, hint=hint, retryable=retryable, retry_after=retry_after, app_id=app_id)
        self.status_code = status_code
        self.is_from_service = is_from_service


class RunGenBadRequestError(RunGenAPIError):
    """The input or the body is invalid (400, 413, 422)."""

    default_hint = "Correct the input"
    default_retryable = False


class RunGenForbiddenError(RunGenAPIError):
    """The API key is missing, wrong or not allowed (401, 403)."""

    default_hint = "Check the password of the Airflow connection"
    default_retryable = False


class RunGenNotFoundError(RunGenAPIError):
    """There is no such app, or no such job of that app (404)."""

    default_hint = "Check job_id, app_id, and the Team ID of the Airflow connection"
    default_retryable = False


class RunGenConflictError(RunGenAPIError):
    """The state of the job or app does not allow it, such as canceling a job that has ended (409)."""


class RunGenRateLimitedError(RunGenAPIError):
    """Too many requests (429)."""

    default_hint = "Send fewer requests at a time"


class RunGenServerError(RunGenAPIError):
    """The service is in trouble (5xx)."""

    default_hint = "Try again later"


class RunGenSubmissionUnknownError(RunGenError):
    """A job was sent, but the answer does not tell whether it was created."""


class RunGenAppError(RunGenError):
    """An app is not as it is needed."""


class RunGenAppTimeoutError(RunGenAppError, TimeoutError):
    """The app did not come to the state or number of workers in the time it was given."""


class RunGenJobError(RunGenError):
    """A job did not come to the end it was meant for."""

    default_hint = "Wait for it first"

    #: How long the job ran (seconds), if its end and that are known.
    execution_time: float | None = None
    #: The service's own words, if the job failed or was canceled: the message adds how it ended, and its ids.
    reason: str | None = None


class RunGenJobFailedError(RunGenJobError):
    """The job failed; the message holds the service's error text."""

    default_hint = "Correct its input if that is the reason, and run it again"


class RunGenJobCanceledError(RunGenJobError):
    """The job was canceled."""

    default_hint = "Clear the task that ran it, to run it again"


class RunGenJobTimeoutError(RunGenJobError, TimeoutError):
    """The job did not end in time."""

    default_hint = "Raise timeout or execution_timeout if it needs longer"


class RunGenJobQueuedTimeoutError(RunGenJobTimeoutError):
    """The job waited for longer than ``queued_timeout`` while its app had no worker."""

    default_hint = "Scale the app up, with scaled_app or in its console"


class RunGenResultError(RunGenJobError):
    """
    The job completed, but its result does not fit ``output_type``.

    ``returned`` is the result, without the secrets of its URLs, where it is small.
    """

    returned: Any = None
    default_hint = "Look at the result, or correct the schema"
    default_retryable = False


class RejectRow(RunGenJobError):  # noqa: N818 - it is raised by users, and says what they want
    """A function ``check`` raises it: the job completed, but its row is to be run again by a retry."""

    default_hint = "Look at what is stored of the job"
    default_retryable = False


class RunGenOutputError(RunGenJobError):
    """The job completed, but an output cannot be fetched or stored, or the result is too large for XCom."""

    default_hint = ""
    #: Whether the URL of an output expired, so that only a new job can bring it back.
    is_expired = False
    #: Whether the destination, or the host of the file, was out, which says nothing about the job.
    is_outage = False
