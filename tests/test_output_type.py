"""What a model returned as it is used: JSON in a text, a class or schema, and types of columns."""

from __future__ import annotations

import datetime
import enum
import json
from decimal import Decimal
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, HttpUrl, field_validator

from airflow_provider_rungen.client.models import Job, JobStatus
from airflow_provider_rungen.exceptions import RunGenInputError, RunGenResultError
from airflow_provider_rungen.schemas import OutputType, checked


def done(result: Any) -> Job:
    return Job("the-job", "the-app", JobStatus.COMPLETED, result)


def read(source: Any, result: Any) -> Any:
    return OutputType(source).read(done(result)).result


def refusal(source: Any, result: Any) -> str:
    with pytest.raises(RunGenResultError) as caught:
        read(source, result)
    assert (caught.value.job_id, caught.value.app_id) == ("the-job", "the-app")
    assert not caught.value.retryable
    return caught.value.message


class Color(enum.Enum):
    RED = "red"


class Part(BaseModel):
    name: str


class Title(BaseModel):
    title: str


OBJECT = {"type": "object"}


class Tag(BaseModel):
    """With each kind of field that a column has to be found for."""

    title: str
    price: float | None = None
    count: int = 1
    is_new: bool = False
    words: list[str] = []
    vector: list[float] = []
    sizes: list[int | None] = []
    parts: list[Part] = []
    part: Part | None = None
    color: Color = Color.RED
    unit: Literal["kg", "g"] = "kg"
    seen_at: datetime.datetime | None = None
    amount: Decimal = Decimal("1.10")
    anything: Any = None
    either: int | str = 0
    number: int | float = 0


TAG_COLUMNS = {
    "title": "text",
    "price": "number",
    "count": "integer",
    "is_new": "boolean",
    "words": "texts",
    "vector": "numbers",
    "sizes": "integers",
    "parts": "json",
    "part": "json",
    "color": "text",
    "unit": "text",
    "seen_at": "time",
    "amount": "text",
    "anything": "json",
    "either": "json",
    "number": "number",
}

JSONS = [
    '{"title": "a kettle"}',
    ' \n{"title": "a kettle"}\n',
    '```json\n{"title": "a kettle"}\n```',
    '```\n{"title": "a kettle"}\n```',
    '```JSON {"title": "a kettle"} ```',
    '```{"title":"a kettle"}```',
    '```c++\n{"title": "a kettle"}\n```',
    'Here it is:\n\n```json\n{"title": "a kettle"}\n```\n\nAnything else?',
]


class Answer(BaseModel):
    text: str


@pytest.mark.parametrize("text", JSONS)
@pytest.mark.parametrize("is_object", [False, True])
def test_json_is_read_from_a_text_and_from_a_code_fence(text: str, is_object: bool) -> None:
    result = {"text": text} if is_object else text
    sources: list[Any] = [OBJECT, Title, Title | None, Title | Part, dict[str, str]]
    for source in [*sources, {"properties": {"title": {}}}]:
        assert read(source, result)["title"] == "a kettle"


@pytest.mark.parametrize(
    ("source", "result"),
    [
        (str, '{"title": "x"}'),
        ({"type": "string"}, "[1]"),
        (str | Title, '{"title": "x"}'),
        ({"type": ["object", "string"]}, "{}"),
        ({}, "{}"),
        (Any, "[]"),
        ({"enum": ["1", "2"]}, "1"),
        (Answer, {"text": '{"text": "x"}'}),
        (Answer, {"text": "a kettle"}),
    ],
)
def test_a_text_stays_where_the_type_allows_one(source: Any, result: Any) -> None:
    assert read(source, result) == result


def test_a_list_is_read_from_a_text() -> None:
    for source in (list[int], {"type": "array"}, {"type": ["null", "array"]}):
        assert read(source, "```json\n[1]\n```") == [1]


def test_json_may_hold_a_fence_itself() -> None:
    value = {"code": "```py\nprint()\n```", "text": "ü 🦊 \x00"}
    for text in (json.dumps(value), f"```json\n{json.dumps(value, ensure_ascii=True)}\n```"):
        assert read(OBJECT, text) == value


@pytest.mark.parametrize("result", [{"title": "x"}, {"text": 7}, {"text": "{}", "usage": 3}])
def test_what_is_no_text_stays_as_it_is(result: Any) -> None:
    assert read(OBJECT, result) == result


