"""`score` reads what the wires read, says where a file is wrong, and gives the numbers that the server gives."""

from __future__ import annotations

import csv
import decimal
import io
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow
import pyarrow.parquet
import pytest
import xgboost
from hypothesis import given, settings
from hypothesis import strategies as st

from service.batch import Floats
from service.errors import RowsFileError
from service.files import Progress, Target, plan, score_file
from service.files.columnar import Columns
from service.files.columns import MOST_CELLS, MOST_ROWS, Source, Wanted, count_rows
from service.files.text import MOST_LINE_BYTES
from service.models import load_model
from service.scoring import Scorer
from service.settings import read_settings
from tests.apps import Example, World
from tests.unit.engine_models import KINDS, train

FORMATS = ("csv", "jsonl", "parquet", "arrow")
Rows = list[list[Any]]


@dataclass(frozen=True)
class Desk:
    """Scores files that are in memory."""

    scorer: Scorer

    def score(self, data: bytes, format: str, to: str = "csv", margin: bool = False, **columns: Any) -> bytes:
        out = io.BytesIO()
        self.follow(data, format, out, to, margin, **columns)
        return out.getvalue()

    def follow(
        self, data: bytes, format: str, out: io.BytesIO, to: str = "csv", margin: bool = False, **columns: Any
    ) -> list[Progress]:
        contract = self.scorer.contract
        wanted = Wanted(contract.features, contract.feature_names, **columns)
        source = Source(io.BytesIO(data), "rows", format, len(data))
        return list(score_file(self.scorer, source, Target(out, "scores", to, is_stream=False), wanted, margin))

    def fault(self, data: bytes | str, format: str, to: str = "csv", **columns: Any) -> str:
        with pytest.raises(RowsFileError) as caught:
            self.score(data.encode() if isinstance(data, str) else data, format, to, **columns)
        return str(caught.value)


@pytest.fixture(scope="module")
def flowers(iris: Example) -> Desk:
    return Desk(Scorer(iris.model))


@pytest.fixture(scope="module")
def tumours(cancer: Example) -> Desk:
    return Desk(Scorer(cancer.model))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Desk, Any]]:
    """A small model of a kind, without feature names, and its booster."""

    def make(kind: str) -> tuple[Desk, Any]:
        booster = train(KINDS[kind], seed=5).booster if kind in KINDS else train_linear()
        path = tmp_path_factory.mktemp(kind) / "model.ubj"
        booster.save_model(path)
        return Desk(Scorer(load_model(read_settings({"SCORER_MODEL": str(path)})))), booster

    return make


def train_linear() -> Any:
    rng = np.random.default_rng(1)
    matrix = xgboost.DMatrix(rng.normal(size=(50, 3)), rng.normal(size=50), nthread=1)
    return xgboost.train({"booster": "gblinear", "nthread": 1}, matrix, 3)


def write_rows(rows: Rows, names: tuple[str, ...] | None, format: str) -> bytes:
    """The same rows in each format, null where a value is missing."""
    if format == "csv":
        return write_csv(rows, names)
    if format == "jsonl":
        lines = rows if names is None else [dict(zip(names, row, strict=True)) for row in rows]
        return b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    width = len(rows[0])
    table = pyarrow.table(
        {
            name: pyarrow.array([row[at] for row in rows])
            for at, name in enumerate(names or [f"column {i}" for i in range(width)])
        }
    )
    return write_table(table, format)


def write_csv(rows: Rows, names: tuple[str, ...] | None) -> bytes:
    out = io.StringIO()
    csv.writer(out).writerows([*([list(names)] if names else []), *rows])
    return out.getvalue().encode()


def write_table(table: Any, format: str) -> bytes:
    out = io.BytesIO()
    if format == "parquet":
        pyarrow.parquet.write_table(table, out)
    else:
        with pyarrow.ipc.new_stream(out, table.schema) as writer:
            writer.write_table(table)
    return out.getvalue()


def read_scores(data: bytes, format: str) -> Floats:
    """What another program reads, (rows, outputs)."""
    if format == "csv":
        return np.array(list(csv.reader(io.StringIO(data.decode())))[1:], np.float32)
    if format == "jsonl":
        return np.array([list(json.loads(line).values()) for line in data.splitlines()], np.float32)
    table = read_table(data, format)
    assert {field.type for field in table.schema} == {pyarrow.float32()}
    return np.column_stack([column.to_numpy() for column in table.columns])


