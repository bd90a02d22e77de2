"""How pages look to a browser, and what hostile texts can do in them: nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
import samples
from reader import Reader
from samples import HOSTILE

from airflow_provider_rungen.pages import render
from airflow_provider_rungen.pages.models import (
    MAX_EXAMPLES,
    MAX_GROUPS,
    MAX_TEXT,
    JobView,
    Progress,
    find_facts,
    find_prompt,
    find_text,
    first_fields,
    group_failures,
)
from airflow_provider_rungen.pages.output_kinds import detect, guess

PAGES = pytest.mark.parametrize("name", samples.pages())
#: What may run or load something, if it is not the package's own.
ATTRIBUTES_OF_URLS = {"href", "src", "action", "formaction", "data", "poster", "srcset"}


@pytest.fixture(scope="module")
def html() -> dict[str, str]:
    return {name: make() for name, make in samples.pages().items()}


@PAGES
def test_a_page_is_well_formed_and_nothing_comes_from_elsewhere(html: dict[str, str], name: str) -> None:
    page = Reader(html[name])
    names = [tag for tag, _ in page.tags]
    assert html[name].startswith("<!doctype html>")
    assert "width=device-width, initial-scale=1" in page.all("meta", "content")
    assert page.all("meta", "charset") == ["utf-8"]
    assert names.count("h1") == 1
    assert all("alt" in attrs for tag, attrs in page.tags if tag == "img")
    assert not {"iframe", "object", "embed", "base", "svg:script"} & set(names)
    # a form only asks for the same page
    assert all(
        attrs.get("method") == "get" and attrs.get("action", "#list") == "#list"
        for tag, attrs in page.tags
        if tag == "form"
    )
    for _, attrs in page.tags:
        assert not [each for each in attrs if each.startswith("on") or each == "style"]
        for attribute in ATTRIBUTES_OF_URLS & attrs.keys():
            url = attrs[attribute] or ""
            assert render.safe_href(url) == url
            assert not url.startswith(("http", "//"))
    is_sheet = name == "contact_sheet"
    assert page.all("script", "src") == ([] if is_sheet else ["theme.js", "page.js"])
    assert (names.count("script"), names.count("style")) == ((0, 1) if is_sheet else (2, 0))
    # the only links that leave the frame; where it cannot be left, page.js ends them
    leaving = html[name].count('target="_top"')
    assert leaving <= html[name].count('data-part="airflow"') + html[name].count("data-leaves")


@pytest.mark.parametrize("name", ["hostile", "job_hostile", "run_hostile"])
def test_hostile_texts_are_texts(html: dict[str, str], name: str) -> None:
    page = Reader(html[name])
    assert HOSTILE in page.text, "it is shown as it is, and no template"
    assert "alert(1)" in page.text
    assert not [attrs for tag, attrs in page.tags if tag == "img" and attrs.get("src") == "x"]
    assert "javascript:" not in "".join(str(attrs) for _, attrs in page.tags)
    html[name].encode()


def test_assets_run_nothing_that_a_policy_forbids() -> None:
    style, script = map(render.read_asset, ("style.css", "page.js"))
    assert "@import" not in style
    assert "url(" not in style
    assert "http" not in style
    for name in ("eval(", "innerHTML", "outerHTML", "document.write", "insertAdjacentHTML", ".style", "http"):
        assert name not in script


def test_a_large_page_is_rendered_in_time(html: dict[str, str]) -> None:
    assert html["large"].count("<article") == 200
    assert len(html["large"]) < 300_000
    assert "10,000 jobs" in html["large"]
    assert "Page 2 of 50" in html["large"]


def test_what_moves_can_be_read_without_a_script(html: dict[str, str]) -> None:
    text = Reader(html["task"]).text
    for words in ("8 of 12 done", "3 running", "out of memory", "deferred"):
        assert words in " ".join(text.split())


# --- progress ---


def test_the_script_gets_what_the_page_shows(html: dict[str, str]) -> None:
    answer = render.progress_parts(samples.MOVING)
    json.dumps(answer)
    assert (answer["done"], answer["total"], answer["is_moving"]) == (8, 12, True)
    assert sum(part["width"] for part in answer["parts"]) == pytest.approx(100, abs=0.01)
    for part in answer["parts"]:
        assert f'data-bar="{part["name"]}" x="{part["x"]}" width="{part["width"]}"' in html["task"]
        assert f'data-count="{part["name"]}"' in html["task"]


@pytest.mark.parametrize(
    ("progress", "headline"),
    [
        (Progress(total=0), "0 jobs"),
        (Progress(total=1, completed=1), "1 job"),
        (Progress(total=1000, completed=1000), "1,000 jobs"),
        (Progress(total=3, completed=1), "1 of 3 jobs submitted"),
        (Progress(total=3, completed=3, is_moving=True), "3 of 3 done"),
        (Progress(total=2, completed=3), "2 jobs"),
    ],
)
def test_progress(progress: Progress, headline: str) -> None:
    shown = render.progress_parts(progress)
    assert shown["headline"] == headline
    assert all(0 <= part["x"] <= 100 and 0 <= part["width"] <= 100 for part in shown["parts"])


# --- failures ---


def test_failures_are_grouped_by_reason() -> None:
    def failed(index: int, reason: str) -> JobView:
        error = f"Failed: {reason} (job id-{index}, app flux)"
        return JobView(index=index, status="failed", job_id=f"id-{index}", error=error)

    jobs = [failed(index, "out of memory" if index % 3 else "bad prompt") for index in range(30)]
    jobs += [JobView(index=30, status="completed"), JobView(index=31, status="canceled")]
    jobs += [JobView(index=32, status="failed", job_id="id-32", error="Could not store job id-32: no space")]
    groups = group_failures(jobs)
    assert [(group.reason, group.count) for group in groups] == [
        ("out of memory", 20),
        ("bad prompt", 10),
        ("canceled", 1),
        ("Could not store job …: no space", 1),
    ]
    assert [len(group.examples) for group in groups] == [MAX_EXAMPLES, MAX_EXAMPLES, 1, 1]
    many = group_failures(failed(index, f"reason {index}") for index in range(1000))
    assert len(many) == MAX_GROUPS + 1
    assert many[-1].count == 1000 - MAX_GROUPS


# --- what may be shown ---

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 8


@pytest.mark.parametrize(
    ("head", "claimed", "media_type"),
    [
        (PNG, "", "image/png"),
        (PNG, "text/html", "image/png"),
        (b"\xff\xd8\xff\xe0", "", "image/jpeg"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "", "image/webp"),
        (b"RIFF\0\0\0\0WAVEfmt ", "", "audio/wav"),
        (b"GIF89a\1\0", "", "image/gif"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "", "image/avif"),
        (b"\0\0\0\x20ftypmif1\0\0\0\0mif1avifmiaf", "", "image/avif"),
        (b"\0\0\0\x20ftypisom\0\0\2\0", "", "video/mp4"),
        (b"\0\0\0\x20ftypM4A \0\0\2\0", "", "audio/mp4"),
        (b"\x1aE\xdf\xa3", "", "video/webm"),
        (b"ID3\4", "", "audio/mpeg"),
        (b"\xff\xfb\x90\x64", "", "audio/mpeg"),
        (b"OggS\0", "", "audio/ogg"),
        (b"fLaC\0", "", "audio/flac"),
        (b"plain words", "text/plain; charset=utf-8", "text/plain"),
    ],
)
def test_the_first_bytes_decide(head: bytes, claimed: str, media_type: str) -> None:
    assert detect(head, claimed) == (media_type.partition("/")[0], media_type)


def test_what_the_first_bytes_do_not_show_is_a_download() -> None:
    svg, heic = b"<svg onload=alert(1)>", b"\0\0\0\x20ftypmif1\0\0\0\0mif1heicmiaf"
    claims = {
        "": [b"plain words", b""],
        "text/plain": [b"bin\0ary", b"\xff\xfe"],
        "text/html": [b"<!doctype html><script>"],
        "image/svg+xml": [svg],
        "image/png": [svg, heic, b""],
        "video/mp4": [b"RIFF\0\0\0\0AVI LIST"],
        "application/pdf": [b"%PDF-1.7"],
    }
    found = {detect(head, claimed) for claimed, heads in claims.items() for head in heads}
    assert found == {("download", "application/octet-stream")}


def test_a_character_that_is_cut_at_the_end_of_the_head_is_text() -> None:
    assert detect("é".encode()[:1], "text/plain", is_whole=False)[0] == "text"
    assert detect("é".encode()[:1], "text/plain")[0] == "download"
    assert detect(b"\xff" + b"x" * 10, "text/plain", is_whole=False)[0] == "download"


def test_the_name_decides_where_nothing_can_be_read() -> None:
    names = [("0-a.PNG", "text/html"), ("0-a", "image/jpeg"), ("0-a.webm", "")]
    assert [guess(*each) for each in names] == ["image", "image", "video"]
    others = [("0-a.svg", "image/png"), ("0-a", "image/svg+xml"), ("0-a", "")]
    assert {guess(*each) for each in others} == {"download"}


# --- what is found in inputs and results ---


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"prompt": " a fox "}, "a fox"),
        ({"prompt": "", "text": "b"}, "b"),
        ({"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "c"}]}, "c"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, ""),
        ({"prompt": 7}, ""),
        ({"width": 8}, ""),
        ([1], ""),
        (None, ""),
    ],
)
def test_the_prompt(given: Any, found: str) -> None:
    assert find_prompt(given) == found


def test_no_text_is_written_backwards() -> None:
    assert find_prompt({"prompt": "gnp\u202egpj.\u2067exe"}) == find_text("gnpgpj.exe")


@pytest.mark.parametrize(
    ("result", "found"),
    [
        ("words", "words"),
        ({"text": "words"}, "words"),
        ({"choices": [{"message": {"content": "words"}}]}, "words"),
        (["words"], "words"),
        ([["words"]], "words"),
        ({"images": [{"image": "s3://a/b.png"}]}, None),
        (["a", "b"], None),
        (None, None),
        (7, None),
    ],
)
def test_the_text_of_a_result(result: Any, found: str | None) -> None:
    assert find_text(result) == found


def test_deep_and_long_values() -> None:
    deep: Any = "x"
    for _ in range(100_000):
        deep = [deep]
    assert find_text(deep) is first_fields(deep) is first_fields({"x": deep}) is None
    assert len(find_text("x" * 10**6) or "") == MAX_TEXT
    assert len(find_prompt({"prompt": "x" * 10**6})) == MAX_TEXT


@pytest.mark.parametrize("length", [0, 3900, 3990, 7900, 7950, 7990, 8100])
def test_a_text_that_is_cut_has_no_secret(length: int) -> None:
    begin = ("word " * 2000)[:length]
    text = f"{begin} https://a.example/b.png?X-Amz-Signature=SECRET https://user:SECRET@a.example " + begin
    for found in (find_prompt({"prompt": text}), find_text({"text": text})):
        assert found is not None
        assert len(found) <= MAX_TEXT
        assert "SEC" not in found
        assert found.startswith(begin[:3900].strip())


def test_facts_of_an_input() -> None:
    given = {"width": 640, "height": 512, "seed": 0, "num_inference_steps": 4, "steps": 9, "strength": True}
    assert find_facts(given) == [("size", "640 x 512"), ("seed", "0"), ("steps", "4")]
    assert find_facts({"seed": "<b>"}) == find_facts(None) == []


# --- how values read ---


def test_a_link_that_may_run_something_is_dropped_and_others_stay() -> None:
    dangerous = [
        *("javascript:alert(1)", "JavaScript:alert(1)", " javascript:alert(1)", "java\tscript:alert(1)"),
        *("\x01javascript:alert(1)", "data:text/html,<script>", "vbscript:x", "file:///etc/passwd", "x:y"),
    ]
    assert [href for href in dangerous if render.safe_href(href)] == []
    fine = ["a/b.png", "?page=2", "#job-1", "/dags/a:b", "https://x/y:z", "a%3Ab", ""]
    assert [render.safe_href(href) for href in fine] == fine
