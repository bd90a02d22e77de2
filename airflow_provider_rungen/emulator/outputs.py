"""Signs the URLs of outputs, and refuses wrong ones, as an object storage does."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import secrets
from datetime import UTC, datetime
from urllib.parse import parse_qsl, urlencode

from airflow_provider_rungen.emulator.messages import Reply

_TIME = "%Y%m%dT%H%M%SZ"
_EXPIRED = ("AccessDenied", "Request has expired")
_FORGED = (
    "SignatureDoesNotMatch",
    "The request signature we calculated does not match the signature you provided.",
)


class Signer:
    """Signs and checks URLs. No two signed URLs are equal."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._serials = itertools.count(1)
        self._expired_serial = 0

    def expire_all(self) -> None:
        """Expire all URLs that were signed until now."""
        self._expired_serial = next(self._serials)

    def sign(self, base: str, path: str, now: float, seconds: int) -> str:
        query = {
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Date": datetime.fromtimestamp(now, UTC).strftime(_TIME),
            "X-Amz-Expires": str(int(seconds)),
            "X-Amz-Security-Token": str(next(self._serials)),
            "X-Amz-SignedHeaders": "host",
        }
        return f"{base}{path}?{urlencode({**query, 'X-Amz-Signature': self._signature(path, query)})}"

    def refuse(self, path: str, query: str, now: float) -> Reply | None:
        """Return the error answer to a URL, or ``None`` if it is valid."""
        given = dict(parse_qsl(query))
        signature = given.pop("X-Amz-Signature", "")
        if not hmac.compare_digest(signature.encode(), self._signature(path, given).encode()):
            return storage_error(403, *_FORGED)
        signed_at = datetime.strptime(given["X-Amz-Date"], _TIME).replace(tzinfo=UTC).timestamp()
        expired = now >= signed_at + int(given["X-Amz-Expires"])
        return (
            storage_error(403, *_EXPIRED)
            if expired or int(given["X-Amz-Security-Token"]) <= self._expired_serial
            else None
        )

    def _signature(self, path: str, query: dict[str, str]) -> str:
        text = f"{path}\n{urlencode(sorted(query.items()))}"
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()


def storage_error(status: int, code: str, text: str) -> Reply:
    body = (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f"<Error><Code>{code}</Code><Message>{text}</Message>"
        f"<RequestId>{secrets.token_hex(8).upper()}</RequestId></Error>"
    )
    return Reply(status, {"Content-Type": "application/xml"}, body.encode())