def read_table(data: bytes, format: str) -> Any:
    if format == "parquet":
        return pyarrow.parquet.read_table(io.BytesIO(data))
    return pyarrow.ipc.open_file(io.BytesIO(data)).read_all()


def bits(values: Floats) -> Any:
    return np.ascontiguousarray(values, np.float32).reshape(-1).view(np.uint32).tolist()


# The same numbers.


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("to", FORMATS)
def test_golden_rows_get_their_golden_scores(cancer: Example, tumours: Desk, format: str, to: str) -> None:
    """From any format to any other, columns in another order than the model's."""
    order = np.random.default_rng(3).permutation(len(cancer.names))
    rows = [[None if np.isnan(row[at]) else float(row[at]) for at in order] for row in cancer.rows]
    data = write_rows(rows, tuple(cancer.names[at] for at in order), format)
    assert bits(read_scores(tumours.score(data, format, to), to)) == bits(cancer.scores)
    assert bits(read_scores(tumours.score(data, format, to, margin=True), to)) == bits(cancer.margins)


numbers = (
    st.none() | st.floats(width=64, allow_nan=False, min_value=-3e38, max_value=3e38) | st.integers(-(2**70), 2**70)
)


@settings(max_examples=60, derandomize=True, database=None, deadline=None)
@given(rows=st.lists(st.lists(numbers, min_size=4, max_size=4), min_size=1, max_size=12))
def test_all_formats_and_the_server_give_the_same_bits(iris: Example, flowers: Desk, rows: Rows) -> None:
    """Numbers that float32 cannot hold exactly are rounded alike, wherever they come from."""
    scores = set()
    for format in FORMATS:
        # Arrow has columns of one type, and none for whole numbers beyond 64 bits.
        typed = rows if format in ("csv", "jsonl") else [[None if v is None else float(v) for v in row] for row in rows]
        for names in (iris.names, None):
            if names is None and format in ("parquet", "arrow"):
                continue
            data = write_rows(typed, names, format)
            scores.add(tuple(bits(read_scores(flowers.score(data, format, "parquet", margin=True), "parquet"))))
            assert flowers.score(data, format, "csv") == flowers.score(data, format, "csv")
    assert len(scores) == 1


@settings(max_examples=40, derandomize=True, database=None, deadline=None)
@given(rows=st.lists(st.lists(numbers, min_size=30, max_size=30), min_size=1, max_size=4))
def test_a_file_gets_the_scores_that_a_request_gets(cancer: Example, tumours: Desk, rows: Rows) -> None:
    """One model, one answer, whatever the way in."""
    response = World(cancer.model).client.post("/predict", data=orjson.dumps([list(map(small, row)) for row in rows]))
    served = np.array(response.get_json()["prediction"], np.float32)
    for format in FORMATS:
        typed = rows if format in ("csv", "jsonl") else [[None if v is None else float(v) for v in row] for row in rows]
        data = write_rows(typed, cancer.names, format)
        assert bits(read_scores(tumours.score(data, format, "jsonl"), "jsonl")) == bits(served)


def small(value: Any) -> Any:
    """orjson writes no integers beyond 64 bits; it reads them as the nearest float64."""
    return float(value) if isinstance(value, int) else value


def test_a_row_gets_the_same_score_in_whatever_piece_it_travels(cancer: Example, tumours: Desk) -> None:
    """More rows than are taken at once; golden rows stand all over the file."""
    times = MOST_ROWS // len(cancer.rows) + 2
    rows = [[None if np.isnan(v) else float(v) for v in row] for row in cancer.rows] * times
    for format in FORMATS:
        out = io.BytesIO()
        progress = tumours.follow(write_rows(rows, cancer.names, format), format, out, "parquet")
        assert len(progress) > 1
        assert progress[-1].rows == len(rows)
        assert bits(read_scores(out.getvalue(), "parquet")) == bits(cancer.scores) * times


