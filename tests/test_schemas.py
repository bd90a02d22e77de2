"""Schemas: what is refused, what the error shows, and that nothing is fetched."""

from __future__ import annotations

import gc
import json
import re
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import (
    AirflowNotFoundException,
    ObjectStoragePath,
    ParamValidationError,
)
from fsspec.implementations.memory import MemoryFileSystem
from rungen_emulator import Service

from airflow_provider_rungen import schemas
from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.exceptions import RunGenInputError, RunGenResultError
from airflow_provider_rungen.schemas import Schema, checked
from airflow_provider_rungen.schemas.schema import MAX_FILE_BYTES, MAX_NAMED_VIOLATIONS, MAX_VIOLATIONS
from airflow_provider_rungen.table.reader import open_rows

PICTURE: dict[str, Any] = {
    "type": "object",
    "required": ["prompt"],
    "properties": {"prompt": {"type": "string"}, "width": {"type": "integer", "minimum": 64}},
}
SIGNED = "https://storage.example/a.png?X-Amz-Signature=0123456789abcdef0123456789abcdef"


def done(result: Any) -> Job:
    return Job(id="the-job", app_id="the-app", status=JobStatus.COMPLETED, result=result)


def error_of_input(schema: Any, value: Any, name: str = "input") -> str:
    with pytest.raises(RunGenInputError) as caught:
        Schema(schema, "input_schema").check_input(value, name)
    assert not caught.value.retryable
    return str(caught.value)


def error_of_result(schema: Any, result: Any) -> str:
    with pytest.raises(RunGenResultError) as caught:
        Schema(schema, "output_type").check_result(done(result))
    assert not caught.value.retryable
    assert (caught.value.app_id, caught.value.job_id) == ("the-app", "the-job")
    return str(caught.value)


# --- what is shown ------------------------------------------------------------------------------------------


def test_the_path_and_the_rule_are_shown() -> None:
    message = error_of_input(PICTURE, {"prompt": "x", "width": 5}, "inputs[3]")
    assert message == "inputs[3].width: 5 is less than the minimum of 64 (input_schema); nothing was sent"


def test_a_result_is_reported_with_its_app_and_job() -> None:
    message = error_of_result({"type": "object"}, "a text")
    assert message == (
        "The result of job the-job of app the-app does not fit output_type: "
        "result: 'a text' is not of type 'object'. Look at the result, or correct the schema."
    )


def test_of_several_violations_a_few_are_shown_those_higher_up_first() -> None:
    schema = {"required": ["prompt"], "additionalProperties": {"type": "integer"}}
    message = error_of_input(schema, {f"field{n}": "x" for n in range(20)})
    assert message.startswith(
        "input: 'prompt' is a required property; input.field0: 'x' is not of type 'integer'; "
    )
    assert "; and 18 more" in message
    assert len(message) < 1000
    # not all of those of a huge value are looked for
    message = error_of_input({"items": {"type": "string"}}, list(range(100_000)))
    assert f"and {MAX_VIOLATIONS - MAX_NAMED_VIOLATIONS} more" in message


def test_where_one_of_several_has_to_fit_the_deepest_is_reported() -> None:
    schema = {"anyOf": [{"type": "array"}, {"properties": {"size": {"type": "integer"}}}]}
    assert "input.size: 'big' is not of type 'integer'" in error_of_input(schema, {"size": "big"})


OF_VALUES: list[Any] = [
    *(
        {"type": "integer"},
        {"maxLength": 3},
        {"enum": ["a"]},
        {"pattern": "^ftp"},
        {"not": {}},
        {"const": "a"},
    ),
    False,
]
OF_KEYS: list[Any] = [
    *({"additionalProperties": False}, {"unevaluatedProperties": False}, {"maxProperties": 0}),
    {"propertyNames": {"maxLength": 3}},
]


@pytest.mark.parametrize("value", [SIGNED, "s3://bucket/key?sig=" + "0123456789abcdef" * 4])
def test_a_signed_url_is_not_shown_as_a_value_and_not_as_a_key(value: str) -> None:
    messages = [error_of_result({"properties": {"image": schema}}, {"image": value}) for schema in OF_VALUES]
    messages += [error_of_result(schema, {value: 1}) for schema in OF_KEYS]
    assert all(": result" in message for message in messages)
    assert "0123456789abcdef" not in "".join(messages)


