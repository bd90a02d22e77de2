"""Removes what is secret in the URLs of a text: passwords, and what signs or authorizes a request. No I/O.

A URL is found raw, or escaped for JSON, HTML or another URL, and loses its password and its query string.
Parameters that are known to be secret are found wherever they are. Both take time in proportion to the text.
"""

from __future__ import annotations

import re
from functools import lru_cache

_MARK = "***"
# With these schemes, the name of an Airflow connection or of a container may precede the @.
_STORAGE = {
    *(
        "s3",
        "s3a",
        "gs",
        "gcs",
        "abfs",
        "abfss",
        "az",
        "adl",
        "wasb",
        "wasbs",
        "oss",
        "hdfs",
        "memory",
        "file",
    )
}
_NAME = re.compile(r"[\w.-]{1,250}")
_PORT = re.compile(r"\d{1,5}")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*\Z")
_LEVEL = re.compile(r"%((?:25)*)")
# Shorter pieces of a URI may stand in a text by chance.
_SHORTEST_PIECE = 4


def _entity(char: str, name: str) -> str:
    """Return the pattern of a character, raw or escaped for JSON or HTML."""
    code = f"{ord(char):02x}"
    escaped = rf"\\{{1,9}}(?:u00|x){code}|&\#0{{0,6}}{ord(char)};|&\#x0{{0,6}}{code};|&{name};"
    if char == "&":
        return rf"&(?:amp;){{0,9}}|{escaped}"
    return rf"(?<!&)\#|{escaped}" if char == "#" else rf"\\{{0,9}}{re.escape(char)}|{escaped}"


def _percent(char: str, repeat: str = "{0,9}") -> str:
    """Return the pattern of a character that is percent-encoded once or more often."""
    return rf"%(?:25){repeat}{ord(char):02x}"


def _escaped(char: str, name: str) -> str:
    return f"(?:{_entity(char, name)}|{_percent(char)})"


