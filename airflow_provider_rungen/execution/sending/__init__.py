"""Submits inputs, each after its intent is durable."""
