"""Whatever stands in Airflow's task state store, reading it gives a record or nothing, and one warning."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

import pytest
from conftest import FakeStore
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_rungen.client.scaling import ScaleRecord
from airflow_provider_rungen.execution.apps import CreationRecord
from airflow_provider_rungen.execution.attempts import Attempt, End
from airflow_provider_rungen.execution.batch.checkpoint import BatchHeader, Checkpoint
from airflow_provider_rungen.execution.scale_state import read_scale_record
from airflow_provider_rungen.execution.submission import SubmissionRecord

DIGEST = "0" * 64
ATTEMPT = Attempt(2, 3, 1, 4)
NOW = time.time()
SUBMISSION = SubmissionRecord("app", DIGEST, NOW, NOW + 60, ATTEMPT, "job", End.FAILED)
HEADER = BatchHeader("app", DIGEST, 250, NOW, ATTEMPT, End.SUCCEEDED, "b", 200, NOW)
CREATION = CreationRecord("a name", ("one", "two"))
RAISED = ScaleRecord("app", 2, 0, NOW)


def read_checkpoint(value: Any) -> Checkpoint | None:
    store = FakeStore()
    store.set("rungen_batch", HEADER.to_store())
    store.set("rungen_batch_0", value)
    return Checkpoint.found(store)


READ: dict[str, tuple[Callable[[Any], Any], dict[str, Any]]] = {
    "submission": (SubmissionRecord.from_store, SUBMISSION.to_store()),
    "batch": (BatchHeader.from_store, HEADER.to_store()),
    "chunk": (read_checkpoint, {"batch": "b", "ids": ["job-1", "-", ""]}),
    "creation": (CreationRecord.from_store, CREATION.to_store()),
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
    assert SubmissionRecord.from_store(SUBMISSION.to_store()) == SUBMISSION
    assert BatchHeader.from_store(HEADER.to_store()) == HEADER
    assert CreationRecord.from_store(CREATION.to_store()) == CREATION
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


def test_a_record_of_the_last_release_is_read() -> None:
    old = {"app_id": "app", "digest": DIGEST, "max_tries": 2, "submitted_at": NOW, "deadline": NOW + 60}
    record = SubmissionRecord.from_store(old | {"job_id": "job"})
    assert record is not None
    assert (record.job_id, record.attempt.max_tries, record.end) == ("job", 2, End.UNKNOWN)
    header = {"batch": "b", "app_id": "app", "digest": DIGEST, "count": 7, "max_tries": 2, "deadline": NOW}
    assert BatchHeader.from_store(header | {"mark": 7}) is not None


def test_a_number_of_inputs_that_no_memory_holds_is_no_batch() -> None:
    store = FakeStore()
    store.set("rungen_batch", HEADER.to_store() | {"count": 10**12, "mark": 10**12})
    assert Checkpoint.found(store) is None


def test_an_id_that_stands_there_twice_is_that_of_the_first_input() -> None:
    kept = read_checkpoint({"batch": "b", "ids": ["job-1", "job-1", "job-2"]})
    assert kept is not None
    assert kept.ids[:3] == ["job-1", "", "job-2"]
