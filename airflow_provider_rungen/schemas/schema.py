"""Compile a JSON Schema, check inputs and results with it, and make a form of it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from itertools import islice
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.outages import may_pass
from airflow_provider_rungen.client.redaction import redact_error
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenInputError, RunGenResultError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from jsonschema.exceptions import SchemaError, ValidationError
    from referencing import Resource

    from airflow_provider_rungen._airflow import Param
    from airflow_provider_rungen.parameters import SchemaSource

MAX_FILE_BYTES = 1 << 20
# How many violations are counted, and how many an error names.
MAX_VIOLATIONS = 100
MAX_NAMED_VIOLATIONS = 3
_MAX_VALUE_CHARS = 50
_MAX_VIOLATION_CHARS = 250


class Schema:
    """
    A compiled JSON Schema: draft 2020-12, unless its ``$schema`` names another draft.

    :param source: a dict, the path or URI of a file, or the name of a schema that comes with the package.
    :param name: the parameter it was passed as, ``input_schema`` or ``output_type``.
    :raises RunGenInputError: it cannot be read or is not a schema; the message names the place in it.
    """

    def __init__(self, source: Any, name: str) -> None:
        self._name = (
            name if isinstance(source, Mapping) else clean_text(f"{name} {source}", _MAX_VIOLATION_CHARS)
        )
        self._validator = self._compile(self._read(source, name))
        #: The schema itself, with a ``$schema``.
        self.contents: Mapping[str, Any] = self._validator.schema

    @classmethod
    def of(cls, source: Any, name: str) -> Schema | None:
        """Return the schema, or ``None`` if there is none."""
        return None if source is None else cls(source, name)

    def check_input(self, value: Any, name: str = "input") -> None:
        """
        Check an input, as it was encoded as JSON and decoded again.

        :param name: how to call it.
        :raises RunGenInputError: it does not fit; the message names the path in it and the rule.
        """
        if violations := self._violations(value, name):
            raise RunGenInputError(f"{violations} ({self._name}); nothing was sent")

    def accepts(self, value: Any) -> bool:
        """Return whether a value fits."""
        return not self._violations(value, "value")

    def check_result(self, job: Job) -> None:
        """
        Check the result of a completed job.

        :raises RunGenResultError: it does not fit; the message names the path in it and the rule.
        """
        if violations := self._violations(job.result, "result"):
            raise RunGenResultError(
                f"The result of job {job.id} of app {job.app_id} does not fit {self._name}: {violations}",
                app_id=job.app_id,
                job_id=job.id,
            )

    def _read(self, source: Any, name: str) -> Any:
        if isinstance(source, Mapping):
            return source
        if not is_path(source):
            return json.loads(packaged_file(source, name).read_text("utf-8"))
        from airflow_provider_rungen._airflow import AirflowNotFoundException, ObjectStoragePath

        try:
            with ObjectStoragePath(str(source)).open("rb") as file:
                text = file.read(MAX_FILE_BYTES + 1)
            if len(text) > MAX_FILE_BYTES:
                raise ValueError(f"it has over {MAX_FILE_BYTES} bytes")
            return json.loads(text)
        except (OSError, ImportError, ValueError, RecursionError, AirflowNotFoundException) as error:
            reason = redact_error(error, str(source))
            raise self._error(f"cannot be read: {reason}", retryable=may_pass(error)) from None

    def _compile(self, contents: Any) -> Any:
        """Return a validator that fetches nothing. Every reference must lead to a place in the schema."""
        from jsonschema.exceptions import SchemaError
        from jsonschema.validators import Draft202012Validator, validator_for
        from referencing import Registry
        from referencing.exceptions import Unresolvable
        from referencing.jsonschema import UnknownDialect, specification_with

        if not isinstance(contents, Mapping):
            raise self._error(f"is a {type(contents).__name__}, not an object")
        contents = {"$schema": Draft202012Validator.META_SCHEMA["$id"], **contents}
        try:
            resource = specification_with(str(contents["$schema"])).create_resource(contents)
            validator = validator_for(contents)
            validator.check_schema(contents)
            _check_references(resource, Registry().resolver_with_root(resource))
        except UnknownDialect:
            raise self._error(f"names an unknown $schema: {contents['$schema']!r}") from None
        except SchemaError as error:
            raise self._error(f"is not a JSON Schema: {_format_violation(error, 'schema')}") from None
        except (Unresolvable, RecursionError, re.error) as error:
            raise self._error(f"cannot be used: {_reason(error)}") from None
        return validator(contents, registry=Registry())

    def _violations(self, value: Any, name: str) -> str:
        """Return what is wrong with a value, the most useful first, or an empty text."""
        from jsonschema.exceptions import UnknownType, best_match
        from referencing.exceptions import Unresolvable

        try:
            found = list(islice(self._validator.iter_errors(value), MAX_VIOLATIONS))
        except (Unresolvable, RecursionError, re.error, UnknownType, ArithmeticError) as error:
            return clean_text(f"{name}: the schema cannot be applied: {_reason(error)}")
        # a violation higher up is more useful, unless it is that none of several schemas fits
        found.sort(key=lambda error: (len(error.path), bool(error.context), list(error.path)))
        named = found[:MAX_NAMED_VIOLATIONS]
        texts = dict.fromkeys(_format_violation(best_match([error]) or error, name) for error in named)
        more = [f"and {len(found) - len(named)} more"] if len(found) > len(named) else []
        return "; ".join([*texts, *more])

    def _error(self, reason: str, *, retryable: bool = False) -> RunGenInputError:
        return RunGenInputError(clean_text(f"{self._name} {reason}"), retryable=retryable)


def is_path(source: Any) -> bool:
    """Return whether this is a path or a URI, and not the name of a schema that comes with the package."""
    return isinstance(source, os.PathLike) or (
        isinstance(source, str) and ("/" in source or source.endswith(".json"))
    )


def packaged_file(source: Any, name: str) -> Traversable:
    """Return the file of a schema that comes with the package."""
    if not isinstance(source, str):
        raise RunGenInputError(
            f"{name} must be a dict, a path, a URI or a name, not a {type(source).__name__}"
        )
    suffix = ".input.json" if name == "input_schema" else ".result.json"
    entries = resources.files(__package__).iterdir()
    files = {entry.name.removesuffix(suffix): entry for entry in entries if entry.name.endswith(suffix)}
    if source not in files:
        raise RunGenInputError(
            f"{name} {clean_text(repr(source), 100)} is unknown",
            hint=f"Use one of: {', '.join(sorted(files))}; or a path, which has a slash or ends in .json",
        )
    return files[source]


def _check_references(resource: Resource[Any], resolver: Any) -> None:
    """Resolve every reference, since a broken one would be noticed only at the first value that it checks."""
    from referencing.exceptions import Unresolvable

    if isinstance(resource.contents, Mapping):
        for keyword in ("$ref", "$dynamicRef"):
            if isinstance(ref := resource.contents.get(keyword), str):
                try:
                    resolver.lookup(ref)
                except Unresolvable as error:
                    raise Unresolvable(ref=ref) from error
    for part in resource.subresources():
        _check_references(part, resolver.in_subresource(part))


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it refers to itself without end, or is nested too deeply"
    if ref := getattr(error, "ref", None):
        return f"it refers to {ref!r}, which is not in it; nothing is fetched: put it into its $defs"
    return str(error)


def _format_violation(error: ValidationError | SchemaError, name: str) -> str:
    """Return the path and the rule of a violation. A long value is described, and not shown."""
    value, message = error.instance, error.message
    if len(shown := repr(value)) > _MAX_VALUE_CHARS:
        message = message.replace(shown, _describe(value))
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.absolute_path)
    path = clean_text("".join([name, *steps]), _MAX_VIOLATION_CHARS)
    return f"{path}: {clean_text(message, _MAX_VIOLATION_CHARS)}"


def _describe(value: Any) -> str:
    if isinstance(value, str):
        return f"a text of {len(value)} characters"
    if isinstance(value, Sequence):
        return f"an array of {len(value)} items"
    return "an object" if isinstance(value, Mapping) else "a long number"


# --- forms ---


def params_from_schema(schema: SchemaSource, /, **defaults: object) -> dict[str, Param]:
    """
    Return a DAG's ``params`` for the fields of a model's input. Airflow shows them as a form.

    A field that is neither required nor has a default may stay empty. It is ``None`` then: leave it out of
    the input.

    :param schema: the JSON Schema of the input: a dict, the path or URI of a file, which is read when the DAG
        is parsed, or the name of a schema that comes with the package, such as ``flux-schnell``.
    :param defaults: the initial values of the form, by field. The schema's ``default`` when left out.
    :raises RunGenInputError: the schema cannot be read, or has no such field.
    """
    from airflow_provider_rungen._airflow import Param

    contents = Schema(schema, "input_schema").contents
    fields = {name: inlined(field, contents) for name, field in contents.get("properties", {}).items()}
    if unknown := defaults.keys() - fields.keys():
        raise RunGenInputError(
            f"input_schema has no field {clean_text(repr(min(unknown)), 100)}",
            hint=f"It has: {', '.join(fields)}",
        )
    defaults = {name: field["default"] for name, field in fields.items() if "default" in field} | defaults
    params = {}
    for name, field in fields.items():
        rules = {key: value for key, value in field.items() if key not in ("default", "description")}
        if name not in defaults and name not in contents.get("required", ()):
            defaults[name], rules = None, _or_none(rules)
        value: dict[str, Any] = {"default": defaults[name]} if name in defaults else {}
        params[name] = Param(**value, description=field.get("description"), schema=rules)
    return params


def inlined(field: Any, contents: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a field with what it refers to."""
    from referencing import Registry, Resource
    from referencing.jsonschema import DRAFT202012

    resolver = Registry().resolver_with_root(Resource.from_contents(contents, DRAFT202012))
    alone: dict[str, Any] = dict(field) if isinstance(field, Mapping) else {}
    for _ in range(10):  # a schema may refer to itself
        if (ref := alone.pop("$ref", None)) is None:
            break
        alone = {**resolver.lookup(ref).contents, **alone}
    if '"$ref"' in json.dumps(alone):
        alone |= {name: contents[name] for name in ("$defs", "definitions") if name in contents}
    return alone


def _or_none(field: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a field that may stay empty. Airflow looks for ``null`` in its type."""
    kinds = field.get("type", [])
    empty = {
        **field,
        **({"type": [*([kinds] if isinstance(kinds, str) else kinds), "null"]} if kinds else {}),
        **({"enum": [*field["enum"], None]} if "enum" in field else {}),
    }
    if Schema(empty, "input_schema").accepts(None):
        return empty
    return {"anyOf": [field, {"type": "null"}]} | {
        key: field[key] for key in ("title", "$defs") if key in field
    }
