"""What a client must never do, counted from the requests that a service received."""

from __future__ import annotations

from email.utils import parsedate_to_datetime

from rungen_emulator import Service


def keys_leaked(service: Service) -> int:
    """Return how many requests sent the API key to the storage of outputs."""
    return sum(
        "x-api-key" in record.headers or any(service.api_key in text for text in record.headers.values())
        for record in service.records()
        if record.operation == "output"
    )


def early_retries(service: Service) -> int:
    """Return how many requests were sent again before the time that the answer had asked for."""
    not_before: dict[tuple[str, str, bytes], float] = {}
    count = 0
    for record in service.records():
        key = (record.operation, record.path, record.body if record.operation == "run" else b"")
        count += record.time < not_before.get(key, 0)
        if record.retry_after is not None:
            not_before[key] = _retry_time(record.retry_after, record.time)
    return count


def _retry_time(text: str, now: float) -> float:
    try:
        return now + float(text)
    except ValueError:
        return parsedate_to_datetime(text).timestamp()
