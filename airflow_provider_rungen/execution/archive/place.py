"""Where files are stored: a folder of any file system, as `ObjectStoragePath` opens it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

from airflow_provider_rungen.client.redaction import redact, redact_error
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenInputError, RunGenOutputError

# Here a file appears once it is uploaded, and not before.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss"}


class Place:
    """
    A folder of any file system.

    :param uri: a URI or an absolute path that `ObjectStoragePath` accepts, or one of these.
    :param name: the parameter it was passed as, for errors.
    :param read_only: whether it is only read.
    :raises RunGenInputError: there can be no such place.
    """

    def __init__(self, uri: Any, name: str = "destination", *, read_only: bool = False) -> None:
        from airflow_provider_rungen._airflow import AirflowNotFoundException, ObjectStoragePath

        self._text = text = str(uri)
        self._name = name
        access = "read" if read_only else "write to"
        self._hint = f"Check {name}, and that the worker may {access} it"
        try:
            if "://" not in text and not os.path.isabs(text):
                raise ValueError("it is neither a URI nor an absolute path")
            base = uri if isinstance(uri, ObjectStoragePath) else ObjectStoragePath(text)
            # not in a thread, because it may read a connection from Airflow
            self._fs: Any = base.fs
            self._root = str(base.path).rstrip("/")
            self._is_local = base.protocol in ("", "file", "local")
        except (OSError, ImportError, TypeError, ValueError, AirflowNotFoundException) as error:
            reason = redact_error(error, text)
            # not chained, because the text of the cause would be logged unredacted
            raise RunGenInputError(
                clean_text(f"{name} {text!r} cannot be used: {reason}"), hint=self._hint
            ) from None
        self._is_object_store = base.protocol in _OBJECT_STORES

    def uri_of(self, folder: str, name: str) -> str:
        """Return the URI of a file."""
        return "/".join((self._text.removesuffix("/"), *filter(None, (folder, name))))

    @contextlib.contextmanager
    def _wrap_errors(self) -> Iterator[None]:
        """Convert the errors of storage libraries, which may be of any type."""
        from airflow_provider_rungen._airflow import AirflowException, AirflowNotFoundException

        try:
            yield
        except RunGenOutputError:
            raise
        except Exception as error:
            # Airflow's signal handler raises one when it kills a task
            if isinstance(error, AirflowException) and not isinstance(error, AirflowNotFoundException):
                raise
            reason = clean_text(redact_error(error, self._text), 200)
            # not chained, because the text of the cause would be logged unredacted
            raise self._error(f"{type(error).__name__}: {reason}".removesuffix(": ")) from None

    def _error(self, reason: str) -> RunGenOutputError:
        return RunGenOutputError(f"the {self._name} cannot be used: {redact(reason)}", hint=self._hint)
