from __future__ import annotations

from airflow_provider_rungen.client.texts import format_duration

FORMATTED = [
    *((0, "0 s"), (0.54, "0.5 s"), (3, "3 s"), (9.96, "10 s"), (45.4, "45 s"), (60, "1 min")),
    *((125, "2 min 5 s"), (3600, "1 h"), (3661, "1 h 1 min"), (86400, "1 d"), (90000, "1 d 1 h")),
    (7 * 86400 + 60, "7 d"),
]


def test_a_duration_is_formatted_for_people() -> None:
    assert [(seconds, format_duration(seconds)) for seconds, _ in FORMATTED] == FORMATTED
