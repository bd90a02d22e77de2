"""The files of a store in a destination, for an event loop."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from airflow_provider_rungen.client.daemon_threads import in_daemon_thread, run_concurrently
from airflow_provider_rungen.outputs.storage import File, Storage


class StoreFolder:
    """
    The files of a destination; see `Files`.

    :param storage: the destination.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    async def list(self, folder: str) -> dict[str, float]:
        times = await in_daemon_thread(self._storage.times, folder)
        return {f"{folder}/{name}": at for name, at in times.items()}

    async def find(self, folder: str) -> set[str]:
        return await in_daemon_thread(self._storage.find, folder)

    async def exist(self, paths: Collection[str]) -> set[str]:
        sizes = await in_daemon_thread(self._storage.sizes_of, map(_file, paths))
        return set(map(_path, sizes))

    async def read(self, paths: Collection[str]) -> dict[str, bytes]:
        if not paths:
            return {}
        contents = await in_daemon_thread(self._storage.read_all, map(_file, paths))
        return {_path(file): content for file, content in contents.items()}

    async def create(self, files: Mapping[str, bytes]) -> set[str]:
        def create_one(path: str) -> bool:
            return self._storage.create(*_file(path), files[path])

        if len(files) == 1:  # an id, as it comes: one thread is enough
            [path] = files
            return {path} if await in_daemon_thread(create_one, path) else set()
        created = await in_daemon_thread(run_concurrently, create_one, files)
        return {path for path, is_new in zip(files, created, strict=True) if is_new}

    async def write(self, path: str, content: bytes) -> None:
        await in_daemon_thread(self._storage.write, *_file(path), content)

    async def remove(self, paths: Collection[str]) -> None:
        if paths:
            await in_daemon_thread(self._storage.remove, map(_file, paths))


def _file(path: str) -> File:
    folder, _, name = path.rpartition("/")
    return folder, name


def _path(file: File) -> str:
    return "/".join(file)
