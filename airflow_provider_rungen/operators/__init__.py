"""The operators of the provider."""

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
