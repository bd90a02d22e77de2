"""Which errors of storage are an outage, and no mistake."""

from __future__ import annotations

import errno
import gzip
import zlib

# With these errors, another attempt would fail likewise. Not PermissionError: s3fs also raises it for expired
# credentials. Nor Airflow's error for a connection that is not found: it also raises that while a secrets
# backend does not answer.
_PERMANENT = (
    *(FileNotFoundError, IsADirectoryError, NotADirectoryError, gzip.BadGzipFile, zlib.error, EOFError),
    *(ImportError, NotImplementedError, TypeError, ValueError, RecursionError),
)
# What a store says of one file, of its name or its size. Not EINVAL: s3fs makes it of each 400, as for a
# wrong token.
_OF_ONE_FILE = (errno.ENAMETOOLONG, errno.EILSEQ, errno.EFBIG)


def is_of_one_file(error: BaseException) -> bool:
    """Return whether storage refuses one file, and may take others."""
    return getattr(error, "errno", None) in _OF_ONE_FILE


def may_pass(error: BaseException) -> bool:
    """Return whether storage may work in another attempt."""
    return not isinstance(error, _PERMANENT)