_SLASHES = f"{_escaped('/', 'sol')}{{2}}"
# What has an @, but no userinfo: //@ts-ignore, //div[@id='main']
_CODE = r"@[\w:-]{1,50}(?=[\s)\]},;]|\Z)|[\w*]{0,100}\[@[\w-]{1,100}[\]=]"
# Without a scheme, only what has a password or a domain is taken for a URL: // begins a comment, too.
_RELATIVE = (
    r"(?:(?<![\w:/\\.%;+=@-])|(?<=;)|(?<=[%5][0-9A-F]{2})|(?<=u00[0-9A-F]{2}))"
    rf"{_SLASHES}(?!{_CODE})(?=[^\s/?\#\"<>\\]{{0,250}}[.@])"
)
_START = re.compile(rf"{_escaped(':', 'colon')}{_SLASHES}|{_RELATIVE}", re.IGNORECASE)
# To its end, which a quote marks, also one that is escaped.
_RUN = r'(?:[^\s"<>\\]|\\(?!"))*'
_URL = re.compile(rf"({_START.pattern})({_RUN})", re.IGNORECASE)
# A text that is a URL as a whole may hold what ends one in prose.
_WHOLE_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)(://)(\S+)")
_AT = re.compile(_escaped("@", "commat"), re.IGNORECASE)
_COLON = re.compile(_escaped(":", "colon"), re.IGNORECASE)

_PREFIX = rf"(?:{_escaped('?', 'quest')}|{_escaped('&', 'amp')})"
_KNOWN = (
    r"X-(?:Amz|Goog|Oss|Obs|Ms|Cos)-[A-Z-]{1,64}|Signature|(?:AWS|OSS)AccessKeyId|GoogleAccessId|Key-Pair-Id"
)
_USUAL = (
    r"sig|se|sv|sp|sr|st|spr|skoid|sktid|skt|ske|sks|skv|sign|hmac|Expires|Policy|AccessKeyId|key|auth"
    r"|[A-Z0-9_-]{0,40}(?:token|secret|password|passwd|pwd|api_?-?key|access_?-?key|credentials?)"
)
_PARAMETER = re.compile(
    rf"((?:{_KNOWN})|{_PREFIX}(?:{_USUAL})){_escaped('=', 'equals')}[^\s&\"<>]+", re.IGNORECASE
)


def redact(text: str, *, most: int | None = None) -> str:
    """
    Return a text that may be shown: no URL in it has a password or a query string.

    The name of an Airflow connection (``s3://conn_id@bucket``) stays.

    :param most: read no more than so many characters of it.
    """
    return _without(text, most, is_shown=True)


def without_secrets(text: str) -> str:
    """Return a text that may be stored: what is secret is cut off its URLs without a mark."""
    return _without(text, None, is_shown=False)


def redact_error(error: BaseException, uri: str) -> str:
    """Return the text of an error about a URI, of which libraries may quote a part that is no URL."""
    text = str(error)
    for piece in _secret_pieces(uri):
        text = text.replace(piece, _MARK)
    return redact(text)


def _secret_pieces(uri: str) -> list[str]:
    """Return what is secret in a URI, the longest piece first."""
    place, _, query = re.sub(r"[?#]", "?", uri.partition("://")[2], count=1).partition("?")
    userinfo = place.rpartition("@")[0]
    pieces = {query}
    if ":" in userinfo:
        pieces |= {userinfo, userinfo.partition(":")[2]}
    return sorted((piece for piece in pieces if len(piece) >= _SHORTEST_PIECE), key=len, reverse=True)


def _without(text: str, most: int | None, *, is_shown: bool) -> str:
    if whole := _WHOLE_URL.fullmatch(text, 0, len(text) if most is None else min(most, len(text))):
        scheme, start, run = whole.groups()
        cleaned = scheme + _cleaned(scheme, start, run, is_shown, is_open=whole.end() < len(text))
    else:
        end = len(text) if most is None else min(most, len(text))

        def clean(match: re.Match[str]) -> str:
            before = text[max(0, match.start() - 16) : match.start()]
            is_open = match.end() == end < len(text)
            return _cleaned(before, match[1], match[2], is_shown, is_open=is_open)

        cleaned = _URL.sub(clean, text[:end])
    return _PARAMETER.sub(rf"\1={_MARK}", cleaned)


def _cleaned(before: str, start: str, run: str, is_shown: bool, *, is_open: bool) -> str:
    """
    Return a URL, and those inside it, without what is secret.

    :param before: the text before it, which ends with its scheme.
    :param start: what separates the scheme from the rest.
    :param run: the rest.
    :param is_open: whether it goes on where it cannot be seen, so that it may be a password.
    """
    parts, begun_at = [start], 0
    inner = [*_START.finditer(run)]
    for number in range(len(inner) + 1):
        end = inner[number].start() if number < len(inner) else len(run)
        if end < begun_at:
            continue
        is_last = number == len(inner)
        if is_last and is_open:
            return "".join([*parts, _MARK])
        segment, is_cut = _without_userinfo_and_query(before, start, run[begun_at:end], is_shown)
        parts.append(segment)
        if is_cut:
            break
        if not is_last:
            start, before = inner[number][0], run[max(0, end - 16) : end]
            parts.append(start)
            begun_at = inner[number].end()
    return "".join(parts)


def _without_userinfo_and_query(before: str, start: str, rest: str, is_shown: bool) -> tuple[str, bool]:
    """Return a URL after its scheme, and whether it had a query string."""
    level = max((len(level) // 2 + 1 for level in _LEVEL.findall(start)), default=0)
    # without a colon, nothing tells whether it is encoded
    slash, query = _delimiters(level if _COLON.match(start) else max(level, 1))
    end = min(match.start() if match else len(rest) for match in (slash.search(rest), query.search(rest)))
    host_at = _last_at(rest[:end])
    if not host_at and _has_odd_port(rest[:end]):
        host_at = _last_at(rest)  # a password with a slash
    userinfo = rest[:host_at]
    scheme = _SCHEME.search(before)
    is_name = _NAME.fullmatch(_AT.sub("", userinfo)) is not None
    if userinfo and not (is_shown and is_name and scheme and scheme[0].lower() in _STORAGE):
        userinfo = f"{_MARK}@" if is_shown else ""
    cut = query.search(rest, host_at)
    if cut is None:
        return userinfo + rest[host_at:], False
    return userinfo + rest[host_at : cut.start()] + (f"?{_MARK}" if is_shown else ""), True


def _last_at(text: str) -> int:
    """Return where the host begins, after the last @."""
    end = 0
    for match in _AT.finditer(text):
        end = match.end()
    return end


def _has_odd_port(authority: str) -> bool:
    """Return whether what looks like a port is none, so that it has to be a password."""
    colon = None if authority.startswith("[") else _COLON.search(authority)
    return colon is not None and _PORT.fullmatch(authority, colon.end()) is None


@lru_cache(maxsize=16)
def _delimiters(level: int) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """
    Return what ends an authority, and what begins a query string or fragment.

    :param level: how often they are percent-encoded; what is encoded more often is data.
    """
    slash, query = _entity("/", "sol"), f"{_entity('?', 'quest')}|{_entity('#', 'num')}"
    if level:
        repeat = f"{{{level - 1}}}"
        slash += f"|{_percent('/', repeat)}"
        query += f"|{_percent('?', repeat)}|{_percent('#', repeat)}"
    return re.compile(slash, re.IGNORECASE), re.compile(query, re.IGNORECASE)
