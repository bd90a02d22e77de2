"""Decoding and reducing in steps gives the same as at once, whatever arrives and however it is cut."""

from __future__ import annotations

import contextlib
import gzip
import json
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_rungen.client.bodies import (
    CHUNK,
    DROPPED,
    Decoder,
    LeanFilter,
    UnknownEncodingError,
)
from airflow_provider_rungen.client.flow import Request
from airflow_provider_rungen.exceptions import RunGenResponseError

MOST = 256 * 1024
GET = Request("GET", "app/flux", "get the app")


def reduced(body: bytes, sizes: Iterable[int] = (), most: int = MOST) -> bytes:
    """Reduce a body that comes in pieces of given sizes, and the rest at once."""
    lean = LeanFilter(most, GET)
    for size in [*sizes, len(body)]:
        for _ in lean.feed(body[:size]):
            pass
        body = body[size:]
    return lean.finish()


def without(value: Any) -> Any:
    """What is to be left of a JSON value, where keys are there once."""

    def kept(part: dict[str, Any]) -> dict[str, Any]:
        return {key: None if key in DROPPED else item for key, item in part.items()}

    if not isinstance(value, dict):
        return value
    return kept(value) | ({"data": kept(value["data"])} if isinstance(value.get("data"), dict) else {})


text = st.text() | st.sampled_from(['"', "\\", '\\"', "]", "}", "data", "é\U0001f600", "[{", '"result":'])
keys = text | st.sampled_from(["data", "result", "request", "input", "workflow", "status", "id", "error"])
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=20,
)
sizes = st.lists(st.integers(0, 9), max_size=60)


@given(value=st.dictionaries(keys, values, max_size=6) | values, sizes=sizes, ascii=st.booleans())
def test_what_is_kept_is_as_it_was(value: Any, sizes: list[int], ascii: bool) -> None:
    with contextlib.suppress(UnicodeEncodeError):  # half a surrogate pair is no JSON text
        for indent in (2, None):
            body = json.dumps(value, ensure_ascii=ascii, indent=indent).encode()
            assert json.loads(reduced(body, sizes)) == without(value)


@given(body=st.text(alphabet='[]{}":,\\ a1n\n').map(str.encode) | st.binary(), sizes=sizes)
def test_what_is_no_json_object_is_kept_or_stays_unreadable(body: bytes, sizes: list[int]) -> None:
    kept = reduced(body, sizes)
    try:
        value = json.loads(body)
    except ValueError:
        if b"null" not in kept:  # what was dropped is not looked at
            assert kept == body
        return
    assert json.loads(kept) == without(value)


@given(value=st.dictionaries(keys, values, min_size=1, max_size=6), cut=st.floats(0, 1), sizes=sizes)
def test_a_body_cut_short_is_never_taken_for_whole(value: Any, cut: float, sizes: list[int]) -> None:
    body = json.dumps(value).encode()
    with pytest.raises(ValueError, match=r"."):
        json.loads(reduced(body[: int(cut * (len(body) - 1))], sizes))


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        (b'{"re\\u0073ult": [1], "a": 1}', {"result": None, "a": 1}),
        (b'{"result": 1, "status": "A", "result": [[2]]}', {"result": None, "status": "A"}),
        (b'\xef\xbb\xbf {"result": NaN, "a": [NaN]}', {"result": None, "a": [None]}),
        (
            b'{"data": {"result": "x"}, "data": {"result": [1], "id": "j"}}',
            {"data": {"result": None, "id": "j"}},
        ),
        *(
            (json.dumps(deeper).encode(), deeper)
            for deeper in ({"data": {"data": {"result": 1}}}, {"data": [{"result": 1}]}, {"a": {"result": 1}})
        ),
    ],
)
def test_odd_bodies(body: bytes, kept: Any) -> None:
    for size in (1, 3, 1000):
        text = reduced(body, [size] * len(body))
        assert json.loads(text, parse_constant=lambda _: None) == kept


def test_nonsense_stays_nonsense() -> None:
    for body in ('{"result": }', '{"result": 1 2}', '{"a": 1 "b": 2}', '{"a"; 1}', "{1}", '{"a": 1}}'):
        with pytest.raises(ValueError, match=r"."):
            json.loads(reduced(body.encode()))


