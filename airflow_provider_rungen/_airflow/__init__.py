"""Import names of Airflow that moved between versions: each is available here on every supported version."""

# What the type checker reads here is what other modules import from here:
# mypy: implicit-reexport
# ruff: noqa: F401

from __future__ import annotations

import re
from importlib import import_module
from typing import TYPE_CHECKING, Any

import airflow

if TYPE_CHECKING:
    from airflow.sdk import (
        Asset,
        BaseHook,
        BaseOperator,
        BaseOperatorLink,
        BaseSensorOperator,
        Connection,
        Context,
        ObjectStoragePath,
        Param,
        TaskGroup,
        TaskInstanceState,
        TriggerRule,
        XComArg,
    )
    from airflow.sdk.bases.decorator import (
        DecoratedOperator,
        TaskDecorator,
        _TaskDecorator,
        determine_kwargs,
        task_decorator_factory,
    )
    from airflow.sdk.configuration import conf
    from airflow.sdk.definitions._internal.types import SET_DURING_EXECUTION
    from airflow.sdk.definitions.context import context_merge
    from airflow.sdk.exceptions import (
        AirflowException,
        AirflowFailException,
        AirflowNotFoundException,
        AirflowSensorTimeout,
        AirflowSkipException,
        AirflowTaskTimeout,
        DuplicateTaskIdFound,
        TaskDeferred,
    )
    from airflow.sdk.execution_time.xcom import XCom
    from airflow.sdk.log import mask_secret
    from airflow.triggers.base import BaseEventTrigger

Version = tuple[int, int]


def parse_version(version: str) -> Version:
    """Return the major and minor number of an Airflow version. A pre-release counts as its release."""
    major, minor = re.findall(r"\d+", version)[:2]
    return int(major), int(minor)


AIRFLOW_VERSION: Version = parse_version(airflow.__version__)
AIRFLOW_V_3_0_PLUS = AIRFLOW_VERSION >= (3, 0)
AIRFLOW_V_3_2_PLUS = AIRFLOW_VERSION >= (3, 2)
AIRFLOW_V_3_3_PLUS = AIRFLOW_VERSION >= (3, 3)
AIRFLOW_V_3_4_PLUS = AIRFLOW_VERSION >= (3, 4)

# Where each name is, as ``module`` or ``module:attribute``, by the first Airflow that has it there (newest
# first). The version decides, not an ImportError: an import that fails for another reason must not lead to
# the code for an older version.
_EXCEPTIONS = {(3, 2): "airflow.sdk.exceptions", (2, 11): "airflow.exceptions"}
_DECORATORS = {(3, 0): "airflow.sdk.bases.decorator", (2, 11): "airflow.decorators.base"}
PLACES: dict[str, dict[Version, str]] = {
    **dict.fromkeys(("AirflowException", "AirflowFailException", "AirflowNotFoundException"), _EXCEPTIONS),
    **dict.fromkeys(("AirflowSensorTimeout", "AirflowSkipException", "AirflowTaskTimeout"), _EXCEPTIONS),
    **dict.fromkeys(("DuplicateTaskIdFound", "TaskDeferred"), _EXCEPTIONS),
    **dict.fromkeys(("DecoratedOperator", "TaskDecorator", "_TaskDecorator"), _DECORATORS),
    "task_decorator_factory": _DECORATORS,
    "Asset": {(3, 0): "airflow.sdk", (2, 11): "airflow.datasets:Dataset"},
    # an asset cannot be watched before 3.0, but the module of the trigger can be imported
    "BaseEventTrigger": {(3, 0): "airflow.triggers.base", (2, 11): "airflow.triggers.base:BaseTrigger"},
    "BaseHook": {(3, 1): "airflow.sdk", (2, 11): "airflow.hooks.base"},
    "BaseOperator": {(3, 0): "airflow.sdk", (2, 11): "airflow.models.baseoperator"},
    "BaseOperatorLink": {(3, 0): "airflow.sdk", (2, 11): "airflow.models.baseoperatorlink"},
    "BaseSensorOperator": {(3, 0): "airflow.sdk", (2, 11): "airflow.sensors.base"},
    "Connection": {(3, 0): "airflow.sdk", (2, 11): "airflow.models.connection"},
    "Context": {(3, 0): "airflow.sdk", (2, 11): "airflow.utils.context"},
    "ObjectStoragePath": {(3, 0): "airflow.sdk", (2, 11): "airflow.io.path"},
    "Param": {(3, 0): "airflow.sdk", (2, 11): "airflow.models.param"},
    "TaskGroup": {(3, 0): "airflow.sdk", (2, 11): "airflow.utils.task_group"},
    "TaskInstanceState": {(3, 1): "airflow.sdk", (2, 11): "airflow.utils.state"},
    "TriggerRule": {(3, 1): "airflow.sdk", (2, 11): "airflow.utils.trigger_rule"},
    "XCom": {(3, 0): "airflow.sdk.execution_time.xcom", (2, 11): "airflow.models.xcom"},
    "XComArg": {(3, 0): "airflow.sdk", (2, 11): "airflow.models.xcom_arg"},
    "determine_kwargs": {(3, 2): "airflow.sdk.bases.decorator", (2, 11): "airflow.utils.operator_helpers"},
    "context_merge": {(3, 1): "airflow.sdk.definitions.context", (2, 11): "airflow.utils.context"},
    "SET_DURING_EXECUTION": {
        (3, 0): "airflow.sdk.definitions._internal.types",
        (2, 11): "airflow.utils.types:NOTSET",
    },
    "conf": {(3, 2): "airflow.sdk.configuration", (2, 11): "airflow.configuration"},
    "mask_secret": {
        (3, 1): "airflow.sdk.log",
        (3, 0): "airflow.sdk.execution_time.secrets_masker",
        (2, 11): "airflow.utils.log.secrets_masker",
    },
}


def place_of(name: str, version: Version = AIRFLOW_VERSION) -> tuple[str, str] | None:
    """
    Return the module and the attribute of a name, or ``None`` if this Airflow lacks it.

    :param name: a name of `PLACES`.
    :param version: a version of Airflow.
    """
    for since, place in PLACES[name].items():
        if version >= since:
            module, _, attribute = place.partition(":")
            return module, attribute or name
    return None


def __getattr__(name: str) -> Any:
    # at the first use, since some of these modules take seconds to import
    place = place_of(name) if name in PLACES else None
    if place is None:
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r} on Airflow {airflow.__version__}"
        )
    module, attribute = place
    value = globals()[name] = getattr(import_module(module), attribute)
    return value


async def get_async_connection(conn_id: str, hook: type[BaseHook]) -> Connection:
    """
    Look up a connection in an event loop, without blocking it.

    :param conn_id: the connection.
    :param hook: the hook class through which Airflow is asked.
    """
    from asgiref.sync import sync_to_async

    from airflow_provider_rungen._airflow import Connection

    # Before Airflow 3.3.2, which has `aextra_dejson`, `aget_connection` masks secrets with a blocking call to
    # the supervisor. It raises an error while the event loop waits for another answer.
    if hasattr(hook, "aget_connection") and hasattr(Connection, "aextra_dejson"):
        return await hook.aget_connection(conn_id)
    return await sync_to_async(hook.get_connection)(conn_id)
