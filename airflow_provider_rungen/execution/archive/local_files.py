"""Files below a local folder. Symbolic links are not followed, as they may lead to somebody else's files."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterator
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

    :param root: the folder. It may be a symbolic link itself.
    """

    def __init__(self, root: str) -> None:
        self._root = root

    def create_root(self) -> None:
        os.makedirs(self._root or "/", exist_ok=True)

    def folders(self) -> list[str]:
        with self._opened_folder("") as number, os.scandir(number) as entries:
            return [entry.name for entry in entries if entry.is_dir()]

    def list_folder(self, folder: str) -> dict[str, int]:
        sizes = {}
        with self._opened_folder(folder) as number, os.scandir(number) as entries:
            for entry in entries:
                # others rename their temporary files meanwhile: that is no missing folder
                with contextlib.suppress(FileNotFoundError):
                    if entry.is_file(follow_symlinks=False):
                        sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
        return sizes

    def size(self, folder: str, name: str) -> int | None:
        with self._opened_folder(folder) as number:
            status = os.stat(name, dir_fd=number, follow_symlinks=False)
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    @contextlib.contextmanager
    def open(self, folder: str, name: str) -> Iterator[BinaryIO]:
        with self._opened_folder(folder) as number, open(name, "rb", opener=_opener_in(number)) as file:
            yield file

    def read(self, folder: str, name: str, max_bytes: int | None) -> bytes:
        with self.open(folder, name) as file:
            # Python allocates as much as it is asked to read
            size = os.fstat(file.fileno()).st_size
            return file.read() if max_bytes is None else file.read(min(size, max_bytes) + 1)

    @contextlib.contextmanager
    def incoming(self, folder: str, name: str) -> Iterator[tuple[BinaryIO, str]]:
        path = temporary_name()
        with self._opened_folder(folder, create=True) as number:
            # not by tempfile, whose files only their owner may read
            file = open(path, "xb", opener=_opener_in(number))  # noqa: SIM115 - closed below
        _try_lock(file)
        try:
            yield file, path
        finally:
            with contextlib.suppress(OSError):  # closing fails on a full disk
                file.close()
            with contextlib.suppress(OSError, RunGenOutputError):
                self.remove(folder, path)

    def put(self, path: str, folder: str, name: str) -> None:
        with self._opened_folder(folder) as number:
            os.replace(path, name, src_dir_fd=number, dst_dir_fd=number)

    def write(self, folder: str, name: str, content: bytes) -> None:
        with self.incoming(folder, name) as (file, path):
            file.write(content)
            file.flush()
            self.put(path, folder, name)

    def remove(self, folder: str, name: str) -> None:
        with self._opened_folder(folder) as number:
            os.unlink(name, dir_fd=number)

    def remove_leftovers(self, folder: str) -> None:
        """Remove the temporary files of killed attempts, but not those that another attempt has locked."""
        with contextlib.suppress(FileNotFoundError):
            for name in self.list_folder(folder):
                if name.startswith(".") and name.endswith(_TEMPORARY_SUFFIX):
                    with contextlib.suppress(FileNotFoundError), self.open(folder, name) as file:
                        if _try_lock(file):
                            self.remove(folder, name)

    @contextlib.contextmanager
    def _opened_folder(self, folder: str, *, create: bool = False) -> Iterator[int]:
        """
        Open a folder, and return its file descriptor.

        :param create: whether to create each folder below the root that is missing.
        :raises RunGenOutputError: there is a symbolic link below the root.
        """
        # the dot follows a link in the place of the root
        first, *below = (folder or ".").split("/")
        with contextlib.ExitStack() as stack:
            parent: int | None = None
            for name in (f"{self._root}/{first}", *below):
                if create:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(name, dir_fd=parent)
                parent = _open_folder(name, parent)
                stack.callback(os.close, parent)
            assert parent is not None  # noqa: S101 - for mypy: there is a first name
            yield parent


def _open_folder(name: str, parent: int | None) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except OSError as error:
        raise _link_error(name) if _is_link(name, parent) else error from None


def _is_link(name: str, parent: int | None) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _opener_in(folder: int) -> Callable[[str, int], int]:
    """Return an ``opener`` for `open` that opens the regular files of a folder."""

    def opener(name: str, flags: int) -> int:
        try:
            return open_regular(name, flags | os.O_NOFOLLOW, folder)
        except OSError as error:
            raise _link_error(name) if error.errno == errno.ELOOP else error from None

    return opener


def open_regular(name: str, flags: int, folder: int | None = None) -> int:
    """Open a file, as an ``opener`` for `open`, without waiting for the other end of a pipe."""
    number = os.open(name, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666, dir_fd=folder)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise IsADirectoryError(errno.EISDIR, "it is not a regular file", name)
    return number


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