def test_each_output_has_a_column(trained: Callable[[str], tuple[Desk, Any]]) -> None:
    desk, booster = trained("softprob")
    features = booster.num_features()
    rows = np.random.default_rng(0).normal(size=(20, features)).astype(np.float32)
    data = write_rows(rows.tolist(), None, "csv")
    assert desk.score(data, "csv").splitlines()[0] == b"score_0,score_1,score_2,score_3"
    assert desk.score(data, "csv", margin=True).splitlines()[0] == b"margin_0,margin_1,margin_2,margin_3"
    wanted = [booster.predict(xgboost.DMatrix(row[np.newaxis], nthread=1), output_margin=True) for row in rows]
    assert bits(read_scores(desk.score(data, "csv", margin=True), "csv")) == bits(np.concatenate(wanted))


def test_a_model_that_xgboost_serves_scores_files_as_well(trained: Callable[[str], tuple[Desk, Any]]) -> None:
    """gblinear cannot be packed."""
    desk, booster = trained("gblinear")
    assert desk.scorer.predictor.engine == "xgboost"
    rows = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    for margin in (False, True):
        scores = read_scores(desk.score(write_rows(rows.tolist(), None, "csv"), "csv", "parquet", margin), "parquet")
        assert bits(scores) == bits(booster.predict(xgboost.DMatrix(rows, nthread=1), output_margin=margin))


def test_scores_are_written_as_the_shortest_text_that_reads_back(cancer: Example, tumours: Desk) -> None:
    data = write_rows([[float(v) for v in np.nan_to_num(row)] for row in cancer.rows], cancer.names, "csv")
    for line in tumours.score(data, "csv").decode().splitlines()[1:]:
        assert float(line) == float(str(np.float32(line)))


# Text.


@pytest.mark.parametrize("cell", ["", "NaN", "nan", "null", "NULL", " ", '""', '" nan "'], ids=lambda cell: repr(cell))
def test_a_cell_without_a_number_is_a_missing_value(flowers: Desk, cell: str) -> None:
    missing = flowers.score(b"[5.1,null,1.4,0.2]", "jsonl", margin=True)
    assert flowers.score(f"5.1,{cell},1.4,0.2".encode(), "csv", margin=True) == missing


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        ("2", "2"),
        ("+2", "2"),
        (" 2 ", "2"),
        ('"2"', "2"),
        ("2.", "2"),
        ("02", "2"),
        (".5", "0.5"),
        ("2E0", "2"),
        ("True", "1"),
        ("false", "0"),
        ("20000000000000000000000000e-25", "2"),
    ],
)
def test_a_number_may_be_written_in_many_ways(flowers: Desk, cell: str, number: str) -> None:
    for rest in ("1.4,0.2", ",+0.2"):  # read as JSON, and cell by cell
        plain = flowers.score(f"5.1,{number},{rest}".encode(), "csv", margin=True)
        assert flowers.score(f"5.1,{cell},{rest}".encode(), "csv", margin=True) == plain


@pytest.mark.parametrize(
    "cell",
    [
        "x",
        "1_000",
        "0x10",
        "1e",
        "--1",
        "1 2",
        '"1,2"',
        '"1],[2"',
        '"[1]"',
        '"{""a"":1}"',
        '"""1"""',
        "٣",
        "1e5e5",
        "NA",
        "1;2",
    ],
)
def test_text_is_no_number_and_is_told_by_line_and_column(flowers: Desk, iris: Example, cell: str) -> None:
    header = ",".join(iris.names)
    fault = flowers.fault(f"{header}\n1,2,3,4\n1,2,{cell},4\n", "csv")
    assert fault == "rows: line 3, column 'petal length (cm)': expected a number, got text"
    assert flowers.fault(f"1,2,3,4\n1,2,{cell},4\n", "csv").startswith("rows: line 2, column 3: expected a number")


@pytest.mark.parametrize("cell", ["inf", "-Infinity", "1e39", "-3.5e38", "1" * 60])
def test_what_float32_cannot_hold_is_refused_with_its_place(flowers: Desk, iris: Example, cell: str) -> None:
    end = "expected a finite number that float32 can hold"
    header = ",".join(iris.names)
    assert flowers.fault(f"{header}\n1,2,3,{cell}\n", "csv") == f"rows: line 2, column 'petal width (cm)': {end}"
    if cell != "inf":
        assert flowers.fault(f"[1,2,3,4]\n[1,2,3,{cell}]\n", "jsonl") == f"rows: line 2, column 4: {end}"
        named = ",".join(f'"{name}":{value}' for name, value in zip(iris.names, (1, 2, 3, cell), strict=True))
        assert flowers.fault(f"{{{named}}}", "jsonl") == f"rows: line 1, column 'petal width (cm)': {end}"


