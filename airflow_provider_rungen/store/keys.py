"""The key of an input: equal inputs to equal models have equal keys. No I/O."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any

from airflow_provider_rungen.client.codec import encode, encode_input
from airflow_provider_rungen.client.models import App
from airflow_provider_rungen.client.redaction import without_secret_parameters
from airflow_provider_rungen.exceptions import RunGenInputError

_to_json = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def model_identity(app: App) -> str:
    """
    Return what tells one model from another: an app's workflow, or its id if the service returns none.

    Parameters that sign the URLs in a workflow make no difference, since they change with each answer.

    :param app: the app, from an answer that has its workflow.
    """
    if app.workflow:
        with suppress(RunGenInputError):  # it is not JSON
            encode(app.workflow, "workflow")
            return canonical_json(app.workflow, without_secret_parameters)
    return f"app:{app.id}"


def input_key(job_input: Mapping[str, Any], model: str, version: str = "", row: str | None = None) -> str:
    """
    Return the key of an input: 64 hexadecimal digits.

    :param job_input: the input.
    :param model: the identity of the model.
    :param version: any text. Another one makes all keys new.
    :param row: the row's own key, where equal inputs of different rows are bought for each row.
    :raises RunGenInputError: the input is not a JSON object.
    """
    if not isinstance(job_input, Mapping):
        encode_input(job_input)
    parts = [job_input] if row is None else [job_input, row]
    # an array, because no part of it can be mistaken for a piece of its neighbor
    digest = _digest_of(model, version).copy()
    digest.update(f",{canonical_json(parts)[1:]}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


@lru_cache(4)
def _digest_of(model: str, version: str) -> hashlib._Hash:
    """Return the digest of what is the same for all inputs of a task: a model may be a large workflow."""
    text = canonical_json([model, version])[:-1]
    return hashlib.sha256(text.encode("utf-8", "surrogatepass"))


def job_key(app_id: str, job_id: str) -> str:
    """Return the key of a job that somebody else submitted."""
    return hashlib.sha256(canonical_json(["job", app_id, job_id]).encode()).hexdigest()


def canonical_json(value: Any, change_text: Callable[[str], str] = str) -> str:
    """
    Return the same text for equal JSON values: neither the order of fields matters, nor ``1.0`` for ``1``.

    :param change_text: changes each text of the value before.
    """
    return _to_json(_canonical(value, change_text))


def _canonical(value: Any, change_text: Callable[[str], str]) -> Any:
    """Return a JSON value in which equal numbers are of one type, as in RFC 8785."""
    if isinstance(value, str):
        return change_text(value)
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if isinstance(value, Mapping):
        return {name: _canonical(item, change_text) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(item, change_text) for item in value]
    return value
