"""The errors: they survive the way between processes, and say whether trying again can help."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest

from airflow_provider_rungen import exceptions
from airflow_provider_rungen.exceptions import (
    RunGenAPIError,
    RunGenConfigError,
    RunGenConnectionError,
    RunGenError,
    RunGenInputError,
    RunGenJobError,
    RunGenJobTimeoutError,
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
def test_an_error_survives_pickling_and_copying(kind: type[RunGenError]) -> None:
    error = _make(kind)
    error.hopeless = not error.hopeless  # also when it was changed, as the trigger's event does
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):  # noqa: S301
        assert type(other) is kind
        assert str(other) == "what happened"
        assert vars(other) == vars(error)


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_needs_but_a_message(kind: type[RunGenError]) -> None:
    assert str(kind("x")) == "x"


def test_every_error_is_drawn_in_the_tree() -> None:
    assert exceptions.__doc__ is not None
    assert len(KINDS) == 21
    for kind in KINDS:
        assert kind.__name__ in exceptions.__doc__
        assert kind.__doc__


@pytest.mark.parametrize(
    ("status", "hopeless"),
    [
        *[
            (code, True)
            for code in (300, 302, 308, 400, 401, 402, 403, 404, 405, 409, 410, 413, 415, 422, 451)
        ],
        *[(code, False) for code in (0, 100, 408, 429, 500, 501, 502, 503, 504, 599)],
    ],
)
def test_which_refusals_are_hopeless(status: int, hopeless: bool) -> None:
    assert RunGenAPIError("x", status_code=status).hopeless is hopeless


def test_which_other_errors_are_hopeless() -> None:
    assert RunGenConfigError("x").hopeless
    assert RunGenInputError("x").hopeless
    for kind in (RunGenConnectionError, RunGenResponseError, RunGenSubmissionUnknownError, RunGenJobError):
        assert not kind("x").hopeless


def test_the_errors_are_also_what_python_calls_them() -> None:
    assert issubclass(RunGenInputError, ValueError)
    assert issubclass(RunGenJobTimeoutError, TimeoutError)
    assert RunGenConnectionError("x").sent
