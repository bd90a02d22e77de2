"""An S3 server (moto) in a process of its own, which counts the requests to it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self
from urllib.parse import parse_qs, unquote

from bench.processes import ROOT, clean_environment

BUCKET = "bucket"
_CONTROL = "/bench/"


class ObjectStore:
    """The server, as a measurement sees it."""

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.object_store"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=clean_environment(),
        )
        assert self._process.stdout is not None  # noqa: S101 - for the type checker
        self.url = self._process.stdout.readline().strip()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a task that knows it as the connection ``store``."""
        extra = {"endpoint_url": self.url, "region_name": "us-east-1"}
        connection = {"conn_type": "aws", "login": "me", "password": "a-secret", "extra": extra}
        return {"AIRFLOW_CONN_STORE": json.dumps(connection)}

    def uri(self, folder: str) -> str:
        """Return the URI of a folder."""
        return f"s3://store@{BUCKET}/{folder}"

    def take_counts(self) -> Counter[str]:
        """Return how many requests there were since the last call, by kind and top folder."""
        return Counter(self._ask("counts"))

    def put(self, files: Mapping[str, bytes]) -> None:
        """Store files without requests to S3."""
        for path, content in files.items():
            self._ask(f"put/{path}", content)

    def fill(self, paths: Iterable[str]) -> None:
        """Store many files of one byte without requests to S3."""
        self._ask("fill", "\n".join(paths).encode())

    def _ask(self, what: str, body: bytes = b"") -> Any:
        with urllib.request.urlopen(f"{self.url}{_CONTROL}{what}", body) as answer:  # noqa: S310 - it is http
            return json.loads(answer.read() or b"null")


# --- in the process of the server ---


def _counted(serve: Callable[..., Iterable[bytes]], counts: Counter[str]) -> Callable[..., Iterable[bytes]]:
    """Return a WSGI application that counts requests before it passes them on."""

    def answer(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = unquote(environ["PATH_INFO"])
        if path.startswith(_CONTROL):
            body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            content = json.dumps(_control(path.removeprefix(_CONTROL), body, counts)).encode()
            start_response("200 OK", [("Content-Length", str(len(content)))])
            return [content]
        query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
        counts[_kind(environ["REQUEST_METHOD"], path, query)] += 1
        return serve(environ, start_response)

    return answer


def _kind(method: str, path: str, query: Mapping[str, list[str]]) -> str:
    key = path.removeprefix(f"/{BUCKET}").lstrip("/")
    if method == "GET" and not key:
        method, key = "LIST", query.get("prefix", [""])[0]
    elif method == "POST" and "delete" in query:
        return "BULK_DELETE"
    parts = key.split("/")[1:]
    shown = parts[:2] if parts[:1] == [".rungen"] else parts[:1]
    return f"{method} {'/'.join('probe' if each.endswith('.part') else each for each in shown)}".strip()


def _control(what: str, body: bytes, counts: Counter[str]) -> Any:
    from moto.core.models import DEFAULT_ACCOUNT_ID
    from moto.s3.models import s3_backends

    backend: Any = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    if what == "counts":
        found = dict(counts)
        counts.clear()
        return found
    if what == "fill":
        for path in body.decode().split("\n"):
            backend.put_object(BUCKET, path, b"x")
    else:
        backend.put_object(BUCKET, what.removeprefix("put/"), body)
    return None


def main() -> None:
    from moto.core.models import DEFAULT_ACCOUNT_ID
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from moto.s3.models import s3_backends
    from werkzeug.serving import make_server

    backend: Any = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    backend.create_bucket(BUCKET, "us-east-1")
    application = _counted(DomainDispatcherApplication(create_backend_app), Counter())
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, application, threaded=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.read()  # until the measurement ends


if __name__ == "__main__":
    main()