def test_lines_are_counted_as_an_editor_counts_them(flowers: Desk, iris: Example) -> None:
    """A quoted line end is within a record: the fault is at the record's first line."""
    text = ",".join(["id", *iris.names]) + '\r\n"a\nb\nc",1,2,3,4\r\n"d\ne",1,x,3,4\r\n'
    assert flowers.fault(text, "csv", keep=("id",)).startswith("rows: line 5, column 'sepal width (cm)'")


def test_faults_far_into_a_file_have_their_line(flowers: Desk) -> None:
    rows = "1,2,3,4\n" * 20_000
    assert "line 20001, column 1" in flowers.fault(rows + "x,2,3,4\n", "csv")
    rows = "[1,2,3,4]\n" * 20_000
    assert "line 20001, column 1" in flowers.fault(rows + '["x",2,3,4]\n', "jsonl")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("1,2,3,4\n1,2,3\n", "rows: line 2: expected 4 values as in the first line, got 3"),
        ("1,2,3,4\n1,2,3,4,5\n", "rows: line 2: expected 4 values as in the first line, got 5"),
        ("1,2,3,4\n\n1,2,3,4\n", "rows: line 2: expected values, got an empty line"),
        ("1,2,3\n", "rows: line 1: expected 4 values a row, got 3"),
        ("1,2,3,a\n", "rows: line 1: numbers and texts in one line; expected a header with names, or numbers alone"),
        ("", "rows: is empty; expected a header or rows"),
        ('1,2,3,"4\n', "rows: line 1: not CSV: unexpected end of data"),
        ("1,2,3,4\n1,2,3,\xff\n".encode("latin-1"), "rows: line 2: not UTF-8"),
        ("1,2,3,4\n".encode("utf-16"), "rows: line 1: not UTF-8"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value[:20],
)
def test_csv_that_is_no_table_is_refused_with_the_line(flowers: Desk, text: str | bytes, fault: str) -> None:
    assert flowers.fault(text, "csv") == fault


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("[1,2,3,4]\n[1,2,3]\n", "rows: line 2: expected 4 values as in the first row, got 3"),
        ("[1,2,3]\n", "rows: line 1: expected 4 values a row, got 3"),
        ("[1,2,3,4]\n\n[1,2,3,4]\n", "rows: line 2: expected an object or a list, got an empty line"),
        ("[1,2,3,4]\n5\n", "rows: line 2: expected an object or a list of numbers, got a number"),
        ('[1,2,3,4]\n{"a":1}\n', "rows: line 2: expected a list as in the first line, got an object"),
        ("[1,2,3,4\n1,2,3,4]\n", "rows: line 1: not JSON: unexpected end of data at character 9"),
        ('[1,2,3,"4"]\n', "rows: line 1, column 4: expected a number, got a string"),
        ("[1,2,3,[4]]\n", "rows: line 1, column 4: expected a number, got a list"),
    ],
)
def test_json_lines_that_are_no_rows_are_refused_with_the_line(flowers: Desk, text: str, fault: str) -> None:
    assert flowers.fault(text, "jsonl") == fault


def test_objects_must_have_the_models_names_in_every_line(flowers: Desk, iris: Example) -> None:
    whole = dict.fromkeys(iris.names, 1.5)
    first = json.dumps(whole)
    for other, fault in (
        ({**whole, "x": 1}, "rows: line 2: 'x' not in the first row"),
        (dict.fromkeys(iris.names[1:], 1.5), "rows: line 2: missing 'sepal length (cm)'"),
        ({**whole, iris.names[0]: "a"}, "rows: line 2, column 'sepal length (cm)': expected a number, got a string"),
    ):
        assert flowers.fault(f"{first}\n{json.dumps(other)}\n", "jsonl") == fault
    twice = first.removesuffix("}") + ', "sepal length (cm)": 2}'
    assert flowers.fault(f"{first}\n{twice}\n", "jsonl") == "rows: line 2: given twice: 'sepal length (cm)'"


