"""Mask a key in an answer, plain or escaped as in JSON, HTML or a URL. No I/O."""

from __future__ import annotations

import functools
import html.entities
import re

MASK = "***"
# A shorter key could be an ordinary word.
SHORTEST = 8
_NAMES = {
    char: [name.removesuffix(";") for name, text in html.entities.html5.items() if text == char]
    for char in map(chr, range(32, 127))
}


def mask_key(body: bytes, key: str) -> bytes:
    """Return a body with each occurrence of the key masked."""
    return body if len(key) < SHORTEST else _pattern(key).sub(MASK.encode(), body)


def mask_key_in_text(text: str, key: str) -> str:
    """Return the text of a header with each occurrence of the key masked."""
    if len(key) < SHORTEST:
        return text
    return mask_key(text.encode("utf-8", "surrogateescape"), key).decode("utf-8", "surrogateescape")


@functools.lru_cache(maxsize=8)
def _pattern(key: str) -> re.Pattern[bytes]:
    # a run of backslashes matches from its beginning only, or a body of nothing else would take long
    forms = [_forms(char, begin="" if index else r"(?<!\\)") for index, char in enumerate(key)]
    return re.compile("".join(forms).encode())


def _forms(char: str, begin: str) -> str:
    """Return a pattern of all forms of a character, escaped once or more (such as JSON in JSON)."""
    code = ord(char)
    hexadecimal = "".join(f"[{d}{d.upper()}]" if d.isalpha() else d for d in f"{code:02x}")
    number = rf"#(?:0{{0,6}}{code}|[xX]0{{0,6}}{hexadecimal})"
    names = "".join(f"|{name}" for name in sorted(set(_NAMES[char]), key=len, reverse=True))
    slashes = rf"{begin}\\+" if char == "\\" else rf"{begin}\\++"
    forms = [
        rf"{slashes}(?:[uU]\{{?0{{0,6}}{hexadecimal}\}}?|x{hexadecimal})",
        rf"%(?:25){{0,4}}{hexadecimal}",
        rf"&(?:amp;){{0,4}}(?:{number}{names});?",
    ]
    if char == "\\":
        forms.append(slashes)
    elif char.isalnum():
        forms.append(char)
    else:
        forms.append(rf"{begin}\\*+{re.escape(char)}")
    return f"(?:{'|'.join(forms)})"
