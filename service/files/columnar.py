"""Rows as columns: Parquet, and Arrow's file and stream. The only room that imports pyarrow, and only when it is needed.

pyarrow 26 takes 170 MB on disk; the image does without it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np

from service.batch import Batch, Floats
from service.errors import RowsFileError
from service.files.columns import MOST_ROWS, Column, Piece, Source, Wanted, count_rows, lay_out

MISSING = "this needs pyarrow: pip install --require-hashes -r requirements/files.txt"
ARROW_FILE = b"ARROW1"
# Read and decompressed at once, of each column.
PARQUET_BUFFER_BYTES = 2**20
# Rows of a row group: few make a file slow to read, many have to be held in memory until they are written.
ROW_GROUP_ROWS = 2**17
# Long texts beside the scores are written sooner.
MOST_HELD_BYTES = 2**26


def import_pyarrow(name: str) -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise RowsFileError(name, "", MISSING) from None
    return pyarrow


@contextmanager
def arrow_faults(arrow: Any, name: str, problem: str) -> Iterator[None]:
    """What pyarrow says of a file, in one line."""
    try:
        yield
    except (arrow.ArrowException, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise RowsFileError(name, "", f"{problem}: {reason}") from None


def read_parquet(source: Source, wanted: Wanted) -> Iterator[Piece]:
    """Pieces of a Parquet file, the first without rows."""
    arrow = import_pyarrow(source.name)
    if not source.file.seekable():
        raise RowsFileError(source.name, "", "Parquet begins at the end of the file; expected a file, not a pipe")
    with arrow_faults(arrow, source.name, "cannot be read as Parquet"):
        # Without `pre_buffer=False` whole row groups are held in memory, as large as whoever wrote them liked.
        file = arrow.parquet.ParquetFile(source.file, pre_buffer=False, buffer_size=PARQUET_BUFFER_BYTES)
        total = file.metadata.num_rows
        columns = Columns(arrow, source.name, file.schema_arrow, wanted)
        yield columns.make_empty()
        columns.verify_types()
        done = 0
        for batch in file.iter_batches(columns.rows, columns=columns.names, use_threads=False):
            done += batch.num_rows
            yield columns.to_piece(batch, done / max(total, 1))


def read_arrow(source: Source, wanted: Wanted) -> Iterator[Piece]:
    """Pieces of an Arrow file or stream, the first without rows."""
    arrow = import_pyarrow(source.name)
    with arrow_faults(arrow, source.name, "cannot be read as Arrow"):
        batches, schema = open_arrow(arrow, source)
        columns = Columns(arrow, source.name, schema, wanted)
        yield columns.make_empty()
        columns.verify_types()
        for batch in batches:
            share = source.share(source.file.tell()) if source.size else None
            used = batch.select(columns.used)
            for start in range(0, batch.num_rows, columns.rows):
                yield columns.to_piece(used.slice(start, columns.rows), share)


def open_arrow(arrow: Any, source: Source) -> tuple[Iterator[Any], Any]:
    """The record batches and their schema; a file is told from a stream by its first bytes."""
    if source.file.seekable():
        is_file = source.file.read(len(ARROW_FILE)) == ARROW_FILE
        source.file.seek(0)
        if is_file:
            file = arrow.ipc.open_file(source.file)
            return (file.get_batch(i) for i in range(file.num_record_batches)), file.schema
    stream = arrow.ipc.open_stream(source.file)
    return iter(stream), stream.schema


class Columns:
    """What the columns of one schema mean, and how they become rows. `used` are those that are read, in the file's order."""

    def __init__(self, arrow: Any, name: str, schema: Any, wanted: Wanted) -> None:
        self._arrow = arrow
        self._name = name
        self._schema = schema
        self._layout = lay_out(schema.names, wanted, name)
        self._rows_done = 0
        self.rows = count_rows(len(schema.names))
        self.used = sorted({*self._layout.features, *self._layout.kept.values()})
        self.names = [schema.names[at] for at in self.used]

    def verify_types(self) -> None:
        types = self._arrow.types
        tests = types.is_integer, types.is_floating, types.is_boolean, types.is_decimal, types.is_null
        for at in self._layout.features:
            field = self._schema.field(at)
            kind = field.type.value_type if types.is_dictionary(field.type) else field.type
            if not any(test(kind) for test in tests):
                raise RowsFileError(self._name, f"column '{field.name}'", f"expected numbers, got {field.type}")

    def make_empty(self) -> Piece:
        """No rows of these columns."""
        table = self._schema.empty_table()
        kept = {name: self._decode(table.column(at)) for name, at in self._layout.kept.items()}
        values = np.empty((0, len(self._layout.features)), np.float32)
        return Piece(Batch(values, "columns", self._layout.names), kept)

    def to_piece(self, batch: Any, share: float | None) -> Piece:
        layout = self._layout
        values = np.empty((batch.num_rows, len(layout.features)), np.float32)
        for i, at in enumerate(layout.features):
            values[:, i] = self._to_floats(batch.column(self.used.index(at)), self._schema.names[at])
        self._rows_done += batch.num_rows
        kept = {name: self._decode(batch.column(self.used.index(at))) for name, at in layout.kept.items()}
        return Piece(Batch(values, "columns", layout.names), kept, share)

    def _decode(self, column: Any) -> Any:
        """A dictionary is its values: its codes are this file's own, or even this batch's."""
        is_encoded = self._arrow.types.is_dictionary(column.type)
        return column.cast(column.type.value_type) if is_encoded else column

    def _to_floats(self, column: Any, name: str) -> Floats:
        """Null is missing. Whole numbers and decimals are rounded to float64 and then to float32, as JSON's are."""
        column = self._decode(column)
        if self._arrow.types.is_decimal(column.type):
            column = column.cast("string")  # see test_decimals_are_rounded_to_the_nearest
        if not self._arrow.types.is_floating(column.type):
            column = column.cast("float64", safe=False)
        with np.errstate(over="ignore"):
            values: Floats = column.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
        infinite = np.isinf(values)
        if infinite.any():
            row = self._rows_done + int(infinite.argmax()) + 1
            place = f"row {row}, column '{name}'"
            raise RowsFileError(self._name, place, "expected a finite number that float32 can hold")
        return values


