"""`python -m benchmarks [PART]`: measure, print, and write the part's section of results.md and its entry in results.json."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks import results, serving, serving_report
from benchmarks.errors import BenchmarkError
from benchmarks.results import Section

SERVERS = ("ours", "flask", "uvicorn", "bare", "bare uvloop")
ROUNDS = SECONDS = 3


def measure_serving(arguments: argparse.Namespace) -> Section:
    options = create_options(arguments)
    return serving_report.render(serving.run_all(options, arguments.servers), options)


def measure_peers(arguments: argparse.Namespace) -> Section:
    from benchmarks import peers

    return peers.measure(create_options(arguments))


def measure_scaling(arguments: argparse.Namespace) -> Section:
    from benchmarks import scaling, scaling_report

    options = create_options(arguments)
    sizes = scaling.QUICK if arguments.quick else scaling.Sizes()
    return scaling_report.render(scaling.run(options, sizes), options)


def measure_kernels(arguments: argparse.Namespace) -> Section:
    from benchmarks import kernels, kernels_report

    return kernels_report.render_own(kernels.run_own(arguments.rounds), arguments.rounds)


def measure_kernel_peers(arguments: argparse.Namespace) -> Section:
    from benchmarks import kernels, kernels_report

    return kernels_report.render_peers(kernels.run_peers(arguments.rounds), arguments.rounds)


def measure_decoding(arguments: argparse.Namespace) -> Section:
    from benchmarks import decoding

    return Section(decoding.render(decoding.run(arguments.rounds)))


# A part measures something and returns its section of results.md.
PARTS: Mapping[str, Callable[[argparse.Namespace], Section]] = {
    "serving": measure_serving,
    "peers": measure_peers,
    "kernels": measure_kernels,
    "kernel-peers": measure_kernel_peers,
    "decoding": measure_decoding,
    "scaling": measure_scaling,
}


def main() -> None:
    arguments = create_parser().parse_args()
    if arguments.quick:
        arguments.rounds = arguments.seconds = 1
    # So that the servers are stopped whichever way this program is.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    started = time.monotonic()
    try:
        section = PARTS[arguments.part](arguments)
    except BenchmarkError as error:
        sys.exit(f"{arguments.part}: {error}")
    print(f"\n{section.text}\n")
    if tuple(arguments.servers) == SERVERS and not arguments.quick:
        results.write_section(arguments.part, section)
        print(f"written to {results.RESULTS.name}")
    print(f"{time.monotonic() - started:.0f} s in all")


def create_options(arguments: argparse.Namespace) -> serving.Options:
    return serving.Options(ours=arguments.ours, rounds=arguments.rounds, seconds=arguments.seconds)


def create_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("part", nargs="?", choices=PARTS, default="serving", help="what to measure (%(default)s)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds a case (%(default)s)")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="length of a round (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="one round of one second, small sizes; writes nothing")
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=SERVERS, help="serving: only print these")
    parser.add_argument(
        "--ours",
        type=Path,
        default=Path(sys.executable).with_name("xgboost-server"),
        help="the command that starts this server (the one beside the interpreter)",
    )
    return parser


if __name__ == "__main__":
    main()
