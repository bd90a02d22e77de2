"""Keep the log of a task run in Airflow's task state store, or in memory."""

from __future__ import annotations

import base64
import threading
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, ClassVar

from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.runs.log import ATTEMPTS
from airflow_provider_rungen.runs.place import DamagedLogError

# Characters of content in a value of the task state store, which takes 64 KB.
_VALUE_SIZE = 48_000
# Bytes of a file there. It has to be read in one piece.
_MOST_BYTES = 1 << 28


class StorePlace:
    """
    Airflow's task state store, which has keys and values, and no list of them.

    An attempt numbers its values from 0, and leaves no gap, so that they are found by asking for one after
    the other. A file is one value, or several in a row, with its name. The first one is the attempt's record.
    Each attempt also leaves a mark for all before it, which tells them that it has begun.

    Threads take turns: one that waits for a store which does not answer may have been given up.

    :param store: the ``task_state_store`` of the context. One request is sent at a time, in order.
    :param try_number: Airflow's number of the attempt.
    """

    is_durable: ClassVar[bool] = True
    is_trusted: ClassVar[bool] = True

    def __init__(self, store: Any, try_number: int) -> None:
        self._store = store
        self._try_number = try_number
        #: The attempt and the numbers of its values that each file is in.
        self._files: dict[str, tuple[int, Sequence[int]]] = {}
        #: What had to be read to find a file, until it is asked for.
        self._contents: dict[str, bytes] = {}
        #: Where to look for the next file of an attempt.
        self._ends: dict[int, int] = {}
        #: Keys that have to say nothing: there may be no value, which would hide what follows, or an old one.
        self._void: list[str] = []
        #: The attempts that do not know yet that this one has begun.
        self._unmarked: list[int] = []
        self._numbers: Iterator[int] | None = None
        self._turns = threading.Lock()

    def vouches(self, name: str) -> bool:
        return True

    def get(self, names: Sequence[str]) -> dict[str, bytes]:
        with self._turns:
            self._find_own()
            if not self._files.keys() >= set(names):
                self._find_earlier()
            return {name: self._read(name) for name in names}

    def put(self, files: Mapping[str, bytes]) -> None:
        with self._turns:
            self._put(files)

    def list(self, folder: str) -> Collection[str]:
        with self._turns:
            return self._list(folder)

    def remove(self, names: Collection[str]) -> None:
        with self._turns:
            self._remove(names)

    def _put(self, files: Mapping[str, bytes]) -> None:
        numbers = self._find_own()
        self._fill_void()
        for name, content in files.items():
            is_new = name not in self._files
            self._write(name, content, numbers)
            if is_new and name.startswith(f"{ATTEMPTS}/"):
                self._unmarked = [*range(1, self._try_number)]
        # a mark of an attempt without a record would hide that of another one
        while self._unmarked:
            self._store.set(_mark(self._unmarked[0]), {"try_number": self._try_number})
            self._unmarked.pop(0)

    def _list(self, folder: str) -> Collection[str]:
        self._contents.clear()  # others may have replaced them
        self._find_own()
        # nothing but the record of an attempt before this one has noted itself: what it puts meanwhile counts
        self._find_earlier(most=1 if folder == ATTEMPTS else None)
        if (mark := self._store.get(_mark(self._try_number))) is not None:
            self._find_files(_later_try(_mark(self._try_number), mark, self._try_number), most=1)
        paths = (name.rpartition("/") for name in self._files)
        return [name for parent, _, name in paths if parent == folder]

    def _remove(self, names: Collection[str]) -> None:
        self._find_own()
        if not self._files.keys() >= set(names):
            self._find_earlier()
        for name in names:
            self._void += self._keys(name)
            self._files.pop(name, None)
            self._contents.pop(name, None)
        self._fill_void()

    # --- reading ---

    def _find_own(self) -> Iterator[int]:
        """Find what this attempt has put before a deferral, and return the numbers of its next values."""
        if self._numbers is None:
            self._find_files(self._try_number)
            self._numbers = count(self._ends[self._try_number])
        return self._numbers

    def _find_earlier(self, most: int | None = None) -> None:
        for try_number in range(1, self._try_number):
            self._find_files(try_number, most)

    def _find_files(self, try_number: int, most: int | None = None) -> None:
        """Find the files of an attempt that are not known yet, in so many of its values."""
        start = self._ends.setdefault(try_number, 0)
        name, text = "", ""
        for number in count(start):
            key = _key(try_number, number)
            if (most is not None and number >= most) or (value := self._store.get(key)) is None:
                return
            part, content, follows, goes_on = _fields(key, value)
            if not follows or part != name:  # what came before was not written to its end
                name, text, start = "" if follows else part, "", number
            text += content
            if goes_on:
                continue
            if name and self._files.get(name, (0,))[0] <= try_number:
                self._files[name] = try_number, range(start, number + 1)
                self._contents[name] = _unpack(key, text)
            self._ends[try_number] = number + 1
            name = ""

    def _read(self, name: str) -> bytes:
        if name in self._contents:
            return self._contents.pop(name)
        text = ""
        for key in self._keys(name):
            if (value := self._store.get(key)) is None:
                raise FileNotFoundError(name)
            part, content, *_ = _fields(key, value)
            if part != name:
                raise _damaged(key)
            text += content
        if not text:
            raise FileNotFoundError(name)
        return _unpack(name, text)

    # --- writing ---

    def _write(self, name: str, content: bytes, numbers: Iterator[int]) -> None:
        text = _pack(content)
        pieces = [text[at : at + _VALUE_SIZE] for at in range(0, len(text), _VALUE_SIZE)]
        owner, values = self._files.get(name, (0, ()))
        # only one value is replaced atomically
        is_new = not (owner == self._try_number and len(values) == len(pieces) == 1)
        if is_new:
            values = [next(numbers) for _ in pieces]
        for nth, (number, piece) in enumerate(zip(values, pieces, strict=True)):
            value = _value(name, piece, follows=nth > 0, goes_on=nth + 1 < len(pieces))
            try:
                self._store.set(_key(self._try_number, number), value)
            except BaseException:
                self._void += [_key(self._try_number, each) for each in values[nth:] if is_new]
                raise
        if is_new and owner == self._try_number:
            self._void += self._keys(name)
        self._files[name] = self._try_number, values
        self._contents.pop(name, None)

    def _keys(self, name: str) -> Sequence[str]:
        try_number, numbers = self._files.get(name, (0, ()))
        return [_key(try_number, number) for number in numbers]

    def _fill_void(self) -> None:
        while self._void:
            key = self._void.pop()
            try:
                self._store.set(key, _value())
            except BaseException:
                self._void.append(key)
                raise


