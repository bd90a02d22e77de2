"""What makes two jobs equal: the key of an input, and the identity of a model. No I/O."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

from airflow_provider_rungen.client.codec import encode, encode_input
from airflow_provider_rungen.client.models import App
from airflow_provider_rungen.client.redaction import without_secret_parameters
from airflow_provider_rungen.exceptions import RunGenInputError


def model_identity(app: App) -> str:
    """
    Return what tells one model from another: an app's workflow, or its id if the service returns none.

    Parameters that sign the URLs in a workflow make no difference, since they change with each answer.

    :param app: the app, from an answer that has its workflow.
    """
    if app.workflow:
        try:
            encode(app.workflow, "workflow")
        except RunGenInputError:
            pass
        else:
            return _canonical_json(app.workflow, without_secret_parameters)
    return f"app:{app.id}"


def ledger_key(job_input: Mapping[str, Any], model: str, version: str, ignore: Collection[str]) -> str:
    """
    Return the key of an input: equal inputs to equal models have equal keys.

    :param job_input: the input.
    :param model: the identity of the model.
    :param version: any text.
    :param ignore: top-level fields of the input that make no difference.
    :raises RunGenInputError: the input is not a JSON object.
    """
    encode_input(job_input)
    fields = {name: value for name, value in job_input.items() if name not in ignore}
    # an array, because no part of it can be mistaken for a piece of its neighbor
    return hashlib.sha256(_canonical_json([model, version, fields]).encode()).hexdigest()


def _canonical_json(value: Any, change_text: Callable[[str], str] = str) -> str:
    return json.dumps(_canonical(value, change_text), sort_keys=True, separators=(",", ":"))


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
