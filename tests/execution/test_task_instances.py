"""What a trigger reads of its task's state."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from airflow_provider_rungen.execution.task.attempts import task_state


def instance(map_index: int | None = -1) -> Any:
    return SimpleNamespace(dag_id="dag", task_id="wait", run_id="run", map_index=map_index, try_number=1)


class Supervisor:
    """Answers a trigger's question for states, and keeps the question."""

    def __init__(self, **states: str) -> None:
        self.states = states
        self.asked: list[Any] = []

    def send(self, message: Any) -> Any:
        self.asked.append(message)
        return SimpleNamespace(task_states={"run": self.states} if self.states else {})


@pytest.fixture
def supervise(monkeypatch: pytest.MonkeyPatch) -> Any:
    from airflow.sdk.execution_time import task_runner

    def supervise(**states: str) -> Supervisor:
        supervisor = Supervisor(**states)
        monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", supervisor, raising=False)
        return supervisor

    return supervise


@pytest.mark.parametrize(("map_index", "key"), [(-1, "wait"), (3, "wait_3"), (None, "wait")])
def test_the_state_of_a_task(supervise: Any, map_index: int | None, key: str) -> None:
    supervisor = supervise(**{key: "failed"})
    assert task_state(instance(map_index)) == "failed"
    [question] = supervisor.asked
    assert (question.dag_id, question.task_ids, question.run_ids) == ("dag", ["wait"], ["run"])
    assert question.map_index == map_index


def test_of_several_that_may_be_meant_one_that_is_deferred_counts(supervise: Any) -> None:
    supervise(wait_0="success", wait_1="deferred", wait_2="failed")
    assert task_state(instance(None)) == "deferred"


def test_a_task_that_is_gone_has_no_state(supervise: Any) -> None:
    supervise()
    assert task_state(instance()) is None
