"""When a real Airflow retries a failed task."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from system.stage import Run

pytestmark = [pytest.mark.system, pytest.mark.timeout(300), pytest.mark.contract]


def test_a_permanent_error_is_not_retried(start: Callable[..., Run]) -> None:
    run = start("hopeless", seconds=0.1)
    assert run.wait_for_end() == "failed"
    assert run.task()["try_number"] == 1
    assert run.task()["max_tries"] == 2
    assert run.jobs() == []
