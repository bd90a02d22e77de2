"""Open local files without following symbolic links, which may lead to somebody else's files."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from typing import BinaryIO

from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenOutputError


@contextlib.contextmanager
def open_folder(path: str, *below: str, create: bool = False) -> Iterator[int]:
    """
    Open a folder, and return its file descriptor.

    :param below: the names of folders on the way from ``path`` to the one to open.
    :param create: whether to create each of them, ``path`` included.
    :raises RunGenOutputError: one of them is a symbolic link.
    """
    with contextlib.ExitStack() as stack:
        folder = _open_folder(path, None, create=create)
        stack.callback(os.close, folder)
        for name in below:
            folder = _open_folder(name, folder, create=create)
            stack.callback(os.close, folder)
        yield folder


def _open_folder(name: str, parent: int | None, *, create: bool) -> int:
    if create:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, dir_fd=parent)
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except OSError as error:
        raise _link_error(name) if _is_link(name, parent) else error from None


def _is_link(name: str, parent: int | None) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
    except OSError:
        return False


def opener_in(folder: int) -> Callable[[str, int], int]:
    """
    Return an ``opener`` for `open` that opens the regular files of a folder.

    :param folder: its file descriptor.
    """

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


def try_lock(file: BinaryIO) -> bool:
    """Lock a file until it is closed. Return ``False`` if somebody else has locked it."""
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
