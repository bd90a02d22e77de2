"""No secret of a URL and no key survives, however it is escaped, and nothing else changes."""

from __future__ import annotations

import html
import itertools
import json
import time
from collections.abc import Callable
from urllib.parse import quote, quote_plus, unquote_plus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_rungen.client.codec import decode
from airflow_provider_rungen.client.flow import Request
from airflow_provider_rungen.client.models import Job
from airflow_provider_rungen.client.redaction import (
    mask_key,
    mask_key_in_text,
    redact,
    redact_error,
    without_secrets,
)
from airflow_provider_rungen.client.settings import Settings
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenForbiddenError

PLAIN = "SECRET"
# What a URL may hold: all that is neither space nor quote nor angle bracket.
ODD = "abcXYZ019-._~!$&'()*+,;=:@%[]{}|^`жé€\u200b"


def piece(alphabet: str) -> st.SearchStrategy[str]:
    """Make a secret, in the middle of other characters."""
    around = st.text(alphabet, max_size=12)
    return st.tuples(around, around).map(PLAIN.join)


def escape_slashes(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1].replace("/", "\\/")


FORMS: dict[str, Callable[[str], str]] = {
    "raw": str,
    "json": escape_slashes,
    "json in json": lambda text: escape_slashes(escape_slashes(text)),
    "go": lambda text: escape_slashes(text).replace("&", "\\u0026").replace("'", "\\u0027"),
    "html": html.escape,
    "html in html": lambda text: html.escape(html.escape(text)),
    "percent": lambda text: quote(text, safe=""),
    "percent, slashes kept": quote,
    "percent twice": lambda text: quote(quote(text, safe=""), safe=""),
    "percent three times": lambda text: quote(quote(quote(text, safe=""), safe=""), safe=""),
    "lower percent": lambda text: quote(text, safe="").replace("%3A", "%3a").replace("%2F", "%2f"),
}
SCHEMES = ["http", "https", "HTTPS", "s3", "gs", "abfss", "ftp", "postgresql+psycopg", "x-custom", "redis"]


@given(
    scheme=st.sampled_from(SCHEMES),
    userinfo=st.just("")
    | st.tuples(st.text("abc019._-", max_size=8), piece(ODD.replace("%", ""))).map(
        lambda it: f"{it[0]}:{it[1]}@"
    ),
    host=st.from_regex(r"[a-z0-9-]{1,12}(\.[a-z]{2,5})?(:[0-9]{2,4})?", fullmatch=True),
    path=st.lists(st.text(ODD.replace("@", ""), max_size=8), max_size=3).map("/".join),
    query=st.just("") | st.tuples(st.sampled_from("?#"), piece(ODD + "/?")).map("".join),
    form=st.sampled_from(sorted(FORMS)),
    before=st.sampled_from(["", "see ", "(", '"', "url=", "<a href='", "\n", "key: "]),
    after=st.sampled_from(["", " and more", '", "n": 1', "\n", "<b>", '\\"}']),
)
@example("s3", ":SECRET@", "h", "", "", "html", "", "")
@example("http", ":SECRET'@", "h", "", "?@SECRET", "html in html", "", "")
def test_no_secret_survives(  # noqa: PLR0917 - the parts of a URL
    scheme: str, userinfo: str, host: str, path: str, query: str, form: str, before: str, after: str
) -> None:
    escaped = FORMS[form](f"{scheme}://{userinfo}{host}/{path}{query}")
    for mask in (redact, without_secrets):
        masked = mask(f"{before}{escaped}{after}")
        assert PLAIN not in masked
        assert masked.startswith(before + FORMS[form](scheme))
        assert host.partition(":")[0] in masked
    assert PLAIN not in clean_text(f"{before}{escaped}{after}")


@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize(
    "url",
    [
        *("https://h/it's here.png?X-Amz-Signature=SECRET", 'https://h/a"b.png?X-Goog-Signature=SECRET'),
        *("//host/path?X-Amz-Signature=SECRET", "//user:a[@SECRET@host.example/path"),
        *("//@host.example/path?anything=SECRET", "//host.example/path?anything=SECRET"),
        "/container/blob?sv=2022-11-02&se=SECRET&sig=SECRET%3D",
        "/a?token=SECRET&x=1&Signature=SECRET&Key-Pair-Id=SECRET",
        "X-Amz-Credential=SECRET&X-Amz-Security-Token=SECRET",
        *("https://proxy/fetch/https://u:SECRET@h/x", "https://h/x,https://u:SECRET@h/y"),
        *("https://u:p@SECRET@h/x", "s3://AKIA:abc/SECRET+x=@bucket/key", "https://SECRET@h/x"),
        *("redis://:SECRET@h:6379/0", "https://u:SECRET@[::1]:80/x"),
    ],
)
def test_no_secret_of_these_survives(url: str, form: str) -> None:
    for text in (url, f"Could not open '{url}'. Why?"):
        assert PLAIN not in redact(FORMS[form](text))
        assert PLAIN not in without_secrets(FORMS[form](text))


@given(st.text(st.characters(codec=None, exclude_categories=()), max_size=300))
@example("12:30 // not now, 50% of a&b?")
@example("C:\\dir\\file #1 <a@b.example> x=y?z")
@example("max_tokens = 5; a&b=c; 3 == 4 // 2")
def test_a_text_without_urls_is_unchanged(text: str) -> None:
    for mask in (redact, without_secrets):
        if not any(sign in text for sign in ("//", "\\/", "%2", "&#", "=")):
            assert mask(text) == text


