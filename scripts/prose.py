"""The prose linter of ``make lint``: finds words that may not come back, and texts that are too long.

Arguments: the files to check, by default the whole project.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = ("airflow_provider_rungen", "bench", "compat", "docs", "scripts", "tests")
PAGES = ("*.md", "llms.txt", "compat/header.md", "docs/**/*.md")
# `make bench` and `make test-compat` write these pages, with texts that all stand in these sources.
GENERATED = ("docs/benchmarks/README.md", "docs/compatibility.md")
PAGE_SOURCES = ("bench/page.py", "compat/page.py")
MAX_WORDS = 25
# In all pages of `docs`, as `wc -w` counts them.
MAX_DOCS_WORDS = 17_650

# What may not come back, as a pattern, and what to use.
WORDS = {
    "hopeless": "not retryable",
    "told": "reported, logged, asked or configured",
    "said": "reported, logged or configured",
    "for ever": "forever, or name what never ends",
    "would else": "would otherwise",
    "the first first": "in order",
    "in vain": "without success",
    "anew": "again, or new",
    "as ever": "as usual",
    "of use": "useful",
    "what(?:ever)? (?:became|becomes|came) of": "how … ended, the result of",
    r"(?:tak(?:en?|es|ing)|took) (?:(?:it|them|th[eo]se|jobs?|(?:the|a|its|that) \w+) )?up(?! to)": "resume",
    "between (?:two )?looks": "between polls",
    "looks? at (?:the|a|each|its) (?:job|app)(?!')": "poll",
    "from a stranger": "untrusted",
    "rooms|house": "package, module",
    "knobs?": "option",
    "landing|landed": "storing, stored, archived",
    "leaders?": "first",
    "borrowed": "shared",
    "stragglers?": "slow job",
    "patience": "timeout",
    "takers?": "sink",
    "all the same": "anyway",
    "ledgers?|run logs?": "store",
    "strangers?": "untrusted",
}
# The same, at the start of a docstring.
FIRST_WORDS = {
    "Gives?": "Return",
    "Tells?|Says?": "Return, log or describe",
    "Lets?": "a verb for what it does",
}
_LOGS = {"debug", "info", "warning", "error", "exception", "critical"}
_CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
_COMMENT = re.compile(r"(?:^\s*|  )#[: ] *(?!noqa|type:)(.*)")
_FENCED = re.compile(r"^( *)(`{3,}).*\n(?:.*\n)*?\1\2 *$", re.MULTILINE)
_GENERATED = re.compile(r"<!-- \w+: begin -->.*?<!-- \w+: end -->", re.DOTALL)
_NEW_PARAGRAPH = re.compile(r"\s*(?:[-*|#!]|\d+\.)(?:\s|$|\[)|\s*$")
_BETWEEN_SENTENCES = re.compile(r"(?<=[.!?:;])[)\"*]*\s+|\s\|(?=\s|$)|^\s*\|")


@dataclass(frozen=True, order=True)
class Finding:
    """
    A place that has to change.

    :param file: the file, relative to the root of the project.
    :param line: its line, from 1.
    :param what: the word, or the length of the sentence.
    :param use: what to use.
    """

    file: str
    line: int
    what: str
    use: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.what}: use {self.use}"


@dataclass(frozen=True)
class Text:
    """
    A piece of prose.

    :param line: the line where it begins.
    :param text: the prose itself, perhaps of several lines.
    :param is_docstring: whether it is a docstring.
    """

    line: int
    text: str
    is_docstring: bool = False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path, help="the files to check; all by default")
    options = parser.parse_args()
    findings = [found for file in options.files or project_files() for found in check(file.resolve())]
    if not options.files:
        findings += check_size((ROOT / "docs").rglob("*.md"))
    for found in findings:
        print(found)
    return bool(findings)


def project_files() -> Iterator[Path]:
    for folder in PYTHON:
        yield from sorted((ROOT / folder).rglob("*.py"))
    for pattern in PAGES:
        for page in sorted(ROOT.glob(pattern)):
            if str(page.relative_to(ROOT)) not in GENERATED:
                yield page


def check(file: Path) -> list[Finding]:
    """Return what has to change in a Python file or a page."""
    name = str(file.relative_to(ROOT)) if file.is_relative_to(ROOT) else str(file)
    source = file.read_text()
    if file.suffix == ".py":
        return sorted(set(check_words(name, python_texts(source, is_page=name in PAGE_SOURCES))))
    return sorted([*check_words(name, page_texts(source)), *check_lengths(name, source)])


# --- the prose of a file ---


def python_texts(source: str, *, is_page: bool = False) -> Iterator[Text]:
    """
    Find comments, docstrings, and the texts of log lines and errors.

    :param is_page: whether every text counts.
    """
    for number, line in enumerate(source.splitlines(), 1):
        if found := _COMMENT.search(line):
            yield Text(number, found[1])
    tree = ast.parse(source)
    if is_page:
        yield from _strings([tree])
    for node in ast.walk(tree):
        match node:
            case ast.Module() | ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                if (text := ast.get_docstring(node, clean=False)) is not None:
                    yield Text(node.body[0].lineno, text, is_docstring=True)
            case ast.Call(func=ast.Attribute(attr=attr), args=args) if attr in _LOGS:
                yield from _strings(args)
            case ast.Raise(exc=ast.Call(args=args, keywords=keywords)):
                yield from _strings([*args, *(keyword.value for keyword in keywords)])


def _strings(nodes: Iterable[ast.AST]) -> Iterator[Text]:
    for outer in nodes:
        for node in ast.walk(outer):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield Text(node.lineno, node.value)


def page_texts(page: str) -> Iterator[Text]:
    yield Text(1, _prose(page))


def _prose(page: str) -> str:
    """Blank what is not prose: generated tables, code without its comments, and targets of links."""
    page = _FENCED.sub(_comments, _GENERATED.sub(_blank, page))
    return re.sub(r"\]\([^)\s]+\)", "]", page)


def _comments(block: re.Match[str]) -> str:
    return "\n".join(line.partition("# ")[2] for line in block[0].split("\n"))


def _blank(found: re.Match[str]) -> str:
    """Keep only the line breaks, so that line numbers stay."""
    return "\n" * found[0].count("\n")


# --- words ---


def _compile(words: Iterable[str]) -> re.Pattern[str]:
    alternatives = "|".join(words).replace(" ", r"\s+")
    return re.compile(rf"\b(?:{alternatives})\b", re.IGNORECASE)


_WORDS = [(_compile([pattern]), use) for pattern, use in WORDS.items()]
_ANY_WORD = _compile(WORDS)
_ANY_FIRST_WORD = re.compile(rf"\s*(?P<word>{'|'.join(FIRST_WORDS)})\b")


def check_words(name: str, texts: Iterable[Text]) -> Iterator[Finding]:
    """Find words that may not come back; text in backticks is code."""
    for text in texts:
        prose = _CODE.sub(_blank, text.text)
        if text.is_docstring and (first := _ANY_FIRST_WORD.match(prose)):
            yield Finding(name, text.line, first["word"], _instead_of_first(first["word"]))
        for found in _ANY_WORD.finditer(prose):
            line = text.line + prose.count("\n", 0, found.start())
            yield Finding(name, line, " ".join(found[0].split()), _instead_of(found[0]))


def _instead_of_first(word: str) -> str:
    return next(use for pattern, use in FIRST_WORDS.items() if re.fullmatch(pattern, word))


def _instead_of(word: str) -> str:
    return next(use for pattern, use in _WORDS if pattern.match(word))


# --- lengths ---


def check_size(pages: Iterable[Path]) -> Iterator[Finding]:
    """Find whether pages have more than `MAX_DOCS_WORDS` words together; tables and code count, too."""
    words = sum(len(page.read_text().split()) for page in pages)
    if words > MAX_DOCS_WORDS:
        yield Finding("docs", 1, f"{words} words", f"at most {MAX_DOCS_WORDS}, with each fact once")


def check_lengths(name: str, page: str) -> Iterator[Finding]:
    """Find sentences with more than `MAX_WORDS` words; a piece of code counts as one."""
    for line, words in _sentences(page):
        if len(words) > MAX_WORDS:
            begin = " ".join(words[:4])
            yield Finding(
                name, line, f"{len(words)} words ({begin} …)", f"sentences of at most {MAX_WORDS} words"
            )


def _sentences(page: str) -> Iterator[tuple[int, list[str]]]:
    """Split a page into the words of its sentences, with the line where each begins."""
    begin, words = 0, list[str]()
    for number, line in enumerate(_CODE.sub(_one_word, _prose(page)).splitlines(), 1):
        if words and _NEW_PARAGRAPH.match(line):
            yield begin, words
            words = []
        for piece in _BETWEEN_SENTENCES.split(line):
            begin = begin if words else number
            words += re.findall(r"\S*\w\S*", piece)
            if words and (piece.endswith((".", "!", "?", ":", ";")) or line.lstrip().startswith("|")):
                yield begin, words
                words = []
    if words:
        yield begin, words


def _one_word(code: re.Match[str]) -> str:
    return f"CODE{_blank(code)}"


if __name__ == "__main__":
    sys.exit(main())
