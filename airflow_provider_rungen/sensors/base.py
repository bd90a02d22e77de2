"""How a sensor ends: Airflow's own errors and skips, whatever mode it waits in."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen._airflow import (
    AirflowFailException,
    AirflowSensorTimeout,
    AirflowSkipException,
    BaseSensorOperator,
)
from airflow_provider_rungen.exceptions import RunGenAppTimeoutError, RunGenError, RunGenJobTimeoutError

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import Context
    from airflow_provider_rungen.sensors.app import RunGenAppSensor
    from airflow_provider_rungen.sensors.job import RunGenJobSensor


def poke_until_over(sensor: BaseSensorOperator, context: Context) -> Any:
    """Run Airflow's own loop, without the guard of 2.11, which warns of an ``execute`` that another calls."""
    return inspect.unwrap(BaseSensorOperator.execute)(sensor, context)


@contextmanager
def as_sensor_timeout(sensor: BaseSensorOperator) -> Iterator[None]:
    """Convert a time-out to the one that Airflow knows of sensors."""
    from airflow_provider_rungen.client.durations import format_duration

    try:
        yield
    except (RunGenJobTimeoutError, RunGenAppTimeoutError) as error:
        message = f"{error.message}: the sensor had {format_duration(sensor.timeout)}"
        timeout = AirflowSensorTimeout(f"{message}. Raise timeout if it needs longer.")
        raise error.named_in(timeout) from error


@contextmanager
def explain_timeout(sensor: RunGenJobSensor | RunGenAppSensor) -> Iterator[None]:
    """Name what was late where Airflow's own loop raises the time-out, which knows no more than that."""
    try:
        yield
    except AirflowSensorTimeout as error:
        if sensor.late is None:
            raise
        with as_sensor_timeout(sensor):
            raise sensor.late from error


@contextmanager
def apply_soft_fail(sensor: BaseSensorOperator) -> Iterator[None]:
    """Apply ``soft_fail`` and ``never_fail`` where Airflow's own loop, which does it, is not run."""
    try:
        yield
    except (AirflowSensorTimeout, AirflowFailException) as error:
        if sensor.soft_fail or sensor.never_fail:
            raise AirflowSkipException(f"Skipping: {error}") from error
        raise
    except RunGenError as error:
        if sensor.never_fail:
            raise AirflowSkipException(f"Skipping: {error}") from error
        raise
