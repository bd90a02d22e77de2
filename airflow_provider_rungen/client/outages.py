"""Which errors of storage are an outage, and no mistake."""

from __future__ import annotations

import gzip
import zlib

# With these errors, another attempt would fail likewise. Not PermissionError: s3fs also raises it for expired
# credentials. Nor Airflow's error for a connection that is not found: it also raises that while a secrets
# backend does not answer.
_PERMANENT = (
    *(FileNotFoundError, IsADirectoryError, NotADirectoryError, gzip.BadGzipFile, zlib.error, EOFError),
    *(ImportError, NotImplementedError, TypeError, ValueError, RecursionError),
)


def may_pass(error: BaseException) -> bool:
    """Return whether storage may work in another attempt."""
    return not isinstance(error, _PERMANENT)
