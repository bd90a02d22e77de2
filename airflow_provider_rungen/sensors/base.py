"""What the sensors have in common: Airflow's own loop, errors and skips, in each mode."""

from __future__ import annotations

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


class RunGenBaseSensor(RunGenBaseOperator, BaseSensorOperator):
    """A task that waits. An attempt is a run of its own, which knows what to wait for."""

    @property
    def poll_interval(self) -> float:
        """The seconds between two polls."""
        return max(self.poke_interval, 0.1)

    def execute(self, context: Context) -> Any:
        """Wait."""
        return self.ended(lambda: self._wait(context))

    def _wait(self, context: Context) -> Any:
        run = self._begin(context)
        if self.deferrable:
            with self._ending():
                run.execute(self.timeout)
            return None
        with run.attempt(), run.naming_jobs(), run.guard.working():
            try:
                return BaseSensorOperator.execute(self, context)
            except AirflowSensorTimeout:
                if run.late is None:
                    raise
                with self._as_sensor_timeout():  # which names what was late
                    raise run.late from None

    def poke(self, context: Context) -> bool:
        """Poll once, and return whether the wait has ended."""
        run: Any = self._run or self._begin(context)
        with self._as_sensor_timeout():
            has_ended: bool = run.poke()
        return has_ended

    def execute_complete(self, context: Context, event: dict[str, Any]) -> None:
        """Resume after the wait in the triggerer."""
        self.ended(lambda: self._complete(context, event))

    def _complete(self, context: Context, event: dict[str, Any]) -> None:
        with self._ending():
            self._begin(context).complete(event, self.timeout)

    @contextmanager
    def _as_sensor_timeout(self) -> Iterator[None]:
        """Convert a time-out to Airflow's ``AirflowSensorTimeout``."""
        from airflow_provider_rungen.client.texts import format_duration

        try:
            yield
        except (RunGenJobTimeoutError, RunGenAppTimeoutError) as error:
            limit = f"Raise timeout (now {format_duration(self.timeout)})"
            hint = error.hint.replace("Raise timeout or execution_timeout", "Raise timeout")
            hint = hint.replace("Raise timeout", limit) or f"{limit} if it needs longer"
            error.hint = hint
            late = error.named_in(AirflowSensorTimeout(str(error)))
            raise late.with_traceback(error.__traceback__) from None

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """Apply ``soft_fail`` and ``never_fail``, which Airflow applies only in its own loop."""
        try:
            with self._as_sensor_timeout():
                yield
        except (AirflowSensorTimeout, AirflowFailException, RunGenError) as error:
            may_pass = isinstance(error, RunGenError)
            if self.never_fail or (self.soft_fail and not may_pass):
                raise AirflowSkipException(f"Skipping: {error}") from None
            raise
