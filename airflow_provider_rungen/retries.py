"""The retry policy of the tasks of this provider (Airflow 3.3 and later)."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow_provider_rungen._airflow import RetryDecision, RetryPolicy
from airflow_provider_rungen.client.texts import format_duration
from airflow_provider_rungen.exceptions import RunGenError

if TYPE_CHECKING:
    from airflow_provider_rungen._airflow import Context


class RunGenRetryPolicy(RetryPolicy):
    """
    Fail at once on errors that are not retryable, and retry no sooner than the service asked for.

    It is the default ``retry_policy`` of the operators and sensors of this provider. Use it for ``@task``
    functions that call `RunGenHook`, too. Everything else is left to the task's ``retry_delay``.
    """

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
    ) -> RetryDecision:
        """Decide on the errors of this provider."""
        if isinstance(exception, RunGenError) and not exception.retryable:
            return RetryDecision.fail("Trying again cannot help")
        asked = exception.retry_after if isinstance(exception, RunGenError) else None
        usual = 0.0 if context is None else context["task"].retry_delay.total_seconds()
        if asked is None or asked <= usual:
            return RetryDecision.default()
        return RetryDecision.retry(timedelta(seconds=asked), f"RunGen asked to wait {format_duration(asked)}")

    def serialize(self) -> dict[str, Any]:
        return {}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> RunGenRetryPolicy:
        return cls()
