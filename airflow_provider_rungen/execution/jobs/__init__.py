"""Runs the jobs of a task, on its log."""
