"""A type checker accepts a right DAG file, and rejects a misspelled parameter of anything public."""

from __future__ import annotations

import ast
import inspect
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from airflow_provider_rungen import operators, sensors
from airflow_provider_rungen.decorators import RunGenDecoratedOperator

ROOT = Path(__file__).parents[2]
ACCEPTED, REJECTED = (Path(__file__).with_name(name) for name in ("accepted.py", "rejected.py"))
PUBLIC = [
    # RunGenPlanTableOperator has the parameters of the other
    *((name, getattr(operators, name)) for name in operators.__all__ if name != "RunGenPlanTableOperator"),
    *((name, getattr(sensors, name)) for name in sensors.__all__),
]
#: A type checker does not see their parameters: Airflow makes them attributes of ``task``.
DECORATORS = [
    ("rungen_task", RunGenDecoratedOperator),
    ("rungen_table_task", operators.RunGenRunTableOperator),
]


def calls(path: Path, function: str = "") -> dict[str, set[str]]:
    """Return the keywords of the calls of each name in a file, or in a function of it."""
    tree: ast.AST = ast.parse(path.read_text())
    if function:
        [tree] = [node for node in ast.walk(tree) if getattr(node, "name", "") == function]
    found: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            found.setdefault(node.func.id, set()).update(word.arg for word in node.keywords if word.arg)
    return found


def test_mypy_accepts_the_one_and_rejects_each_line_of_the_other() -> None:
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", str(ACCEPTED), str(REJECTED)]  # with the project's options
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_parameter_is_accepted_and_each_callable_rejects_a_misspelled_one() -> None:
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = {
        each.name
        for _, kind in [*PUBLIC, *DECORATORS]
        for each in inspect.signature(kind).parameters.values()
        if each.kind not in variable
    }
    accepted, rejected = calls(ACCEPTED), calls(REJECTED, "misspelled")
    # the decorators fill them in
    assert parameters - {"python_callable", "op_args", "op_kwargs"} <= set().union(*accepted.values())
    names = {name for name, _ in PUBLIC}
    assert names <= accepted.keys() & rejected.keys()
    assert {name for name, _ in DECORATORS} <= accepted.keys()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # what Airflow replaces by its newer names
def test_the_accepted_file_is_a_dag_file() -> None:
    assert runpy.run_path(str(ACCEPTED))["run"].dag.dag_id == "accepted"
