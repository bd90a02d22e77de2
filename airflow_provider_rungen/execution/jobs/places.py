"""Keep the log of a task run: in storage, in Airflow's task state store, or in memory."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import threading
import zlib
from collections.abc import Collection, Mapping, Sequence
from http import HTTPStatus
from itertools import product
from typing import Any, ClassVar

from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenInputError, RunGenOutputError
from airflow_provider_rungen.execution.archive.storage import File, Storage
from airflow_provider_rungen.runs.log import ATTEMPTS
from airflow_provider_rungen.runs.place import DamagedLogError, SupersededError

# Characters of content in a value of the task state store, which takes 64 KB.
_VALUE_SIZE = 48_000
# Bytes of a file there. It has to be read in one piece.
_MOST_BYTES = 1 << 28
#: The file with the names of all others of an attempt.
_NAMES = "names"


class StorePlace:
    """
    Airflow's task state store, which has keys and values, and no list of them.

    So each attempt keeps the names of its files in one of them. A file is one value, or if it is large, one
    that names the others. Airflow takes no value from an attempt that has a successor.

    Threads take turns: one that waits for a store which does not answer may have been given up.

    :param store: the ``task_state_store`` of the context. One request is sent at a time, in order.
    :param try_number: Airflow's number of the attempt.
    """

    is_durable: ClassVar[bool] = True

    def __init__(self, store: Any, try_number: int) -> None:
        self._store = store
        self._try_number = try_number
        # the names of the files of each attempt, as far as they were asked for
        self._names: dict[int, Sequence[str]] = {}
        self._turns = threading.Lock()

    def vouches(self, name: str) -> bool:
        return True

    def get(self, names: Sequence[str]) -> dict[str, bytes]:
        with self._turns:
            tries = {name: self._last_try(name) for name in names}
            contents = {name: self._read(number, name) for name, number in tries.items() if number}
        return {name: content for name, content in contents.items() if content is not None}

    def put(self, files: Mapping[str, bytes]) -> None:
        with self._turns:
            names = self._names_of(self._try_number)  # there are some after a deferral
            for name, content in files.items():
                self._write(name, content)
            if new := [name for name in files if name not in names]:
                self._write(_NAMES, json.dumps([*names, *new]).encode())
                self._names[self._try_number] = [*names, *new]

    def list(self, folder: str) -> Collection[str]:
        with self._turns:
            for number in range(1, self._try_number + 1):
                # others go on to write, but nothing before their record
                is_known = number == self._try_number or folder == ATTEMPTS
                if not (is_known and self._names.get(number)):
                    self._names[number] = self._read_names(number)
            paths = (name.rpartition("/") for names in self._names.values() for name in names)
            return {name for parent, _, name in paths if parent == folder}

    # --- names ---

    def _names_of(self, try_number: int) -> Sequence[str]:
        if try_number not in self._names:
            self._names[try_number] = self._read_names(try_number)
        return self._names[try_number]

    def _last_try(self, name: str) -> int | None:
        """Return the last attempt that has a file."""
        numbers = range(self._try_number, 0, -1)
        return next((number for number in numbers if name in self._names_of(number)), None)

    def _read_names(self, try_number: int) -> Sequence[str]:
        try:
            return [*map(str, json.loads(self._read(try_number, _NAMES) or "[]"))]
        except (ValueError, TypeError):
            raise _damaged(_key(try_number, _NAMES)) from None

    # --- files ---

    def _read(self, try_number: int, name: str) -> bytes | None:
        key = _key(try_number, name)
        first = self._read_value(key, name)
        values = [first, *(self._read_value(each, name) for each in (first[1] if first else ()))]
        texts = [value[0] for value in values if value is not None]
        return _unpack(key, "".join(texts)) if len(texts) == len(values) else None

    def _read_value(self, key: str, name: str) -> tuple[str, Sequence[str]] | None:
        match self._store.get(key):
            case None:
                return None
            case {"name": str(found), "content": str(content), "more": [*more]} if found == name:
                return content, more
        raise _damaged(key)

    def _write(self, name: str, content: bytes) -> None:
        key, text = _key(self._try_number, name), _pack(content)
        first, *others = [text[at : at + _VALUE_SIZE] for at in range(0, len(text), _VALUE_SIZE)]
        # the other values have keys that depend on the content, so that they replace none that is in use
        token = _token(text)
        more = [f"{key}_{token}_{number}" for number in range(len(others))]
        for other, piece in zip(more, others, strict=True):
            self._set(other, {"name": name, "content": piece, "more": []})
        self._set(key, {"name": name, "content": first, "more": more})

    def _set(self, key: str, value: Mapping[str, Any]) -> None:
        try:
            self._store.set(key, value)
        except Exception as error:
            detail = getattr(getattr(error, "error", None), "detail", None) or {}
            # a retry and a clear give the task instance another id, and that of this attempt is no more
            if detail.get("status_code") not in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
                raise
            raise SupersededError(f"Attempt {self._try_number} is cut off: a later one has begun") from error


class MemoryPlace:
    """
    Memory, and the XCom of a deferral: where a task has neither storage nor a task state store.

    :param files: what was kept over a deferral, as `to_json` returns it.
    """

    is_durable: ClassVar[bool] = False

    def __init__(self, files: Mapping[str, str] | None = None) -> None:
        self._files = {name: _unpack(name, text) for name, text in (files or {}).items()}

    def to_json(self) -> dict[str, str]:
        """Return all files, as JSON has them."""
        return {name: _pack(content) for name, content in self._files.items()}

    def vouches(self, name: str) -> bool:
        return True

    def get(self, names: Sequence[str]) -> dict[str, bytes]:
        return {name: self._files[name] for name in names if name in self._files}

    def put(self, files: Mapping[str, bytes]) -> None:
        self._files.update(files)

    def list(self, folder: str) -> Collection[str]:
        paths = (name.rpartition("/") for name in self._files)
        return [name for parent, _, name in paths if parent == folder]


class UnopenedPlace:
    """Takes no file and has none, until the place of a log can be opened."""

    is_durable: ClassVar[bool] = False

    def vouches(self, name: str) -> bool:
        return False

    def get(self, names: Sequence[str]) -> dict[str, bytes]:
        raise RunGenOutputError("the run log is not open")

    def put(self, files: Mapping[str, bytes]) -> None:
        raise RunGenOutputError("the run log is not open")

    def list(self, folder: str) -> Collection[str]:
        raise RunGenOutputError("the run log is not open")


def _key(try_number: int, name: str) -> str:
    return f"rungen_{try_number}_{_token(name)}"


def _token(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:20]


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


#: The folder of all logs, in the folder of a task. Each has a folder there, named by its token.
RUNS = ".rungen/runs"
# What to do about a folder that is gone.
_MOUNTED = "Workers that share no disk need object storage. Check that it is mounted on this worker"
_SEALS = re.compile(rb'\{"seals":\["([0-9a-f",]{64,1000})"\]\}\n\Z')
_ABOUT = "about.txt"
_ABOUT_TEXT = b"""\
What one run of a task in Airflow submitted to RunGen, and what became of it.
While the task runs, or may be retried: without this folder, all of its inputs are submitted again.
"""


def without_seal(content: bytes) -> bytes:
    """Return the content of a file without its seal, if it has one. Whose seal it is remains open."""
    return _SEALS.sub(b"", content)


class StoragePlace:
    """
    A folder in the user's storage, for each task run.

    :param folder: the destination, as `Storage` takes it. It is neither created nor listed.
    :param token: see `runs.place.task_token`.
    :param seal_keys: what files are sealed with, each of them. Whoever has none of these keys may write here,
        and is not believed about the ids of jobs.
    """

    is_durable: ClassVar[bool] = True

    def __init__(self, folder: Any, token: str, *seal_keys: bytes) -> None:
        self._storage = Storage(folder)
        self._seal_keys = seal_keys
        self._sealed: set[str] = set()
        self._root = f"{RUNS}/{token}"
        self._is_marked = False
        #: The destination, as it may be shown.
        self.shown = clean_text(redact(str(folder)), 200)

    def has_begun(self) -> bool:
        """Return whether the folder is there, without writing anything. If not, nobody can tell why."""
        return bool(self._storage.list_folder(self._root))

    def check_reachable(self) -> None:
        """
        Check that the destination can be used, and do not create it: it may be a mount that is missing.

        :raises RunGenInputError: it cannot be used now.
        """
        try:
            self._storage.prepare(create=False)
        except RunGenInputError as error:
            raise RunGenInputError(
                f"{error.message}. An earlier attempt may have kept its jobs there",
                hint=f"{_MOUNTED}. If it is new, create it",
                retryable=error.retryable,
            ) from None

    def get(self, names: Sequence[str]) -> dict[str, bytes]:
        files = {self._file(name): name for name in names}
        contents = self._storage.read_all(files)
        if len(contents) < len(files):
            self._check_presence("read", self._storage.read_all([self._mark()]))
        return {files[file]: self._unsealed(files[file], content) for file, content in contents.items()}

    def put(self, files: Mapping[str, bytes]) -> None:
        sealed = {name: content + self._sealed_end(name, content) for name, content in files.items()}
        self._storage.write_all({self._file(name): content for name, content in sealed.items()})

    def vouches(self, name: str) -> bool:
        return name in self._sealed

    def _seals(self, name: str, content: bytes) -> list[bytes]:
        text = f"{self._root}/{name}\n".encode() + content
        return [hmac.new(key, text, hashlib.sha256).hexdigest().encode() for key in self._seal_keys]

    def _sealed_end(self, name: str, content: bytes) -> bytes:
        seals = b'","'.join(self._seals(name, content))
        return b'{"seals":["%s"]}\n' % seals if seals else b""

    def _unsealed(self, name: str, content: bytes) -> bytes:
        found = _SEALS.search(content)
        if found is None:
            return content
        content = content[: found.start()]
        seals = found[1].split(b'","')
        if any(hmac.compare_digest(*pair) for pair in product(seals, self._seals(name, content))):
            self._sealed.add(name)
        else:
            self._sealed.discard(name)
        return content

    def list(self, folder: str) -> Collection[str]:
        path, _ = self._file(f"{folder}/")
        names = self._storage.list_folder(path)
        if not names:
            _, mark = self._mark()
            self._check_presence("listed", mark in self._storage.list_folder(self._root))
        return [name for name in names if not name.startswith(".")]

    def remove(self, names: Collection[str]) -> None:
        self._storage.remove(map(self._file, names))

    def _file(self, name: str) -> File:
        folder, _, file = name.rpartition("/")
        return f"{self._root}/{folder}".rstrip("/"), file

    def _mark(self) -> File:
        """Return a file that is there for certain, since this attempt has written it."""
        file = self._root, _ABOUT
        if not self._is_marked:
            self._storage.write(*file, _ABOUT_TEXT)
            self._is_marked = True
        return file

    def _check_presence(self, done: str, is_there: object) -> None:
        """
        Check that what is not found is missing: that the file which is there for certain is found.

        A bucket or a mount that is gone looks like an empty folder, and so do all of its files.
        """
        if not is_there:
            uri = clean_text(redact(self._storage.uri_of(self._root, _ABOUT)), 200)
            raise RunGenOutputError(
                f"the destination cannot be used: {uri} was written, but cannot be {done}",
                hint=f"{_MOUNTED}, and that the worker may read and list it",
            )
