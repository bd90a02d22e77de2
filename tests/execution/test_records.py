"""Whatever is in Airflow's database, reading it gives a record or nothing, and one warning."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_rungen.client.workers import ScaleRecord, WorkerHistory
from airflow_provider_rungen.execution.apps.scale_record import read_scale_record

RAISED = ScaleRecord("app", 2, 0, time.time(), WorkerHistory(((1.0, 0), (2.0, 2))))

READ: dict[str, tuple[Callable[[Any], Any], dict[str, Any]]] = {
    "scaled": (read_scale_record, RAISED.to_json()),
}
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
HOSTILE: list[Any] = [
    *(None, True, -1, 10**12, 10**400, float("nan"), float("inf"), "", "x" * 10_000_000, "../app", "a b"),
    *([], {}, [None], [[]], {"a": 1}, ["x"] * 1000, ["same", "same"], [7]),
]


def test_a_record_comes_back_as_it_was() -> None:
    assert read_scale_record(RAISED.to_json()) == RAISED


@pytest.mark.parametrize("kind", READ)
@given(value=JSON)
def test_arbitrary_json_raises_nothing(kind: str, value: Any) -> None:
    READ[kind][0](value)


@pytest.mark.parametrize("kind", READ)
@given(data=st.data())
def test_a_record_with_an_arbitrary_field_raises_nothing(kind: str, data: st.DataObject) -> None:
    read, value = READ[kind]
    read(value | {data.draw(st.sampled_from(sorted(value))): data.draw(JSON)})


@pytest.mark.parametrize("kind", READ)
def test_a_record_with_a_hostile_or_missing_field_is_read_or_warned_of_once(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    read, value = READ[kind]
    broken: list[Any] = [value | {name: bad} for name in value for bad in HOSTILE]
    broken += [{name: value[name] for name in value if name != left_out} for left_out in value]
    broken += [value | {"version": 2}, *(bad for bad in HOSTILE if bad is not None)]
    for each in broken:
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            read(each)
        assert len(caplog.messages) <= 1
        assert all(line.startswith("Ignored ") and len(line) < 300 for line in caplog.messages)
