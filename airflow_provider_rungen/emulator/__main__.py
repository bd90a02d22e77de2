"""``python -m airflow_provider_rungen.emulator``: run the emulator in the foreground."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from airflow_provider_rungen.emulator.options import Options
from airflow_provider_rungen.emulator.server import Emulator


def main(argv: Sequence[str] | None = None) -> None:
    options = vars(_parser().parse_args(argv))
    emulator = Emulator(port=options.pop("port"), **options)

    def print_usage() -> None:
        print(f"export AIRFLOW_CONN_RUNGEN_DEFAULT={shlex.quote(emulator.airflow_connection())}")
        print(f"# RunGen emulator on {emulator.url}; counts: curl {emulator.url}/_emulator/stats")
        print("# Press Ctrl-C to stop it.", flush=True)

    emulator.run(print_usage)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m airflow_provider_rungen.emulator",
        description="Emulate the RunGen.AI REST API, and print the connection for Airflow.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 selects a free one")
    for option in fields(Options):
        choices: tuple[Any, ...] = option.metadata["choices"]
        details: dict[str, Any] = {"default": option.default, "help": option.metadata["help"]}
        if option.default is False:
            details["action"] = "store_true"
        elif option.default is None:
            details.update(nargs="+", metavar="TEAM")
        else:
            details.update(type=type(option.default), choices=choices or None)
            if not choices:
                details["metavar"] = type(option.default).__name__.upper()
        parser.add_argument(f"--{option.name.replace('_', '-')}", **details)
    return parser


if __name__ == "__main__":
    main()