def test_a_line_without_end_does_not_fill_the_memory(flowers: Desk) -> None:
    for format in ("csv", "jsonl"):
        assert (
            flowers.fault(b"1" * (MOST_LINE_BYTES + 1), format) == f"rows: line 1: longer than {MOST_LINE_BYTES} bytes"
        )


def test_the_end_of_a_text_file_may_look_as_it_likes(flowers: Desk) -> None:
    """With and without a last line end, with empty lines after it, with a byte order mark, with Windows line ends."""
    for format, row in (("csv", "1,2,3,4"), ("jsonl", "[1,2,3,4]")):
        plain = flowers.score(f"{row}\n{row}\n".encode(), format)
        for text in (f"{row}\n{row}", f"{row}\r\n{row}\r\n", f"{row}\n{row}\n\n\n", f"\ufeff{row}\n{row}\n"):
            assert flowers.score(text.encode(), format) == plain


# Columns.


@pytest.mark.parametrize("format", FORMATS)
def test_other_columns_are_kept_or_ignored_by_name(iris: Example, flowers: Desk, format: str) -> None:
    """An id goes to the output beside its score, a label is passed over."""
    names = ("id", *iris.names, "label")
    rows: Rows = [[f"a,{i}", *map(float, row), 1.0] for i, row in enumerate(iris.rows[:3])]
    data = write_rows(rows, names, format)
    scores = flowers.score(write_rows([row[1:-1] for row in rows], iris.names, format), format).decode().splitlines()
    kept = flowers.score(data, format, keep=("id",), ignore=("label",)).decode().splitlines()
    assert kept == [f"id,{scores[0]}", *(f'"a,{i}",{score}' for i, score in enumerate(scores[1:]))]
    table = read_table(flowers.score(data, format, "parquet", keep=("id",), ignore=("label",)), "parquet")
    assert table["id"].to_pylist() == ["a,0", "a,1", "a,2"]


@pytest.mark.parametrize("format", FORMATS)
def test_a_column_that_nobody_named_is_an_error_that_names_it(iris: Example, flowers: Desk, format: str) -> None:
    """Also before a number is read and a byte written."""
    data = write_rows([["a", 1.0, 2.0, 3.0]], ("id", *iris.names[1:]), format)
    out = io.BytesIO()
    with pytest.raises(RowsFileError) as caught:
        flowers.follow(data, format, out)
    assert "missing: 'sepal length (cm)'; unknown: 'id'; a column that is no feature is named with --keep" in str(
        caught.value
    )
    assert out.getvalue() == b""


@pytest.mark.parametrize("format", FORMATS)
def test_a_column_to_keep_must_be_there(iris: Example, flowers: Desk, format: str) -> None:
    data = write_rows([[1.0, 2.0, 3.0, 4.0]], iris.names, format)
    assert flowers.fault(data, format, keep=("id",)) == "rows: has no column 'id' to keep or to ignore"
    assert flowers.fault(data, format, ignore=("label",)) == "rows: has no column 'label' to keep or to ignore"


@pytest.mark.parametrize("format", FORMATS)
def test_a_feature_may_be_kept_and_is_scored_all_the_same(iris: Example, flowers: Desk, format: str) -> None:
    data = write_rows([[6.5, 2.5, 5.25, 1.5]], iris.names, format)
    _, line = flowers.score(data, format, keep=("petal length (cm)",)).decode().splitlines()
    assert line.split(",") == ["5.25", flowers.score(data, format).decode().splitlines()[1]]


def test_rows_without_names_are_in_the_models_order(iris: Example, flowers: Desk) -> None:
    """And have no column that could be kept."""
    text = b"6.8,2.8,4.8,1.4\n"
    assert flowers.score(text, "csv") == flowers.score(write_rows([[6.8, 2.8, 4.8, 1.4]], iris.names, "csv"), "csv")
    for data, format in ((text, "csv"), (b"[6.8,2.8,4.8,1.4]", "jsonl")):
        fault = flowers.fault(data, format, keep=("id",))
        assert fault == "rows: has no column names; --keep and --ignore need them"


