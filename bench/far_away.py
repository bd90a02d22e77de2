"""``python -m bench.far_away PORT SECONDS``: a proxy that adds latency to a port of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit

from bench.service import ROOT, clean_environment

_CHUNK = 64 * 1024


@contextlib.contextmanager
def far_away(url: str, seconds: float) -> Iterator[str]:
    """Yield an address that forwards to ``url`` with a latency in seconds."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.far_away", str(urlsplit(url).port), str(seconds)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=clean_environment(),
    )
    assert process.stdout is not None  # noqa: S101 - for the type checker
    try:
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.terminate()
        process.wait()


async def _serve(port: int, seconds: float) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there = await asyncio.open_connection("127.0.0.1", port)
        back = asyncio.create_task(_pass(there_reader, writer, 0))
        await _pass(reader, there, seconds)
        await back

    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    with contextlib.suppress(ConnectionError):
        while chunk := await reader.read(_CHUNK):
            if seconds:
                loop.call_later(seconds, writer.write, chunk)
            else:
                writer.write(chunk)
    loop.call_later(seconds, writer.close)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(int(sys.argv[1]), float(sys.argv[2])))
