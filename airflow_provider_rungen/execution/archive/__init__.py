"""Outputs in storage."""