def test_a_header_is_known_even_if_its_names_are_numbers(tmp_path: Path) -> None:
    """pandas names columns 0, 1, 2 where nobody else does; here they stand in another order than the model's."""
    rng = np.random.default_rng(1)
    matrix = xgboost.DMatrix(rng.normal(size=(50, 3)), rng.normal(size=50), feature_names=["0", "1", "2"], nthread=1)
    xgboost.train({"nthread": 1}, matrix, 3).save_model(tmp_path / "model.ubj")
    desk = Desk(Scorer(load_model(read_settings({"SCORER_MODEL": str(tmp_path)}))))
    named, plain = desk.score(b"2,0,1\n0.5,-0.5,1\n", "csv"), desk.score(b"-0.5,1,0.5\n", "csv")
    assert len(named.splitlines()) == 2
    assert named == plain


def test_a_model_without_names_takes_columns_as_they_stand(trained: Callable[[str], tuple[Desk, Any]]) -> None:
    """A header is passed over, and names what to keep; JSON objects have no order and are refused."""
    desk, booster = trained("squared")
    row = [float(i) for i in range(booster.num_features())]
    names = tuple(f"f{i}" for i in range(len(row)))
    plain = desk.score(write_rows([row], None, "csv"), "csv")
    assert desk.score(write_rows([row], names, "csv"), "csv") == plain
    assert desk.score(write_rows([row], names, "parquet"), "parquet") == plain
    kept = desk.score(write_rows([["a", *row]], ("id", *names), "csv"), "csv", keep=("id",))
    assert kept == b"id,score\na," + plain.splitlines()[1] + b"\n"
    assert "this model has no feature names" in desk.fault(write_rows([row], names, "jsonl"), "jsonl")
    assert "numbers and texts in one line" in desk.fault(write_rows([["a", *row[1:]]], None, "csv"), "csv")


def test_a_kept_column_cannot_have_the_name_of_a_score(iris: Example, flowers: Desk) -> None:
    data = write_rows([["a", 1.0, 2.0, 3.0, 4.0]], ("score", *iris.names), "csv")
    assert "under the name of a score: 'score'" in flowers.fault(data, "csv", keep=("score",))


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_without_rows_gives_one_without_scores(iris: Example, flowers: Desk, format: str) -> None:
    """An empty partition is ordinary; its columns are checked and written."""
    types = pyarrow.schema([(name, pyarrow.float64()) for name in iris.names])
    empty = {"csv": (",".join(iris.names) + "\n").encode(), "jsonl": b""}
    data = empty.get(format) or (b"" if format == "jsonl" else write_table(types.empty_table(), format))
    assert flowers.score(data, format) == b"score\n"
    assert flowers.score(data, format, "jsonl") == b""
    for to in ("parquet", "arrow"):
        table = read_table(flowers.score(data, format, to), to)
        assert (table.schema, len(table)) == (pyarrow.schema([("score", pyarrow.float32())]), 0)


# Arrow's types.


def score_column(desk: Desk, names: tuple[str, ...], column: Any, format: str = "arrow") -> bytes:
    """The column in the place of one feature; margins, as they show more."""
    table = pyarrow.table({name: column if name == names[2] else pyarrow.array([1.0] * len(column)) for name in names})
    return desk.score(write_table(table, format), format, margin=True)


@pytest.mark.parametrize("format", ["parquet", "arrow"])
@pytest.mark.parametrize(
    "kind",
    ["int8", "uint8", "int16", "int32", "int64", "uint64", "float16", "float32", "float64", "decimal128", "dictionary"],
)
def test_numbers_of_every_type_are_the_same_numbers(iris: Example, flowers: Desk, kind: str, format: str) -> None:
    plain = pyarrow.array([1.0, 5.0, None, 0.0, 4.0])
    if kind == "decimal128":
        column = plain.cast(pyarrow.decimal128(12, 3))
    elif kind == "dictionary":
        column = plain.dictionary_encode()
    else:
        column = plain.cast(kind)
    assert score_column(flowers, iris.names, column, format) == score_column(flowers, iris.names, plain, format)


