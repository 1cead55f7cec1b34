"""Rows as text: CSV (RFC 4180) and JSON lines. Numbers are read as the wires read them, so that scores are the same.

The cells of a CSV file are put together as one JSON list, which one parse in C turns into numbers. Only where that fails
they are read one by one, in Python, which also reads what JSON does not know (`+1`, `.5`) and finds the place of a fault.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, BinaryIO, TypeVar

import numpy as np
import orjson

from service.batch import Batch, Floats
from service.errors import InvalidInputError, MalformedBodyError, RowsFileError
from service.files.columns import (
    Column,
    Layout,
    Piece,
    Source,
    Wanted,
    count_rows,
    lay_out,
    lay_out_unnamed,
)
from service.wire.matrix import kind, only_numbers, read_document, read_rows, to_matrix

# A line beyond this is no line of a table; a file without line ends must not fill the memory.
MOST_LINE_BYTES = 16 * 2**20
# Rows with long texts beside the features are taken in smaller pieces.
MOST_PIECE_BYTES = 16 * 2**20
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
NUMPY = orjson.OPT_SERIALIZE_NUMPY

NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:e[+-]?\d+)?", re.ASCII)
INFINITY = re.compile(r"[+-]?inf(?:inity)?")
WORDS = {"": np.nan, "nan": np.nan, "null": np.nan, "true": 1.0, "false": 0.0}

Record = TypeVar("Record")


class Lines:
    """Lines of a file with their ends, counted."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.number = 0
        self.position = 0

    def __iter__(self) -> Iterator[bytes]:
        readline = self.source.file.readline
        while line := readline(MOST_LINE_BYTES):
            self.number += 1
            self.position += len(line)
            if len(line) == MOST_LINE_BYTES:
                raise self.fault(self.number, f"longer than {MOST_LINE_BYTES} bytes")
            yield line.removeprefix(BYTE_ORDER_MARK) if self.number == 1 else line

    def texts(self) -> Iterator[str]:
        for line in self:
            try:
                yield line.decode()
            except UnicodeDecodeError:
                raise self.fault(self.number, "not UTF-8") from None

    def fault(self, line: int, problem: str, column: str = "") -> RowsFileError:
        return RowsFileError(self.source.name, f"line {line}{column and f', column {column}'}", problem)

    def take(self, records: Iterator[Record], rows: int) -> Iterator[list[Record]]:
        """Lists of so many records, fewer where they are long."""
        taken: list[Record] = []
        began = self.position
        for record in records:
            taken.append(record)
            if len(taken) == rows or self.position - began > MOST_PIECE_BYTES:
                yield taken
                taken, began = [], self.position
        if taken:
            yield taken


def make_empty(layout: Layout, place: str) -> Piece:
    """No rows of these columns."""
    values = np.empty((0, len(layout.features)), np.float32)
    return Piece(Batch(values, place, layout.names), {name: [] for name in layout.kept})


# CSV.

Cells = tuple[int, list[str]]


def read_csv(source: Source, wanted: Wanted) -> Iterator[Piece]:
    """Pieces of a CSV file, the first without rows."""
    lines = Lines(source)
    records = read_cells(lines)
    first = next(records, None)
    if first is None:
        raise RowsFileError(source.name, "", "is empty; expected a header or rows")
    header = first[1] if is_header(first, wanted, lines) else None
    if header is None:
        layout = lay_out_unnamed(len(first[1]), wanted, source.name)
        records = chain([first], records)
    else:
        layout = lay_out(header, wanted, source.name)
    yield make_empty(layout, "line 1" if header is None else "header")
    for taken in lines.take(records, count_rows(layout.width)):
        verify_widths(taken, layout.width, lines)
        rows = [cells for _, cells in taken]
        values = read_plain_numbers(rows, layout)
        if values is None:
            values = read_all_numbers(taken, layout, header, lines)
        kept = {name: [row[at] for row in rows] for name, at in layout.kept.items()}
        yield Piece(Batch(values, "", layout.names), kept, source.share(lines.position))


def read_cells(lines: Lines) -> Iterator[Cells]:
    """Records with the line that each begins in. Empty lines are the end: elsewhere a score would be missing."""
    reader = csv.reader(lines.texts(), strict=True)
    line, empty = 1, 0
    try:
        for cells in reader:
            if cells and empty:
                raise lines.fault(empty, "expected values, got an empty line")
            if cells:
                yield line, cells
            else:
                empty = empty or line
            line = reader.line_num + 1
    except csv.Error as error:
        raise lines.fault(reader.line_num, f"not CSV: {error}") from None


