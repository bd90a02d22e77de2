"""``python -m airflow_provider_rungen.emulator``: run the emulator in the foreground."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import signal
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from airflow_provider_rungen.emulator.environment import EMULATORS
from airflow_provider_rungen.emulator.operations import options
from airflow_provider_rungen.emulator.server import Emulator

_STOP = {signal.SIGINT, signal.SIGTERM}


def main(argv: Sequence[str] | None = None) -> None:
    parser = _parser()
    given = vars(parser.parse_args(argv))
    connections = {
        "rungen_default": {},
        **{words[0]: _fields(parser, words[1:]) for words in given.pop("connection")},
    }
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP)
    with Emulator(**given) as emulator, ExitStack() as opened:
        variables = []
        for conn_id, extra in connections.items():
            opened.enter_context(emulator.connection(conn_id, **extra))
            variables.append(f"AIRFLOW_CONN_{conn_id.upper()}")
        for variable in (*variables, EMULATORS):
            print(f"export {variable}={shlex.quote(os.environ[variable])}")
        print(f"# RunGen emulator on {emulator.url}; counts: curl {emulator.url}/_emulator/stats")
        print("# Press Ctrl-C to stop it.", flush=True)
        signal.sigwait(_STOP)


def _fields(parser: argparse.ArgumentParser, words: Sequence[str]) -> dict[str, Any]:
    """Return the extra fields of a connection: texts such as ``team_id=marketing``."""
    if wrong := [word for word in words if not re.fullmatch(r"\w+=.*", word)]:
        parser.error(f"--connection takes an id and fields such as team_id=marketing, not {wrong[0]}")
    return dict(word.split("=", 1) for word in words)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m airflow_provider_rungen.emulator",
        description="Emulate the RunGen.AI REST API, and print the connection for Airflow.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 selects a free one")
    parser.add_argument(
        "--connection",
        action="append",
        nargs="+",
        default=[],
        metavar=("CONN_ID", "FIELD=VALUE"),
        help="another connection, such as rungen_marketing team_id=marketing app_id=posters; repeatable",
    )
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
