"""What importing the package costs the processes that parse DAG files all the time."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from airflow_provider_rungen import operators, sensors
from airflow_provider_rungen.decorators import RunGenDecoratedOperator

PACKAGE = "airflow_provider_rungen"
HEAVY = {"aiohttp", "jsonschema", "requests"}
RUNS_TASKS = tuple(
    f"{PACKAGE}.{name}" for name in ("apps", "hooks", "outputs", "store", "table", "task", "triggers", "work")
)
AIRFLOW = f"from {PACKAGE}._airflow import BaseHook, BaseOperator, conf"
DAG_FILE = Path(__file__).parent / "typing" / "accepted.py"


def imported(before: str, statement: str) -> Any:
    """Return which modules a statement loads in a new interpreter, after others."""
    lines = ["import sys", before, "before = set(sys.modules)", statement, "print(set(sys.modules) - before)"]
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return ast.literal_eval(done.stdout.splitlines()[-1])


def test_parsing_a_dag_file_imports_nothing_heavy_and_nothing_that_runs_a_task() -> None:
    """The file has a task of every operator, sensor and the decorator."""
    loaded = imported(
        # what Airflow itself imports is not counted, that for a DAG with a task included
        f"{AIRFLOW}; from airflow.providers.common.compat.sdk import DAG\n"
        "with DAG('other', schedule=None): BaseOperator(task_id='other')",
        f"import runpy; runpy.run_path({str(DAG_FILE)!r})",
    )
    assert f"{PACKAGE}.operators.job" in loaded
    assert not loaded & (HEAVY - {"jsonschema"})  # it checks the schemas in the file
    assert [name for name in sorted(loaded) if name.startswith(RUNS_TASKS)] == []


@pytest.mark.parametrize(
    ("before", "statement", "unwanted"),
    [
        (AIRFLOW, f"import {PACKAGE}.hooks", tuple(HEAVY)),
        # for a DAG with an asset watcher
        (
            f"{AIRFLOW}; from {PACKAGE}._airflow import BaseEventTrigger",
            f"from {PACKAGE}.triggers import RunGenIdleAppTrigger as T; T('a', 900).serialize()",
            (*(name for name in RUNS_TASKS if not name.endswith("triggers")), *HEAVY),
        ),
        # every component of Airflow loads it
        (
            "from airflow.plugins_manager import AirflowPlugin",
            f"import {PACKAGE}.pages.plugin",
            (f"{PACKAGE}.client", f"{PACKAGE}.pages.routes", *RUNS_TASKS, *HEAVY),
        ),
    ],
    ids=["hooks", "idle apps", "plugin"],
)
def test_importing_it_needs_nothing_heavy(before: str, statement: str, unwanted: tuple[str, ...]) -> None:
    loaded = imported(before, statement)
    assert any(name.startswith(PACKAGE) for name in loaded)
    assert [name for name in sorted(loaded) if name.startswith(unwanted)] == []


def test_the_pytest_plugin_adds_only_itself() -> None:
    loaded = imported("import pytest", "import rungen_emulator.pytest_plugin")
    assert loaded == {"rungen_emulator", "rungen_emulator.pytest_plugin"}


def test_a_run_without_the_fixture_never_loads_the_server(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")  # not the project's, which asks for other plugins
    (tmp_path / "test_nothing.py").write_text("def test_nothing(): pass\n")
    (tmp_path / "conftest.py").write_text(
        "import sys\n"
        "def pytest_sessionfinish():\n"
        "    print(sorted(name for name in sys.modules if name.startswith(('airflow', 'rungen'))))\n"
    )
    # no other plugin than this one
    command = [sys.executable, "-m", "pytest", "-s", "-p", "rungen_emulator.pytest_plugin"]
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    assert str(["rungen_emulator", "rungen_emulator.pytest_plugin"]) in done.stdout


def _classes() -> list[type]:
    classes = [getattr(operators, name) for name in operators.__all__ if name.startswith("RunGen")]
    return [*classes, sensors.RunGenJobSensor, sensors.RunGenAppSensor, RunGenDecoratedOperator]


# They copy or wrap a value, ask whether it is given, or read which tasks it refers to.
READERS = {"find_job_sources"}


@pytest.mark.parametrize("kind", _classes(), ids=lambda kind: kind.__name__)
def test_init_only_keeps_template_fields(kind: Any) -> None:
    """Airflow's own rule: what is rendered later is neither checked nor changed when the DAG is parsed."""
    for base in kind.__mro__:
        if "__init__" not in vars(base) or not base.__module__.startswith(PACKAGE):
            continue
        tree = ast.parse(textwrap.dedent(inspect.getsource(base.__init__)))
        allowed: set[ast.AST] = set()
        for node in ast.walk(tree):
            match node:
                case ast.Compare(left=ast.Name() as value, ops=[ast.Is() | ast.IsNot()]):
                    allowed.add(value)  # whether a parameter is given is known before it is rendered
                case ast.Call(func=ast.Name(id=called), args=[*values]) if called in READERS:
                    allowed.update(values)
                case ast.Assign(targets=[ast.Attribute(attr=to)], value=ast.Name(id=given) as value) if (
                    to == given
                ):
                    allowed.add(value)
                case ast.keyword(arg=to, value=ast.Name(id=given) as value) if to == given:
                    allowed.add(value)  # for super().__init__
        used = {
            node.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node not in allowed
        }
        assert not used & set(kind.template_fields), f"{base.__name__}.__init__ uses template fields"