def is_header(first: Cells, wanted: Wanted, lines: Lines) -> bool:
    """Whether the first record holds names: the model's, even if they look like numbers, or nothing but texts."""
    line, cells = first
    named = {*wanted.features, *wanted.keep, *wanted.ignore}
    if named and named <= set(cells):
        return True
    is_number = [NUMBER.fullmatch(cell.strip().lower()) is not None for cell in cells]
    is_text = [not number and cell.strip().lower() not in WORDS for number, cell in zip(is_number, cells, strict=True)]
    if any(is_text) and any(is_number):
        raise lines.fault(line, "numbers and texts in one line; expected a header with names, or numbers alone")
    return any(is_text)


def verify_widths(taken: list[Cells], width: int, lines: Lines) -> None:
    if {width} == set(map(len, (cells for _, cells in taken))):
        return
    for line, cells in taken:
        if len(cells) != width:
            raise lines.fault(line, f"expected {width} values as in the first line, got {len(cells)}")


def read_plain_numbers(rows: list[list[str]], layout: Layout) -> Floats | None:
    """The features as float32, or None if they are not all numbers as JSON writes them, NaN or empty."""
    features = layout.features
    shape = len(rows), len(features)
    if 0 in shape:
        return np.empty(shape, np.float32)
    if len(features) == layout.width:
        cells = [cell or "null" for cell in chain.from_iterable(rows)]
    else:
        cells = [row[at] or "null" for row in rows for at in features]
    try:
        numbers = read_document(b"[%b]" % ",".join(cells).encode())
        # A cell with a comma in it would be two numbers, one with a bracket or a quote would be no number.
        if len(numbers) != len(cells) or not only_numbers(numbers):
            return None
        return to_matrix([numbers], "").reshape(shape)
    except (MalformedBodyError, InvalidInputError):
        return None


def read_all_numbers(taken: list[Cells], layout: Layout, header: list[str] | None, lines: Lines) -> Floats:
    """The features as float32, or the place of the first cell that cannot be one."""
    values = np.empty((len(taken), len(layout.features)), np.float32)
    for row, (line, cells) in zip(values, taken, strict=True):
        for i, at in enumerate(layout.features):
            try:
                row[i] = read_number(cells[at])
            except ValueError as error:
                raise lines.fault(line, str(error), f"'{header[at]}'" if header else str(at + 1)) from None
    return values


def read_number(cell: str) -> np.float32:
    """Rounded to float64 and then to float32, as JSON's numbers are."""
    text = cell.strip().lower()
    if text in WORDS:
        return np.float32(WORDS[text])
    if not NUMBER.fullmatch(text) and not INFINITY.fullmatch(text):
        raise ValueError("expected a number, got text")
    with np.errstate(over="ignore"):
        value = np.float32(float(text))
    if np.isinf(value):
        raise ValueError("expected a finite number that float32 can hold")
    return value


class CsvWriter:
    """A header, and a line a row; missing kept values are empty."""

    def __init__(self, file: BinaryIO, kept: Sequence[str], scores: Sequence[str]) -> None:
        self._file = file
        self._write_rows([[*kept, *scores]])

    def write(self, kept: dict[str, Column], scores: Floats) -> None:
        columns = [[to_cell(value) for value in to_texts(column)] for column in kept.values()]
        self._write_rows(zip(*columns, *number_texts(scores), strict=True))

    def _write_rows(self, rows: Any) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        self._file.write(text.getvalue().encode())

    def close(self) -> None:
        """Nothing is left to write."""


def number_texts(scores: Floats) -> list[list[str]]:
    """For each column the shortest decimal numbers that read back as the same float32."""
    if not len(scores):
        return [[] for _ in range(scores.shape[1])]
    columns = np.ascontiguousarray(scores.T)
    return [orjson.dumps(column, option=NUMPY)[1:-1].decode().split(",") for column in columns]


def to_texts(column: Column) -> list[Any]:
    """Arrow writes the shortest form of its own types; Python would widen a float32 first."""
    if isinstance(column, list):
        return column
    try:
        return list(column.cast("string").to_pylist())
    except (NotImplementedError, ValueError):
        raise RowsFileError("", "", f"a column of type {column.type} cannot be kept in CSV") from None


def to_cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else orjson.dumps(value).decode()


# JSON lines.

Document = tuple[int, bytes, Any]
# Where `wire.matrix` finds a fault: in this row, and then a key or a number.
PLACE = re.compile(r"rows\[(\d+)\](?:\.(.*)|\[(\d+)\])?", re.DOTALL)


