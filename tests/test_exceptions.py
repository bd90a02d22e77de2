"""The errors: they survive the way between processes, and say whether trying again can help."""

from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import pytest

from airflow_provider_rungen import exceptions
from airflow_provider_rungen.exceptions import (
    RunGenAPIError,
    RunGenBadRequestError,
    RunGenConfigError,
    RunGenConnectionError,
    RunGenError,
    RunGenForbiddenError,
    RunGenInputError,
    RunGenJobError,
    RunGenJobTimeoutError,
    RunGenNotFoundError,
    RunGenResponseError,
    RunGenSubmissionUnknownError,
)

KINDS: list[type[RunGenError]] = [
    kind for kind in vars(exceptions).values() if isinstance(kind, type) and issubclass(kind, RunGenError)
]


def _make(kind: type[RunGenError]) -> RunGenError:
    details: dict[str, Any] = {}
    if issubclass(kind, RunGenAPIError):
        details = {"status_code": 418, "retry_after": 2.5, "is_from_service": True}
    elif issubclass(kind, RunGenJobError):
        details = {"app_id": "app", "job_id": "job"}
    elif issubclass(kind, RunGenConnectionError):
        details = {"sent": False}
    return kind("what happened", **details)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_needs_but_a_message_and_survives_pickling_and_copying(kind: type[RunGenError]) -> None:
    error = _make(kind)
    error.retryable = not error.retryable
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):  # noqa: S301
        assert (type(other), str(other), vars(other)) == (kind, str(error), vars(error))
    error = kind("x.")
    assert error.message == "x"
    assert str(error) == (f"x. {error.hint}." if error.hint else "x")
    assert [str(kind("x", hint=hint)) for hint in ("Do y.", "")] == ["x. Do y.", "x"]


def test_every_error_is_drawn_in_the_tree() -> None:
    assert exceptions.__doc__ is not None
    drawn = re.findall(r"^ .*?(RunGen\w*Error|RejectRow)\b", exceptions.__doc__, re.MULTILINE)
    assert sorted(drawn) == sorted(kind.__name__ for kind in KINDS)
    assert all(kind.__doc__ for kind in KINDS)


def test_which_refusals_are_final() -> None:
    final = {RunGenBadRequestError, RunGenForbiddenError, RunGenNotFoundError}
    assert {kind for kind in KINDS if issubclass(kind, RunGenAPIError) and not kind("x").retryable} == final


def test_which_other_errors_are_retryable_and_what_they_are_to_python() -> None:
    assert not RunGenConfigError("x").retryable
    assert not RunGenInputError("x").retryable
    for kind in (RunGenConnectionError, RunGenResponseError, RunGenSubmissionUnknownError, RunGenJobError):
        assert kind("x").retryable
    assert issubclass(RunGenInputError, ValueError)
    assert issubclass(RunGenJobTimeoutError, TimeoutError)
    assert RunGenConnectionError("x").sent
