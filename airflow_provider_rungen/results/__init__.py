"""The results of a table: written as a table, and read again."""

from airflow_provider_rungen.results.read import Results, read_results

__all__ = ["Results", "read_results"]
