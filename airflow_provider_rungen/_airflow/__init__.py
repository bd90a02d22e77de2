"""Names of Airflow, and what differs between its versions 3.1 and later."""

# What is imported here is what other modules import from here:
# mypy: implicit-reexport
# ruff: noqa: F401

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import airflow
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
    task_decorator_factory,
)
from airflow.sdk.definitions._internal.types import SET_DURING_EXECUTION
from airflow.sdk.definitions.context import context_merge
from airflow.sdk.execution_time.xcom import XCom
from airflow.triggers.base import BaseEventTrigger


def parse_version(version: str) -> tuple[int, int]:
    """Return the major and minor number of an Airflow version. A pre-release counts as its release."""
    major, minor = re.findall(r"\d+", version)[:2]
    return int(major), int(minor)


# What differs between the supported versions is asked here, and nowhere else.
_VERSION = parse_version(airflow.__version__)
#: Modules of the SDK that 3.1 does not have yet.
_HAS_WHOLE_SDK = _VERSION >= (3, 2)
#: A task has a retry policy, and a teardown waits for all in its scope.
HAS_RETRY_POLICY = _VERSION >= (3, 3)
TEARDOWNS_WAIT_FOR_ALL = _VERSION >= (3, 3)
#: A clear of a task discards its state, unless the user keeps it, and a tab can be limited to some operators.
CLEAR_DISCARDS_STATE = _VERSION >= (3, 4)
TABS_HAVE_SCOPES = _VERSION >= (3, 4)

# The version decides, not an ImportError: an import that fails for another reason must not lead to the place
# of another version.
if TYPE_CHECKING or _HAS_WHOLE_SDK:
    from airflow.sdk.bases.decorator import determine_kwargs
    from airflow.sdk.configuration import conf
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
else:
    from airflow.configuration import conf
    from airflow.exceptions import (
        AirflowException,
        AirflowFailException,
        AirflowNotFoundException,
        AirflowSensorTimeout,
        AirflowSkipException,
        AirflowTaskTimeout,
        DuplicateTaskIdFound,
        TaskDeferred,
    )
    from airflow.utils.operator_helpers import determine_kwargs


def stats_module(*, is_in_triggerer: bool) -> str:
    """Return the module that sends Airflow's metrics. A triggerer sets up that of the core."""
    if not _HAS_WHOLE_SDK:
        return "airflow.stats"
    return "airflow.observability.stats" if is_in_triggerer else "airflow.sdk.observability.stats"


async def get_async_connection(conn_id: str, hook: type[BaseHook]) -> Connection:
    """
    Look up a connection in an event loop, without blocking it.

    :param conn_id: the connection.
    :param hook: the hook class through which Airflow is asked.
    """
    from asgiref.sync import sync_to_async

    # Before Airflow 3.3.2, which has `aextra_dejson`, `aget_connection` masks secrets with a blocking call to
    # the supervisor. It raises an error while the event loop waits for another answer.
    if hasattr(hook, "aget_connection") and hasattr(Connection, "aextra_dejson"):
        return await hook.aget_connection(conn_id)
    return await sync_to_async(hook.get_connection)(conn_id)
