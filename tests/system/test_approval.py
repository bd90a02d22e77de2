"""A quote and an answer in a real Airflow, judged by the jobs that the emulator saw."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from rungen_emulator import Emulator

from system.stage import Run

pytestmark = [pytest.mark.system, pytest.mark.timeout(300), pytest.mark.contract]

FIRST = ["kettle,red", "boots,blue"]
ALL = [*FIRST, "desk,walnut", "lamp,brass", "clock,black"]


def test_only_an_approval_buys_what_was_quoted(
    emulator: Emulator, start: Callable[..., Run], tmp_path: Path
) -> None:
    mark, dag_id = uuid.uuid4().hex, "rungen_approval"

    def approve(products: list[str], option: str, bought_before: list[str]) -> tuple[Run, str]:
        """Answer as a human does in the UI, and return the run and what it asked."""
        table = tmp_path / "products.csv"
        rows = [f"{number},{mark} {product}" for number, product in enumerate(products)]
        table.write_text("\n".join(["sku,title,color", *rows, ""]))
        run = start(dag_id, seconds=0, table=str(table))
        run.wait_for_state("awaiting_input", timeout=150, task_id="approve")
        assert bought() == sorted(bought_before), "nothing is bought before the answer"
        question: str = run.airflow.answer(dag_id, run.id, "approve", option)["body"]
        assert run.wait_for_end() == "success"
        assert run.task("paint")["state"] == ("success" if option == "Approve" else "skipped")
        return run, question

    def bought() -> list[str]:
        prompts = [str(job["input"]["prompt"]) for job in emulator.service.jobs()]
        start_of_all = f"watercolor of {mark} "
        found = [prompt.removeprefix(start_of_all) for prompt in prompts if prompt.startswith(start_of_all)]
        return sorted(each.replace(", ", ",") for each in found)

    _, question = approve(FIRST, "Approve", [])
    assert "2 of 2 pictures are left to paint, for an unknown price" in question
    run, question = approve(ALL, "Reject", FIRST)
    plan = run.airflow.xcom(dag_id, run.id, "plan", "plan")
    assert (plan["rows"], plan["jobs"], plan["reused"], plan["currency"]) == (5, 3, 2, "USD")
    assert plan["seconds"] > 0, "the first pictures have shown how long a job runs"
    assert f"3 of 5 pictures are left to paint, for about {plan['cost']} USD" in question
    run, _ = approve(ALL, "Approve", FIRST)
    assert bought() == sorted(ALL), "each once"
    summary = run.airflow.xcom(dag_id, run.id, "paint")
    assert (summary["rows"], summary["completed"], summary["jobs"], summary["reused"]) == (5, 5, 3, 2)
