"""Ids as people and templates write them, on a worker and in the triggerer."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_rungen.exceptions import RunGenInputError
from airflow_provider_rungen.task.job_ids import is_single, parse_job_ids, parse_known_job_ids


@pytest.mark.parametrize(
    ("value", "ids"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        (("a", None), ["a", None]),
        ("['a', 'b']", ["a", "b"]),
        (' ["a", None] ', ["a", None]),
        (["a", "None"], ["a", None]),
        ([], []),
        ("[]", []),
        ([["a", "b"]], ["a", "b"]),
        (["a", ["b", None], ("c",)], ["a", "b", None, "c"]),
        ([[["a"], []], [["b"]]], ["a", "b"]),
        (["['a', 'b']", "c"], ["a", "b", "c"]),
        ("[['a'], 'b']", ["a", "b"]),
        # what a task with a destination returns
        ({"job_id": "a", "files": []}, ["a"]),
        ([{"job_id": "a"}, None, [{"job_id": "b"}]], ["a", None, "b"]),
        ("{'job_id': 'a', 'files': None}", ["a"]),
        ('["a", null]', ["a", None]),
    ],
)
def test_a_list_is_a_list_and_nothing_is_nothing(value: Any, ids: list[str | None]) -> None:
    assert parse_job_ids(value) == ids
    assert parse_known_job_ids(value) == [each for each in ids if each is not None]


@pytest.mark.parametrize(
    "value", ["None", "", None, [""], ["a", ""], "[None, '']", [None], "[None]", [[None]]]
)
def test_no_id_is_an_error_that_asks_for_the_task_before(value: Any) -> None:
    with pytest.raises(RunGenInputError, match="Did the upstream task push nothing"):
        parse_known_job_ids(value)


@pytest.mark.parametrize(
    "value",
    ["['a', b]", "a/b", ["a/b"], 7, iter(["a"]), [7], "[7]", [[7]], [["a/b"]], [{"a": 1}], {"a": "b"}],
)
def test_what_is_no_id_is_refused(value: Any) -> None:
    with pytest.raises(RunGenInputError, match="job_id"):
        parse_job_ids(value)


@pytest.mark.parametrize(
    ("value", "single"),
    [
        ("a", True),
        ("None", True),
        (["a"], False),
        ("['a']", False),
        ("[]", False),
        ([["a"]], False),
        ({"job_id": "a"}, True),
    ],
)
def test_the_text_of_a_list_gives_a_list_of_results(value: Any, single: bool) -> None:
    assert is_single(value) is single
