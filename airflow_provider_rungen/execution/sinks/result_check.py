"""Asks the function ``check`` of a table about what a job made."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

from airflow_provider_rungen._airflow import AirflowException, ObjectStoragePath
from airflow_provider_rungen.client.texts import clean_text, format_ids
from airflow_provider_rungen.exceptions import RejectRow, RunGenError

_MAX_REASON_CHARS = 200


class ResultCheck:
    """
    The function ``check`` of a table.

    :param function: takes a result and the files of a job, and raises `RejectRow` if they will not do.
        Without it, everything will.
    """

    def __init__(self, function: Callable[[Any, list[ObjectStoragePath]], object] | None) -> None:
        self._function = function
        self._failure: RunGenError | None = None

    def __call__(self, app_id: str, job_id: str, result: Any, uris: Iterable[str] = ()) -> RunGenError | None:
        """
        Return why a job is rejected. Once the function has failed, it is not called again.

        :raises RunGenError: the function failed. A retry asks it again.
        """
        if self._function is None or self._failure is not None:
            return self._failure
        ids = format_ids(app_id, job_id)
        try:
            self._function(deepcopy(result), [ObjectStoragePath(uri) for uri in uris])
        except RejectRow as error:
            reason = _text(error.message) or "rejected"
            return RejectRow(reason, app_id=app_id, job_id=job_id)
        except AirflowException as error:  # the function decides how the task ends
            error.add_note(f"check raised this for {ids}")
            raise
        except Exception as error:
            self._failure = RunGenError(
                f"check failed: {_text(f'{type(error).__name__}: {error}')} {ids}",
                hint="Correct the function. A retry asks it again, and what is stored is not bought again",
                app_id=app_id,
                job_id=job_id,
            )
            raise self._failure from error
        return None


def _text(text: str) -> str:
    return clean_text(text, _MAX_REASON_CHARS)
