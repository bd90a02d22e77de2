"""The sensors of the provider."""

from airflow_provider_rungen.sensors.rungen import RunGenAppSensor, RunGenJobSensor

__all__ = ["RunGenAppSensor", "RunGenJobSensor"]
