"""Read what a model returned: parse JSON in a text and check it. Name the columns of a results table."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any, Self

from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenInputError, RunGenResultError
from airflow_provider_rungen.schemas.schema import (
    MAX_NAMED_VIOLATIONS,
    Schema,
    inlined,
    is_path,
    packaged_file,
)

#: The columns that every table has, in this order, with their types: see `write_parquet`.
FIXED_COLUMNS = {
    "index": "integer",
    "status": "text",
    "error": "text",
    "job_id": "text",
    "reused": "boolean",
    "outputs": "texts",
    "output": "text",
    "input": "text",
    "result": "text",
    "seconds": "number",
    "cost": "decimal",
    "bought_at": "time",
}
# The language after a code fence.
_LANGUAGE = re.compile(r"""\A[^\s{\["]+\s""")
_KINDS = {"integer": "integer", "number": "number", "boolean": "boolean", "string": "text"}
_LIST_KINDS = {"integer": "integers", "number": "numbers", "text": "texts"}


class OutputType:
    """
    What every result has to be. If that is an object or an array, a text is read as JSON.

    :param source: a class that pydantic knows, or the source of a `Schema`.
    :raises RunGenInputError: it is no such class or schema.
    """

    def __init__(self, source: Any) -> None:
        self._schema: Schema | None = None
        self._class: Any = None
        contents: Mapping[str, Any]
        if isinstance(source, str | os.PathLike | Mapping):
            self._schema = Schema(source, "output_type")
            contents = self._schema.contents
        else:
            self._class, contents = _read_class(source)
        fields = inlined(contents, contents).get("properties", {})
        self._contents = contents
        self._is_parsed = _is_nested(contents, contents)
        #: The type of a column for each property of a result: see `write_parquet`.
        self.columns = {name: _kind(field, contents) for name, field in fields.items()}

    @classmethod
    def of(cls, source: Any) -> Self | None:
        """Return what results are read with, or ``None`` if they are kept as they are."""
        return None if source is None else cls(source)

    @cached_property
    def digest(self) -> str:
        """What tells it from other types."""
        text = json.dumps(self._contents, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def read(self, job: Job, *, is_known: bool = False) -> Job:
        """
        Return a completed job with its result as it is used: parsed, and with the defaults of a class.

        :param is_known: whether it is known to fit, and only parsed.
        :raises RunGenResultError: the result does not fit; the message names the path in it and the rule.
        """
        if self._is_parsed and (text := self._text_of(job.result)) is not None:
            job = replace(job, result=_parse(text, job))
        if is_known:
            return job
        if self._schema is not None:
            self._schema.check_result(job)
        return job if self._class is None else replace(job, result=self._convert(job))

    def _text_of(self, result: Any) -> str | None:
        """Return the text that a model wrote, which may be in an object with nothing else."""
        if isinstance(result, Mapping) and result.keys() == {"text"} and "text" not in self.columns:
            result = result["text"]
        return result if isinstance(result, str) else None

    def _convert(self, job: Job) -> Any:
        """Return a result as an instance of the class has it, in JSON."""
        from pydantic import ValidationError

        try:
            # as JSON, in which a class that is strict takes a time or a tuple, too
            found = self._class.validate_json(json.dumps(job.result))
        except ValidationError as error:
            problems = error.errors(include_url=False)[:MAX_NAMED_VIOLATIONS]
            texts = [f"{'.'.join(['result', *map(str, each['loc'])])}: {each['msg']}" for each in problems]
            raise _misfit(job, f"does not fit output_type: {'; '.join(texts)}") from None
        value = self._class.dump_python(found, mode="json", by_alias=False)
        # a class may leave out what was paid for
        return {**job.result, **value} if isinstance(value, dict) and isinstance(job.result, dict) else value


def checked(source: Any, name: str) -> Any:
    """
    Return a schema or class as it was passed, checked as far as possible while a DAG file is parsed.

    :raises RunGenInputError: it is none, or has an unknown name.
    """
    if isinstance(source, Mapping):
        Schema(source, name)
    elif source is not None and not is_path(source):
        _ = OutputType(source) if name == "output_type" else packaged_file(source, name)
    return source


def _read_class(source: Any) -> tuple[Any, Mapping[str, Any]]:
    """Return what validates a class, and its JSON Schema."""
    from pydantic import TypeAdapter
    from pydantic.errors import PydanticUserError

    try:
        adapter: Any = TypeAdapter(source)
        return adapter, adapter.json_schema(by_alias=False, mode="serialization")
    except PydanticUserError as error:
        reason = clean_text(str(error).partition("\n")[0], 200)
        raise RunGenInputError(f"output_type is no class that pydantic knows: {reason}") from None


def _misfit(job: Job, why: str) -> RunGenResultError:
    text = clean_text(redact(f"The result of job {job.id} of app {job.app_id} {why}"))
    return RunGenResultError(text, app_id=job.app_id, job_id=job.id)


def _parse(text: str, job: Job) -> Any:
    """Return the JSON in a text: all of it, or what is in its code fence."""
    inside = text.partition("```")[2].rpartition("```")[0]
    for each in (text, inside, _LANGUAGE.sub("", inside)):
        with suppress(ValueError, RecursionError):
            return json.loads(each)
    raise _misfit(job, "does not fit output_type: it is not JSON, and has no code fence around JSON")


def _is_nested(field: Any, contents: Mapping[str, Any], depth: int = 8) -> bool:
    """Return whether a schema asks for an object or an array, and allows no text."""
    field = inlined(field, contents)
    kinds = field.get("type", [])
    names = {kinds} if isinstance(kinds, str) else {*kinds}
    if names:
        return names != {"null"} and names <= {"object", "array", "null"}
    choices = [
        _is_nested(each, contents, depth - 1)
        for keyword in ("anyOf", "oneOf")
        for each in field.get(keyword, ())
        if depth and each != {"type": "null"}
    ]
    return all(choices) if choices else not field.keys().isdisjoint(("properties", "required", "items"))


# --- columns ---


def _kind(field: Any, contents: Mapping[str, Any], depth: int = 8) -> str:
    """Return the type of a column. What has no type of its own, or is nested deeper, is JSON text."""
    if not depth:
        return "json"
    field = inlined(field, contents)
    kinds = field.get("type", [])
    names = {kinds} if isinstance(kinds, str) else {*kinds}
    if names - {"null"} == {"array"}:
        return _LIST_KINDS.get(_kind(field.get("items"), contents, depth - 1), "json")
    found = {_KINDS.get(each, "json") for each in names - {"null"}}
    if not names and all(isinstance(each, str | None) for each in field.get("enum", [0])):
        found.add("text")
    choices = [each for keyword in ("anyOf", "oneOf", "allOf") for each in field.get(keyword, ())]
    found |= {_kind(each, contents, depth - 1) for each in choices if each != {"type": "null"}}
    if found == {"text"} and field.get("format") == "date-time":
        return "time"
    return "number" if found == {"integer", "number"} else found.pop() if len(found) == 1 else "json"


def check_columns(names: Iterable[str], source: str) -> None:
    """
    Check the names of the columns that a table has beside those of every table.

    :param source: where the last of them are from, for the error.
    :raises RunGenInputError: two columns would have the same name.
    """
    names = [*names]
    # readers such as DuckDB do not distinguish capital letters
    counts = Counter(name.casefold() for name in (*FIXED_COLUMNS, *names))
    if twice := next((name for name in reversed(names) if counts[name.casefold()] > 1), None):
        raise RunGenInputError(
            f"results: there would be two columns {clean_text(repr(twice), 100)}",
            hint=f"Rename that {source}: a results table has the columns {', '.join(FIXED_COLUMNS)}",
        )
