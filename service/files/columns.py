"""Which columns of a file are features, which go to the output as they are, and which are passed over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

from service.batch import Batch, Floats
from service.errors import RowsFileError
from service.wire.matrix import shown

# Rows read, scored and written at once; fewer where there are many columns, so that memory does not grow with either.
MOST_ROWS = 8192
MOST_CELLS = 2**18

# Values that go to the output as they are: a list of Python's, or an Arrow array.
Column = Any


@dataclass(frozen=True)
class Wanted:
    """What to look for in a file: so many features, their names if the model has them, and what to do with the rest."""

    width: int
    features: tuple[str, ...] = ()
    keep: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """Where features and kept columns stand; `names` are those of the features, None if they are in the model's order."""

    features: tuple[int, ...]
    kept: dict[str, int]
    names: tuple[str, ...] | None
    width: int


@dataclass(frozen=True)
class Source:
    """A file of rows that is open for reading; `size` is None where it comes through a pipe."""

    file: BinaryIO
    name: str
    format: str
    size: int | None = None

    def share(self, position: int) -> float | None:
        return position / self.size if self.size else None


@dataclass(slots=True)
class Piece:
    """Some rows of a file, what is kept of them, and the share of the file that ends with them, if that is known."""

    batch: Batch
    kept: dict[str, Column]
    share: float | None = None


class Writer(Protocol):
    """Takes scores (rows, outputs) and what is kept of the same rows; the file is whole after `close`."""

    def write(self, kept: dict[str, Column], scores: Floats) -> None: ...

    def close(self) -> None: ...


def count_rows(columns: int) -> int:
    """Rows to take at once of a file with so many columns."""
    return max(1, min(MOST_ROWS, MOST_CELLS // max(columns, 1)))


def lay_out(header: Sequence[str], wanted: Wanted, name: str) -> Layout:
    """The places of all columns of a file with this header. A kept feature is scored as well."""
    named = {*wanted.keep, *wanted.ignore}
    absent = [column for column in sorted(named) if column not in header]
    if absent:
        raise RowsFileError(name, "", f"has no column {shown(absent)} to keep or to ignore")
    twice = [column for column in sorted(named) if header.count(column) > 1]
    if twice:
        raise RowsFileError(name, "", f"given twice: {shown(twice)}")
    no_features = {*wanted.ignore, *set(wanted.keep).difference(wanted.features)}
    features = tuple(i for i, column in enumerate(header) if column not in no_features)
    names = tuple(header[i] for i in features) if wanted.features else None
    return Layout(features, {column: header.index(column) for column in wanted.keep}, names, len(header))


def lay_out_unnamed(width: int, wanted: Wanted, name: str) -> Layout:
    """The places of columns without names: all are features, in the model's order."""
    if wanted.keep or wanted.ignore:
        raise RowsFileError(name, "", "has no column names; --keep and --ignore need them")
    return Layout(tuple(range(width)), {}, None, width)