def test_code_is_no_url_without_a_scheme() -> None:
    find = """find(By.XPATH, "//*[@id='main']//a[@href]")"""
    for text in ("//@ts-ignore", "x = 1  //@formatter:off", "//div[@class='a.b']/text()", find, "//path[@d]"):
        assert redact(text) == without_secrets(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://aws_default@bucket/x", "s3://aws_default@bucket/x"),
        ("abfs://container@account.dfs/x", "abfs://container@account.dfs/x"),
        ("s3://KEY:SECRET@bucket/x", "s3://***@bucket/x"),
        ("https://u:p@h:8080/x/y.png?a=1#b rest", "https://***@h:8080/x/y.png?*** rest"),
        (r'{"u": "https:\/\/h\/x?a=1"}', r'{"u": "https:\/\/h\/x?***"}'),
        (r"{\"u\": \"https://h/x?a=1\"}", r"{\"u\": \"https://h/x?***\"}"),
        ("http://h:80/a@b", "http://h:80/a@b"),
        ("https://h/50%25/%3Fno", "https://h/50%25/%3Fno"),
        ("a=1&sig=abc&c=2", "a=1&sig=***&c=2"),
    ],
)
def test_the_rest_stays_readable(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_what_is_cut_in_the_middle_of_a_password_does_not_show_it() -> None:
    for most in range(15, 51):
        assert "SEC" not in redact("see https://user:SECRETSECRET/SECRET@h/x?a=SECRET", most=most)


@pytest.mark.parametrize(
    ("uri", "texts"),
    [
        ("s3://KEY:SECRET@bucket/x", ("The conn_id `KEY:SECRET` isn't defined", "Invalid key SECRET")),
        ("https://h/x?sig=SECRET", ("403, url='/x?sig=SECRET'", "query: sig=SECRET")),
    ],
)
def test_an_error_does_not_show_parts_of_its_uri(uri: str, texts: tuple[str, ...]) -> None:
    for text in texts:
        assert "SECRET" not in redact_error(ValueError(text), uri)


# --- the API key ---

KEY_FORMS = (
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
    key=keys, forms=st.lists(st.sampled_from(KEY_FORMS), min_size=1), around=st.text(" .:-'a1", max_size=5)
)
def test_a_key_in_any_form_is_masked_and_the_answer_stays_json(
    key: str, forms: list[Callable[[str], str]], around: str
) -> None:
    repeated = "".join(form(char) for form, char in zip(itertools.cycle(forms), key, strict=False))
    body = f'{{"error": "{around}{repeated}{around}"}}'.encode()
    text = json.loads(mask_key(body, key))["error"]
    assert text.replace("***", "", 1) in (around + around, "***")
    for _ in range(3):
        assert key not in text
        text = html.unescape(unquote_plus(text))


@given(key=keys, body=st.binary())
def test_what_holds_no_key_is_unchanged(key: str, body: bytes) -> None:
    if not {*key.encode()} <= {*body}:
        assert mask_key(body, key) == body


def test_a_key_in_json_in_json_is_masked_and_a_short_key_masks_no_words() -> None:
    key = 'sk-"a/b\\c-1234'
    body = json.dumps({"error": json.dumps({"error": json.dumps({"key": key})})}).encode()
    masked = mask_key(body, key)
    assert b"1234" not in masked
    assert "***" in json.loads(masked)["error"]
    assert mask_key(b"an error", "error") == b"an error"
    assert mask_key_in_text("an error", "error") == "an error"


KEY, LIST = "sk-012/345-very&secret", Request("GET", "app", "x")
SETTINGS = Settings("https://rungen.example", KEY)
ENCODINGS = ("utf-8", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be", "utf-8-sig")


@pytest.mark.parametrize(
    ("repeated", "encoding"),
    [
        *((text, "utf-8") for text in ("sk-012\\/345\\u002dvery&amp;secret", "sk%2D012%2F345-very%26secret")),
        *((KEY, encoding) for encoding in ENCODINGS),  # json is read in each of them
    ],
)
def test_no_error_and_no_job_holds_a_key(repeated: str, encoding: str) -> None:
    body = f'{{"error": "no key {repeated}", "status": "FAILED", "id": "jé"}}'.encode(encoding)
    with pytest.raises(RunGenForbiddenError, match=r"no key \*\*\*"):
        decode(SETTINGS.response(403, {}, [body[:20], body[20:]]), LIST, 0.0)
    job = Job.from_json(decode(SETTINGS.response(200, {}, [body]), LIST, 0.0), app_id="a")
    assert (job.id, job.error) == ("jé", "no key ***")
    answer = SETTINGS.response(302, {"Location": "https://x/?key=sk-012%2f345-very%26secret"}, [])
    assert answer.headers["location"] == "https://x/?key=***"


@pytest.mark.parametrize("piece", [b"\\", b"%25", b"&amp;", b"s", b"sk-", b"\\u00730", b"0"])
def test_no_body_takes_long(piece: bytes) -> None:
    body = piece * (4_000_000 // len(piece))
    begun_at = time.thread_time()
    assert mask_key(body, "sk-0123456789-secret") == body
    assert time.thread_time() - begun_at < 3
