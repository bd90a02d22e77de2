"""The undocumented names of Airflow that the package uses. A release of Airflow may move them.

The tests look up each one on every Airflow, including the newest pre-release.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

Version = tuple[int, int]

# ``module:attribute``, with dots in the attribute for a member of a class, by the first Airflow that the
# names are used on, and the first on which they no longer are.
PRIVATE_NAMES: dict[tuple[Version, Version | None], tuple[str, ...]] = {
    ((3, 1), (3, 2)): (
        "airflow.stats:Stats",
        "airflow.utils.operator_helpers:determine_kwargs",
    ),
    ((3, 1), None): (
        "airflow.listeners.listener:get_listener_manager",
        "airflow.models.renderedtifields:RenderedTaskInstanceFields.get_templated_fields",
        "airflow.models.serialized_dag:SerializedDagModel.dag_version_id",
        "airflow.models.xcom:XComModel.value",
        "airflow.sdk.bases.decorator:DecoratedOperator",
        "airflow.sdk.bases.decorator:task_decorator_factory",
        "airflow.sdk.bases.operator:ExecutorSafeguard.test_mode",
        "airflow.sdk.definitions._internal.types:SET_DURING_EXECUTION",
        "airflow.sdk.definitions.mappedoperator:MappedOperator._get_specified_expand_input",
        "airflow.sdk.execution_time.comms:XComResult",
        "airflow.sdk.execution_time.context:ConnectionAccessor",
        "airflow.sdk.execution_time.context:VariableAccessor",
        "airflow.sdk.execution_time.task_runner:RuntimeTaskInstance.get_dagrun_state",
        "airflow.sdk.execution_time.task_runner:RuntimeTaskInstance.get_dr_count",
        "airflow.sdk.execution_time.task_runner:RuntimeTaskInstance.get_task_states",
        "airflow.sdk.execution_time.xcom:XCom.get_one",
        "airflow.sdk.execution_time.xcom:XCom.get_value",
        "airflow.sdk:BaseOperator._BaseOperator__from_mapped",
        "airflow.sdk:BaseOperator.resume_execution",
        "airflow.sdk:BaseSensorOperator._get_next_poke_interval",
        "airflow.sdk.definitions.context:context_merge",
        "airflow.sdk.log:mask_secret",
    ),
    ((3, 2), None): (
        "airflow.observability.stats:Stats",
        "airflow.sdk.bases.decorator:determine_kwargs",
        "airflow.sdk.observability.stats:Stats",
    ),
    ((3, 3), None): (
        "airflow.sdk.definitions.xcom_arg:PlainXComArg",
        "airflow.sdk.execution_time.xcom:XCom.aset",
        "airflow.sdk:BaseOperator.get_closest_mapped_task_group",
        "airflow.sdk:BaseOperator.iter_mapped_dependants",
        "airflow.triggers.base:BaseTrigger.on_kill",
        "airflow.triggers.base:BaseTrigger.task_instance",
    ),
    ((3, 4), None): ("airflow.sdk.log:amask_secret",),
}


def names_used_on(version: Version) -> list[str]:
    """Return the names that are used on an Airflow."""
    return [
        name
        for (since, before), names in PRIVATE_NAMES.items()
        if since <= version and (before is None or version < before)
        for name in names
    ]


def look_up(name: str) -> Any:
    """
    Return the object with this name.

    :raises ImportError: there is no such module.
    :raises AttributeError: the module has no such name.
    """
    module, _, attribute = name.partition(":")
    value = import_module(module)
    for part in filter(None, attribute.split(".")):
        value = getattr(value, part)
    return value
