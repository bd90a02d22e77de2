"""An object store in memory, whose requests a test counts, refuses or watches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from importlib import import_module
from typing import Any

from airflow.providers.common.compat.sdk import ObjectStoragePath
from fsspec.implementations.memory import MemoryFileSystem


class ObjectStore(MemoryFileSystem):  # type: ignore[misc]  # it has no types
    """A file system that is not local. Its files are those of each other one in this process."""

    cachable = False
    #: What `attach` made of it.
    attached: Any = None
    #: Called before each request, with its kind and the path. It may raise an error.
    before: Callable[[str, str], None] = staticmethod(lambda kind, path: None)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.counts: Counter[str] = Counter()
        #: The bytes of small files that were written, also over others, by path.
        self.written: Counter[str] = Counter()

    def _request(self, kind: str, path: Any) -> None:
        self.counts[kind] += 1
        self.before(kind, str(path))

    def info(self, path: Any, **options: Any) -> Any:
        self._request("info", path)
        return super().info(path, **options)

    def ls(self, path: Any, *args: Any, **options: Any) -> Any:
        self._request("list", path)
        return super().ls(path, *args, **options)

    def _open(self, path: Any, mode: str = "rb", **options: Any) -> Any:
        self._request(f"open {mode}", path)
        return super()._open(path, mode, **options)

    def cat_file(self, path: Any, *args: Any, **options: Any) -> Any:
        self._request("read", path)
        return super().cat_file(path, *args, **options)

    def pipe_file(self, path: Any, value: Any, *args: Any, **options: Any) -> Any:
        self._request("write", path)
        self.written[str(path)] += len(value)
        return super().pipe_file(path, value, *args, **options)

    def put_file(self, local: Any, path: Any, *args: Any, **options: Any) -> Any:
        self._request("put", path)
        return super().put_file(local, path, *args, **options)

    def _rm(self, path: Any) -> None:
        self._request("remove", path)
        super()._rm(path)

    def refuse(self, kind: str, error: Exception) -> None:
        """Raise an error at each request of a kind; of none if the kind is empty."""

        def check(asked: str, _: str) -> None:
            if kind and asked.startswith(kind):
                raise error

        self.before = check

    def names(self) -> set[str]:
        return {name.lstrip("/") for name in self.store}


def attach(scheme: str = "memory", conn_id: str | None = None) -> ObjectStore:
    """Make URIs of a scheme lead to a new store, which is empty."""
    fs = ObjectStore()
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    module = import_module(ObjectStoragePath.__module__)  # it moved with Airflow 3
    fs.attached = module.attach(scheme, conn_id=conn_id, fs=fs)
    fs.attached.fs = fs
    return fs
