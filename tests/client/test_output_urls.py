"""Outputs in a result: where they are found, what they are called, and what is kept of what stood there."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_rungen.client.output_urls import (
    MAX_DEPTH,
    MAX_NAME_BYTES,
    expiry_time,
    find_outputs,
    redact_value,
    safe_name,
)
from airflow_provider_rungen.client.redaction import without_secrets

URL = "https://storage.example/outputs/a.png"
SIGNED = f"{URL}?X-Amz-Date=20250111T164534Z&X-Amz-Expires=604800&X-Amz-Signature=s3cret"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


def found(result: Any) -> list[tuple[str, str]]:
    return [(output.at, output.name) for output in find_outputs(result)]


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        ({"images": [{"image": SIGNED}]}, [("result.images[0].image", "0-a.png")]),
        *((text, [("result", "0-a.png")]) for text in (SIGNED, f" {SIGNED}\n")),
        ({"b": [[f"{URL}?1"]], "a": f"{URL}?2"}, [("result.b[0][0]", "0-a.png"), ("result.a", "1-a.png")]),
        ([SIGNED, {"again": SIGNED}], [("result[0]", "0-a.png")]),
        ("\tdata:image/png;base64,YQ==\n", [("result", "0-output.png")]),
        ("HTTPS://storage.example/b.webp", [("result", "0-b.webp")]),
        ("s3://bucket/x.png", [("result", "0-x.png")]),
        (["DATA:Image/JPEG;base64,YWJj", SIGNED], [("result[0]", "0-output.jpg"), ("result[1]", "1-a.png")]),
        ("data:text/plain;charset=utf-8;base64,YWI=", [("result", "0-output.txt")]),
        ("data:model/x.y+z;base64," + "YWJj" * 10_000, [("result", "0-output")]),
    ],
)
def test_outputs_are_found_wherever_they_stand(result: Any, expected: list[tuple[str, str]]) -> None:
    assert found(result) == expected


@pytest.mark.parametrize(
    "result",
    [
        *("text", f"see {URL}", f"{URL} {URL}", "a:b", "://x", "", "data:a,b"),
        *("data:image/png;base64,", "data:image/png;base64,YQ", "data:image/png;base64,YQ="),
        *("data:image/png;base64,=YQ=", "data:image/png;base64,Y_-=", "see data:image/png;base64,YQ=="),
        *("data:image/../png;base64,YQ==", "data:;base64,YQ==", "data:image/png,YQ=="),
        *(None, True, 7, 1.5, [], {}, {SIGNED: 1}),
    ],
)
def test_what_is_no_url_as_a_whole_is_no_output(result: Any) -> None:
    assert find_outputs(result) == []


def test_the_url_is_kept_as_it_is_and_not_shown() -> None:
    [output] = find_outputs([SIGNED])
    assert output.url == SIGNED
    assert "s3cret" not in repr(output)


NAMES = {
    **dict.fromkeys(("..", ".", "", "x/"), "output"),
    "x/my%20cat.png": "my_cat.png",
    "..%2F..%2Fetc%2Fpasswd": "passwd",
    "..%5C..%5Cwindows%5Cwin.ini": "win.ini",
    "C:%5Cx.png": "x.png",
    "C:x.png": "C_x.png",
    "a%00b%0a%1b[31m.png": "a_b___31m.png",
    "a%E2%80%AEgnp.exe": "a_gnp.exe",
    ".bashrc": "bashrc",
    "%FF%FE.png": "__.png",
    "кот.png": "кот.png",
    "%D0%BA%D0%BE%D1%82.png": "кот.png",
    "e%CC%81.png": "é.png",
    "a*b?c=d": "a_b",
    "a%3Fb%23c.png": "a_b_c.png",
    "%252e%252e%252f": "_2e_2e_2f",
    "x" * 300 + ".png": "x" * 116 + ".png",
    "ж" * 300 + ".png": "ж" * 58 + ".png",
    "x." + "y" * 300: "x." + "y" * 118,
    "x" * 119 + "." + "y" * 300: "x" * 119,
}


@pytest.mark.parametrize("path", NAMES)
def test_a_name_is_taken_from_the_url(path: str) -> None:
    assert safe_name(f"https://h/{path}") == NAMES[path]
    assert safe_name("https://h") == safe_name("https://[bad/x.png") == "output"


@given(st.text(max_size=400) | st.from_regex(r"https://h/([%.\\/]|%2[eEfF]|%5[cC]|\w){0,40}", fullmatch=True))
def test_a_name_never_leads_anywhere(url: str) -> None:
    name = safe_name(url)
    assert name
    assert not set(name) & set('/\\:*?"<>|#%')
    assert name.isprintable()
    assert name[0] != "."
    assert name[-1] not in ". "
    assert len(name.encode()) <= MAX_NAME_BYTES


def test_names_of_one_job_differ_whatever_the_case() -> None:
    urls = [f"https://h/{name}" for name in ("a.png", "A.PNG", "%61.png")]
    assert len({output.name.lower() for output in find_outputs(urls)}) == 3


def test_what_was_stored_takes_the_place_of_the_urls() -> None:
    result = {"images": [{"image": SIGNED}, {"image": f"{URL}?other"}], "again": f"{SIGNED}\n", SIGNED: "key"}
    stored = "s3://b/0.png"
    kept = {"images": [{"image": stored}, {"image": URL}], "again": stored, URL: "key"}
    assert redact_value(result, {SIGNED: stored}) == kept
    assert result["again"] == f"{SIGNED}\n"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (SIGNED, URL),
        (f"make it like {SIGNED}, please", f"make it like {URL} please"),
        (f'{{"image": "{SIGNED}"}}', f'{{"image": "{URL}"}}'),
        (f"[a]({SIGNED}) and {SIGNED}", f"[a]({URL} and {URL}"),
        ("https://user:pass@h/x", "https://h/x"),
        ("s3://key:secret@bucket/x?versionId=1", "s3://bucket/x"),
        (f"{URL}#access_token=1", URL),
        ("a=1&X-Amz-Signature=abc", "a=1&X-Amz-Signature=***"),
        ("https%3A%2F%2Fh%2Fx%3FX-Amz-Signature%3Dabc%26x", "https%3A%2F%2Fh%2Fx"),
        ("what? a:b // c@d", "what? a:b // c@d"),
    ],
)
def test_no_secret_of_a_url_is_kept(text: str, clean: str) -> None:
    assert without_secrets(text) == clean
    assert redact_value({"a": [text, {text: None}]}) == {"a": [clean, {clean: None}]}
    assert found({text: URL}) == [(f"result.{clean}", "0-a.png")]


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("see https://tube.example/watch?v=dQw4w9WgXcQ&t=42 for it", ...),
        ("see https://shop.example/p?id=5#reviews. In SQL: a ? b", ...),
        ("code f'https://api.example/v1?limit={n}' # ok", ...),
        (f"like {SIGNED} there", f"like {URL} there"),
        ("at https://h/a?t=9f86d081884c7d659a2feaa0c55ad015a3bf4f1b there", "at https://h/a there"),
        ("at https://h/a?id=550e8400-e29b-41d4-a716-446655440000 there", "at https://h/a there"),
        ("at https://h/a?x=abc-DEF12_ghi-JKL34_mno&y=1 there", "at https://h/a there"),
        ("at https://h/a-page-with-many-words-2024?id=5 there", ...),
        (r'{"code": "f(\"/a?key=1\") + key"}', r'{"code": "f(\"/a?key=***\") + key"}'),
        ("at https://h/a#access_token=1 there", "at https://h/a there"),
        ("at https://h/a?q=1&next=https://u:p@h/b there", "at https://h/a?q=1&next=https://h/b there"),
    ],
)
def test_only_signatures_are_removed_from_urls_within_a_text(text: str, kept: Any) -> None:
    assert redact_value([text]) == [text if kept is ... else kept]


@given(JSON)
def test_a_copy_without_urls_is_equal(value: Any) -> None:
    if "://" not in json.dumps(value):
        assert redact_value(value) == redact_value(value, {URL: "s3://b/0.png"}) == value
    assert find_outputs(value) == []


@pytest.mark.parametrize("char", ["\u0301", "e\u0301", "\u0344", "\u0f71\u0f74", "a", "%CC%81"])
def test_a_name_is_cut_before_it_is_normalized(char: str) -> None:
    # to normalize all of it would take minutes on many Pythons
    many = char * 200_000
    for rest in (f"h/{many}.png", f"{many}/x.png", f"h/x.{many}", f"h/x?{many}"):
        assert len(safe_name(f"https://{rest}").encode()) <= MAX_NAME_BYTES
        assert find_outputs([f"https://{rest}"]) == []
    short = char * (16_000 // len(char))
    assert len(find_outputs([f"https://h/{n}{short}.png" for n in range(500)])) == 500
    assert find_outputs([f"https://{n}{short}/x.png" for n in range(500)]) == []


def test_places_do_not_grow_with_each_level() -> None:
    wide = {"k" * 1_000_000: ["text"] * 5000 + [URL] * 5000}
    [output] = find_outputs(wide)
    assert len(output.at) <= 301
    deep: Any = [URL]
    for _ in range(5000):
        deep = {"key": [deep, f"{URL}?deeper"]}
    assert [output.url for output in find_outputs(deep)] == [URL, f"{URL}?deeper"]


def test_no_more_are_looked_for_than_are_wanted() -> None:
    urls = [f"{URL}?{n}" for n in range(10)]
    assert [output.url for output in find_outputs(urls, 3)] == urls[:3]
    assert len(find_outputs([URL, URL, f"{URL}?1", URL], 2)) == 2


def test_what_json_cannot_say_is_kept_as_text() -> None:
    odd = [float("inf"), float("-inf"), float("nan"), 1.5, "\ud800", "\0", 2**70]
    kept = ["Infinity", "-Infinity", "NaN", *odd[3:]]
    assert redact_value(odd) == redact_value(odd, {URL: "s3://b/0.png"}) == kept
    assert json.loads(json.dumps(kept, allow_nan=False)) == kept


def test_what_is_nested_too_deeply_is_kept_as_json_text() -> None:
    deep: Any = {"image": SIGNED}
    for _ in range(400):
        deep = [deep]
    shallow, levels = redact_value(deep), 0
    while isinstance(shallow, list):
        [shallow], levels = shallow, levels + 1
    assert levels == MAX_DEPTH
    assert json.loads(shallow) == json.loads("[" * 200 + json.dumps({"image": URL}) + "]" * 200)


@pytest.mark.parametrize(
    ("url", "end"),
    [
        (SIGNED, "2025-01-18T16:45:34+00:00"),
        ("https://h/x?X-Amz-Expires=60&X-Amz-Date=20250111T164534Z", "2025-01-11T16:46:34+00:00"),
        ("https://h/x?X-Amz-Date=20250111T164534Z", None),
        ("https://h/x?X-Amz-Date=yesterday&X-Amz-Expires=1", None),
        ("https://h/x?X-Amz-Date=20250111T164534Z&X-Amz-Expires=9999999999999", None),
        ("https://h/x", None),
        ("https://[bad", None),
    ],
)
def test_the_expiry_is_that_of_the_url_or_of_the_job(url: str, end: str | None) -> None:
    expected = None if end is None else datetime.fromisoformat(end)
    assert expiry_time(url, None) == expected
    created = datetime(2025, 1, 9, tzinfo=UTC)
    deleted_at = datetime(2025, 1, 16, tzinfo=UTC)
    assert expiry_time(url, created) == min(deleted_at, expected or deleted_at)
    created = datetime(2025, 1, 20, tzinfo=UTC)
    assert expiry_time(url, created) == (expected or datetime(2025, 1, 27, tzinfo=UTC))
    assert expiry_time(url, datetime.max.replace(tzinfo=UTC)) == expected