def test_booleans_and_nulls_are_numbers_as_in_json(iris: Example, flowers: Desk) -> None:
    numbers = pyarrow.array([1.0, 0.0, None])
    expected = score_column(flowers, iris.names, numbers)
    assert score_column(flowers, iris.names, pyarrow.array([True, False, None])) == expected
    nothing = pyarrow.array([None, None], pyarrow.float64())
    assert score_column(flowers, iris.names, pyarrow.nulls(2)) == score_column(flowers, iris.names, nothing)
    nan = pyarrow.array([float("nan"), None])
    assert score_column(flowers, iris.names, nan) == score_column(flowers, iris.names, nothing)


def test_decimals_are_rounded_to_the_nearest() -> None:
    """pyarrow 26 casts the decimal 14037.00000 to the float64 14037.000000000002."""
    kind = pyarrow.decimal128(38, 5)
    texts = [f"{digits / 1e5:.5f}" for digits in range(1_403_700_000, 1_403_720_000, 7)]
    column = pyarrow.array([decimal.Decimal(text) for text in texts], kind)
    assert column.cast("float64").to_pylist() != [float(text) for text in texts]
    columns = Columns(pyarrow, "rows", pyarrow.schema([("a", kind)]), Wanted(1, ("a",)))
    values = columns.to_piece(pyarrow.record_batch({"a": column}), None).batch.values
    assert bits(values) == bits(np.array([float(text) for text in texts]).astype(np.float32))


@pytest.mark.parametrize(
    "column",
    [
        pyarrow.array(["1", "2"]),
        pyarrow.array(["red", "blue"]).dictionary_encode(),
        pyarrow.array([b"1", b"2"]),
        pyarrow.array([0, 1], pyarrow.timestamp("s")),
        pyarrow.array([0, 1], pyarrow.date32()),
        pyarrow.array([[1.0], [2.0]]),
        pyarrow.array([{"a": 1}, {"a": 2}]),
    ],
    ids=lambda column: str(column.type),
)
def test_columns_of_other_types_are_refused_by_name(iris: Example, flowers: Desk, column: Any) -> None:
    """A dictionary of texts as well: its codes are the file's own, and not those that the model was trained with."""
    with pytest.raises(RowsFileError) as caught:
        score_column(flowers, iris.names, column)
    assert str(caught.value) == f"rows: column 'petal length (cm)': expected numbers, got {column.type}"


@pytest.mark.parametrize("number", [float("inf"), -float("inf"), 1e39])
def test_columns_with_infinity_are_refused_with_the_row(iris: Example, flowers: Desk, number: float) -> None:
    column = pyarrow.array([1.0] * 9000 + [None, number])
    with pytest.raises(RowsFileError) as caught:
        score_column(flowers, iris.names, column)
    end = "expected a finite number that float32 can hold"
    assert str(caught.value) == f"rows: row 9002, column 'petal length (cm)': {end}"


@pytest.mark.parametrize("to", FORMATS)
def test_kept_columns_keep_what_they_are(iris: Example, flowers: Desk, to: str) -> None:
    """Types from Arrow to Arrow; text that says the same in text."""
    kept = {
        "day": pyarrow.array([0, None], pyarrow.date32()),
        "price": pyarrow.array([decimal.Decimal("1.10"), None]),
        "ratio": pyarrow.array([0.1, None], pyarrow.float32()),
        "colour": pyarrow.array(["red", None]).dictionary_encode(),
        "number": pyarrow.array([2**62 + 1, None]),
    }
    table = pyarrow.table({**kept, **{name: pyarrow.array([1.0, 2.0]) for name in iris.names}})
    out = flowers.score(write_table(table, "parquet"), "parquet", to, keep=tuple(kept))
    if to == "csv":
        assert out.decode().splitlines()[1].startswith(f"1970-01-01,1.10,0.1,red,{2**62 + 1},")
        assert out.decode().splitlines()[2].startswith(",,,,,")
    elif to == "jsonl":
        row = json.loads(out.splitlines()[0])
        assert (row["day"], row["price"], row["colour"]) == ("1970-01-01", "1.10", "red")
    else:
        written = read_table(out, to)
        for name, column in kept.items():
            assert written[name].to_pylist() == column.to_pylist()
        assert written.schema.field("price").type == kept["price"].type


