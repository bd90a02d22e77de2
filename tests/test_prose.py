"""The prose linter of ``make lint``."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import prose  # noqa: E402


def findings(tmp_path: Path, text: str, name: str = "page.md") -> list[tuple[int, str, str]]:
    file = tmp_path / name
    file.write_text(text)
    return [(found.line, found.what, found.use) for found in prose.check(file)]


WORDS = [
    ("It is hopeless.", "hopeless", "not retryable"),
    ("The worker is told to stop.", "told", "reported, logged, asked or configured"),
    ("It waits for\never.", "for ever", "forever, or name what never ends"),
    ("A retry takes the job up.", "takes the job up", "resume"),
    ("A retry took it up.", "took it up", "resume"),
    ("Copies share the job of their leader.", "leader", "first"),
]
FINE = [
    "It takes up to four seconds.",
    "The field ``told``",
    "[a page](guides/told.md)",
    "```python\ntold = True\n```",
    "<!-- faults: begin -->\nhopeless\n<!-- faults: end -->",
    "Look at the app's jobs.",
]
PROSE_OF_PYTHON = [
    '"""Give the jobs."""',
    'def f():\n    """Tell whether it is so."""',
    'class A:\n    """\n    Let a job run.\n    """',
    "# what was said\n",
    "x = 1 " + " # what was said\n",
    'log.warning("%s was told", 1)',
    'raise ValueError(f"{1} was told")',
    'raise RunGenError("a", hint="what was told")',
]
CODE = [
    '"""Return what to give."""',
    "told = get_ui_field_behaviour('hopeless')\n",
    'assert "told" in caplog.text',
    "x = 1  # noqa: S311 - told\n",
    "except asyncio.CancelledError:".join(["try:\n    pass\n", "\n    pass\n"]),
]


def test_words_that_may_not_come_back(tmp_path: Path) -> None:
    for text, word, use in WORDS:
        assert (1, word, use) in findings(tmp_path, text)
    found = {text: len(findings(tmp_path, text, "module.py")) for text in PROSE_OF_PYTHON}
    assert found == dict.fromkeys(PROSE_OF_PYTHON, 1)


def test_words_that_are_fine_and_code_that_is_no_prose(tmp_path: Path) -> None:
    assert [text for text in FINE if findings(tmp_path, text)] == []
    assert [text for text in CODE if findings(tmp_path, text, "module.py")] == []


def test_a_finding_names_its_line_and_what_to_use(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("# Title\n\nIt is fine.\n\n```shell\nmake test # as ever\n```\n")
    [found] = prose.check(tmp_path / "page.md")
    assert str(found).endswith("/page.md:6: as ever: use as usual")


def test_every_text_counts_where_a_page_is_made() -> None:
    texts = prose.python_texts("TITLE = 'what was told'", is_page=True)
    assert [found.what for found in prose.check_words("page.py", texts)] == ["told"]
    assert all((ROOT / name).exists() for name in prose.PAGE_SOURCES)


def test_a_long_sentence(tmp_path: Path) -> None:
    words = " ".join(["word"] * prose.MAX_WORDS)
    assert findings(tmp_path, f"{words}.\n{words}:\n\n- {words}\n- {words}\n\n| {words} | {words} |") == []
    [(line, what, _)] = findings(tmp_path, f"# Title\n\n{words}. Then\n{words}.\n")
    assert (line, what) == (3, "26 words (Then word word word …)")
    # a piece of code counts as a word
    assert findings(tmp_path, f"{words[5:]} `{words}`.") == []
    assert len(findings(tmp_path, f"{words[5:]} `{words}` word.")) == 1


def test_the_pages_together_are_not_too_long(tmp_path: Path) -> None:
    (tmp_path / "one.md").write_text("word " * (prose.MAX_DOCS_WORDS - 1))
    (tmp_path / "two.md").write_text("word")
    assert list(prose.check_size(tmp_path.iterdir())) == []
    (tmp_path / "two.md").write_text("| word |")
    assert [found.what for found in prose.check_size(tmp_path.iterdir())] == [
        f"{prose.MAX_DOCS_WORDS + 2} words"
    ]
