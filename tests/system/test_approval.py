"""A quote and an answer in a real Airflow, judged by the jobs that the emulator saw."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from system.stage import Run

pytestmark = [pytest.mark.system, pytest.mark.timeout(300), pytest.mark.contract]

FIRST = ["kettle, red", "boots, blue"]
ALL = [*FIRST, "desk, walnut", "lamp, brass", "clock, black"]


class Approval:
    """A run of the example over products that no other test has, which waits for an answer."""

    def __init__(self, start: Callable[..., Run], folder: Path, mark: str, products: list[str]) -> None:
        table = folder / f"{len(products)}.csv"
        rows = [f"{number},{mark} {product.replace(', ', ',')}" for number, product in enumerate(products)]
        table.write_text("\n".join(["sku,title,color", *rows, ""]))
        self.run = start("rungen_approval", seconds=0, table=str(table))
        self.run.prompt = f"watercolor of {mark} "
        self.run.wait_for_state("awaiting_input", timeout=150, task_id="approve")
        self.plan = self.run.airflow.xcom("rungen_approval", self.run.id, "plan", "plan")
        self.question = ""

    def answer(self, option: str) -> dict[str, str]:
        """Answer as a human does in the UI, and return how the tasks ended."""
        airflow, of_run = self.run.airflow, (self.run.dag_id, self.run.id)
        self.question = airflow.answer(*of_run, "approve", option)["body"]
        assert self.run.wait_for_end() == "success"
        return {task["task_id"]: task["state"] for task in airflow.task_instances(*of_run)}

    def bought(self) -> list[str]:
        """Return the products whose pictures were bought, by this run or one before."""
        return sorted(job["input"]["prompt"].removeprefix(self.run.prompt) for job in self.run.jobs())


def test_only_an_approval_buys_what_was_quoted(start: Callable[..., Run], tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    approval = Approval(start, tmp_path, mark, FIRST)
    assert approval.bought() == [], "nothing is bought before the answer"
    assert set(approval.answer("Approve").values()) == {"success"}
    assert approval.bought() == sorted(FIRST)

    approval = Approval(start, tmp_path, mark, ALL)
    plan = approval.plan
    assert (plan["rows"], plan["jobs"], plan["reused"], plan["currency"]) == (5, 3, 2, "USD")
    assert plan["seconds"] > 0, "the first pictures have shown how long a job runs"
    states = approval.answer("Reject")
    assert f"3 of 5 pictures are left to paint: about {plan['cost']} USD" in approval.question
    assert (states["approve"], states["paint"]) == ("success", "skipped")
    assert approval.bought() == sorted(FIRST)

    approval = Approval(start, tmp_path, mark, ALL)
    assert set(approval.answer("Approve").values()) == {"success"}
    assert approval.bought() == sorted(ALL), "each once"
    summary = approval.run.airflow.xcom("rungen_approval", approval.run.id, "paint")
    assert (summary["rows"], summary["completed"], summary["jobs"], summary["reused"]) == (5, 5, 3, 2)