def read_jsonl(source: Source, wanted: Wanted) -> Iterator[Piece]:
    """Pieces of a file with an object or a list in every line, the first without rows."""
    lines = Lines(source)
    documents = read_documents(lines)
    first = next(documents, None)
    if first is None:
        yield make_empty(Layout(tuple(range(wanted.width)), dict.fromkeys(wanted.keep, 0), None, wanted.width), "")
        return
    is_named = isinstance(first[2], dict)
    width = len(first[2])
    layout = lay_out(list(first[2]), wanted, source.name) if is_named else lay_out_unnamed(width, wanted, source.name)
    yield make_empty(layout, f"line {first[0]}")
    for taken in lines.take(chain([first], documents), count_rows(width)):
        for line, _, row in taken:
            if isinstance(row, dict) != is_named:
                raise lines.fault(line, f"expected {kind(first[2])} as in the first line, got {kind(row)}")
        kept = take_kept(taken, wanted, lines) if is_named else {}
        try:
            values, names = read_rows(
                [row for _, _, row in taken],
                "rows",
                keys=count_colons(taken, wanted) if is_named else 0,
                body=b"[%b]" % b",".join(raw for _, raw, _ in taken),
            )
        except (InvalidInputError, MalformedBodyError) as error:
            raise explain(error, taken, lines) from None
        yield Piece(Batch(values, f"line {taken[0][0]}", names), kept, source.share(lines.position))


def read_documents(lines: Lines) -> Iterator[Document]:
    """Line, bytes and value of every line. Empty lines are the end: elsewhere a score would be missing."""
    empty = 0
    for raw in lines:
        if not raw.strip():
            empty = empty or lines.number
            continue
        if empty:
            raise lines.fault(empty, "expected an object or a list, got an empty line")
        try:
            row = read_document(raw.rstrip())
        except MalformedBodyError as error:
            # The line is this one and not the first, of which the parser speaks.
            raise lines.fault(lines.number, error.message.replace(" at line 1, column", " at character")) from None
        if not isinstance(row, dict | list):
            raise lines.fault(lines.number, f"expected an object or a list of numbers, got {kind(row)}")
        yield lines.number, raw, row


def take_kept(taken: list[Document], wanted: Wanted, lines: Lines) -> dict[str, Column]:
    """Kept values; they are taken out of the rows, and those to ignore with them, unless they are features."""
    kept: dict[str, Column] = {name: [] for name in wanted.keep}
    for line, _, row in taken:
        for name in {*wanted.keep, *wanted.ignore}:
            if name not in row:
                raise lines.fault(line, f"missing '{name}'")
        for name in wanted.keep:
            kept[name].append(row[name])
        for name in no_features(wanted):
            del row[name]
    return kept


def no_features(wanted: Wanted) -> set[str]:
    return {*wanted.ignore, *set(wanted.keep).difference(wanted.features)}


def count_colons(taken: list[Document], wanted: Wanted) -> int:
    """Of keys that `take_kept` took out; `read_rows` counts colons to see whether a key is given twice."""
    return len(taken) * sum(1 + name.count(":") for name in no_features(wanted))


def explain(error: InvalidInputError | MalformedBodyError, taken: list[Document], lines: Lines) -> RowsFileError:
    """The fault with its line; where the error has no place, each line is asked alone."""
    place = PLACE.fullmatch(getattr(error, "place", ""))
    if place:
        number, name, index = place.groups()
        line, _, row = taken[int(number)]
        if index is not None and isinstance(row, dict):
            name = list(taken[0][2])[int(index)]
        column = f"'{name}'" if name is not None else str(int(index) + 1) if index is not None else ""
        return lines.fault(line, error.message.removeprefix(f"{place[0]}: "), column)
    for line, raw, row in taken:
        try:
            read_rows([row], "rows", keys=0, body=b"[%b]" % raw)
        except (InvalidInputError, MalformedBodyError) as found:
            return lines.fault(line, found.message.removeprefix("rows: "))
    return lines.fault(taken[0][0], error.message)


class JsonLinesWriter:
    """An object a row."""

    def __init__(self, file: BinaryIO, kept: Sequence[str], scores: Sequence[str]) -> None:
        self._file = file
        self._names = [*kept, *scores]

    def write(self, kept: dict[str, Column], scores: Floats) -> None:
        columns = [column if isinstance(column, list) else column.to_pylist() for column in kept.values()]
        rows = zip(*columns, *map(list, scores.T), strict=True)
        option = NUMPY | orjson.OPT_APPEND_NEWLINE
        objects = (dict(zip(self._names, row, strict=True)) for row in rows)
        self._file.writelines(orjson.dumps(row, default=str, option=option) for row in objects)

    def close(self) -> None:
        """Nothing is left to write."""