class MemoryPlace:
    """
    Memory, and the XCom of a deferral: where a task has neither storage nor a task state store.

    :param files: what was kept over a deferral, as `to_json` returns it.
    """

    is_durable: ClassVar[bool] = False
    is_trusted: ClassVar[bool] = True

    def __init__(self, files: Mapping[str, str] | None = None) -> None:
        self._files = {name: _unpack(name, text) for name, text in (files or {}).items()}

    def to_json(self) -> dict[str, str]:
        """Return all files, as JSON has them."""
        return {name: _pack(content) for name, content in self._files.items()}

    def vouches(self, name: str) -> bool:
        return True

    def get(self, names: Sequence[str]) -> dict[str, bytes]:
        if missing := [name for name in names if name not in self._files]:
            raise FileNotFoundError(missing[0])
        return {name: self._files[name] for name in names}

    def put(self, files: Mapping[str, bytes]) -> None:
        self._files.update(files)

    def list(self, folder: str) -> Collection[str]:
        paths = (name.rpartition("/") for name in self._files)
        return [name for parent, _, name in paths if parent == folder]

    def remove(self, names: Collection[str]) -> None:
        for name in names:
            self._files.pop(name, None)


def _key(try_number: int, number: int) -> str:
    return f"rungen_{try_number}_{number}"


def _mark(try_number: int) -> str:
    return f"rungen_{try_number}_later"


def _later_try(key: str, mark: Any, try_number: int) -> int:
    match mark:
        case {"try_number": int(later)} if later > try_number:
            return later
    raise _damaged(key)


def _value(
    name: str = "", content: str = "", *, follows: bool = False, goes_on: bool = False
) -> dict[str, Any]:
    """Return a value with a file, or with a piece of one. Without a name, it only fills a gap."""
    flags = {"follows": follows, "goes_on": goes_on}
    return {"name": name, "content": content} | {flag: True for flag, is_set in flags.items() if is_set}


def _fields(key: str, value: Any) -> tuple[str, str, bool, bool]:
    match value:
        case {"name": str(name), "content": str(content)}:
            return name, content, value.get("follows") is True, value.get("goes_on") is True
    raise _damaged(key)


def _pack(content: bytes) -> str:
    """Return any bytes as text that is short, and that no encoding makes longer."""
    return base64.b64encode(zlib.compress(content)).decode()


def _unpack(key: str, text: str) -> bytes:
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(base64.b64decode(text, validate=True), _MOST_BYTES)
    except (ValueError, zlib.error):
        raise _damaged(key) from None
    if not stream.eof:
        raise _damaged(key)
    return content


def _damaged(key: str) -> DamagedLogError:
    return DamagedLogError(
        f"Could not read the log of the task run: {clean_text(key, 200)} in Airflow's database was changed; "
        "nothing more is sent",
        hint="Restore it, then retry. If you remove all values of the task, all inputs are submitted again",
    )
