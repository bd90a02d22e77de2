"""Signs the URLs of outputs, and refuses wrong ones, as an object storage does."""

from __future__ import annotations

import itertools
import secrets
from datetime import UTC, datetime
from urllib.parse import urlencode

from airflow_provider_rungen.emulator.messages import Reply


class Signer:
    """Signs and checks URLs. No two signed URLs are equal."""

    def __init__(self) -> None:
        # when each signed path expires, with its query string
        self._ends: dict[str, float] = {}
        self._serials = itertools.count(1)

    def expire_all(self) -> None:
        """Expire all URLs that were signed until now."""
        self._ends = dict.fromkeys(self._ends, 0.0)

    def sign(self, base: str, path: str, now: float, seconds: int) -> str:
        query = {
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Date": datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ"),
            "X-Amz-Expires": str(int(seconds)),
            "X-Amz-Security-Token": str(next(self._serials)),
            "X-Amz-SignedHeaders": "host",
            "X-Amz-Signature": secrets.token_hex(32),
        }
        signed = f"{path}?{urlencode(query)}"
        self._ends[signed] = now + seconds
        return base + signed

    def refuse(self, path: str, now: float) -> Reply | None:
        """Return the error answer to a path with its query string, or ``None`` if it is valid."""
        if path not in self._ends:
            text = "The request signature we calculated does not match the signature you provided."
            return storage_error(403, "SignatureDoesNotMatch", text)
        return storage_error(403, "AccessDenied", "Request has expired") if now >= self._ends[path] else None


def storage_error(status: int, code: str, text: str) -> Reply:
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{code}</Code><Message>{text}</Message>"
        f"<RequestId>{secrets.token_hex(8).upper()}</RequestId></Error>"
    )
    return Reply(status, {"Content-Type": "application/xml"}, body.encode())