@pytest.mark.parametrize("text", ["", "a kettle", "{'title': 1}", "```json\n{\n```", "```", "[" * 100_000])
def test_text_that_is_no_json_does_not_fit(text: str) -> None:
    assert "is not JSON" in refusal(OBJECT, text)


def test_a_text_of_a_megabyte_is_parsed_at_once() -> None:
    value = {"title": "é" * 1_000_000}
    assert read(Tag, f"```json\n{json.dumps(value)}\n```")["title"] == value["title"]
    assert "is not JSON" in refusal(Tag, "```x y " * 150_000)


def test_a_class_has_typed_columns() -> None:
    assert OutputType(Tag).columns == TAG_COLUMNS


def test_a_schema_has_the_same_columns_as_its_class() -> None:
    schema = Tag.model_json_schema(mode="serialization")
    assert OutputType(schema).columns == TAG_COLUMNS


def test_columns_of_other_schemas() -> None:
    fields = {
        "unit": {"enum": ["kg", None]},
        "level": {"enum": [1, "2"]},
        "size": {"type": ["integer", "null"]},
        "any": {"type": ["integer", "string"]},
        "pair": {"type": "array", "prefixItems": [{"type": "string"}]},
        "true": True,
        "ref": {"$ref": "#/$defs/Size"},
    }
    schema = {"type": "object", "properties": fields, "$defs": {"Size": {"type": "number"}}}
    kinds = ["text", "json", "integer", "json", "json", "json", "number"]
    assert OutputType(schema).columns == dict(zip(fields, kinds, strict=True))
    assert OutputType({"type": "array"}).columns == {}
    assert OutputType(list[Part]).columns == {}
    assert OutputType("flux-schnell").columns == {"images": "json"}


def test_a_class_converts_and_loses_nothing() -> None:
    class Product(BaseModel):
        model_config = ConfigDict(strict=True)
        title: Annotated[str, Field(alias="Title")]
        seen_at: datetime.datetime
        shape: tuple[int, int] = (1, 2)

    result = {"Title": "ü 🦊", "seen_at": "2026-03-01T12:00:00+02:00", "other": {"kept": [None]}}
    assert read(Product, result) == {**result, "title": "ü 🦊", "shape": [1, 2]}
    assert read(list[Part], [{"name": "x", "y": 1}]) == [{"name": "x"}]


def test_a_class_says_where_a_result_does_not_fit() -> None:
    class Checked(Tag):
        @field_validator("title")
        @classmethod
        def check(cls, title: str) -> str:
            if "http" in title:
                raise ValueError(f"no link such as {title}")
            return title

    assert "result.parts.0.name: " in refusal(Checked, {"title": "x", "parts": [{"name": 7}]})
    assert "result: " in refusal(Checked, [7])
    assert "s3cret" not in refusal(Checked, {"title": "https://host/x.png?X-Amz-Signature=s3cret"})
    assert "result.title: 7 is not of type 'string'" in refusal(Tag.model_json_schema(), {"title": 7})


def test_an_error_in_a_class_is_not_taken_for_a_bad_result() -> None:
    class Broken(Tag):
        @field_validator("title")
        @classmethod
        def check(cls, title: str) -> str:
            raise KeyError(title)

    with pytest.raises(KeyError):
        read(Broken, {"title": "x"})


@pytest.mark.parametrize("source", [Exception, 7, Tag(title="x")], ids=["class", "number", "instance"])
def test_what_pydantic_does_not_know_is_an_error_when_the_dag_is_parsed(source: Any) -> None:
    with pytest.raises(RunGenInputError, match="output_type"):
        checked(source, "output_type")


def test_urls_may_be_checked() -> None:
    class Picture(BaseModel):
        image: HttpUrl

    assert read(Picture, {"image": "https://host/x.png"}) == {"image": "https://host/x.png"}


def test_a_schema_that_refers_to_itself_has_a_column_of_json() -> None:
    nested = {"type": "array", "items": {"$ref": "#/$defs/nested"}}
    schema = {"properties": {"tree": {"$ref": "#/$defs/nested"}}, "$defs": {"nested": nested}}
    assert OutputType(schema).columns == {"tree": "json"}