@contextlib.contextmanager
def traced() -> Iterator[list[int]]:
    """Yield a list, which gets the most bytes that were held at a time."""
    peak: list[int] = []
    tracemalloc.start()
    try:
        yield peak
        peak.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


SIZE = 31_000_000
LARGE = {
    "numbers": b"[" + b"0.123456," * (SIZE // 9) + b"0]",
    "a string": b'"' + b"x" * SIZE + b'"',
    "a string of escapes": b'"' + b'\\"\\\\' * (SIZE // 4) + b'"',
    "small lists": b"[" + b"[1,2]," * (SIZE // 6) + b"0]",
    "small objects": b"[" + b'{"a":1,"b":"]"},' * (SIZE // 16) + b"0]",
    "depth": b"[" * (SIZE // 2) + b"]" * (SIZE // 2),
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("is_first", [True, False])
def test_a_large_result_is_dropped_in_short_steps_and_little_memory(name: str, is_first: bool) -> None:
    parts = [b'"result": ' + LARGE[name], b'"status": "COMPLETED"']
    body = b'{"data": {' + b", ".join(parts if is_first else parts[::-1]) + b', "id": "j"}}'
    chunks = [body[start : start + CHUNK] for start in range(0, len(body), CHUNK)]
    lean, longest = LeanFilter(MOST, GET), 0.0
    with traced() as peak:
        begun_at = step_at = time.thread_time()
        for chunk in chunks:
            for _ in lean.feed(chunk):
                longest, step_at = max(longest, time.thread_time() - step_at), time.thread_time()
        took = time.thread_time() - begun_at
    assert json.loads(lean.finish()) == {"data": {"status": "COMPLETED", "result": None, "id": "j"}}
    assert peak[0] < 4_000_000
    assert longest < 0.05  # some 5 ms, where nothing traces
    assert took < 15  # some 0.2 s, likewise


BOUNDED = {
    "a value": b'{"error": "' + b"x" * MOST + b'"}',
    "a key": b'{"' + b"k" * MOST + b'": 1}',
    "depth": b'{"a": ' + b"[" * MOST,
    "no JSON": b"<html>" + b"x" * MOST,
    "dropped ones": b"{" + b'"result":[1],' * MOST,
    "many": b"{" + b'"a":1,' * MOST,
}


@pytest.mark.parametrize("name", BOUNDED)
def test_what_is_kept_is_bounded(name: str) -> None:
    begun_at = time.thread_time()
    with pytest.raises(RunGenResponseError):
        reduced(BOUNDED[name], [1000] * (len(BOUNDED[name]) // 1000))
    assert time.thread_time() - begun_at < 3


# --- compression --------------------------------------------------------------------------------------------


def decoded(data: bytes, encoding: str, sizes: Iterable[int] = ()) -> bytes:
    decoder = Decoder(encoding)
    parts: list[bytes] = []
    for size in [*sizes, len(data)]:
        parts += decoder.feed(data[:size])
        data = data[size:]
    return b"".join([*parts, decoder.finish()])


PACKERS: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("gzip", lambda data: gzip.compress(data[:3]) + gzip.compress(data[3:])),
    *(
        ("x-gzip", lambda data: gzip.compress(data) + bytes(20)),
        (" , GZIP", gzip.compress),
        ("identity", bytes),
    ),
]


@given(data=st.binary(max_size=300), sizes=sizes, packer=st.sampled_from(PACKERS))
def test_what_was_packed_comes_back(
    data: bytes, sizes: list[int], packer: tuple[str, Callable[[bytes], bytes]]
) -> None:
    name, pack = packer
    assert decoded(pack(data), name, sizes) == data


def test_a_missing_end_is_missed_unless_the_body_is_empty() -> None:
    assert decoded(b"", "gzip") == b""
    with pytest.raises(EOFError):
        decoded(gzip.compress(b"x" * 1000)[:-1], "gzip")


def test_what_was_not_asked_for_is_refused() -> None:
    for encoding in ("br", "zstd", "gzip, gzip", "deflate"):
        with pytest.raises(UnknownEncodingError):
            Decoder(encoding)
