"""The files below a folder of this machine."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
import tempfile
from collections.abc import Collection, Iterator
from typing import BinaryIO

from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenOutputError

_TEMPORARY_SUFFIX = ".part"


def temporary_name() -> str:
    """Return a name of its own for a file that is not complete yet."""
    return f".{secrets.token_hex(8)}{_TEMPORARY_SUFFIX}"


class LocalFiles:
    """
    The files below a local folder. All methods raise what the operating system raises.

    Symbolic links are not followed, as they may lead to somebody else's files.

    :param root: the folder. It may be a symbolic link itself.
    """

    def __init__(self, root: str) -> None:
        self._root = root

    def open_root(self, *, create: bool) -> None:
        """Create the folder if it is missing."""
        if create:
            os.makedirs(self._root or "/", exist_ok=True)

    def has_root(self) -> bool:
        """Return whether the folder is there. If it is not, check that it can be created."""
        folder = self._root or "/"
        while not os.path.lexists(folder):
            folder = os.path.dirname(folder)
        is_there = folder == (self._root or "/")
        if not is_there:
            os.rmdir(tempfile.mkdtemp(dir=folder))
        return is_there

    def list_folder(self, folder: str) -> dict[str, int]:
        return {name: status.st_size for name, status in self._scan(folder)}

    def times(self, folder: str) -> dict[str, float]:
        """Return when each file of a folder was last modified (seconds since 1970)."""
        found = self._scan(folder)
        return {name: status.st_mtime for name, status in found if not name.endswith(_TEMPORARY_SUFFIX)}

    def _scan(self, folder: str) -> Iterator[tuple[str, os.stat_result]]:
        """Yield the files of a folder. Links are none."""
        with os.scandir(self._path(folder)) as entries:
            for entry in entries:
                # others rename their temporary files meanwhile: that is no missing folder
                with contextlib.suppress(FileNotFoundError):
                    if entry.is_file(follow_symlinks=False):
                        yield entry.name, entry.stat(follow_symlinks=False)

    def find(self, folder: str) -> set[str]:
        """Return all files below a folder, by their paths from the root."""
        found = {f"{folder}/{name}" for name in self.list_folder(folder)}
        with os.scandir(self._path(folder)) as entries:
            below = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        return found.union(*(self.find(f"{folder}/{name}") for name in below))

    def size(self, folder: str, name: str) -> int | None:
        with contextlib.suppress(RunGenOutputError):  # a link has no size
            status = os.stat(self._path(folder, name), follow_symlinks=False)
            return status.st_size if stat.S_ISREG(status.st_mode) else None
        return None

    def open(self, folder: str, name: str) -> BinaryIO:
        path = self._path(folder, name)
        try:
            return open(path, "rb", opener=_open_no_link)
        except OSError as error:
            raise _link_error(path) if error.errno == errno.ELOOP else error from None

    def read(self, folder: str, name: str, max_bytes: int | None) -> bytes:
        with self.open(folder, name) as file:
            # Python allocates as much as it is asked to read
            size = os.fstat(file.fileno()).st_size
            return file.read() if max_bytes is None else file.read(min(size, max_bytes) + 1)

    @contextlib.contextmanager
    def incoming(self, folder: str, name: str) -> Iterator[tuple[BinaryIO, str]]:
        file, path = self._open_new(folder)
        try:
            yield file, path
        finally:
            with contextlib.suppress(OSError):  # closing fails on a full disk
                file.close()
            with contextlib.suppress(OSError):
                os.unlink(path)

    def _open_new(self, folder: str) -> tuple[BinaryIO, str]:
        """Return a new temporary file, locked, and its path."""
        while True:
            path = self._path(folder, temporary_name(), create=True)
            # not by tempfile, whose files only their owner may read
            file = open(path, "xb")  # noqa: SIM115 - the caller closes it
            # until it is locked, another attempt takes it for a leftover
            if _try_lock(file) and os.fstat(file.fileno()).st_nlink:
                return file, path
            file.close()

    def put(self, path: str, folder: str, name: str) -> None:
        os.replace(path, self._path(folder, name))

    def write(self, folder: str, name: str, content: bytes) -> None:
        with self.incoming(folder, name) as (file, path):
            file.write(content)
            file.flush()
            self.put(path, folder, name)

    def create(self, folder: str, name: str, content: bytes) -> None:
        target = self._path(folder, name)
        with self.incoming(folder, name) as (file, path):
            file.write(content)
            file.flush()
            try:
                os.link(path, target)
            except FileExistsError:
                raise
            except OSError:  # the file system has no hard links: the file is empty for a moment
                with open(target, "xb"):
                    pass
                os.replace(path, target)

    def remove(self, folder: str, name: str) -> None:
        os.unlink(self._path(folder, name))

    def remove_together(self, files: Collection[tuple[str, str]]) -> Collection[tuple[str, str]]:
        """Return the files that are to be removed one by one: all."""
        return files

    def remove_leftovers(self, folder: str) -> None:
        """Remove the temporary files of killed attempts, but not those that another attempt has locked."""
        names: list[str] = []
        with contextlib.suppress(FileNotFoundError):
            names = os.listdir(self._path(folder))
        for name in names:
            if name.startswith(".") and name.endswith(_TEMPORARY_SUFFIX):
                with contextlib.suppress(FileNotFoundError), self.open(folder, name) as file:
                    if _try_lock(file):
                        self.remove(folder, name)

    def _path(self, folder: str, name: str = "", *, create: bool = False) -> str:
        """
        Return the path of a file, or of a folder.

        :param create: whether to create each folder below the root that is missing.
        :raises RunGenOutputError: a folder below the root is a symbolic link.
        """
        path = self._root
        for part in filter(None, folder.split("/")):
            path = f"{path}/{part}"
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(path)
            if os.path.islink(path):
                raise _link_error(path)
        return f"{path}/{name}"


def open_regular(path: str, flags: int) -> int:
    """Open a file, as an ``opener`` for `open`, without waiting for the other end of a pipe."""
    number = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise IsADirectoryError(errno.EISDIR, "it is not a regular file", path)
    return number


def _open_no_link(path: str, flags: int) -> int:
    return open_regular(path, flags | os.O_NOFOLLOW)


def _try_lock(file: BinaryIO) -> bool:
    """Lock a file until it is closed. Return ``False`` if another attempt has locked it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the file system has no locks
        pass
    return True


def _link_error(path: str) -> RunGenOutputError:
    return RunGenOutputError(
        f"{clean_text(path, 200)} is a symbolic link, which is not followed",
        hint="Remove the link, or set destination to a folder without links",
        retryable=False,
    )
