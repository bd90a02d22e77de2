"""Make the params of a DAG, which Airflow shows as a form, of the JSON Schema of a model's input."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenInputError
from airflow_provider_rungen.schemas.schema import Schema

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import Param
    from airflow_provider_rungen.parameters import SchemaSource

_NULL = {"type": "null"}


def params_from_schema(schema: SchemaSource, /, **defaults: object) -> dict[str, Param]:
    """
    Return a DAG's ``params`` for the fields of a model's input. Airflow shows them as a form.

    A field that is neither required nor has a default may stay empty. It is ``None`` then: leave it out of
    the input.

    :param schema: the JSON Schema of the input: a dict, the path or URI of a file, which is read when the DAG
        is parsed, or the name of a schema that comes with the package, such as ``flux-schnell``.
    :param defaults: what the form shows at first, by field. The schema's ``default`` when left out.
    :raises RunGenInputError: the schema cannot be read, or has no such field.
    """
    from airflow_provider_rungen._airflow import Param

    contents = Schema(schema, "input_schema").contents
    fields = {name: _inlined(field, contents) for name, field in contents.get("properties", {}).items()}
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


def _inlined(field: Any, contents: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a field so that it can stand alone."""
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
    return {"anyOf": [field, _NULL]} | {key: field[key] for key in ("title", "$defs") if key in field}