@pytest.mark.parametrize(
    "value",
    ["x" * 1_000_000, ["x"] * 200_000, {"k" * 300_000: 1}, 10**4000],
    ids=["text", "array", "object", "number"],
)
def test_a_huge_value_is_not_shown(value: Any) -> None:
    schemas_of_nothing: list[dict[str, Any]] = [{"type": "null"}, {"enum": [None]}, {"not": {}}]
    unevaluated = {"unevaluatedItems": False, "unevaluatedProperties": False, "type": "null"}
    for schema in (*schemas_of_nothing, unevaluated):
        assert len(error_of_input(schema, {"a": value} if isinstance(value, dict) else value)) < 1000
        assert len(error_of_input({"properties": {"a": schema}}, {"a": value})) < 1000


# --- which schemas ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"properties": {"a": {"type": "txt"}}}, r"schema\.properties\.a\.type: 'txt'"),
        ({"required": "prompt"}, r"schema\.required: 'prompt' is not of type"),
        ({"properties": {"a": {"pattern": "((("}}}, r"schema\.properties\.a\.pattern"),
        ({"$schema": "https://example.com/mine"}, r"unknown \$schema: 'https://example.com/mine'"),
        ({"$schema": ["x"]}, r"\$schema"),
        ({"$ref": "http://example.com/s.json"}, "'http://example.com/s.json', which is not in it"),
        ({"$ref": "other.json#/a"}, "other.json"),
        ({"anyOf": [{"properties": {"a": {"$ref": "#/$defs/no"}}}]}, r"#/\$defs/no"),
        ({"$dynamicRef": "#nobody"}, "#nobody"),
        ({"enum": {1, 2}}, "schema.enum"),
    ],
)
def test_a_bad_schema_breaks_the_dag_file_and_is_named(schema: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=f"^output_type .*{reason}"):
        checked(schema, "output_type")


