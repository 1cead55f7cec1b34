"""`python -m benchmarks [PART]`: measure, print, and write results.md."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks import serving, serving_report, tables
from benchmarks.errors import BenchmarkError

SERVERS = ("ours", "flask", "uvicorn", "bare", "bare uvloop")


def measure_serving(arguments: argparse.Namespace) -> str:
    options = serving.Options(
        ours=arguments.ours,
        servers=tuple(arguments.servers),
        rounds=arguments.rounds,
        seconds=arguments.seconds,
    )
    return serving_report.render(serving.run(options), options)


def measure_kernels(arguments: argparse.Namespace) -> str:
    # Imported only now: it needs the server's own package and its compiler, which the load does not.
    from benchmarks import kernels

    return kernels.render(kernels.run(arguments.rounds))


# A part measures something and returns its section of results.md.
PARTS: Mapping[str, Callable[[argparse.Namespace], str]] = {"serving": measure_serving, "kernels": measure_kernels}


def main() -> None:
    arguments = create_parser().parse_args()
    # So that the servers are stopped whichever way this program is.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started = time.monotonic()
    for part in [arguments.part]:
        try:
            section = PARTS[part](arguments)
        except BenchmarkError as error:
            sys.exit(f"{part}: {error}")
        print(f"\n{section}\n")
        if tuple(arguments.servers) == SERVERS:
            tables.write_section(part, section)
            print(f"written to {tables.RESULTS.name}")
    print(f"{time.monotonic() - started:.0f} s in all")


def create_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("part", nargs="?", choices=PARTS, default="serving", help="what to measure (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds a case (%(default)s)")
    parser.add_argument("--seconds", type=int, default=3, help="length of a round (%(default)s)")
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=SERVERS, help="only print these")
    parser.add_argument(
        "--ours",
        type=Path,
        default=Path(sys.executable).with_name("xgboost-server"),
        help="the command that starts this server (the one beside the interpreter)",
    )
    return parser


if __name__ == "__main__":
    main()
