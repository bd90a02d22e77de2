"""A key that an answer repeats in any form does not come out of it again."""

from __future__ import annotations

import html
import json
import time
from urllib.parse import quote, quote_plus, unquote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_rungen.client.codec import decode
from airflow_provider_rungen.client.flow import Request
from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.redaction import mask_key, mask_key_in_text
from airflow_provider_rungen.client.settings import Settings
from airflow_provider_rungen.exceptions import RunGenForbiddenError

FORMS = (
    lambda char: f"\\u{ord(char):04x}",
    lambda char: f"\\u{ord(char):04X}",
    lambda char: json.dumps(char)[1:-1],
    lambda char: "\\/" if char == "/" else json.dumps(char)[1:-1],
    lambda char: html.escape(char) if char not in '"\\' else f"&#{ord(char)};",
    lambda char: f"&#{ord(char)};",
    lambda char: f"&#x{ord(char):x};",
    lambda char: f"%{ord(char):02x}",
    lambda char: f"%{ord(char):02X}",
    lambda char: quote(quote(char, safe=""), safe="") if char not in '"\\' else f"%25{ord(char):02x}",
    lambda char: html.escape(f"&#{ord(char)};"),
    lambda char: quote_plus(char) if char not in '"\\' else f"%{ord(char):02x}",
)
keys = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=8, max_size=40)


@given(
    key=keys,
    forms=st.lists(st.integers(0, len(FORMS) - 1), min_size=1),
    around=st.text(" .:-'a1", max_size=5),
)
def test_a_key_in_any_form_is_masked_and_the_answer_stays_json(
    key: str, forms: list[int], around: str
) -> None:
    repeated = "".join(FORMS[forms[n % len(forms)]](char) for n, char in enumerate(key))
    body = f'{{"error": "{around}{repeated}{around}"}}'.encode()
    masked = mask_key(body, key)
    assert json.loads(masked)["error"].replace("***", "", 1) in (around + around, "***")
    text = json.loads(masked)["error"]
    for _ in range(3):
        assert key not in text
        text = html.unescape(unquote_plus(text))


@given(key=keys, body=st.binary())
def test_what_holds_no_key_is_unchanged(key: str, body: bytes) -> None:
    if not {*key.encode()} <= {*body}:
        assert mask_key(body, key) == body


def test_a_key_in_json_in_json_is_masked() -> None:
    key = 'sk-"a/b\\c-1234'
    body = json.dumps({"error": json.dumps({"error": json.dumps({"key": key})})}).encode()
    masked = mask_key(body, key)
    assert b"1234" not in masked
    assert "***" in json.loads(masked)["error"]


def test_no_error_and_no_job_holds_a_key() -> None:
    settings = Settings("https://rungen.example", "sk-012/345-very&secret")
    request = Request("GET", "app", "x")
    for repeated in ("sk-012\\/345\\u002dvery&amp;secret", "sk%2D012%2F345-very%26secret"):
        body = f'{{"error": "no key {repeated}", "status": "FAILED", "id": "j"}}'.encode()
        with pytest.raises(RunGenForbiddenError) as caught:
            decode(settings.response(403, {}, [body[:20], body[20:]]), request, 0.0)
        assert "no key ***" in str(caught.value)
        job = Job.from_json(decode(settings.response(200, {}, [body]), request, 0.0), app_id="a")
        assert job.error == "no key ***"
    answer = settings.response(302, {"Location": "https://x/?key=sk-012%2f345-very%26secret"}, [])
    assert answer.headers["location"] == "https://x/?key=***"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be", "utf-8-sig"])
def test_a_key_is_masked_in_every_encoding_that_json_is_read_in(encoding: str) -> None:
    key = "sk-012/345-very&secret"
    settings, request = Settings("https://rungen.example", key), Request("GET", "app", "x")
    body = json.dumps({"error": f"no key {key}", "status": "FAILED", "id": "jé"}).encode(encoding)
    with pytest.raises(RunGenForbiddenError, match=r"no key \*\*\*"):
        decode(settings.response(403, {}, [body]), request, 0.0)
    job = Job.from_json(decode(settings.response(200, {}, [body]), request, 0.0), app_id="a")
    assert (job.id, job.error) == ("jé", "no key ***")


def test_a_short_key_masks_no_words() -> None:
    assert mask_key(b"an error", "error") == b"an error"
    assert mask_key_in_text("an error", "error") == "an error"


@pytest.mark.parametrize("piece", [b"\\", b"%25", b"&amp;", b"s", b"sk-", b"\\u00730", b"0"])
def test_no_body_takes_long(piece: bytes) -> None:
    body = piece * (4_000_000 // len(piece))
    begun_at = time.thread_time()
    assert mask_key(body, "sk-0123456789-secret") == body
    assert time.thread_time() - begun_at < 3