class ColumnarWriter:
    """Scores as float32 columns, beside what is kept; the types are those of the first rows."""

    def __init__(self, open_writer: Callable[[Any, Any], Any], name: str, scores: Sequence[str], rows: int) -> None:
        self._arrow = import_pyarrow(name)
        self._open_writer = open_writer
        self._name = name
        self._scores = scores
        self._rows = rows
        self._writer: Any = None
        self._schema: Any = None
        self._tables: list[Any] = []

    def write(self, kept: dict[str, Column], scores: Floats) -> None:
        arrays = {name: self._to_array(name, column) for name, column in kept.items()}
        arrays |= dict(zip(self._scores, map(self._arrow.array, np.ascontiguousarray(scores.T)), strict=True))
        self._tables.append(self._arrow.table(arrays))
        self._schema = self._tables[-1].schema
        if sum(map(len, self._tables)) >= self._rows or sum(table.nbytes for table in self._tables) >= MOST_HELD_BYTES:
            self._flush()

    def _to_array(self, name: str, column: Column) -> Any:
        if not isinstance(column, list):
            return column
        kind = self._schema.field(name).type if self._schema else None
        try:
            array = self._arrow.array(column, kind)
        except (self._arrow.ArrowException, OverflowError):
            problem = f"expected {kind} as in the first rows" if kind else "expected values of one type"
            raise RowsFileError(self._name, f"column '{name}'", problem) from None
        return array.cast("string") if self._arrow.types.is_null(array.type) else array

    def _flush(self) -> None:
        with arrow_faults(self._arrow, self._name, "cannot be written"):
            self._writer = self._writer or self._open_writer(self._arrow, self._schema)
            self._writer.write_table(self._arrow.concat_tables(self._tables).combine_chunks())
        self._tables = []

    def close(self) -> None:
        """Write what is left and the file's end."""
        if self._tables:
            self._flush()
        self._writer.close()


def create_parquet_writer(file: BinaryIO, name: str, scores: Sequence[str]) -> ColumnarWriter:
    return ColumnarWriter(lambda arrow, schema: arrow.parquet.ParquetWriter(file, schema), name, scores, ROW_GROUP_ROWS)


def create_arrow_writer(file: BinaryIO, name: str, scores: Sequence[str], is_stream: bool) -> ColumnarWriter:
    """Arrow's file has an index at its end; a stream goes through a pipe."""
    create = "new_stream" if is_stream else "new_file"
    return ColumnarWriter(lambda arrow, schema: getattr(arrow.ipc, create)(file, schema), name, scores, MOST_ROWS)
