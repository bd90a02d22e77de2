"""The ledger as a DAG names it: which inputs were paid for, remembered in the user's own storage."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, ClassVar

from airflow_provider_rungen.client.texts import to_seconds

if TYPE_CHECKING:
    import os

    from airflow_provider_rungen._airflow import ObjectStoragePath


@dataclass
class Ledger:
    """
    Remember which inputs were paid for, and run an equal input only once.

    Two inputs are equal if their JSON is, apart from the fields in ``ignore``, for the same model and
    ``version``. The model is the app's ``workflow`` (model URL, LoRAs with their weights), or the app's id
    where the service does not return a workflow. Only jobs that completed and whose outputs are stored count.

    :param uri: the folder of the ledger: a URI such as ``s3://conn_id@bucket/prefix``, an absolute path, or
        an ``ObjectStoragePath`` (templated).
    :param version: any text. A new version runs all inputs again (templated).
    :param ignore: top-level fields of the input that make no difference, such as a request id.
    :param expires: seconds after which a stored job no longer counts. Never when left out.
    :param refresh: run all inputs again, and replace what the ledger remembers.
    :param max_attempts: jobs of an input that may fail, in this run and in earlier ones. Then no job is
        submitted for it, until the input, ``version`` or ``refresh`` changes. No limit when left out.
    :raises ValueError: a parameter is invalid.
    """

    template_fields: ClassVar[Sequence[str]] = ("uri", "version")

    uri: str | os.PathLike[str] | ObjectStoragePath
    version: str = "1"
    ignore: Collection[str] = ()
    expires: float | timedelta | None = None
    refresh: bool = False
    max_attempts: int | None = None

    def __post_init__(self) -> None:
        if not str(self.uri):
            raise ValueError("uri of a Ledger must not be empty")
        if not isinstance(self.version, str):
            raise ValueError(f"version of a Ledger must be text, not {self.version!r}")
        names = self.ignore if isinstance(self.ignore, str) else tuple(self.ignore)
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"ignore of a Ledger must be a list of field names, not {names!r}")
        # in one order, so that the DAG is the same each time that it is parsed
        self.ignore = tuple(sorted(names))
        if self.expires is not None:
            self.expires = to_seconds(self.expires, "expires")
        if self.max_attempts is not None and (type(self.max_attempts) is not int or self.max_attempts < 1):
            raise ValueError(f"max_attempts of a Ledger must be 1 or more, not {self.max_attempts!r}")
