"""Random lives whose log is in Airflow's task state store: each of its requests is a step."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from lives import Life
from places import GoneError, MemoryPlace

from airflow_provider_rungen.execution.jobs.places import StorePlace
from airflow_provider_rungen.runs.place import Place


class _Store:
    """
    A store that fails as a place does.

    :param values: where the values are, by key.
    :param check: raises an error if a later attempt has begun.
    """

    def __init__(self, values: MemoryPlace, check: Callable[[], None]) -> None:
        self._values = values
        self._check = check

    def get(self, key: str) -> Any:
        content = self._values.get([key]).get(key)
        return None if content is None else json.loads(content)

    def set(self, key: str, value: Any) -> None:
        self._values.put({key: json.dumps(value).encode()}, self._check)


class StoreLife(Life):
    """One task run without storage."""

    def place_of(self, attempt: int) -> Place:
        def check() -> None:
            if self.attempt > attempt:
                raise GoneError

        return StorePlace(_Store(self.place, check), attempt)

    @property
    def files(self) -> Mapping[str, bytes]:
        values = [_decode(content) for content in self.place.files.values()]
        # a file is there once the names of its attempt have it
        listed = {each for name, content in values if name == "names" for each in json.loads(content)}
        return {name: content for name, content in values if name in listed}


@lru_cache(1000)
def _decode(content: bytes) -> tuple[str, bytes]:
    try:
        value = json.loads(content)
    except ValueError:  # half of one
        return "", b""
    # each file of these lives is one value
    return value["name"], zlib.decompress(base64.b64decode(value["content"]))
