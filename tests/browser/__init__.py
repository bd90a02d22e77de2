"""Airflow in a real browser."""
