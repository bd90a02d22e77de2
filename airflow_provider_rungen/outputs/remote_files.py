"""The files below a folder of any file system of fsspec but that of this machine."""

from __future__ import annotations

import contextlib
import errno
import mimetypes
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime
from functools import partial
from typing import Any, BinaryIO

from airflow_provider_rungen.client.daemon_threads import batches, begin
from airflow_provider_rungen.outputs.local_files import temporary_name

# Seconds in which a file that was not uploaded as a whole is removed.
_CLEANUP_TIME = 1.0
# Seconds between two tries to create a file that somebody else may be creating.
_CONFLICT_PAUSES = (0.1, 0.3, 1.0)
# Of this size, s3fs uploads a file in parts, and needs the ETag of each.
_S3_PARTS_BYTES = 100 << 20
# So many files a request removes.
_REMOVED_TOGETHER = 1000


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

    def open_root(self, *, create: bool) -> None:
        """Get a token of Google. gcsfs asks for it at each request, and tries that for half a minute."""
        if "gs" in self._fs.protocol:
            self._fs.credentials.maybe_refresh()

    def has_root(self) -> bool:
        """Return whether it takes files as it is. What is no object store may have to create the folder."""
        return self._is_atomic

    def list_folder(self, folder: str) -> dict[str, int]:
        return {name: entry["size"] or 0 for name, entry in self._list(folder).items()}

    def times(self, folder: str) -> dict[str, float]:
        """Return when each file of a folder was last modified (seconds since 1970, by the store's clock)."""
        return {name: _modified(entry) for name, entry in self._list(folder).items()}

    def find(self, folder: str) -> set[str]:
        """Return all files below a folder, by their paths from the root."""
        self._fs.invalidate_cache(self._path(folder))
        start = len(self._root) + 1
        return {path[start:] for path in self._fs.find(self._path(folder))}

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
            for pause in (*_CONFLICT_PAUSES, None):
                try:
                    self._pipe(target, content, mode="create")
                    return
                except OSError as error:
                    if pause is None or not _is_conflict(error):
                        raise
                    time.sleep(pause)
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
        # rm() would ignore an error of S3
        remove = self._fs.rm_file if self._is_s3 else self._fs.rm
        remove(self._path(folder, name))

    def remove_together(self, files: Collection[tuple[str, str]]) -> Collection[tuple[str, str]]:
        """Remove files with one request for many, if the store has that. Return those that are left."""
        if not self._is_s3 or len(files) < 2:
            return files
        paths = {self._path(*file): file for file in files}
        left: dict[str, tuple[str, str]] = {}
        for some in batches(paths, _REMOVED_TOGETHER):
            try:
                keys = {self._fs.split_path(path)[1]: path for path in some}
                bucket, _, _ = self._fs.split_path(some[0])
                # as rm(), which ignores what the answer says of single keys
                wanted = {"Objects": [{"Key": key} for key in keys], "Quiet": True}
                answer = self._fs.call_s3("delete_objects", Bucket=bucket, Delete=wanted)
                refused = [keys[each["Key"]] for each in answer.get("Errors", ())]
            except Exception:  # old MinIO and others want a Content-MD5
                refused = some
            left |= {path: paths[path] for path in refused}
        return left.values()

    def remove_leftovers(self, folder: str) -> None:
        """Do nothing: what is not complete is in the folder for temporary files."""

    def _path(self, folder: str, name: str = "") -> str:
        return "/".join((self._root, *filter(None, (folder, name))))

    def _list(self, folder: str) -> dict[str, dict[str, Any]]:
        """Return what the store says of each file of a folder, past any cache."""
        path = self._path(folder)
        self._fs.invalidate_cache(path)
        try:
            listed: list[dict[str, Any]] = self._fs.ls(path, detail=True)
        except FileNotFoundError as error:
            # an empty folder has none: the bucket is gone
            if getattr(error.__cause__, "response", None):
                raise OSError(f"it cannot be listed: {error}") from None
            raise
        return {entry["name"].rpartition("/")[2]: entry for entry in listed if entry["type"] == "file"}

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


def _modified(entry: Mapping[str, Any]) -> float:
    """Return when a listed file was last modified, as each library names it; now if it does not."""
    for name in ("LastModified", "last_modified", "updated", "mtime", "modified"):
        found = entry.get(name)
        if isinstance(found, str):
            with contextlib.suppress(ValueError):
                found = datetime.fromisoformat(found)
        if isinstance(found, datetime):
            return found.timestamp()
        if isinstance(found, float | int):
            return float(found)
    return time.time()


def _is_conflict(error: OSError) -> bool:
    """Return whether S3 answered 409: another conditional write of the same object was on its way."""
    response = getattr(error.__cause__, "response", None) or {}
    return bool(response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 409)
