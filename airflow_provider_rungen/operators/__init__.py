"""The operators of the provider."""

from airflow_provider_rungen.operators.app import (
    RunGenCreateAppOperator,
    RunGenDeleteAppOperator,
    RunGenScaleAppOperator,
)
from airflow_provider_rungen.operators.collect import RunGenCollectResultsOperator
from airflow_provider_rungen.operators.job import RunGenCancelJobOperator, RunGenRunJobOperator
from airflow_provider_rungen.operators.lifetime import scaled_app
from airflow_provider_rungen.operators.table import RunGenPlanTableOperator, RunGenRunTableOperator
from airflow_provider_rungen.rows import SqlRows

__all__ = [
    "RunGenCancelJobOperator",
    "RunGenCollectResultsOperator",
    "RunGenCreateAppOperator",
    "RunGenDeleteAppOperator",
    "RunGenPlanTableOperator",
    "RunGenRunJobOperator",
    "RunGenRunTableOperator",
    "RunGenScaleAppOperator",
    "SqlRows",
    "scaled_app",
]
