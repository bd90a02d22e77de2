"""Many numbers as a short text."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_rungen.execution.task.ranges import format_ranges, parse_ranges


@pytest.mark.parametrize(
    ("numbers", "text"), [([], ""), ([0], "0"), ([3, 4], "3-4"), ([7, 0, 1, 2, 9, 10], "0-2,7,9-10")]
)
def test_ranges_are_short(numbers: list[int], text: str) -> None:
    assert format_ranges(numbers) == text


@given(st.sets(st.integers(0, 200)))
def test_ranges_can_be_read_back(numbers: set[int]) -> None:
    assert parse_ranges(format_ranges(numbers), 201) == sorted(numbers)


@pytest.mark.parametrize("text", ["a", "1,", "1--2", "-1", "5", "3-5", "0 1", None, 7, ["0"], "9" * 30])
def test_other_texts_are_refused(text: Any) -> None:
    with pytest.raises(ValueError, match=r"below 5|no ranges"):
        parse_ranges(text, 5)
