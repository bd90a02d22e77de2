"""``rungen-emulator``: run the emulator in the foreground."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
from collections.abc import Sequence
from typing import Any

from rungen_emulator.operations import options
from rungen_emulator.server import EMULATORS, Emulator

_STOP = {signal.SIGINT, signal.SIGTERM}


def main(argv: Sequence[str] | None = None) -> None:
    given = vars(_parser().parse_args(argv))
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP)
    with Emulator(**given) as emulator, emulator.connection():
        for variable in ("AIRFLOW_CONN_RUNGEN_DEFAULT", EMULATORS):
            print(f"export {variable}={shlex.quote(os.environ[variable])}")
        print(f"# RunGen emulator on {emulator.url}; counts: curl {emulator.url}/_emulator/stats")
        print("# Press Ctrl-C to stop it.", flush=True)
        signal.sigwait(_STOP)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rungen-emulator",
        description="Emulate the RunGen.AI REST API, and print the connection for Airflow.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 selects a free one")
    for option in options():
        details: dict[str, Any] = {"default": option.default, "help": option.metadata["help"]}
        if option.default is None:
            details.update(nargs="+", metavar="TEAM")
        else:
            details.update(type=type(option.default), metavar=type(option.default).__name__.upper())
        parser.add_argument(f"--{option.name.replace('_', '-')}", **details)
    return parser


if __name__ == "__main__":
    main()
