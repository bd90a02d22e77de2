"""Reads a page as a browser does."""

from __future__ import annotations

from html.parser import HTMLParser

_VOID = {"meta", "link", "img", "rect", "input", "option"}


class Reader(HTMLParser):
    """
    The tags of a page, and its text without styles. Each tag has to be closed where it should be.

    :param html: the page.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += "" if self.cdata_elem else data

    def all(self, tag: str, attribute: str) -> list[str]:
        return [value for name, attrs in self.tags if name == tag and (value := attrs.get(attribute))]

    def links(self) -> list[str]:
        return [value for _, attrs in self.tags for name in ("src", "href") if (value := attrs.get(name))]
