"""The operators of the provider."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_rungen.operators.app import RunGenCreateAppOperator, RunGenDeleteAppOperator
    from airflow_provider_rungen.operators.batch import RunGenRunBatchOperator
    from airflow_provider_rungen.operators.collect import RunGenCollectResultsOperator
    from airflow_provider_rungen.operators.job import RunGenCancelJobOperator, RunGenRunJobOperator
    from airflow_provider_rungen.operators.lifetime import scaled_app
    from airflow_provider_rungen.operators.scale import RunGenScaleAppOperator

__all__ = [
    "RunGenCancelJobOperator",
    "RunGenCollectResultsOperator",
    "RunGenCreateAppOperator",
    "RunGenDeleteAppOperator",
    "RunGenRunBatchOperator",
    "RunGenRunJobOperator",
    "RunGenScaleAppOperator",
    "scaled_app",
]

_LAZY_EXPORTS = {
    "RunGenCancelJobOperator": "job",
    "RunGenCollectResultsOperator": "collect",
    "RunGenCreateAppOperator": "app",
    "RunGenDeleteAppOperator": "app",
    "RunGenRunBatchOperator": "batch",
    "RunGenRunJobOperator": "job",
    "RunGenScaleAppOperator": "scale",
    "scaled_app": "lifetime",
}


if not TYPE_CHECKING:  # to a type checker, a name that is not there would be there

    def __getattr__(name: str) -> Any:
        # DAG files are parsed all the time, and pay for the operators that they use
        if name not in _LAZY_EXPORTS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"{__name__}.{_LAZY_EXPORTS[name]}"), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
