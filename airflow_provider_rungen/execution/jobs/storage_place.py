"""Keep the log of a task run in the user's storage."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Collection, Mapping, Sequence
from itertools import product
from typing import Any, ClassVar

from airflow_provider_rungen.client.redaction import redact
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenInputError, RunGenOutputError
from airflow_provider_rungen.execution.archive.storage import File, Storage

#: The folder of all logs, in the folder of a task. Each has a folder there, named by its token.
RUNS = ".rungen/runs"
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
                hint="Check that it is mounted. If it is new, create it",
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
                hint="Check that it is mounted, and that the worker may read and list it",
            )
