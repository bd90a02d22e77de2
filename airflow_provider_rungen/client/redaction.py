"""
Remove secrets from texts: the API key, and what signs or authorizes a request in URLs. No I/O.

A URL loses its password and its query string, whether it stands as it is or is escaped for JSON, HTML or
another URL. Parameters that are known to be secret are found everywhere. The time is linear in the length of
the text.
"""

from __future__ import annotations

import html.entities
import re
from functools import lru_cache

_MARK = "***"
# With these schemes, the part before the @ may be the name of an Airflow connection or of a container.
_STORAGE = frozenset(
    ["s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "wasb", "wasbs", "oss", "hdfs", "memory", "file"]
)
_NAME = re.compile(r"[\w.-]{1,250}")
_PORT = re.compile(r"\d{1,5}")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*\Z")
_LEVEL = re.compile(r"%((?:25)*)")
# What ends a password, begins a query string or sets a parameter, and what any of these is escaped with.
_SUSPECT = re.compile(r"[@?#=%&\\]")
# Where the answer of a store begins in the text of an error, and what says in it what is wrong.
_ANSWER = re.compile(
    r"\s(?=RequestId:)|\s*(?:Content:\s*)?(?=<(?:\?xml|Error>|html|!doctype))", re.IGNORECASE
)
_MESSAGE = re.compile(r"<Message>([^<\n]*)")
_ERROR_CODE = re.compile(r"(?:ErrorCode:|<Code>)\s*(\w+)")
# Shorter pieces of a URI may occur in a text by chance.
_SHORTEST_PIECE = 4


def _entity(char: str, name: str) -> str:
    """Return the pattern of a character, raw or escaped for JSON or HTML."""
    code = f"{ord(char):02x}"
    escaped = rf"\\{{1,9}}(?:u00|x){code}|&\#0{{0,6}}{ord(char)};|&\#x0{{0,6}}{code};|&{name};"
    if char == "&":
        return rf"&(?:amp;){{0,9}}|{escaped}"
    # a # after an escaped & is that of an entity: &amp;#x27;
    return (
        rf"(?<!&)(?<!&amp;)(?<!amp;amp;)\#|{escaped}"
        if char == "#"
        else rf"\\{{0,9}}{re.escape(char)}|{escaped}"
    )


def _percent(char: str, repeat: str = "{0,9}") -> str:
    """Return the pattern of a character that is percent-encoded once or more often."""
    return rf"%(?:25){repeat}{ord(char):02x}"


def _escaped(char: str, name: str) -> str:
    return f"(?:{_entity(char, name)}|{_percent(char)})"


_SLASHES = f"{_escaped('/', 'sol')}{{2}}"
# Code with an @ that no userinfo precedes: //@ts-ignore, //div[@id='main']
_CODE = r"@[\w:-]{1,50}(?=[\s)\]},;]|\Z)|[\w*]{0,100}\[@[\w-]{1,100}[\]=]"
# Without a scheme, a URL needs a password or a domain, since // begins a comment, too.
_RELATIVE = (
    r"(?:(?<![\w:/\\.%;+=@-])|(?<=;)|(?<=[%5][0-9A-F]{2})|(?<=u00[0-9A-F]{2}))"
    rf"{_SLASHES}(?!{_CODE})(?=[^\s/?\#\"<>\\]{{0,250}}[.@])"
)
_START = re.compile(rf"{_escaped(':', 'colon')}{_SLASHES}|{_RELATIVE}", re.IGNORECASE)
# The rest of a URL ends with a quote, even an escaped one.
_RUN = r'(?:[^\s"<>\\]|\\(?!"))*'
_URL = re.compile(rf"(?P<start>{_START.pattern})(?P<run>{_RUN})", re.IGNORECASE)
# A text that is nothing but a URL may contain what ends one in prose.
_WHOLE_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(?P<start>://)(?P<run>\S+)")
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
    rf"((?:{_KNOWN})|{_PREFIX}(?:{_USUAL})){_escaped('=', 'equals')}(?:[^\s&\"<>\\]|\\(?!\"))+", re.IGNORECASE
)


# What may sign a URL: the name of a parameter, or a text that nobody wrote by hand.
_PERHAPS = "pass|code|jwt|session|sid|ticket|authorization|authkey|sas"
_RANDOM = r"(?<![\w-])(?=[\w-]*\d)(?=[\d_-]*[A-Z])[\w-]{20}"
_SECRET = re.compile(
    rf"(?:{_KNOWN}|(?<![A-Z0-9])(?:{_USUAL}|{_PERHAPS})){_escaped('=', 'equals')}|{_RANDOM}",
    re.IGNORECASE | re.ASCII,
)
_NEXT_PARAMETER = re.compile(rf"{_percent('&', '{0,9}')}.*", re.IGNORECASE)
# What is left of a query string without some of its parameters.
_GAP = re.compile(r"([?&])&*([\s\"<>]|\Z)?")


def redact(text: str, *, most: int | None = None) -> str:
    """
    Return a text that may be shown, with ``***`` in place of passwords and query strings of URLs.

    The name of an Airflow connection (``s3://conn_id@bucket``) stays.

    :param text: any text.
    :param most: how many characters of it to read at most.
    """
    return _redact(text, most, is_shown=True)


def without_secrets(text: str) -> str:
    """Return a text that may be stored: its URLs have no passwords and no query strings."""
    return _redact(text, None, is_shown=False)


def without_signatures(text: str) -> str:
    """Return a text like `without_secrets`, in which URLs keep query strings that seem to be no secret."""
    return _redact(text, None, is_shown=False, keeps_plain=True)


def without_secret_parameters(text: str) -> str:
    """Return a text whose URLs lack the parameters that sign or authorize a request, or let it expire."""

    def rest(found: re.Match[str]) -> str:
        # in a URL that is escaped inside another one, the next parameter belongs to the match
        following = _NEXT_PARAMETER.search(found[0], found.end(1) - found.start())
        separator = found[0][0] if found[0][0] in "?&" else ""
        return separator + (following[0] if following else "")

    kept = _PARAMETER.sub(rest, text)
    return text if kept == text else _GAP.sub(lambda gap: gap[1] if gap[2] is None else gap[2], kept)


def redact_error(error: BaseException, uri: str) -> str:
    """
    Return the text of an error about a URI, without the answer of a store and the ids of its request.

    Libraries may quote parts of the URI in it.
    """
    text = _without_answer(str(error))
    for piece in _secret_pieces(uri):
        text = text.replace(piece, _MARK)
    return redact(text)


def _without_answer(text: str) -> str:
    plain, *answer = _ANSWER.split(text, maxsplit=1)
    if not answer:
        return text
    message, code = _MESSAGE.search(text), _ERROR_CODE.search(text)
    plain = plain.strip() or (message[1].strip() if message else "") or "it answered with a page"
    return plain if code is None or code[1] in plain else f"{plain} ({code[1]})"


def _secret_pieces(uri: str) -> list[str]:
    """Return the secret pieces of a URI, the longest first."""
    place, _, query = re.sub(r"[?#]", "?", uri.partition("://")[2], count=1).partition("?")
    userinfo = place.rpartition("@")[0]
    pieces = {query}
    if ":" in userinfo:
        pieces |= {userinfo, userinfo.partition(":")[2]}
    return sorted((piece for piece in pieces if len(piece) >= _SHORTEST_PIECE), key=len, reverse=True)


def _redact(text: str, most: int | None, *, is_shown: bool, keeps_plain: bool = False) -> str:
    end = len(text) if most is None else min(most, len(text))
    if end == len(text) and _SUSPECT.search(text) is None:
        return text

    def clean(url: re.Match[str]) -> str:
        start = url.start("start")
        is_cut = url.end() == end < len(text)
        query = _SUSPECT.search(url["run"])
        keeps = keeps_plain and (query is None or _SECRET.search(url["run"], query.start()) is None)
        before = text[max(0, start - 16) : start]
        return _clean(before, url["start"], url["run"], is_shown, is_cut=is_cut, keeps_query=keeps)

    if whole := _WHOLE_URL.fullmatch(text, 0, end):
        cleaned = text[: whole.start("start")] + clean(whole)
    else:
        cleaned = _URL.sub(clean, text[:end])
    return _PARAMETER.sub(rf"\1={_MARK}", cleaned)


def _clean(before: str, start: str, run: str, is_shown: bool, *, is_cut: bool, keeps_query: bool) -> str:
    """
    Return a URL, and the URLs inside it, without secrets.

    :param before: the text before it, which ends with its scheme.
    :param start: what separates the scheme from the rest.
    :param run: the rest.
    :param is_cut: whether its end is missing, so that the last part may belong to a password.
    :param keeps_query: whether query strings are no secret.
    """
    parts, begun_at = [start], 0
    inner = [*_START.finditer(run)]
    for number in range(len(inner) + 1):
        end = inner[number].start() if number < len(inner) else len(run)
        if end < begun_at:
            continue
        is_last = number == len(inner)
        if is_last and is_cut:
            return "".join([*parts, _MARK])
        segment, has_query = _without_userinfo_and_query(
            before, start, run[begun_at:end], is_shown, keeps_query=keeps_query
        )
        parts.append(segment)
        if has_query:
            break
        if not is_last:
            start, before = inner[number][0], run[max(0, end - 16) : end]
            parts.append(start)
            begun_at = inner[number].end()
    return "".join(parts)


def _without_userinfo_and_query(
    before: str, start: str, rest: str, is_shown: bool, *, keeps_query: bool
) -> tuple[str, bool]:
    """Return a URL after its scheme, and whether a query string was removed."""
    level = max((len(level) // 2 + 1 for level in _LEVEL.findall(start)), default=0)
    # without a colon, its level is unknown
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
    cut = None if keeps_query else query.search(rest, host_at)
    if cut is None:
        return userinfo + rest[host_at:], False
    return userinfo + rest[host_at : cut.start()] + (f"?{_MARK}" if is_shown else ""), True


def _last_at(text: str) -> int:
    """Return where the host begins, after the last @."""
    return max((match.end() for match in _AT.finditer(text)), default=0)


def _has_odd_port(authority: str) -> bool:
    """Return whether what looks like a port is not one, and must be a password."""
    colon = None if authority.startswith("[") else _COLON.search(authority)
    return colon is not None and _PORT.fullmatch(authority, colon.end()) is None


@lru_cache(maxsize=16)
def _delimiters(level: int) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """
    Return the patterns that end an authority, and that begin a query string or fragment.

    :param level: how many times they are percent-encoded. What is encoded more times is data.
    """
    slash, query = _entity("/", "sol"), f"{_entity('?', 'quest')}|{_entity('#', 'num')}"
    if level:
        repeat = f"{{{level - 1}}}"
        slash += f"|{_percent('/', repeat)}"
        query += f"|{_percent('?', repeat)}|{_percent('#', repeat)}"
    return re.compile(slash, re.IGNORECASE), re.compile(query, re.IGNORECASE)


# --- the API key ---

# A shorter key could be an ordinary word.
_SHORTEST_KEY = 8


def mask_key(body: bytes, key: str) -> bytes:
    """Return a body with each occurrence of the key masked."""
    return body if len(key) < _SHORTEST_KEY else _key_pattern(key).sub(_MARK.encode(), body)


def mask_key_in_text(text: str, key: str) -> str:
    """Return the text of a header with each occurrence of the key masked."""
    return mask_key(text.encode("utf-8", "surrogateescape"), key).decode("utf-8", "surrogateescape")


@lru_cache(maxsize=8)
def _key_pattern(key: str) -> re.Pattern[bytes]:
    # a run of backslashes matches from its beginning only, or a body of nothing else would take long
    forms = [_key_forms(char, begin="" if index else r"(?<!\\)") for index, char in enumerate(key)]
    return re.compile("".join(forms).encode())


def _key_forms(char: str, begin: str) -> str:
    """Return a pattern of all forms of a character, escaped once or more (such as JSON in JSON)."""
    code = ord(char)
    hexadecimal = "".join(f"[{d}{d.upper()}]" if d.isalpha() else d for d in f"{code:02x}")
    number = rf"#(?:0{{0,6}}{code}|[xX]0{{0,6}}{hexadecimal})"
    entities = {name.removesuffix(";") for name, text in html.entities.html5.items() if text == char}
    names = "".join(f"|{name}" for name in sorted(entities, key=len, reverse=True))
    slashes = rf"{begin}\\+" if char == "\\" else rf"{begin}\\++"
    forms = [
        rf"{slashes}(?:[uU]\{{?0{{0,6}}{hexadecimal}\}}?|x{hexadecimal})",
        rf"%(?:25){{0,4}}{hexadecimal}",
        rf"&(?:amp;){{0,4}}(?:{number}{names});?",
    ]
    if char == " ":
        forms.append(r"\+")  # as in a form
    if char == "\\":
        forms.append(slashes)
    elif char.isalnum():
        forms.append(char)
    else:
        forms.append(rf"{begin}\\*+{re.escape(char)}")
    return f"(?:{'|'.join(forms)})"
