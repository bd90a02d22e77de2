"""Read many files of a folder at once, without taking an outage for a missing file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from airflow_provider_rungen.exceptions import RunGenOutputError
from airflow_provider_rungen.execution.archive.folder import MISSING, File, Folder
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
        # a store refuses to read a part of nothing
        full = [file for file in batch if sizes[file] or not folder.is_object_store]
        # one that grew meanwhile is not to fill the memory
        limit = max(_BATCH_BYTES, *(sizes[file] for file in batch))
        read = read_unlisted(folder, full, limit)
        found = {file: b"" for file in batch if file not in full}
        found |= {file: content for file, content in read.items() if len(content) <= limit}
        if gone := [file for file in batch if file not in found]:
            check_unlisted(folder, gone)
        if short := [file for file, content in found.items() if len(content) < sizes[file]]:
            # it may have been replaced meanwhile by a shorter one
            now = folder.sizes_of(short)
            for file in short:
                if len(found[file]) != now.get(file, 0):
                    raise folder.error(f"only a part of {folder.uri_of(*file)} could be read")
        yield {file: found[file] for file in batch if file in found}


def read_confirmed(folder: Folder, files: Sequence[File]) -> dict[File, bytes]:
    """
    Return the contents of small files that were not listed. Those that a listing does not have are left out.

    :raises RunGenOutputError: one cannot be read, though it is there, or nobody can tell.
    """
    found = read_unlisted(folder, files)
    missing = [file for file in files if file not in found]
    listed = {name: folder.list_folder(name) for name in {name for name, _ in missing}}
    for name, file in missing:
        if file in listed[name]:
            raise _unreadable(folder, (name, file))
    return found


def read_unlisted(folder: Folder, files: Sequence[File], max_bytes: int | None = None) -> dict[File, bytes]:
    """
    Return the contents of the files that exist, without a listing, concurrently.

    Whoever takes the others for missing has to know that the place answers at that moment: ask for a file
    that is there along with them.

    :param max_bytes: of a larger file, so many bytes and one more are returned.
    :raises RunGenOutputError: one cannot be read, or is behind a symbolic link.
    """
    if folder.is_local:
        contents: Sequence[object] = run_concurrently(lambda file: folder.read_most(*file, max_bytes), files)
    else:
        # from the first byte on, s3fs does not ask for the size before
        part = (None, None) if max_bytes is None else (0, max_bytes + 1)
        with folder.wrap_errors():
            # concurrently, where the file system can
            paths = [folder.path_of(*file) for file in files]
            contents = folder.fs.cat_ranges(paths, *part, on_error="return")
            for content in contents:
                if isinstance(content, BaseException) and not isinstance(content, MISSING):
                    raise content
    found = zip(files, contents, strict=True)
    return {file: content for file, content in found if isinstance(content, bytes)}


def check_unlisted(folder: Folder, files: Iterable[File]) -> None:
    """
    Check that files that cannot be read are not listed.

    :raises RunGenOutputError: one is.
    """
    files = list(files)
    listed = folder.list_all({name for name, _ in files})
    if unread := [file for file in files if file in listed]:
        raise _unreadable(folder, unread[0])


def _unreadable(folder: Folder, file: File) -> RunGenOutputError:
    return folder.error(f"{folder.uri_of(*file)} is listed, but cannot be read")
