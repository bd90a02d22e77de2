"""The files below a folder of this machine, or of any other file system of fsspec."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mimetypes
import os
import secrets
import stat
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, BinaryIO

from airflow_provider_rungen.client.daemon_threads import begin
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenOutputError

_TEMPORARY_SUFFIX = ".part"
# Seconds in which a file that was not uploaded as a whole is removed.
_CLEANUP_TIME = 1.0
# Of this size, s3fs uploads a file in parts, and needs the ETag of each.
_S3_PARTS_BYTES = 100 << 20


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

    def create_root(self) -> None:
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

    def folders(self) -> list[str]:
        with os.scandir(self._path("")) as entries:
            return [entry.name for entry in entries if entry.is_dir()]

    def list_folder(self, folder: str) -> dict[str, int]:
        sizes = {}
        with os.scandir(self._path(folder)) as entries:
            for entry in entries:
                # others rename their temporary files meanwhile: that is no missing folder
                with contextlib.suppress(FileNotFoundError):
                    if entry.is_file(follow_symlinks=False):
                        sizes[entry.name] = entry.stat(follow_symlinks=False).st_size
        return sizes

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

    def remove_leftovers(self, folder: str) -> None:
        """Remove the temporary files of killed attempts, but not those that another attempt has locked."""
        with contextlib.suppress(FileNotFoundError):
            for name in self.list_folder(folder):
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


class RemoteFiles:
    """
    The files below a folder of a file system. All methods raise what its library raises.

    :param fs: the file system.
    :param root: the path of the folder.
    :param is_atomic: whether a file appears when it is complete, and not before.
    """

    def __init__(self, fs: Any, root: str, *, is_atomic: bool) -> None:
        self._fs = fs
        self._root = root
        self._is_atomic = is_atomic
        self._is_s3 = "s3" in fs.protocol

    def create_root(self) -> None:
        """Do nothing: writing a file creates its folder."""

    def has_root(self) -> bool:
        """Return whether it takes files as it is. What is no object store may have to create the folder."""
        return self._is_atomic

    def folders(self) -> list[str]:
        listed = self._list("")
        return [entry["name"].rstrip("/").rpartition("/")[2] for entry in listed if entry["type"] != "file"]

    def list_folder(self, folder: str) -> dict[str, int]:
        listed = (entry for entry in self._list(folder) if entry["type"] == "file")
        return {entry["name"].rpartition("/")[2]: entry["size"] or 0 for entry in listed}

    def size(self, folder: str, name: str) -> int | None:
        self._fs.invalidate_cache(self._path(folder))
        info = self._fs.info(self._path(folder, name))
        return info["size"] if info["type"] == "file" else None

    def open(self, folder: str, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        file: contextlib.AbstractContextManager[BinaryIO] = self._fs.open(self._path(folder, name), "rb")
        return file

    def read(self, folder: str, name: str, max_bytes: int | None) -> bytes:
        # from the first byte on, s3fs does not ask for the size before
        part = {} if max_bytes is None else {"start": 0, "end": max_bytes + 1}
        try:
            content: bytes = self._fs.cat_file(self._path(folder, name), **part)
        except FileNotFoundError:
            raise
        except Exception:
            # S3 refuses any range of an empty file
            with contextlib.suppress(Exception):
                if part and self.size(folder, name) == 0:
                    return b""
            raise
        return content

    @contextlib.contextmanager
    def incoming(self, folder: str, name: str) -> Iterator[tuple[BinaryIO, str]]:
        # stores derive the content type from the name; a `with` would raise on a full disk
        file: Any = tempfile.NamedTemporaryFile(prefix="rungen-", suffix=f"-{name}")  # noqa: SIM115
        try:
            yield file, file.name
        finally:
            with contextlib.suppress(OSError):  # closing fails on a full disk
                file.close()

    def put(self, path: str, folder: str, name: str) -> None:
        send = partial(self._fs.put_file, path)
        if self._is_s3 and os.path.getsize(path) < _S3_PARTS_BYTES:
            # as put_file, which does not return the answer
            content_type = mimetypes.guess_type(name)[0] or "binary/octet-stream"
            with open(path, "rb") as file:
                send = partial(self._pipe, content=file.read(), ContentType=content_type)
        self._upload(send, folder, name)

    def write(self, folder: str, name: str, content: bytes) -> None:
        self._upload(partial(self._pipe, content=content), folder, name)

    def create(self, folder: str, name: str, content: bytes) -> None:
        target = self._path(folder, name)
        try:
            self._pipe(target, content, mode="create")
        except FileExistsError:
            raise
        except OSError as error:
            # s3fs says EINVAL for a condition that is not met, and for one that the store does not know
            with contextlib.suppress(FileNotFoundError):
                if error.errno == errno.EINVAL and self.size(folder, name) is not None:
                    raise FileExistsError(errno.EEXIST, "it exists", target) from None
            if error.errno in (errno.EINVAL, errno.ENOSYS):
                raise NotImplementedError("the store knows no conditions") from None
            raise

    def remove(self, folder: str, name: str) -> None:
        # old MinIO and others refuse DeleteObjects for want of a Content-MD5
        remove = self._fs.rm_file if self._is_s3 else self._fs.rm
        remove(self._path(folder, name))

    def remove_leftovers(self, folder: str) -> None:
        """Do nothing: what is not complete is in the folder for temporary files."""

    def _path(self, folder: str, name: str = "") -> str:
        return "/".join((self._root, *filter(None, (folder, name))))

    def _list(self, folder: str) -> list[dict[str, Any]]:
        path = self._path(folder)
        self._fs.invalidate_cache(path)
        listed: list[dict[str, Any]] = self._fs.ls(path, detail=True)
        return listed

    def _pipe(self, target: str, content: bytes, **options: str) -> None:
        """Upload a small file. S3 confirms it with an ETag, and a login page has none."""
        answer = self._fs.pipe_file(target, content, **options)
        if self._is_s3 and answer is not None and "ETag" not in answer:
            raise OSError("the answer to an upload is not the store's: it has no ETag")

    def _upload(self, send: Callable[[str], None], folder: str, name: str) -> None:
        """Upload a file to its target, or to a temporary place if it would be visible meanwhile."""
        target = self._path(folder, name)
        if self._is_atomic:
            send(target)
            return
        partial_file = self._path(folder, temporary_name())
        self._fs.makedirs(self._path(folder), exist_ok=True)
        try:
            send(partial_file)
            self._fs.mv(partial_file, target)
        except BaseException:
            with contextlib.suppress(Exception):  # a kill may have ended a call that hung
                begin(self._fs.rm_file, partial_file).result(_CLEANUP_TIME)
            raise


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
