"""The sensors of the provider."""

from airflow_provider_rungen.sensors.app import RunGenAppSensor
from airflow_provider_rungen.sensors.job import RunGenJobSensor

__all__ = ["RunGenAppSensor", "RunGenJobSensor"]
