"""Runs many jobs in one task."""
