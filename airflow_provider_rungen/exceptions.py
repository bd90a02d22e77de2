"""The errors of the provider, all picklable, none holding a key or the query string of a URL.

::

    RunGenError
    ├── RunGenConfigError              the Airflow connection is wrong; the message names the field
    ├── RunGenInputError               an input, id or schema that cannot be used; nothing was sent
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
        ├── RunGenResultError          the job completed, but its result does not fit ``result_schema``
        └── RunGenOutputError          the job completed, but an output cannot be fetched or stored

``hopeless`` says that trying the same again cannot help.
"""

from __future__ import annotations


class RunGenError(Exception):
    """The root of everything this provider raises."""

    hopeless: bool = False


class RunGenConfigError(RunGenError):
    """The Airflow connection cannot be used as it is."""

    hopeless = True


class RunGenInputError(RunGenError, ValueError):
    """What was given cannot be sent to RunGen; no request was made."""

    hopeless = True


class RunGenConnectionError(RunGenError):
    """
    The service could not be reached, or the connection was lost before the whole answer came.

    :param sent: whether the request may have reached the service.
    """

    def __init__(self, message: str, *, sent: bool = True) -> None:
        super().__init__(message)
        self.sent = sent


class RunGenResponseError(RunGenError):
    """The service answered with something that cannot be read."""


class RunGenAPIError(RunGenError):
    """
    The API refused the request.

    :param status_code: the HTTP status.
    :param retry_after: the seconds the service asked to wait, where it did.
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
    ) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.retry_after = retry_after
        self.is_from_service = is_from_service
        self.hopeless = 300 <= status_code < 500 and status_code not in (408, 429)


class RunGenBadRequestError(RunGenAPIError):
    """The input or the body is invalid (400, 413, 422)."""


class RunGenForbiddenError(RunGenAPIError):
    """The API key is missing, wrong or not allowed (401, 403)."""


class RunGenNotFoundError(RunGenAPIError):
    """There is no such app, or no such job of that app (404)."""


class RunGenConflictError(RunGenAPIError):
    """The state of the job or app does not allow it, such as canceling a job that is over (409)."""


class RunGenRateLimitedError(RunGenAPIError):
    """Too many requests (429)."""


class RunGenServerError(RunGenAPIError):
    """The service is in trouble (5xx)."""


class RunGenSubmissionUnknownError(RunGenError):
    """A job was sent, but the answer does not tell whether it was created."""


class RunGenAppError(RunGenError):
    """
    An app is not as it is needed.

    :param app_id: the app.
    """

    def __init__(self, message: str, *, app_id: str = "") -> None:
        super().__init__(message)
        self.app_id = app_id


class RunGenAppTimeoutError(RunGenAppError, TimeoutError):
    """The app did not come to the state or number of workers in the time it was given."""


class RunGenJobError(RunGenError):
    """
    A job did not come to the end it was meant for.

    :param app_id: the app the job belongs to.
    :param job_id: the job.
    """

    def __init__(self, message: str, *, app_id: str = "", job_id: str = "") -> None:
        super().__init__(message)
        self.app_id = app_id
        self.job_id = job_id


class RunGenJobFailedError(RunGenJobError):
    """The job failed; the message holds the service's error text."""


class RunGenJobCanceledError(RunGenJobError):
    """The job was canceled."""


class RunGenJobTimeoutError(RunGenJobError, TimeoutError):
    """The job was not over in the time it was given."""


class RunGenResultError(RunGenJobError):
    """The job completed, but its result does not fit the schema that it was held against."""

    hopeless = True


class RunGenOutputError(RunGenJobError):
    """The job completed, but an output cannot be fetched or stored, or the result is too large for XCom."""