def test_what_cannot_be_kept_is_an_error(iris: Example, flowers: Desk) -> None:
    table = pyarrow.table({"tags": pyarrow.array([[1]]), **{name: pyarrow.array([1.0]) for name in iris.names}})
    fault = flowers.fault(write_table(table, "parquet"), "parquet", "csv", keep=("tags",))
    assert "column of type list<" in fault
    lines = "".join(json.dumps({"id": id, **dict.fromkeys(iris.names, 1)}) + "\n" for id in (1, "a"))
    assert flowers.fault(lines, "jsonl", "parquet", keep=("id",)) == "scores: column 'id': expected values of one type"


@pytest.mark.parametrize("format", ["parquet", "arrow"])
def test_a_broken_file_is_an_error_and_no_trace(flowers: Desk, iris: Example, format: str) -> None:
    whole = write_rows([[1.0, 2.0, 3.0, 4.0]] * 1000, iris.names, format)
    for data in (b"", b"PAR1", b"junk" * 100, whole[:-20], whole[: len(whole) // 2]):
        assert f"rows: cannot be read as {format.title()}: " in flowers.fault(data, format)


# How much at once.


def test_wide_rows_are_taken_in_smaller_numbers() -> None:
    """A piece has at most so many cells, whatever the model's width."""
    assert count_rows(1) == count_rows(30) == MOST_ROWS
    assert count_rows(10_000) * 10_000 <= MOST_CELLS
    assert count_rows(10**9) == 1


def test_long_texts_beside_the_features_are_taken_in_smaller_numbers(iris: Example, flowers: Desk) -> None:
    note = "x" * 100_000
    rows: Rows = [[note, 1.0, 2.0, 3.0, 4.0]] * 500
    for format in ("csv", "jsonl"):
        data = write_rows(rows, ("note", *iris.names), format)
        assert len(flowers.follow(data, format, io.BytesIO(), keep=("note",))) > 2


def test_progress_ends_at_the_whole(cancer: Example, tumours: Desk) -> None:
    rows = [[float(v) for v in np.nan_to_num(row)] for row in cancer.rows] * 2000
    for format in FORMATS:
        shares = [
            done.share or 0 for done in tumours.follow(write_rows(rows, cancer.names, format), format, io.BytesIO())
        ]
        assert shares == sorted(shares)
        assert 0 < shares[0] < 1
        assert shares[-1] > 0.9


# Formats by name.


def test_formats_come_from_names_and_options() -> None:
    a, b, text = Path("a.csv"), Path("b.parquet"), Path("rows.txt")
    assert (plan(a, b).source_format, plan(a, b).target_format) == ("csv", "parquet")
    assert plan(a, None).target_format == "csv"
    assert plan(a, None, named="jsonl").target_format == "jsonl"
    assert plan(text, None, named="jsonl").source_format == "jsonl"
    assert plan(None, None, named="jsonl", output="csv").target_format == "csv"
    with pytest.raises(RowsFileError, match=r"standard input: expected a name that ends in \.csv, "):
        plan(None, b)
    with pytest.raises(RowsFileError, match="Parquet is not written to a pipe"):
        plan(b, None)


WITHOUT = """
import sys
sys.modules["pyarrow"] = None
from service.cli import main
main()
"""


def test_text_needs_no_pyarrow_and_columns_say_that_they_do(iris: Example, tmp_path: Path) -> None:
    """The image has none."""
    text, columns = tmp_path / "rows.csv", tmp_path / "rows.parquet"
    text.write_bytes(write_rows([[6.8, 2.8, 4.8, 1.4]], iris.names, "csv"))
    columns.write_bytes(write_rows([[6.8, 2.8, 4.8, 1.4]], iris.names, "parquet"))
    done = [
        subprocess.run(
            [sys.executable, "-c", WITHOUT, "score", str(iris.path), *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        for arguments in ([str(text)], [str(columns), "--to", "csv"], [str(text), "-o", str(tmp_path / "out.arrow")])
    ]
    assert (done[0].returncode, done[0].stdout) == (0, "score\n1.0\n")
    missing = "this needs pyarrow: pip install --require-hashes -r requirements/files.txt"
    assert (done[1].returncode, done[1].stderr) == (1, f"xgboost-server: {columns}: {missing}\n")
    assert (done[2].returncode, done[2].stderr) == (1, f"xgboost-server: {tmp_path / 'out.arrow'}: {missing}\n")
    assert not (tmp_path / "out.arrow").exists()
