"""Store the files of jobs in a folder of any file system. Each file appears atomically.

A file is missing only if the store says so, while it answers for the folder around it. Anything else is an
outage, and raises: credentials, clocks, a bucket or mount that is gone, a listed file that cannot be read.

The methods of `Storage` block: call them in a thread.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from typing import Any, BinaryIO, Self, TypeAlias, TypeVar

from airflow_provider_rungen.client.daemon_threads import begin, run_concurrently
from airflow_provider_rungen.client.outages import is_of_one_file, may_pass
from airflow_provider_rungen.client.redaction import redact, redact_error
from airflow_provider_rungen.client.texts import clean_text
from airflow_provider_rungen.exceptions import RunGenInputError, RunGenOutputError
from airflow_provider_rungen.outputs.local_files import LocalFiles, temporary_name
from airflow_provider_rungen.outputs.remote_files import RemoteFiles

T = TypeVar("T")
#: The folder of a file and its name. The folder of a file directly in the destination is empty.
File: TypeAlias = tuple[str, str]
# How a file that is missing shows. Not PermissionError: s3fs also raises it for expired credentials, a wrong
# clock and the like.
_MISSING = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
# Where a file appears once it is uploaded, and not before.
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "oss"}
_AMAZON = ("airflow.providers.amazon", "s3fs", "apache-airflow-providers-amazon[s3fs]")
_GOOGLE = ("airflow.providers.google", "gcsfs", "apache-airflow-providers-google")
_AZURE = ("airflow.providers.microsoft", "adlfs", "apache-airflow-providers-microsoft-azure")
# What a scheme needs: two modules, and the package that has both.
_NEEDS = {
    **dict.fromkeys(("s3", "s3a"), _AMAZON),
    **dict.fromkeys(("gs", "gcs"), _GOOGLE),
    **dict.fromkeys(("abfs", "abfss", "adl", "wasb"), _AZURE),
}
# Where a store is tried. In the destination itself, a listing would have all its jobs.
_PROBE_FOLDER = ".rungen"


def missing_package(uri: str) -> str:
    """Return which package to install for a place, as a hint; an empty text if none is missing."""
    *modules, package = _NEEDS.get(uri.partition("://")[0], ("",))
    return f"Install {package}" if any(find_spec(module) is None for module in modules) else ""


class Storage:
    """
    A destination, with a folder for each job. A ``folder`` of ``""`` is the destination itself.

    A file is written to a temporary place first: on a local file system beside its target, otherwise in this
    machine's folder for temporary files, from where it is uploaded. In a local destination, symbolic links
    are not followed.

    :param uri: a URI or an absolute path that `ObjectStoragePath` accepts, or one of these.
    :param name: the parameter it was passed as, for errors.
    :param read_only: whether it is only read.
    :raises RunGenInputError: there can be no such place.
    """

    def __init__(self, uri: Any, name: str = "destination", *, read_only: bool = False) -> None:
        from airflow_provider_rungen._airflow import AirflowNotFoundException, ObjectStoragePath

        self._text = text = str(uri)
        self._name = name
        self._hint = f"Check {name}, and that the worker may {'read' if read_only else 'write to'} it"
        try:
            if "://" not in text and not os.path.isabs(text):
                raise ValueError("it is neither a URI nor an absolute path")
            if "//" in text.partition("://")[2]:
                raise ValueError("it has a folder without a name (//)")
            base = uri if isinstance(uri, ObjectStoragePath) else ObjectStoragePath(text)
            # not in a thread, because it may read a connection from Airflow
            fs, root = base.fs, str(base.path).rstrip("/")
        except (OSError, ImportError, TypeError, ValueError, AirflowNotFoundException) as error:
            reason = redact_error(error, text)
            # not chained, because the text of the cause would be logged unredacted
            raise RunGenInputError(
                clean_text(f"{name} {text!r} cannot be used: {reason}"),
                hint=(install := missing_package(text)) or self._hint,
                retryable=not install and may_pass(error),
            ) from None
        self._is_prepared = False
        self._tidied: set[str] = set()
        self._is_object_store = base.protocol in _OBJECT_STORES
        self._files: LocalFiles | RemoteFiles = RemoteFiles(fs, root, is_atomic=self._is_object_store)
        if base.protocol in ("", "file", "local"):
            self._files = LocalFiles(root)

    def uri_of(self, folder: str, name: str) -> str:
        """Return the URI of a file."""
        return "/".join((self._text.removesuffix("/"), *filter(None, (folder, name))))

    @contextlib.contextmanager
    def _wrap_errors(self) -> Iterator[None]:
        """Convert the errors of storage libraries, which may be of any type."""
        from airflow_provider_rungen._airflow import AirflowException, AirflowNotFoundException

        try:
            yield
        except RunGenOutputError:
            raise
        except Exception as error:
            # Airflow's signal handler raises one when it kills a task
            if isinstance(error, AirflowException) and not isinstance(error, AirflowNotFoundException):
                raise
            reason = clean_text(redact_error(error, self._text), 200)
            # not chained, because the text of the cause would be logged unredacted
            failure = self._error(f"{type(error).__name__}: {reason}".removesuffix(": "))
            failure.is_outage = not is_of_one_file(error)
            raise failure from None

    def _error(self, reason: str) -> RunGenOutputError:
        return RunGenOutputError(f"the {self._name} cannot be used: {redact(reason)}", hint=self._hint)

    def check(self) -> bool:
        """
        Find out what is not allowed, as `prepare` does, without creating the folder.

        :return: whether it is prepared. A missing folder is not, though it can be created.
        :raises RunGenInputError: it cannot be used. A retry may help.
        """
        try:
            with self._wrap_errors():
                is_there = self._files.has_root()
        except RunGenOutputError as error:
            raise RunGenInputError(error.message, hint=error.hint, retryable=error.retryable) from None
        if is_there:
            self.prepare(create=False)
        return is_there

    def prepare(self, *, create: bool = True) -> Self:
        """
        Write, list, read and remove a small file, to find out what is not allowed before it costs something.

        Once it has worked, it does nothing more.

        :param create: whether to create a missing local folder. It may be a mount that is missing.
        :raises RunGenInputError: it cannot be used. A retry may help.
        """
        if not self._is_prepared:
            # a kill is not to wait until the file is removed
            begin(self._probe, create).result()
            self._is_prepared = True
        return self

    def create_root(self) -> None:
        """Create the folder, if it is one of this machine that is missing."""
        with self._wrap_errors():
            self._files.open_root(create=True)

    def _probe(self, create: bool) -> None:
        folder, name = probe = _PROBE_FOLDER if self._is_object_store else "", temporary_name()
        content, step = name.encode(), "write"
        try:
            with self._wrap_errors():
                self._files.open_root(create=create)
            self.write(folder, name, content)
            try:
                step = "list"
                is_listed = name in self.list_folder(folder)
                step = "read"
                if not is_listed or self.read_all([probe]) != {probe: content}:
                    raise self._error(f"{self.uri_of(*probe)} was written, but cannot be read")
                step = "remove"
            finally:
                self.remove([probe])
        except RunGenOutputError as error:
            message = f"{error.message} (could not {step} a small file)"
            raise RunGenInputError(message, hint=error.hint, retryable=error.retryable) from None

    # --- what is there ---

    def list_folder(self, folder: str) -> dict[str, int]:
        """Return the sizes of the files in a folder: none if it, or the place, cannot be found."""
        with self._wrap_errors(), contextlib.suppress(*_MISSING):
            return self._files.list_folder(folder)
        return {}

    def times(self, folder: str) -> dict[str, float]:
        """Return when each file of a folder was last modified: none if it cannot be found."""
        with self._wrap_errors(), contextlib.suppress(*_MISSING):
            return self._files.times(folder)
        return {}

    def find(self, folder: str) -> set[str]:
        """Return all files below a folder, by their paths: none if it cannot be found."""
        with self._wrap_errors(), contextlib.suppress(*_MISSING):
            return self._files.find(folder)
        return set()

    def sizes_of(self, files: Iterable[File]) -> dict[File, int]:
        """Return the sizes of those of many files that exist, concurrently. Links do not exist."""
        return self._for_existing(self._files.size, files)

    # --- reading ---

    def opened(self, folder: str, name: str) -> contextlib.AbstractContextManager[BinaryIO]:
        """Open a file to read it. What goes wrong is an error of the storage's own library."""
        return self._files.open(folder, name)

    def read_all(self, files: Iterable[File], max_bytes: int | None = None) -> dict[File, bytes]:
        """
        Return the contents of the files that exist, concurrently.

        Whoever takes the others for missing has to know that the place answers at that moment: ask for a file
        that is there along with them.

        :param max_bytes: of a larger file, so many bytes and one more are returned.
        :raises RunGenOutputError: one cannot be read, or is behind a symbolic link.
        """
        found = self._for_existing(lambda folder, name: self._files.read(folder, name, max_bytes), files)
        for file, content in found.items():
            # they are JSON, and S3 or a proxy may answer with an error in XML or a page, and status 200
            if content[:80].lstrip().startswith(b"<"):
                raise self._error(f"a page came in place of {self.uri_of(*file)}")
        return found

    def _for_existing(self, call: Callable[[str, str], T | None], files: Iterable[File]) -> dict[File, T]:
        """Call a function with each file, concurrently. Return the results for those that exist."""

        def call_one(file: File) -> T | None:
            with self._wrap_errors(), contextlib.suppress(*_MISSING):
                return call(*file)
            return None

        files = list(files)
        results = zip(files, run_concurrently(call_one, files), strict=True)
        return {file: result for file, result in results if result is not None}

    # --- writing ---

    @contextlib.contextmanager
    def incoming(self, folder: str, name: str) -> Iterator[tuple[BinaryIO, str]]:
        """Open a temporary file, and return it with its path. It is removed unless `put` moves it."""
        with contextlib.ExitStack() as stack:
            with self._wrap_errors():
                incoming = stack.enter_context(self._files.incoming(folder, name))
            yield incoming

    def put(self, file: BinaryIO, path: str, folder: str, name: str) -> None:
        """Move or upload an incoming file to its target."""
        with self._wrap_errors():
            file.flush()
            self._files.put(path, folder, name)

    def write(self, folder: str, name: str, content: bytes) -> None:
        """Store a small file."""
        with self._wrap_errors():
            self._files.write(folder, name, content)

    def create(self, folder: str, name: str, content: bytes) -> bool:
        """
        Store a small file, unless there is one. It may be empty for a moment.

        :return: whether there was none. A store that cannot tell replaces the file.
        """
        with self._wrap_errors():
            try:
                self._files.create(folder, name, content)
            except FileExistsError:
                return False
            except (TypeError, NotImplementedError):
                self._files.write(folder, name, content)
        return True

    def remove(self, files: Iterable[File]) -> None:
        """Remove those of many files that exist, together or concurrently."""
        self._for_existing(self._files.remove, self._files.remove_together(list(files)))

    def remove_leftovers(self, folder: str) -> None:
        """Remove the temporary files that killed attempts left in a folder, once."""
        if folder not in self._tidied:
            self._tidied.add(folder)
            with self._wrap_errors():
                self._files.remove_leftovers(folder)
