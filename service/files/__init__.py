"""Scores of a whole file: CSV, JSON lines, Parquet and Arrow, in and out, a piece at a time, of any length.

A reader is a generator of pieces, each a `Batch` for the same `Scorer` that answers requests; a writer takes the scores.
The first piece has no rows: what is wrong with the columns is said before a number is read and a byte written.
The output appears under its name when it is whole and not before.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from service.batch import Batch, Floats
from service.errors import FeatureMismatchError, RowsFileError
from service.files.columnar import create_arrow_writer, create_parquet_writer, read_arrow, read_parquet
from service.files.columns import Piece, Source, Wanted, Writer
from service.files.text import CsvWriter, JsonLinesWriter, read_csv, read_jsonl
from service.scoring import Scorer
from service.wire.matrix import shown

STANDARD_INPUT = "standard input"
STANDARD_OUTPUT = "standard output"

READERS: dict[str, Callable[[Source, Wanted], Iterator[Piece]]] = {
    "csv": read_csv,
    "jsonl": read_jsonl,
    "parquet": read_parquet,
    "arrow": read_arrow,
}
BINARY = ("parquet", "arrow")
SUFFIXES = {
    ".csv": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}


@dataclass(frozen=True)
class Job:
    """From where to where, None for a standard stream, and in which formats."""

    source: Path | None
    target: Path | None
    source_format: str
    target_format: str


@dataclass(frozen=True)
class Target:
    """Where scores go: an open file, its name for messages, its format, and whether it is a pipe or a device."""

    file: BinaryIO
    name: str
    format: str
    is_stream: bool

    @property
    def is_terminal(self) -> bool:
        return self.is_stream and self.file.isatty()


@dataclass(frozen=True)
class Progress:
    """Rows scored so far, and the share of the file behind them if that is known."""

    rows: int
    share: float | None


def plan(source: Path | None, target: Path | None, named: str | None = None, output: str | None = None) -> Job:
    """Formats by the files' names; `named` is that of whatever has no name that tells it, `output` that of the target."""
    source_format = find_format(source) or named
    if source_format is None:
        what = str(source) if source else STANDARD_INPUT
        raise RowsFileError(what, "", f"expected a name that ends in {', '.join(SUFFIXES)}, or --format")
    target_format = output or find_format(target) or named or source_format
    if target is None and target_format == "parquet":
        raise RowsFileError(STANDARD_OUTPUT, "", "Parquet is not written to a pipe; expected -o FILE, or another --to")
    if source and target and target.is_file() and source.exists() and target.samefile(source):
        raise RowsFileError(str(target), "", "is the file to be scored; expected another one to write to")
    return Job(source, target, source_format, target_format)


def find_format(path: Path | None) -> str | None:
    return SUFFIXES.get(path.suffix.lower()) if path else None


def score_file(
    scorer: Scorer, source: Source, target: Target, wanted: Wanted, margin: bool = False
) -> Iterator[Progress]:
    """Write the scores of all rows; says after each piece how far it is."""
    score = Scoring(scorer, margin)
    names = name_scores("margin" if margin else "score", score.outputs)
    if set(names) & set(wanted.keep):
        raise RowsFileError(target.name, "", f"a column cannot be kept under the name of a score: {shown(names)}")
    pieces = READERS[source.format](source, wanted)
    first = next(pieces)
    none = score.of(first.batch, source.name)
    writer = create_writer(target, wanted.keep, names)
    rows = 0
    for piece in pieces:
        writer.write(piece.kept, score.of(piece.batch, source.name))
        rows += len(piece.batch.values)
        yield Progress(rows, piece.share)
    if not rows:
        writer.write(first.kept, none)
    writer.close()


class Scoring:
    """Scores, or margins, always as (rows, outputs)."""

    def __init__(self, scorer: Scorer, margin: bool) -> None:
        self._scorer = scorer
        self._predict = scorer.margins if margin else scorer.predict
        missing = Batch(np.full((1, scorer.contract.features), np.nan, np.float32), "")
        self.outputs = self._predict(missing).values.size

    def of(self, batch: Batch, name: str) -> Floats:
        try:
            self._scorer.align(batch)
        except FeatureMismatchError as error:
            hint = "; a column that is no feature is named with --keep or --ignore" if batch.names else ""
            raise RowsFileError(name, "", f"{error}{hint}") from None
        if not len(batch.values):
            return np.empty((0, self.outputs), np.float32)
        return self._predict(batch).values.reshape(-1, self.outputs)


def name_scores(stem: str, outputs: int) -> list[str]:
    return [stem] if outputs == 1 else [f"{stem}_{i}" for i in range(outputs)]


def create_writer(target: Target, kept: Sequence[str], scores: Sequence[str]) -> Writer:
    if target.format == "csv":
        return CsvWriter(target.file, kept, scores)
    if target.format == "jsonl":
        return JsonLinesWriter(target.file, kept, scores)
    if target.format == "arrow":
        return create_arrow_writer(target.file, target.name, scores, target.is_stream)
    return create_parquet_writer(target.file, target.name, scores)


@contextmanager
def open_source(job: Job, standard_input: BinaryIO) -> Iterator[Source]:
    """The file to be scored, open."""
    if job.source is None:
        yield Source(standard_input, STANDARD_INPUT, job.source_format)
        return
    try:
        file = job.source.open("rb")
    except OSError as error:
        raise RowsFileError(str(job.source), "", error.strerror or str(error)) from None
    with file:
        yield Source(file, str(job.source), job.source_format, os.fstat(file.fileno()).st_size or None)


@contextmanager
def open_target(job: Job, standard_output: BinaryIO) -> Iterator[Target]:
    """A file that gets its name when the block ends well and is gone if it does not; or a stream."""
    path, name = job.target, str(job.target or STANDARD_OUTPUT)
    try:
        if path is None:
            yield verify_target(Target(standard_output, name, job.target_format, is_stream=True))
            standard_output.flush()
        elif path.exists() and not path.is_file():
            with path.open("wb") as file:  # a device or a pipe is written to, not replaced
                yield verify_target(Target(file, name, job.target_format, is_stream=True))
        else:
            with open_beside(Path(os.path.realpath(path))) as file:
                yield Target(file, name, job.target_format, is_stream=False)
    except OSError as error:
        raise RowsFileError(name, "", error.strerror or str(error)) from None


def verify_target(target: Target) -> Target:
    if target.is_terminal and target.format in BINARY:
        raise RowsFileError(target.name, "", f"{target.format} is not for terminals; expected -o FILE, or another --to")
    return target


@contextmanager
def open_beside(path: Path) -> Iterator[BinaryIO]:
    """A new file in the same folder, renamed to the path once it is on the disk."""
    beside = path.with_name(f".{path.name}.{os.urandom(4).hex()}.part")
    with beside.open("xb") as file:
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(beside, path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
