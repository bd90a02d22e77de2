"""Reads the inputs of a batch, and checks them all before the first is sent."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from airflow_provider_rungen._airflow import ObjectStoragePath
from airflow_provider_rungen.client import codec
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenError, RunGenInputError
from airflow_provider_rungen.execution.failures import MAX_FAILED
from airflow_provider_rungen.execution.spool import Spool
from airflow_provider_rungen.execution.table.reader import open_rows
from airflow_provider_rungen.schemas import Schema

log = logging.getLogger(__name__)


def find_places(source: Any, indexes: Iterable[int], format: str | None) -> dict[int, dict[str, Any]]:
    """
    Find where inputs stand in their files, by index. Files are read again, as far as it needs.

    :param source: what the inputs were read from.
    :return: nothing if they are not from files, or these cannot be read now.
    """
    wanted = set(islice(sorted(indexes), MAX_FAILED))
    if not wanted or not isinstance(source, str | os.PathLike | ObjectStoragePath):
        return {}
    places, last = {}, max(wanted)
    try:
        rows = open_rows(source, format=format)
        for index, _ in zip(range(last + 1), rows, strict=False):
            if index in wanted:
                places[index] = rows.position
    except RunGenError as error:
        log.warning("Could not find the lines of the inputs that failed: %s", error.message)
    return places


class Inputs:
    """
    The inputs of a batch. Files are read as a stream, again for each pass.

    What can be read only once is kept in a temporary file.

    :param source: what `open_rows` reads.
    :param schema: what every input has to fit.
    :param format: the format of the files, if it is not that of their suffix.
    :param key_of: returns a key for an input, for `keys`. It is called once for each.
    :raises RunGenInputError: the inputs cannot be read, or one does not fit.
    """

    def __init__(
        self,
        source: Any,
        schema: Schema | None = None,
        *,
        format: str | None = None,
        key_of: Callable[[Mapping[str, Any]], str] | None = None,
    ) -> None:
        self._rows = rows = open_rows(source, format=format)
        self._prefix = "" if rows.uri is None else f"{clean_text(rows.uri)}: "
        self._spool = None if rows.is_replayable else Spool()
        #: The key of each input, if ``key_of`` was given.
        self.keys: list[str] = []
        digest, self.count = hashlib.sha256(), 0
        for item in rows:
            text = self._checked(item, schema)
            if key_of is not None:
                self.keys.append(key_of(item))
            if self._spool is not None:
                self._spool.append_text(text)
            digest.update(hashlib.sha256(text).digest())
            self.count += 1
        self.digest = digest.hexdigest()

    def name(self, index: int) -> str:
        """Return the name of an input for an error."""
        return f"{self._prefix}inputs[{index}]"

    def __iter__(self) -> Iterator[Any]:
        if self._spool is not None:
            yield from self._spool
            return
        left = self.count
        for item in self._rows:
            yield item
            left -= 1
        if left > 0:
            raise RunGenInputError(
                f"{self._prefix}{left} of {self.count} inputs disappeared between two reads"
            )

    def _checked(self, item: Any, schema: Schema | None) -> bytes:
        """Return an input as canonical JSON."""
        name = self.name(self.count)
        try:
            if not isinstance(item, dict):
                raise RunGenInputError(f"{name} is a {type(item).__name__}, not an object; nothing was sent")
            text = codec.encode(item, name)
            if schema is not None:
                schema.check_input(json.loads(text), name)
        except RunGenInputError as error:
            if self._rows.uri is not None:
                error.add_hint(f"It is {self._rows.place}")
            raise
        return text
