"""Airflow's names that `run_operator` needs, and what differs between 3.1 and later versions."""

# What the type checker reads here is what other modules import from here:
# mypy: implicit-reexport
# ruff: noqa: F401

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import airflow
from airflow.sdk import ObjectStoragePath
from airflow.sdk.bases.operator import ExecutorSafeguard
from airflow.sdk.execution_time import macros
from airflow.sdk.execution_time.context import ConnectionAccessor, VariableAccessor

AIRFLOW_VERSION = tuple(int(number) for number in re.findall(r"\d+", airflow.__version__)[:2])
HAS_PARTITIONS = AIRFLOW_VERSION >= (3, 2)
HAS_TASK_STATE = AIRFLOW_VERSION >= (3, 3)

if TYPE_CHECKING or AIRFLOW_VERSION >= (3, 2):
    from airflow.sdk.exceptions import AirflowSkipException, AirflowTaskTimeout, TaskDeferred
else:
    from airflow.exceptions import AirflowSkipException, AirflowTaskTimeout, TaskDeferred
