"""The operators of the provider."""

from airflow_provider_rungen.operators.batch import RunGenRunBatchOperator
from airflow_provider_rungen.operators.collect import RunGenCollectResultsOperator
from airflow_provider_rungen.operators.job import RunGenCancelJobOperator, RunGenRunJobOperator

__all__ = [
    "RunGenCancelJobOperator",
    "RunGenCollectResultsOperator",
    "RunGenRunBatchOperator",
    "RunGenRunJobOperator",
]
