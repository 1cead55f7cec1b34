"""The command line: `xgboost-server serve | check | inspect | score | fetch | settings`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click
import orjson

from service import __version__
from service.errors import FetchError, RowsFileError, StartError
from service.settings import SETTINGS, Settings, read_settings

FORMAT = click.Choice(["csv", "jsonl", "parquet", "arrow"])
BAR_STEPS = 1000
LINE_SECONDS = 5.0
# What KServe 0.20 gives the image of its own XGBoost runtime, and where its storage initializer puts what STORAGE_URI names.
KSERVE_OPTIONS = ("--model_name", "--model_dir", "--http_port", "--workers", "--nthread")
KSERVE_MODELS = "/mnt/models"
# Of the environment, what concerns the commands that are given a model: the rest is the server's.
KEPT = ("SCORER_CACHE_DIR", "SCORER_MODEL_HTTPS_HOSTS", "SCORER_MODEL_MAX_BYTES", "SCORER_FETCH_TIMEOUT_SECONDS")

# Longer lines are hard to read. Where nobody's terminal is narrower, a digest stays one word.
MOST_COLUMNS = 120

if TYPE_CHECKING:
    from service.batch import Contract
    from service.files import Progress
    from service.models import LoadedModel
    from service.sources import Progress as FetchProgress


class FaultReporting(click.Group):
    """One line on standard error that lists every fault, and exit code 1; 75 where a later attempt may succeed.

    Options of `serve` alone mean `serve`: KServe's runtimes start their image with nothing else.
    """

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        if args and args[0].partition("=")[0] in KSERVE_OPTIONS:
            args = ["serve", *args]
        return super().parse_args(context, args)

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except StartError as error:
            click.echo(f"xgboost-server: {error}", err=True)
            sys.exit(os.EX_TEMPFAIL if isinstance(error, FetchError) and error.is_temporary else 1)


@click.group(cls=FaultReporting, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="xgboost-server")
def main() -> None:
    """Serve an XGBoost model file. Settings come from the environment: see `xgboost-server settings`."""


@main.command()
@click.option("--model_name", default="", help="The same as SCORER_MODEL_NAME.")
@click.option("--model_dir", default="", help="The same as SCORER_MODEL.")
@click.option("--http_port", default="", help="The same as SCORER_PORT.")
@click.option("--workers", default="", help="The same as WEB_CONCURRENCY.")
@click.option("--nthread", default="", help="Without effect: a worker scores on one core.")
def serve(model_name: str, model_dir: str, http_port: str, workers: str, nthread: str) -> None:
    """Serve the model of SCORER_MODEL until told to stop.

    The options are those that KServe gives its runtimes.
    """
    from service.master import run_server

    if not model_dir and not os.environ.get("SCORER_MODEL") and os.environ.get("STORAGE_URI"):
        model_dir = KSERVE_MODELS
    given = {
        "SCORER_MODEL_NAME": model_name,
        "SCORER_MODEL": model_dir,
        "SCORER_PORT": http_port,
        "WEB_CONCURRENCY": workers,
    }
    # Into the environment, which workers read, and a HUP reads again.
    os.environ.update({name: value for name, value in given.items() if value})
    run_server()


@main.command()
@click.argument("model")
@click.option("--sha256", default="", help="Refuse any file but the one with this digest.")
@click.option("--json", "as_json", is_flag=True, help="Say it as JSON: the admission record, or the faults.")
@click.option(
    "--record", type=click.Path(path_type=Path, dir_okay=False), help="Write the admission record to this file."
)
def check(model: str, sha256: str, as_json: bool, record: Path | None) -> None:
    """Say whether MODEL, a file, a folder of versions or a URI, can be served, and what it expects.

    The exit code is 0 if it can, 1 if it cannot.
    """
    from service.admission import write_record
    from service.models import load_model

    try:
        loaded = load_model(read_model_settings(model, SCORER_MODEL_SHA256=sha256))
        if record is not None:
            write_record(loaded.record, record)
    except StartError as error:
        report_refusal(model, error, as_json)
    click.echo(describe_as_json(loaded) if as_json else describe(model, loaded))


def report_refusal(model: str, error: StartError, as_json: bool) -> NoReturn:
    """One fault is one line; several are a list below one line."""
    if as_json:
        click.echo(json.dumps({"servable": False, "faults": error.faults}, indent=2))
        sys.exit(1)
    if len(error.faults) == 1:
        raise error
    title = click.style(f"{model} cannot be served, {len(error.faults)} faults:", fg="red", bold=True)
    lines = (f"\n  {fault.removeprefix(f'{model}: ')}" for fault in error.faults)
    click.echo(f"xgboost-server: {title}{''.join(lines)}", err=True)
    sys.exit(1)


def describe_as_json(loaded: LoadedModel) -> str:
    document = {
        "servable": True,
        "faults": [],
        "engine": loaded.predictor.engine,
        "reason": loaded.predictor.reason,
        "record": json.loads(loaded.record.to_json()),
    }
    return json.dumps(document, indent=2)


def describe(model: str, loaded: LoadedModel) -> str:
    record, contract, predictor = loaded.record, loaded.record.contract, loaded.predictor
    engine = "packed: kernels of our own" if predictor.engine == "packed" else f"XGBoost, as {predictor.reason}"
    rows = [
        ("digest", f"sha256:{record.digest}"),
        ("version", loaded.identity.version),
        ("file", f"{record.bytes:,} bytes, written by XGBoost {record.xgboost}"),
        ("objective", contract.objective),
        ("trees", f"{record.trees:,} ({record.booster})"),
        ("rounds", f"{contract.rounds:,}"),
        ("features", f"{contract.features:,}"),
        ("names", some_of(contract.feature_names) or "none: rows are lists in the model's order"),
        ("categories", some_of(names_of_categories(contract)) or "none"),
        ("outputs", f"{contract.outputs:,}"),
        ("golden rows", f"{record.golden_rows:,} reproduced" if record.golden_rows else "none"),
        ("engine", engine),
    ]
    title = click.style(f"{model} can be served", fg="green", bold=True)
    return definition_list(title, [(click.style(name, bold=True), value) for name, value in rows])


def names_of_categories(contract: Contract) -> list[str]:
    names = contract.feature_names or [f"feature {number}" for number in range(contract.features)]
    return [name for name, kind in zip(names, contract.feature_types, strict=False) if kind == "c"]


def some_of(names: Sequence[str], most: int = 40) -> str:
    more = [f"and {len(names) - most:,} more"] if len(names) > most else []
    return ", ".join([*names[:most], *more])


@main.command()
@click.argument("uri")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--sha256", default="", envvar="SCORER_MODEL_SHA256", help="Refuse any file but the one with this digest."
)
@click.option("--max-bytes", default="", envvar="SCORER_MODEL_MAX_BYTES", help="Largest model file to take (1 GiB).")
@click.option(
    "--timeout", default="", envvar="SCORER_FETCH_TIMEOUT_SECONDS", help="Longest time to take, in seconds (600)."
)
def fetch(uri: str, folder: Path, sha256: str, max_bytes: str, timeout: str) -> None:
    """Bring the model of URI (s3, gs, az, https) into FOLDER, for `serve` to find there.

    The file of a URI becomes FOLDER/model.ubj or .json; of a folder of versions, the newest becomes FOLDER/<version>/model.ubj.
    Exit codes: 0 it is there, 1 refused, 75 a later attempt may succeed.
    """
    from service import sources

    own = {
        "SCORER_MODEL": uri,
        "SCORER_MODEL_SHA256": sha256,
        "SCORER_MODEL_MAX_BYTES": max_bytes,
        "SCORER_FETCH_TIMEOUT_SECONDS": timeout,
        "SCORER_MODEL_HTTPS_HOSTS": os.environ.get("SCORER_MODEL_HTTPS_HOSTS", ""),
    }
    with Bar() as bar:
        found = sources.fetch(read_settings(own), folder, bar.show, is_cache=False)
    how = "fetched" if found.is_new else "already there"
    click.echo(f"{found.path}: {how}, version {found.version}, {found.size:,} bytes, sha256:{found.digest}")


@main.command()
def settings() -> None:
    """List every setting: its value here, its default and its meaning."""
    values = vars(read_settings({"SCORER_MODEL": "-", **os.environ}))
    rows = []
    for setting in SETTINGS:
        value = values[setting.attribute] if setting.variable in os.environ else setting.default
        rows.append((f"{setting.variable}={value}", f"{setting.meaning} (default: {setting.default or 'none'})"))
    click.echo(definition_list("Settings", rows))


class Bar:
    """How far a fetch is: a bar on a terminal, else a line every few seconds, both on standard error."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._bar: Any = None
        self._shown = 0
        self._next_line = time.monotonic() + LINE_SECONDS

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def show(self, progress: FetchProgress) -> None:
        if progress.note:
            click.echo(f"xgboost-server: {progress.note}", err=True)
        elif sys.stderr.isatty() and progress.total:
            self._draw(progress.received, progress.total)
        elif time.monotonic() >= self._next_line and progress.state != "fetched":
            self._next_line = time.monotonic() + LINE_SECONDS
            click.echo(f"xgboost-server: {progress}", err=True)

    def _draw(self, received: int, total: int) -> None:
        if self._bar is None:
            bar = click.progressbar(length=total, label="fetching", file=sys.stderr)
            self._bar = self._stack.enter_context(bar)
        self._bar.update(received - self._shown)
        self._shown = received


