"""What XCom cannot hold, or would change, is refused before it is returned; all else comes back as it was."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException
from conftest import FakeTaskInstance, Outcome, run_task
from hypothesis import given
from hypothesis import strategies as st
from rungen_emulator import Emulator, Fault

from airflow_provider_rungen.decorators import rungen_task
from airflow_provider_rungen.hooks import RunGenHook
from airflow_provider_rungen.operators import RunGenCollectResultsOperator
from airflow_provider_rungen.results.xcom import (
    MAX_DEPTH,
    RESERVED_KEYS,
    find_key_problem,
    find_xcom_problem,
)

EDGES = [2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63), -(2**63) - 1, 10**400]
FLOATS = [1e15, 1e16, 1.5e18, float(2**64), 1e20, -1e20, 1e308, 5e-324, -0.0, math.inf, -math.inf, math.nan]
TEXT = st.text(st.characters(codec=None, exclude_categories=()), max_size=5)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from(EDGES),
    st.floats(),
    st.sampled_from(FLOATS),
    TEXT,
)
KEYS = TEXT | st.sampled_from(sorted(RESERVED_KEYS))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(-1e18, 1e18) | st.text("aé€😀"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text("ab_."), inner, max_size=4),
    max_leaves=12,
)


def as_postgresql_prints_it(number: str) -> float:
    """Read a number as it comes back from a column of the type JSONB, which keeps no exponent."""
    decimal = Decimal(number)
    exponent = decimal.as_tuple().exponent
    return int(decimal) if isinstance(exponent, int) and exponent >= 0 else float(decimal)


@cache
def adapters() -> Any:
    from airflow.sdk.api.datamodels._generated import XComResponse
    from airflow.sdk.execution_time import comms
    from pydantic import JsonValue, TypeAdapter

    return TypeAdapter(comms.ToSupervisor), TypeAdapter(JsonValue), TypeAdapter(XComResponse)


def same(value: Any, other: Any) -> bool:
    """Compare as numbers of 64 bits: PostgreSQL makes an integer of a float without a fraction."""
    if isinstance(value, list) and isinstance(other, list):
        return len(value) == len(other) and all(map(same, value, other))
    if isinstance(value, dict) and isinstance(other, dict):
        return value.keys() == other.keys() and all(same(value[key], other[key]) for key in value)
    if isinstance(value, float) and type(other) is int:
        return float(other) == value
    return type(value) is type(other) and bool(value == other)


def through_xcom(value: Any) -> Any:
    """Push and pull a value as Airflow 3.3 does: task, supervisor, API server, database, and back."""
    serde = pytest.importorskip("airflow.sdk.serde")
    comms = pytest.importorskip("airflow.sdk.execution_time.comms")
    if not hasattr(comms, "_RequestFrame"):
        pytest.skip("tasks of this Airflow send other messages to their supervisor")
    import msgspec

    to_supervisor, json_value, answer = adapters()

    def sent(message: Any) -> Any:
        frame = comms._RequestFrame(id=1, body=message.model_dump()).as_bytes()
        return msgspec.msgpack.Decoder(comms._RequestFrame).decode(bytes(frame[4:])).body

    serialized = serde.serialize(value)
    pushed = comms.SetXCom(key="k", value=serialized, dag_id="d", task_id="t", run_id="r", map_index=-1)
    received = to_supervisor.validate_python(sent(pushed))
    posted = json.loads(json.dumps(received.value, allow_nan=False).encode())
    stored = json.dumps(json_value.validate_python(posted))
    assert "\\u0000" not in stored.replace("\\\\", "")  # PostgreSQL refuses it
    kept = json.loads(stored, parse_float=as_postgresql_prints_it)
    pulled = answer.validate_json(json.dumps({"key": "k", "value": kept}))
    return serde.deserialize(sent(comms.XComResult(key="k", value=pulled.value))["value"])


@given(VALUES)
def test_a_value_comes_back_as_it_was_or_is_refused(value: Any) -> None:
    if not find_xcom_problem(value):
        assert same(value, through_xcom(value))
        assert same([value], through_xcom([value]))


@given(PLAIN)
def test_what_is_plain_is_not_refused(value: Any) -> None:
    assert find_xcom_problem(value) == ""
    assert same(value, through_xcom(value))


@pytest.mark.parametrize("shape", ["lists", "dicts", "both"])
def test_depth_is_refused_before_airflow_refuses_it(shape: str) -> None:
    value: Any = "x"
    for level in range(MAX_DEPTH):
        is_list = shape == "lists" or (shape == "both" and level % 2)
        value = [value] if is_list else {"a": value}
    assert find_xcom_problem(value) == ""
    assert through_xcom([value]) == [value]
    problem = find_xcom_problem([value])
    assert problem.startswith("result[0]")
    assert problem.endswith(f"is nested deeper than {MAX_DEPTH} levels")
    for _ in range(100_000):
        value = [value]
    assert "is nested deeper" in find_xcom_problem(value)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (math.inf, "result is inf, which is not valid JSON"),
        ({"a": [1, -math.inf]}, "result.a[1] is -inf, which is not valid JSON"),
        ({"a": {"b": math.nan}}, "result.a.b is nan, which is not valid JSON"),
        ([2**64], "result[0] is a number that does not fit into 64 bits"),
        ([-(2**63) - 1], "result[0] is a number that does not fit into 64 bits"),
        ([1e20], "result[0] is a number that does not fit into 64 bits"),
        ({"a\0": 1}, r"result has the key 'a\x00', which holds a NUL character"),
        (["x\0y"], "result[0] holds a NUL character"),
        (["é\ud800"], "result[0] holds half a surrogate pair"),
        (
            {"x": [{"__classname__": "a.B"}]},
            "result.x[0] has the key '__classname__', which is reserved by Airflow",
        ),
        ({"__type": 1, "__var": 2}, "result has the key '__type', which is reserved by Airflow"),
        ({"https://h/?sig=SECRET": [math.inf]}, "result.https://h/?***[0] is inf, which is not valid JSON"),
        ([(1, 2)], "result[0] is a tuple, which is not valid JSON"),
    ],
)
def test_a_problem_names_its_path(value: Any, problem: str) -> None:
    assert find_xcom_problem(value) == problem


def test_a_large_value_is_looked_through_in_no_time_that_grows_faster() -> None:
    wide: Any = {"k" * 1_000_000: [[["x"] * 10] * 10] * 1000, "t": "é" * 1_000_000}
    assert find_xcom_problem(wide) == ""
    assert len(find_xcom_problem({"k" * 1_000_000: [math.inf]})) < 300


@pytest.mark.parametrize(
    ("key", "is_good"),
    [
        *((key, True) for key in ("images", "a-b.c", "_x", "9")),
        *(
            (key, False)
            for key in ("", ".", "..", "../other/return_value", "a/b", "a?b", "a#b", "a b", "é", "x" * 251)
        ),
        *((key, False) for key in ("return_value", "job_id", "failed", "bill", "scaled", "rungen_failure")),
    ],
)
def test_keys_that_lead_elsewhere_are_no_keys_of_xcoms(key: str, is_good: bool) -> None:
    assert (find_key_problem({"a": 1, key: 2}) == "") is is_good


# --- operators ----------------------------------------------------------------------------------------------

pytestmark = pytest.mark.usefixtures("unsettled")
MODES = pytest.mark.parametrize("deferrable", [False, True], ids=["blocking", "deferred"])
APP = "llama-text"
# As the emulator sends them: Python's JSON says what JSON cannot.
ODD: dict[str, Any] = {
    "infinity": {"a": [1e999]},
    "surrogate": {"a": ["\ud800"]},
    "nul": {"a": ["x\0"]},
    "large": {"a": [2**64]},
    "class": {"a": [{"__classname__": "airflow.sdk.definitions.connection.Connection", "__version__": 1}]},
    "old class": {
        "a": [{"__type": "airflow.sdk.definitions.connection.Connection", "__var": {"conn_id": "x"}}]
    },
}


def collect(context: Any, job_id: Any, **options: Any) -> Outcome:
    options = {"app_id": APP, "poll_interval": 0.02, **options}
    return run_task(RunGenCollectResultsOperator(task_id="collect", job_id=job_id, **options), context)


def submit(emulator: Emulator, *results: Any, polls: int = 1) -> list[str]:
    """Run jobs that are at work at the first polls, and completed with these results at every later one."""
    with RunGenHook() as hook:
        inputs: list[dict[str, Any]] = [{"prompt": "x", "emulator": {"seconds": 60}} for _ in results]
        ids = [hook.run_job(app_id=APP, input=each).id for each in inputs]
    for job_id, result in zip(ids, results, strict=True):
        complete(emulator, job_id, result, polls)
    return ids


def complete(emulator: Emulator, job_id: str, result: Any, polls: int) -> None:
    answer = json.dumps({"data": {"id": job_id, "status": "COMPLETED", "result": result}})
    body = answer.replace("Infinity", "1e999")  # which is valid JSON
    emulator.service.inject(Fault(on="get", status=200, body=body, job_id=job_id, times=None, skip=polls))


@pytest.mark.contract
@MODES
@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_a_result_that_xcom_cannot_hold_fails_permanently_and_names_the_way_out(
    rungen_emulator: Emulator, context: Any, ti: FakeTaskInstance, odd: Any, deferrable: bool
) -> None:
    good, bad = submit(rungen_emulator, {"a": ["fine"]}, odd)
    outcome = collect(context, [good, bad], deferrable=deferrable)
    assert type(outcome.error) is AirflowFailException
    message = str(outcome.error)
    assert message.startswith(
        "1 of 2 jobs failed, 0 may (max_failed): index 1: XCom cannot hold the result: "
    )
    assert f" (job {bad}, app {APP}). " in message.partition("result: result.a[0]")[2]
    assert "Set destination" in message
    assert ti.xcoms["failed"] == [1]
    outcome = collect(context, [good, bad], deferrable=deferrable, max_failed=1)
    assert outcome.value == [{"a": ["fine"]}, None]
    assert rungen_emulator.service.count("cancel") == 0


def decorated(**options: Any) -> Any:
    options = {"app_id": APP, "poll_interval": 0.02, **options}
    given: Any = {"prompt": "x", "emulator": {"seconds": 0, "result": options.pop("result")}}
    with DAG("decorated", schedule=None):
        task: Any = rungen_task(task_id="say", **options)
        return task(lambda: given)().operator


@pytest.mark.contract
@MODES
def test_a_decorated_job_names_the_way_out(rungen_emulator: Emulator, context: Any, deferrable: bool) -> None:
    outcome = run_task(decorated(result=ODD["nul"], deferrable=deferrable), context)
    assert type(outcome.error) is AirflowFailException
    assert "XCom cannot hold the result: result.a[0]" in str(outcome.error)
    assert "Collect by id with a destination" in str(outcome.error)


@pytest.mark.contract
@pytest.mark.parametrize("is_split", [False, True])
def test_keys_are_checked_where_they_become_xcoms(
    rungen_emulator: Emulator, context: Any, tmp_path: Path, is_split: bool
) -> None:
    result = {"../../../other/return_value": "x"}
    outcome = run_task(decorated(result=result, multiple_outputs=is_split), context)
    if is_split:
        assert "which cannot be the key of an XCom" in str(outcome.error)
        outcome = run_task(
            decorated(result=result, multiple_outputs=True, destination=str(tmp_path)), context
        )
        assert outcome.error is None
    else:
        assert outcome.value == result


@pytest.mark.contract
@MODES
def test_some_may_fail(rungen_emulator: Emulator, context: Any, deferrable: bool) -> None:
    good, bad, odd = submit(rungen_emulator, {"a": 1}, 7, {"a": "x"})
    rungen_emulator.service.inject(Fault(on="get", status=404, times=None, job_id=bad))
    options: Any = {"deferrable": deferrable, "output_type": {"properties": {"a": {"type": "integer"}}}}
    outcome = collect(context, [None, good, odd, good], max_failed=2, **options)
    assert (outcome.error, outcome.value) == (None, [None, {"a": 1}, None, {"a": 1}])
    assert context["ti"].xcoms["failed"] == [0, 2]
    error = collect(context, [None, good, odd, good], max_failed=1, **options).error
    assert type(error) is AirflowFailException
    assert "2 of 4 jobs failed, 1 may (max_failed): index 0: it has no job; index 2: " in str(error)
    requests = len(rungen_emulator.service.records())
    error = collect(context, ["a", None, None], max_failed=1).error
    assert type(error) is AirflowFailException
    assert "2 of 3 have no job, 1 may (max_failed). Raise max_failed to collect the others" in str(error)
    assert len(rungen_emulator.service.records()) == requests


@pytest.mark.contract
@MODES
@pytest.mark.parametrize("many", [False, True])
def test_results_too_large_for_xcom_fail_permanently(
    rungen_emulator: Emulator, context: Any, deferrable: bool, many: bool
) -> None:
    # as JSON, with the quotation marks, and a list with what is around its items
    fitting = 1_000_000 - (2 + 2 + 2 + 3 if many else 2)
    for excess in (0, 1):
        ids = submit(rungen_emulator, "x" * (fitting + excess), "y")
        outcome = collect(context, ids if many else ids[0], deferrable=deferrable)
        if not excess:
            assert outcome.error is None
            continue
        assert type(outcome.error) is AirflowFailException
        assert "over 1000000 bytes, too much for XCom. Set destination" in str(outcome.error)
