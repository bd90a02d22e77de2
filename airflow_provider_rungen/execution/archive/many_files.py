"""Read many files of a folder at once, without taking an outage for a missing file."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import BinaryIO

from airflow_provider_rungen.execution.archive.folder import MISSING, File, Folder, read_most, unless_link
from airflow_provider_rungen.execution.archive.threads import batches_by_size, run_concurrently

#: So many requests are handed to a file system at once, which sends them concurrently.
BATCH = 1000
# So many bytes of small files are in memory at a time. As objects, JSON takes several times as much.
_BATCH_BYTES = 8 << 20


def read_listed(folder: Folder, sizes: Mapping[File, int]) -> Iterator[dict[File, bytes]]:
    """
    Yield the contents of many files that are there, some megabytes at a time.

    :param sizes: their sizes, as they were listed.
    :raises RunGenOutputError: one cannot be read as a whole, unless it was removed meanwhile.
    """
    for batch in batches_by_size(sizes, BATCH, _BATCH_BYTES):
        # a store refuses to read from the first byte of nothing on
        full = [file for file in batch if sizes[file] or not folder.is_object_store]
        # one that grew meanwhile is not to fill the memory
        limit = max(_BATCH_BYTES, *(sizes[file] for file in batch))
        read = _read(folder, full, limit, skips_links=True)
        found = {file: b"" for file in batch if file not in full}
        for file, content in zip(full, read, strict=True):
            if _is_error(content):
                _raise(folder, content)
            if isinstance(content, bytes) and len(content) <= limit:
                found[file] = content
        if gone := [file for file in batch if file not in found]:
            check_unlisted(folder, gone)
        if short := [file for file, content in found.items() if len(content) < sizes[file]]:
            # it may have been replaced meanwhile by a shorter one
            now = folder.sizes_of(short)
            for file in short:
                if len(found[file]) != now.get(file, 0):
                    raise folder.error(f"only a part of {folder.uri_of(*file)} could be read")
        yield {file: found[file] for file in batch if file in found}


def read_unlisted(folder: Folder, files: Collection[File], max_bytes: int) -> dict[File, bytes]:
    """
    Return the contents of the files that exist, without a listing, concurrently.

    Whoever takes the others for missing has to know that the place answers at that moment: ask for a file
    that is there along with them.

    :param max_bytes: of a larger file, so many bytes and one more are returned.
    :raises RunGenOutputError: one cannot be read, or is behind a symbolic link.
    """
    contents = dict(zip(files, _read(folder, list(files), max_bytes), strict=True))
    for content in contents.values():
        if _is_error(content):
            _raise(folder, content)
    return {file: content for file, content in contents.items() if isinstance(content, bytes)}


def read_confirmed(folder: Folder, files: Sequence[File]) -> dict[File, bytes]:
    """
    Return the contents of small files that were not listed. Those that a listing does not have are left out.

    :raises RunGenOutputError: one cannot be read, though it is there, or nobody can tell.
    """
    contents = dict(zip(files, _read(folder, files), strict=True))
    found = {file: content for file, content in contents.items() if isinstance(content, bytes)}
    failed = [file for file in files if file not in found]
    listed = {name: folder.list_folder(name) for name in {name for name, _ in failed}}
    for file in failed:
        size = listed[file[0]].get(file[1])
        if size == 0:  # a store refuses to read from the first byte of nothing on
            found[file] = b""
        elif _is_error(contents[file]):
            _raise(folder, contents[file])
        elif size is not None:
            raise _unreadable(folder, file)
    return found


def check_unlisted(folder: Folder, files: Iterable[File]) -> None:
    """
    Check that files that cannot be read are not listed.

    :raises RunGenOutputError: one is.
    """
    files = list(files)
    listed = folder.list_all({name for name, _ in files})
    if unread := [file for file in files if file in listed]:
        raise _unreadable(folder, unread[0])


def _read(
    folder: Folder, files: Sequence[File], max_bytes: int | None = None, *, skips_links: bool = False
) -> Sequence[object]:
    """
    Return the contents of files, with the error or ``None`` in place of each that cannot be read.

    :param max_bytes: of a larger file, so many bytes and one more are returned.
    :param skips_links: whether a local file behind a symbolic link counts as missing. Otherwise it raises.
    """
    if not folder.is_local:
        end = None if max_bytes is None else max_bytes + 1
        with folder.wrap_errors():
            # concurrently, where the file system can; from a byte on, s3fs does not ask for the size before
            paths = [folder.path_of(*file) for file in files]
            contents: Sequence[object] = folder.fs.cat_ranges(paths, 0, end, on_error="return")
            return contents

    def read(file: File) -> bytes | None:
        def content(opened: BinaryIO) -> bytes:
            return opened.read() if max_bytes is None else read_most(opened, max_bytes)

        if skips_links:
            return unless_link(folder.read_with, *file, content)
        return folder.read_with(*file, content)

    return run_concurrently(read, files)


def _is_error(content: object) -> bool:
    return isinstance(content, BaseException) and not isinstance(content, MISSING)


def _raise(folder: Folder, error: object) -> None:
    with folder.wrap_errors():
        if isinstance(error, BaseException):
            raise error


def _unreadable(folder: Folder, file: File) -> Exception:
    return folder.error(f"{folder.uri_of(*file)} is listed, but cannot be read")