def definition_list(title: str, rows: list[tuple[str, str]]) -> str:
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else MOST_COLUMNS
    formatter = click.HelpFormatter(width=min(columns, MOST_COLUMNS))
    with formatter.section(title):
        formatter.write_dl(rows)
    return formatter.getvalue().rstrip()


def read_model_settings(model: str, **more: str) -> Settings:
    """What a command that is given a model needs; the server's own settings may stand wrong in this environment."""
    kept = {name: value for name, value in os.environ.items() if name in KEPT}
    return read_settings({**kept, "SCORER_MODEL": model, **more})


@main.command()
@click.argument("model")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(model: str, as_json: bool) -> None:
    """Say what MODEL is, how large and how fast."""
    from service.inspection import describe, inspect_model

    found = inspect_model(read_model_settings(model))
    if as_json:
        click.echo(orjson.dumps(asdict(found), option=orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS))
        return
    sections = describe(found)
    click.echo("\n\n".join(definition_list(click.style(title, bold=True), rows) for title, rows in sections))


@main.command()
@click.argument("model")
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("-o", "--output", type=click.Path(path_type=Path, allow_dash=True), default="-", help="Default: stdout.")
@click.option("--format", "named_format", type=FORMAT, help="Of what has no name that tells it: a pipe, rows.txt.")
@click.option("--to", "output_format", type=FORMAT, help="Of the output, where neither its name nor --format is right.")
@click.option("--keep", multiple=True, metavar="COLUMN", help="Copy this column to the output. May be repeated.")
@click.option("--ignore", multiple=True, metavar="COLUMN", help="Pass over this column. May be repeated.")
@click.option("--margin", is_flag=True, help="Give the sums before the objective's transformation.")
@click.option("-q", "--quiet", is_flag=True, help="Show no progress on the terminal.")
def score(
    model: str,
    file: Path,
    output: Path,
    named_format: str | None,
    output_format: str | None,
    keep: tuple[str, ...],
    ignore: tuple[str, ...],
    margin: bool,
    quiet: bool,
) -> None:
    """Score every row of FILE with MODEL; - is standard input.

    Formats: csv, jsonl, parquet, arrow; by name, or --format. Columns are found by name where MODEL has names and FILE
    has them too, in any order. An empty cell, NaN and null are missing values. The output appears when it is whole.
    """
    from service import files
    from service.files.columns import Wanted
    from service.models import load_model
    from service.scoring import Scorer

    source_path, target_path = (None if str(path) == "-" else path for path in (file, output))
    try:
        job = files.plan(source_path, target_path, named_format, output_format)
        with shell_signals(), files.open_source(job, sys.stdin.buffer) as source:
            scorer = Scorer(load_model(read_model_settings(model)))
            with files.open_target(job, sys.stdout.buffer) as target:
                wanted = Wanted(
                    scorer.contract.features, scorer.contract.feature_names, tuple(dict.fromkeys(keep)), ignore
                )
                progress = files.score_file(scorer, source, target, wanted, margin)
                follow(progress, source.size is not None, is_hidden=quiet or target.is_terminal)
    except RowsFileError as error:
        click.echo(f"xgboost-server: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


@contextmanager
def shell_signals() -> Iterator[None]:
    """As of other filters: whoever closes the pipe ends it without a word; TERM and HUP leave no half file behind."""

    def stop(number: int, _: object) -> None:
        sys.exit(128 + number)

    before = {number: signal.getsignal(number) for number in (signal.SIGPIPE, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, stop)
    if before[signal.SIGHUP] != signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, stop)
    try:
        yield
    finally:
        for number, action in before.items():
            signal.signal(number, action)


def follow(progress: Iterator[Progress], has_length: bool, is_hidden: bool) -> None:
    """Run to the end, with a bar and a last line on standard error if that is a terminal."""
    began, rows = time.perf_counter(), 0
    if is_hidden or not sys.stderr.isatty():
        for _ in progress:
            pass
        return
    width = max(4, min(36, shutil.get_terminal_size().columns - 44))
    # Without a length click shows that something moves.
    steps = {"length": BAR_STEPS} if has_length else {"iterable": (None for _ in ())}
    with click.progressbar(
        **steps, width=width, file=sys.stderr, item_show_func=lambda count: f"{count or 0:,} rows"
    ) as bar:
        for done in progress:
            rows = done.rows
            bar.update(int((done.share or 0) * BAR_STEPS) - bar.pos if has_length else 1, rows)
        bar.update(BAR_STEPS - bar.pos if has_length else 0, rows)
    seconds = time.perf_counter() - began
    click.echo(f"{rows:,} rows scored in {seconds:,.1f} s, {rows / seconds:,.0f} a second", err=True)


if __name__ == "__main__":
    main()
