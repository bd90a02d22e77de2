"""What the sensors have in common: Airflow's own loop, errors and skips, whatever mode they wait in."""

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
from airflow_provider_rungen.operators.base import RunGenBaseOperator

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import Context
    from airflow_provider_rungen.execution.apps.app_wait import AppSensorRun
    from airflow_provider_rungen.execution.job_sensor import JobSensorRun


class RunGenBaseSensor(RunGenBaseOperator, BaseSensorOperator):
    """A task that waits. What it waits for is in a run, made for each attempt."""

    @property
    def poll_interval(self) -> float:
        """The seconds between two polls."""
        return max(self.poke_interval, 0.1)

    def execute(self, context: Context) -> Any:
        """Wait."""
        run = self._make_run(context)
        if self.deferrable:
            with self._ending():
                run.execute(self.timeout)
            return None
        with run.attempt(), run.naming_jobs(), run.guard.working():
            try:
                # Airflow's own loop, without the guard of 2.11, which warns of an `execute` called by another
                return inspect.unwrap(BaseSensorOperator.execute)(self, context)
            except AirflowSensorTimeout:
                if run.late is None:
                    raise
                with self._as_sensor_timeout():  # which names what was late
                    raise run.late from None

    def poke(self, context: Context) -> bool:
        """Poll once, and return whether the wait is over."""
        run: Any = self._run or self._make_run(context)
        with self._as_sensor_timeout():
            is_over: bool = run.poke()
        return is_over

    def execute_complete(self, context: Context, event: dict[str, Any]) -> None:
        """Go on after the wait in the triggerer."""
        with self._ending():
            self._make_run(context).complete(event, self.timeout)

    def _make_run(self, context: Context) -> AppSensorRun | JobSensorRun:
        """Return an attempt of the sensor."""
        raise NotImplementedError

    @contextmanager
    def _as_sensor_timeout(self) -> Iterator[None]:
        """Convert a time-out to the one that Airflow knows of sensors."""
        from airflow_provider_rungen.client.texts import format_duration

        try:
            yield
        except (RunGenJobTimeoutError, RunGenAppTimeoutError) as error:
            limit = f"Raise timeout (now {format_duration(self.timeout)})"
            hint = error.hint.replace("Raise timeout or execution_timeout", "Raise timeout")
            hint = hint.replace("Raise timeout", limit) or f"{limit} if it needs longer"
            late = error.named_in(AirflowSensorTimeout(f"{error.message}. {hint}."))
            raise late.with_traceback(error.__traceback__) from None

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """Apply ``soft_fail`` and ``never_fail``, which Airflow does in its own loop only."""
        try:
            with self._as_sensor_timeout():
                yield
        except (AirflowSensorTimeout, AirflowFailException, RunGenError) as error:
            may_pass = isinstance(error, RunGenError)
            if self.never_fail or (self.soft_fail and not may_pass):
                raise AirflowSkipException(f"Skipping: {error}") from error
            raise