@pytest.fixture
def without_garbage_collection() -> Iterator[None]:
    """A finalizer that happens to run at the limit of the recursion fails, and so the test."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_garbage_collection")
def test_a_schema_that_holds_itself_or_refers_to_itself_without_end_is_reported() -> None:
    schema: dict[str, Any] = {"properties": {}}
    schema["properties"]["a"] = schema
    with pytest.raises(RunGenInputError, match="refers to itself without end, or is nested too deeply"):
        checked(schema, "input_schema")
    endless = "input: the schema cannot be applied: it refers to itself without end"
    assert endless in error_of_input({"$ref": "#"}, {})
    assert "the-job" in error_of_result({"allOf": [{"$ref": "#"}]}, {})


def test_a_recursive_schema_is_followed() -> None:
    schema = Schema({"type": "object", "additionalProperties": {"$ref": "#"}}, "input_schema")
    schema.check_input({"a": {"b": {}}})
    with pytest.raises(RunGenInputError, match=r"input\.a\.b: 1 is not of type 'object'"):
        schema.check_input({"a": {"b": 1}})


def test_a_reference_where_no_draft_looks_is_reported_when_it_is_met() -> None:
    schema = {"properties": {"a": {"$ref": "#/mine"}}, "mine": {"$ref": "http://127.0.0.1:9/s.json"}}
    assert "'http://127.0.0.1:9/s.json', which is not in it" in error_of_input(
        checked(schema, "input_schema"), {"a": 1}
    )


def test_nothing_is_fetched() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/schema.json"
        for schema in ({"$ref": url}, {"$schema": url}, {"mine": {"$ref": url}, "$ref": "#/mine"}):
            with pytest.raises(RunGenInputError, match=re.escape(url)):
                Schema(schema, "input_schema").check_input({})
        with pytest.raises(TimeoutError):
            server.accept()


def test_references_inside_a_schema_are_followed() -> None:
    schema = {
        "$id": "https://example.com/mine",
        "$defs": {
            "side": {"$anchor": "side", "type": "integer"},
            "other": {"$id": "other", "type": "string"},
        },
        "properties": {"a": {"$ref": "#side"}, "b": {"$ref": "#/$defs/side"}, "c": {"$ref": "other"}},
    }
    message = error_of_input(schema, {"a": "x", "b": "y", "c": 1})
    assert all(f"input.{name}: " in message for name in "abc")


def test_the_draft_decides() -> None:
    # only 2020-12 knows prefixItems
    schema: dict[str, Any] = {"prefixItems": [{"type": "string"}]}
    newest = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    for refusing in (schema, schema | newest):
        assert "input[0]: 1 is not of type 'string'" in error_of_input(refusing, [1])
    for draft in ("https://json-schema.org/draft/2019-09/schema", "http://json-schema.org/draft-07/schema"):
        for url in (draft, f"{draft}#"):
            Schema(schema | {"$schema": url}, "input_schema").check_input([1])


def test_a_file_is_read_when_the_task_runs(tmp_path: Path) -> None:
    path = tmp_path / "picture"
    for source in (path, str(path), f"file://{path}"):
        path.unlink(missing_ok=True)
        assert checked(source, "input_schema") == source
        with pytest.raises(RunGenInputError, match=r"input_schema .*picture cannot be read") as caught:
            Schema(source, "input_schema")
        assert not caught.value.retryable
        path.write_text(json.dumps(PICTURE))
        assert "input.width" in error_of_input(source, {"prompt": "x", "width": 1})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"{", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[" * 100_000, "cannot be read"),
        (b" " * (MAX_FILE_BYTES + 1), "has over"),
        (b"[]", "is a list, not an object"),
        (b'{"type": "txt"}', r"is not a JSON Schema: schema\.type"),
    ],
    ids=range(6),
)
def test_a_file_that_is_no_schema_is_reported(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "schema.json"
    path.write_bytes(content)
    with pytest.raises(RunGenInputError, match=rf"input_schema .*schema\.json .*{reason}"):
        Schema(str(path), "input_schema")


@pytest.mark.parametrize("url", ["nosuchscheme+https://x.example/s.json", "file:///no/such/s.json"])
def test_the_query_of_a_schemas_url_is_not_shown(url: str) -> None:
    url += "?X-Amz-Signature=SECRET"
    with pytest.raises(RunGenInputError) as caught:
        Schema(url, "input_schema")
    # what Airflow logs
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))


def test_what_names_no_schema_is_reported_with_the_known_ones() -> None:
    for name in ("nobody", "{{ params.schema }}", "", "flux-schnell.input"):
        with pytest.raises(ValueError, match=r"input_schema .*Use one of: flux-schnell"):
            checked(name, "input_schema")
    nothing: Any
    for nothing in (7, True, ["type"], b"x"):
        with pytest.raises(ValueError, match="input_schema must be a dict, a path, a URI or a name"):
            checked(nothing, "input_schema")


def test_a_dag_file_parses_without_the_library_unless_it_has_a_dict() -> None:
    code = (
        "import sys; from airflow_provider_rungen.schemas import checked; "
        "checked('flux-schnell', 'input_schema'); checked('/a/path', 'input_schema'); "
        "assert 'jsonschema' not in sys.modules; checked({}, 'input_schema'); "
        "assert 'jsonschema' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)


# --- forms --------------------------------------------------------------------------------------------------

SIZED: dict[str, Any] = {
    "required": ["prompt", "size"],
    "properties": {
        "prompt": {"type": "string", "description": "What it shows."},
        "size": {"$ref": "#/$defs/size", "title": "Size"},
        "seed": {"type": "integer", "minimum": 1},
        "style": {"enum": ["oil", "ink"]},
        "sizes": {"type": "array", "items": {"$ref": "#/$defs/size"}},
        "mode": {"const": 3},
        "more": True,
    },
    "$defs": {"size": {"type": "integer", "minimum": 64, "default": 512}},
}


def test_a_form_has_the_fields_of_the_schema() -> None:
    params = schemas.params_from_schema("flux-schnell", prompt="a fox", width=512)
    assert [*params][:4] == ["prompt", "width", "height", "seed"]
    values = {name: params[name].resolve() for name in params}
    assert values == {**dict.fromkeys(params), "prompt": "a fox", "width": 512, "height": 1024}
    width, seed = params["width"], params["seed"]
    assert width.schema == {"title": "Width", "type": "integer", "minimum": 1}
    assert width.description == "Pixels."
    assert seed.schema["type"] == ["integer", "null"]
    for bad in (0, "512", None, 5.5):
        with pytest.raises(ParamValidationError):
            width.resolve(bad)


def test_a_form_of_a_schema_of_ones_own() -> None:
    params = schemas.params_from_schema(SIZED)
    assert (params["size"].value, params["size"].schema["title"]) == (512, "Size")
    assert params["size"].schema["minimum"] == 64
    with pytest.raises(ParamValidationError, match="no default value"):
        params["prompt"].resolve()
    optional = [name for name in params if name not in ("prompt", "size")]
    assert [params[name].resolve() for name in optional] == [None] * 5
    assert params["style"].resolve("ink") == "ink"
    assert params["sizes"].resolve([64]) == [64]
    for name, bad in (("seed", 0), ("style", "chalk"), ("sizes", [3]), ("mode", 4)):
        with pytest.raises(ParamValidationError):
            params[name].resolve(bad)


def test_a_misspelled_field_of_a_form_is_reported() -> None:
    with pytest.raises(RunGenInputError, match=r"no field 'prompts'\. It has: prompt, width, "):
        schemas.params_from_schema("flux-schnell", prompts="a fox")
    with pytest.raises(RunGenInputError, match="unknown"):
        schemas.params_from_schema("flux")


# --- those that come with the package -----------------------------------------------------------------------

GOOD = {"prompt": "a fox", "height": 512, "width": 1024, "guidance_scale": 3.5, "num_inference_steps": 4}


def test_flux_takes_what_the_api_documents() -> None:
    for value in (GOOD, {"prompt": "x"}, {**GOOD, "guidance_scale": 3, "emulator": {"seconds": 1}}):
        Schema(checked("flux-schnell", "input_schema"), "input_schema").check_input(value)


def test_flux_refuses_what_cannot_be_meant() -> None:
    wrong: dict[str, list[Any]] = {"prompt": [7, ""], "width": [0, True], "height": ["512", 5.5]}
    wrong |= {"guidance_scale": ["3"], "num_inference_steps": [0]}
    for name, values in wrong.items():
        for value in values:
            assert error_of_input("flux-schnell", GOOD | {name: value}).startswith(f"input.{name}: ")
    assert "'prompt' is a required property" in error_of_input("flux-schnell", {"width": 64})
    assert error_of_input("flux-schnell", "a fox").startswith("input: 'a fox' is not of type 'object'")


# For each rule of a field, values on both sides of its bound.
BOUNDS: dict[str, Callable[[Any], list[Any]]] = {
    "type": lambda _: [5, 5.0, 5.5, -5.5, "5", True, None, [5], {"x": 5}],
    "minimum": lambda bound: [bound - 1, bound, bound + 1, float(bound), bound - 0.5, 10**30],
    "pattern": lambda _: ["", " ", "\n\t", " x ", "x" * 10_000],
}


def cases_of_flux() -> Iterator[dict[str, Any]]:
    schema = json.loads(Path(schemas.__file__).with_name("flux-schnell.input.json").read_text())
    yield from ({}, GOOD, GOOD | {"another": None})
    for field, rules in schema["properties"].items():
        yield {name: value for name, value in GOOD.items() if name != field}
        for rule, bound in rules.items():
            yield from (GOOD | {field: value} for value in BOUNDS.get(rule, lambda _: [])(bound))


@pytest.mark.parametrize("value", [*cases_of_flux()], ids=lambda value: repr(value)[:60])
def test_the_emulator_refuses_what_the_schema_of_flux_refuses(value: dict[str, Any]) -> None:
    sides = [value[name] for name in ("width", "height") if type(value.get(name)) in (int, float)]
    # of a picture that no model makes
    is_no_size = any(side < 64 or side > 2048 or side % 8 for side in sides)
    service = Service()
    body = json.dumps({"input": value}).encode()
    headers = {"x-api-key": service.api_key, "content-type": "application/json"}
    reply = service.handle("POST", "/app/flux-schnell/run_async", headers, body)
    refusal = ""
    try:
        Schema("flux-schnell", "input_schema").check_input(value)
    except RunGenInputError as error:
        refusal = str(error)
    assert (reply.status == 400) == (is_no_size or bool(refusal)), (refusal, reply.body)


SECRET_URI = "memory://KEY:S3CRET@bucket/schema.json?X-Amz-Signature=S3CRET"


@pytest.mark.parametrize(
    "error",
    [
        OSError("Forbidden: KEY:S3CRET may not read"),
        ValueError(f"cannot open {SECRET_URI}"),
        AirflowNotFoundException("The conn_id `KEY:S3CRET` isn't defined"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_shows_no_secret_of_the_uri(error: Exception) -> None:
    class Refusing(MemoryFileSystem):  # type: ignore[misc]  # it has no types
        cachable = False

        def open(self, *_: object, **__: object) -> None:
            raise error

    fs = Refusing()
    attach = import_module(ObjectStoragePath.__module__).attach  # it moved with Airflow 3
    attach("memory", conn_id="KEY:S3CRET", fs=fs).fs = fs
    may_pass = not isinstance(error, ValueError)
    cases: list[tuple[Callable[[], object], bool]] = [
        (lambda: Schema(SECRET_URI, "output_type"), may_pass),
        (lambda: list(open_rows(SECRET_URI)), False),
    ]
    for read, is_retryable in cases:
        with pytest.raises(RunGenInputError, match=r"memory://\*\*\*@bucket") as caught:
            read()
        assert "S3CRET" not in "".join(traceback.format_exception(caught.value))
        assert caught.value.retryable is is_retryable
