"""How many workers an app has, in words."""

from __future__ import annotations

from typing import Any

from conftest import APP

from airflow_provider_rungen.client.models import App
from airflow_provider_rungen.client.workers import describe, workers_of


def test_a_state_of_workers_that_nobody_knows_is_fit_for_a_log() -> None:
    states = {"ready\n[error] forged": 1, "https://h.example/x?X-Amz-Signature=SECRET": 2}
    line = describe(App.from_json({"id": APP, "status": "RUNNING", "workers": states}))
    assert line.isprintable()
    assert "SECRET" not in line
    assert "workers: 1 ready" in line


def test_how_many_workers_an_app_is_paid_for() -> None:
    answers: list[tuple[dict[str, Any], int | None]] = [
        ({"status": "RUNNING", "active_workers": "1"}, 1),
        ({"status": "STOPPED", "active_workers": 1}, 1),
        *(({"status": "STOPPED"}, 0), ({"active_workers": 0}, 0), ({"status": "RUNNING"}, None), ({}, None)),
    ]
    for answer, workers in answers:
        assert workers_of(App.from_json({"id": APP, **answer})) == workers, answer
