"""Files in a bucket, or in any other file system of fsspec."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, BinaryIO

from airflow_provider_rungen.client.daemon_threads import begin
from airflow_provider_rungen.execution.archive.local_files import temporary_name

# Seconds in which a file that was not uploaded as a whole is removed.
_CLEANUP_TIME = 1.0


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

    def create_root(self) -> None:
        """Do nothing: writing a file creates its folder."""

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
        # stores derive the content type from the name
        file: Any = tempfile.NamedTemporaryFile(prefix="rungen-", suffix=f"-{name}")  # noqa: SIM115
        try:
            yield file, file.name
        finally:
            with contextlib.suppress(OSError):  # closing fails on a full disk
                file.close()

    def put(self, path: str, folder: str, name: str) -> None:
        self._upload(partial(self._fs.put_file, path), folder, name)

    def write(self, folder: str, name: str, content: bytes) -> None:
        self._upload(lambda target: self._fs.pipe_file(target, content), folder, name)

    def remove(self, folder: str, name: str) -> None:
        # old MinIO and others refuse DeleteObjects for want of a Content-MD5
        remove = self._fs.rm_file if "s3" in self._fs.protocol else self._fs.rm
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
