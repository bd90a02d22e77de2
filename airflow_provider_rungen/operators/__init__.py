"""The operators of the provider."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_rungen.ledger import Ledger
    from airflow_provider_rungen.operators.app import RunGenCreateAppOperator, RunGenDeleteAppOperator
    from airflow_provider_rungen.operators.batch import RunGenRunBatchOperator
    from airflow_provider_rungen.operators.collect import RunGenCollectResultsOperator
    from airflow_provider_rungen.operators.idle_apps import RunGenScaleDownIdleAppsOperator
    from airflow_provider_rungen.operators.job import RunGenCancelJobOperator, RunGenRunJobOperator
    from airflow_provider_rungen.operators.lifetime import scaled_app
    from airflow_provider_rungen.operators.scale import RunGenScaleAppOperator
    from airflow_provider_rungen.operators.table import RunGenPlanTableOperator, RunGenRunTableOperator

__all__ = [
    "Ledger",
    "RunGenCancelJobOperator",
    "RunGenCollectResultsOperator",
    "RunGenCreateAppOperator",
    "RunGenDeleteAppOperator",
    "RunGenPlanTableOperator",
    "RunGenRunBatchOperator",
    "RunGenRunJobOperator",
    "RunGenRunTableOperator",
    "RunGenScaleAppOperator",
    "RunGenScaleDownIdleAppsOperator",
    "scaled_app",
]

_LAZY_EXPORTS = {
    "Ledger": "ledger",
    "RunGenCancelJobOperator": "job",
    "RunGenCollectResultsOperator": "collect",
    "RunGenCreateAppOperator": "app",
    "RunGenDeleteAppOperator": "app",
    "RunGenPlanTableOperator": "table",
    "RunGenRunBatchOperator": "batch",
    "RunGenRunJobOperator": "job",
    "RunGenRunTableOperator": "table",
    "RunGenScaleAppOperator": "scale",
    "RunGenScaleDownIdleAppsOperator": "idle_apps",
    "scaled_app": "lifetime",
}


if not TYPE_CHECKING:  # to a type checker, a name that is not there would be there

    def __getattr__(name: str) -> Any:
        # DAG files are parsed all the time, and pay for the operators that they use
        if name not in _LAZY_EXPORTS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = _LAZY_EXPORTS[name]
        package = "airflow_provider_rungen" if module == "ledger" else __name__
        value = globals()[name] = getattr(import_module(f"{package}.{module}"), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
