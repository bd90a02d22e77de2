"""Holds inputs and results against JSON Schemas, a few of which come with the package."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from itertools import islice
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client.models import Job, clean_text
from airflow_provider_rungen.client.redaction import redact_error
from airflow_provider_rungen.exceptions import RunGenInputError, RunGenResultError

if TYPE_CHECKING:
    from jsonschema.exceptions import SchemaError, ValidationError
    from referencing import Resource

# Bytes of a schema file at most.
MAX_BYTES = 1 << 20
# How many violations are looked for, and how many of them are told.
MOST = 100
FEW = 3
# Characters of a value that are shown at most, and of what is said of one violation.
SHOWN = 50
SAID = 250


class Schema:
    """
    A JSON Schema, ready to hold values against: draft 2020-12, unless its ``$schema`` says otherwise.

    :param source: a dict, the path or URI of a file, or the name of a schema that comes with the package.
    :param name: the parameter it was given as, ``input_schema`` or ``result_schema``.
    :raises RunGenInputError: it cannot be read, or is no schema; the message names the place in it.
    """

    def __init__(self, source: Any, name: str) -> None:
        self._name = name if isinstance(source, Mapping) else clean_text(f"{name} {source}", SAID)
        self._validator = self._compiled(self._read(source, name))

    @classmethod
    def of(cls, source: Any, name: str) -> Schema | None:
        """Read a schema, if there is one."""
        return None if source is None else cls(source, name)

    def check_input(self, value: Any, name: str = "input") -> None:
        """
        Hold an input, as JSON would bring it back, against the schema.

        :param name: what to call it.
        :raises RunGenInputError: it does not fit; the message names the path inside it and the rule.
        """
        if violations := self._violations(value, name):
            raise RunGenInputError(f"{violations} ({self._name}); nothing was sent")

    def check_result(self, job: Job) -> None:
        """
        Hold the result of a completed job against the schema.

        :raises RunGenResultError: it does not fit; the message names the path inside it and the rule.
        """
        if violations := self._violations(job.result, "result"):
            raise RunGenResultError(
                f"The result of RunGen job {job.id} of app {job.app_id} does not fit {self._name}: "
                f"{violations}",
                app_id=job.app_id,
                job_id=job.id,
            )

    def _read(self, source: Any, name: str) -> Any:
        if isinstance(source, Mapping):
            return source
        if not _is_place(source):
            return json.loads(resources.files(__name__).joinpath(_file_of(source, name)).read_text("utf-8"))
        from airflow_provider_rungen._airflow import AirflowNotFoundException, ObjectStoragePath

        try:
            with ObjectStoragePath(str(source)).open("rb") as file:
                text = file.read(MAX_BYTES + 1)
            if len(text) > MAX_BYTES:
                raise ValueError(f"it has more than {MAX_BYTES} bytes")
            return json.loads(text)
        except (OSError, ImportError, ValueError, RecursionError, AirflowNotFoundException) as error:
            raise self._broken(f"cannot be read: {redact_error(error, str(source))}") from None

    def _compiled(self, contents: Any) -> Any:
        """Make a validator that fetches nothing; every reference has to lead to a place in the schema."""
        from jsonschema.exceptions import SchemaError
        from jsonschema.validators import Draft202012Validator, validator_for
        from referencing import Registry
        from referencing.exceptions import Unresolvable
        from referencing.jsonschema import UnknownDialect, specification_with

        if not isinstance(contents, Mapping):
            raise self._broken(f"is a {type(contents).__name__}, not an object")
        contents = {"$schema": Draft202012Validator.META_SCHEMA["$id"], **contents}
        try:
            specification = specification_with(str(contents["$schema"]))
        except UnknownDialect:
            raise self._broken(f"names a $schema that is not known: {contents['$schema']!r}") from None
        kind = validator_for(contents)
        try:
            kind.check_schema(contents)
            resource = specification.create_resource(contents)
            _follow(resource, Registry().resolver_with_root(resource))
        except SchemaError as error:
            raise self._broken(f"is no JSON Schema: {_said(error, 'schema')}") from None
        except (Unresolvable, RecursionError, re.error) as error:
            raise self._broken(f"cannot be used: {_reason(error)}") from None
        return kind(contents, registry=Registry())

    def _violations(self, value: Any, name: str) -> str:
        """Tell what is wrong with a value, the most useful first; empty when it fits."""
        from jsonschema.exceptions import UnknownType, best_match
        from referencing.exceptions import Unresolvable

        try:
            found = list(islice(self._validator.iter_errors(value), MOST))
        except (Unresolvable, RecursionError, re.error, UnknownType, ArithmeticError) as error:
            return clean_text(f"{name}: the schema cannot be applied: {_reason(error)}")
        # what is wrong higher up says more; but where one of several schemas has to fit, what is inside does
        found.sort(key=lambda error: (len(error.path), bool(error.context), list(error.path)))
        told = [_said(best_match([error]) or error, name) for error in found[:FEW]]
        more = f"; and {len(found) - FEW} more" if len(found) > FEW else ""
        return "; ".join(dict.fromkeys(told)) + more

    def _broken(self, reason: str) -> RunGenInputError:
        return RunGenInputError(clean_text(f"{self._name} {reason}"))


def checked(source: Any, name: str) -> Any:
    """
    Give back a schema as it was given, checked as far as it can be while a DAG file is parsed.

    :raises RunGenInputError: it is no schema, or has an unknown name.
    """
    if isinstance(source, Mapping):
        Schema(source, name)
    elif source is not None and not _is_place(source):
        _file_of(source, name)
    return source


def _is_place(source: Any) -> bool:
    """Tell a path or a URI from the name of a schema that comes with the package."""
    is_text = isinstance(source, str)
    return isinstance(source, os.PathLike) or (is_text and ("/" in source or source.endswith(".json")))


def _file_of(source: Any, name: str) -> str:
    if not isinstance(source, str):
        raise RunGenInputError(
            f"{name} must be a dict, a path, a URI or a name, not a {type(source).__name__}"
        )
    ending = f".{name.removesuffix('_schema')}.json"
    files = [entry.name for entry in resources.files(__name__).iterdir() if entry.name.endswith(ending)]
    if source + ending not in files:
        known = ", ".join(sorted(file.removesuffix(ending) for file in files))
        raise RunGenInputError(
            f"{name} {clean_text(repr(source), 100)} is not known; known are: {known}. "
            "The path of a file has a slash, or ends in .json."
        )
    return source + ending


def _follow(resource: Resource[Any], resolver: Any) -> None:
    """Follow every reference, so that one that leads nowhere is not found out when a result is there."""
    from referencing.exceptions import Unresolvable

    if isinstance(resource.contents, Mapping):
        for keyword in ("$ref", "$dynamicRef"):
            if isinstance(ref := resource.contents.get(keyword), str):
                try:
                    resolver.lookup(ref)
                except Unresolvable as error:
                    raise Unresolvable(ref=ref) from error
    for part in resource.subresources():
        _follow(part, resolver.in_subresource(part))


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it refers to itself without end, or is nested too deeply"
    if ref := getattr(error, "ref", None):
        return f"it refers to {ref!r}, which is not in it; nothing is fetched: put it into its $defs"
    return str(error)


def _said(error: ValidationError | SchemaError, name: str) -> str:
    """Tell one violation: where it is, and the rule; of the value no more than a little."""
    shown = repr(error.instance)
    said = error.message
    if len(shown) > SHOWN:
        said = said.replace(shown, _kind_of(error.instance))
    return f"{_path_of(error.absolute_path, name)}: {clean_text(said, SAID)}"


def _kind_of(value: Any) -> str:
    if isinstance(value, str):
        return f"a text of {len(value)} characters"
    if isinstance(value, Sequence):
        return f"an array of {len(value)}"
    return "an object" if isinstance(value, Mapping) else "a long number"


def _path_of(parts: Iterable[str | int], name: str) -> str:
    steps = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)
    return clean_text(name + "".join(steps), SAID)
