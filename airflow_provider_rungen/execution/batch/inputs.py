"""Reads the inputs of a batch from a list or a JSON Lines file."""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from airflow_provider_rungen.client import codec
from airflow_provider_rungen.client.redaction import redact_error
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenInputError
from airflow_provider_rungen.schemas import Schema

_NO_FILE = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)


class Inputs:
    """
    The inputs of a batch. A JSON Lines file is read as a stream, again for each pass.

    :param source: a list of objects, or the URI of a file that `ObjectStoragePath` can open.
    :param schema: what every input has to fit.
    :raises RunGenInputError: the inputs cannot be read, or one does not fit.
    """

    def __init__(self, source: Any, schema: Schema | None = None) -> None:
        if isinstance(source, Mapping | bytes) or not isinstance(source, Iterable):
            raise RunGenInputError(f"inputs must be a list or a URI, not a {type(source).__name__}")
        self._source: Any = source if isinstance(source, str) else list(source)
        # a URI may be signed
        self._name = clean_text(source) if isinstance(source, str) else ""
        digest, self.count = hashlib.sha256(), 0
        for index, item in enumerate(self):
            if not isinstance(item, dict):
                kind = type(item).__name__
                raise RunGenInputError(f"{self.name(index)} is a {kind}, not an object; nothing was sent")
            text = codec.encode(item, self.name(index))
            if schema is not None:
                schema.check_input(json.loads(text), self.name(index))
            digest.update(hashlib.sha256(text).digest())
            self.count += 1
        self.digest = digest.hexdigest()

    def name(self, index: int) -> str:
        """Return the name of an input for an error."""
        return f"{self._name}: inputs[{index}]" if self._name else f"inputs[{index}]"

    def __iter__(self) -> Iterator[Any]:
        if not isinstance(self._source, str):
            yield from self._source
            return
        from airflow_provider_rungen._airflow import AirflowNotFoundException, ObjectStoragePath

        try:
            with ObjectStoragePath(self._source).open("rb") as file:
                # not every file system's files can be iterated over
                yield from self._parsed(iter(file.readline, b""))
        except (OSError, ImportError, ValueError, AirflowNotFoundException) as error:
            if isinstance(error, RunGenInputError):
                raise
            reason = redact_error(error, self._source)
            # from None: the library's own text may hold the URI, and would be in the log, too
            raise RunGenInputError(
                f"Could not read inputs from {clean_text(f'{self._source}: {reason}')}",
                retryable=isinstance(error, OSError) and not isinstance(error, _NO_FILE),
            ) from None

    def _parsed(self, lines: Iterable[bytes]) -> Iterator[Any]:
        for number, line in enumerate(lines, 1):
            text = line.strip() if number > 1 else line.removeprefix(codecs.BOM_UTF8).strip()
            if text:
                try:
                    yield json.loads(text)
                except (ValueError, RecursionError):
                    message = f"Could not read inputs: line {number} of {self._name} is not JSON"
                    raise RunGenInputError(message) from None
