"""What operators, sensors and the decorator take: spelled out, documented, and in the same order."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from airflow.providers.common.compat.sdk import BaseOperator, BaseSensorOperator

import airflow_provider_rungen
from airflow_provider_rungen import operators, sensors
from airflow_provider_rungen.decorators import RunGenDecoratedOperator, RunGenTableDecoratedOperator

KINDS: list[Any] = [
    *(getattr(operators, name) for name in operators.__all__),
    sensors.RunGenJobSensor,
    sensors.RunGenAppSensor,
]
#: The order of all parameters; the first is what the task is about.
ORDER = """
    python_callable op_args op_kwargs input sql conn_id parameters table key to_input columns where
    limit job_id name configuration workflow active_workers max_workers app_id only_if
    rungen_conn_id description status wait_for_completion deferrable poll_interval timeout
    queued_timeout cancel_on_kill input_schema destination results version reuse per_row output_type
    check label max_jobs max_cost max_in_flight max_failed max_attempts finish_in
"""
EACH = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


def parameters(kind: Any) -> dict[str, inspect.Parameter]:
    found = dict(inspect.signature(kind.__init__).parameters)
    del found["self"]
    return {
        name: each
        for name, each in found.items()
        if each.kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    }


def description(kind: Any) -> str:
    """Return the docstring that describes the parameters: that of the class which defines them."""
    if inspect.isclass(kind):
        kind = next(each for each in kind.__mro__ if "__init__" in vars(each))
    return inspect.getdoc(kind) or ""


def documented(kind: Any) -> list[str]:
    return [name for name in re.findall(r":param (\w+):", description(kind)) if name != "options"]


@EACH
def test_parameters_are_typed_and_documented_in_the_same_order_everywhere(kind: Any) -> None:
    names = list(parameters(kind))
    assert documented(kind) == names
    for name, each in parameters(kind).items():
        assert each.annotation not in (inspect.Parameter.empty, "Any"), name
    if kind is not operators.scaled_app:  # the app and its workers may be positional, and come first
        assert names == sorted(names, key=ORDER.split().index)


@EACH
def test_each_template_field_is_a_parameter_and_documented_as_one(kind: Any) -> None:
    text = description(kind)
    # Airflow's tasks have a `label` already
    fields = {name.replace("job_label", "label") for name in getattr(kind, "template_fields", ())}
    if kind is operators.RunGenPlanTableOperator:  # it adds one parameter to those of the table
        assert fields == set(operators.RunGenRunTableOperator.template_fields)
        fields = set()
    assert fields <= set(parameters(kind))
    marked = {
        name
        for name, described in re.findall(r":param (\w+): ((?:.|\n)*?)(?=\n:param|\n:raises|\Z)", text)
        if "templated" in described
    }
    if kind is operators.scaled_app:  # its tasks have the fields
        assert marked <= {"active_workers", "app_id", "only_if", "rungen_conn_id"}
    else:
        assert marked - {"active_workers", "app_id", "rungen_conn_id"} <= fields
        assert fields - {"rungen_conn_id"} <= marked


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind is not operators.scaled_app])
def test_defaults_are_the_same_everywhere(kind: Any) -> None:
    for name in ("rungen_conn_id", "poll_interval"):
        if each := parameters(kind).get(name):
            assert each.default == parameters(operators.RunGenRunJobOperator)[name].default


def test_a_parameter_has_one_type_wherever_it_is_taken() -> None:
    """So that a type checker that accepts it in one place does in the others (tests/typing/accepted.py)."""
    types: dict[str, set[str]] = {}
    for kind in KINDS:
        for name, each in parameters(kind).items():
            types.setdefault(name, set()).add(str(each.annotation).replace("'", '"'))
    for name, annotation in typed_fields("ScaleUpArguments").items():
        if name in types:
            types[name].add(annotation.replace("'", '"'))
    # what is to be deleted is named, scaled_app() names its tasks, and a table has to keep what it buys
    assert {name for name, found in types.items() if len(found) > 1} == {"app_id", "destination", "name"}


# --- what Airflow itself takes ------------------------------------------------------------------------------


def typed_fields(name: str) -> dict[str, str]:
    """Return the keys of a TypedDict that exists for type checkers only, and their types."""
    source = Path(airflow_provider_rungen.__file__).with_name("parameters.py").read_text("utf-8")
    classes = {node.name: node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ClassDef)}
    found: dict[str, str] = {}
    for base in classes[name].bases:
        if isinstance(base, ast.Name) and base.id in classes:
            found |= typed_fields(base.id)
    for node in classes[name].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            annotation = ast.unparse(node.annotation)
            found[node.target.id] = re.sub(r"^Required\[(.*)\]$", r"\1", annotation)
    return found


def typed_names(name: str) -> set[str]:
    return set(typed_fields(name))


def airflow_names(kind: Any) -> set[str]:
    return set(inspect.signature(kind.__init__).parameters) - {"self", "kwargs", "multiple_outputs", "args"}


def test_a_type_checker_knows_what_every_airflow_task_and_sensor_takes() -> None:
    assert airflow_names(BaseOperator) - typed_names("OperatorArguments") <= {"queue"}
    assert airflow_names(BaseSensorOperator) <= typed_names("SensorArguments")
    scaling_up = set(parameters(operators.RunGenScaleAppOperator))
    assert scaling_up <= typed_names("ScaleUpArguments") | set(parameters(operators.scaled_app))


@pytest.mark.parametrize(
    ("kind", "operator"),
    [
        (RunGenDecoratedOperator, operators.RunGenRunJobOperator),
        (RunGenTableDecoratedOperator, operators.RunGenRunTableOperator),
    ],
)
def test_a_decorator_renders_what_its_operator_does(kind: Any, operator: Any) -> None:
    assert {*operator.template_fields, "op_args", "op_kwargs"} <= set(kind.template_fields)
    assert documented(kind) == list(parameters(kind))
