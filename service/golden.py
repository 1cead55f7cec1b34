"""Golden rows: rows with the scores that a model must give, stored with it. A process that gives others does not serve.

They come from a file beside the model (`golden.json` beside `model.ubj` or `model.json`, `churn.golden.json` beside
`churn.ubj`), from the booster's attribute `scorer_golden`, or from both, and look like this; `null` is a missing value:

    {"rows": [[6.8, null, 4.8, 1.4]], "scores": [1.0], "margins": [[-2.5, 2.4, -1.7]]}

Each row is scored alone. Numbers are float32 and equal to the last bit, unless `tolerance` allows a difference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson

from service.artifact import ModelFile, read_file
from service.batch import Contract, Floats
from service.errors import ModelFileError

ATTRIBUTE = "scorer_golden"
MOST_FLOAT = float(np.finfo(np.float32).max)
# Every worker scores them when it starts: XGBoost takes up to 0.5 ms a row.
MOST_ROWS = 1000
MOST_BYTES = 16 << 20
MOST_FAULTS = 20
KEYS = {"rows", "scores", "margins", "tolerance", "feature_names", "model_sha256", "xgboost"}


class Scoring(Protocol):
    """What golden rows are tried on: the predictor that is to serve."""

    def predict(self, values: Floats) -> Floats:
        """Scores of rows."""

    def margins(self, values: Floats) -> Floats:
        """Sums before the objective's transformation."""


@dataclass(frozen=True)
class Golden:
    """Rows, and what is expected of each: scores, margins or both, one list of numbers a row."""

    source: str
    rows: list[list[float | None]]
    scores: list[list[float]] | None
    margins: list[list[float]] | None
    tolerance: float

    def find_differences(self, predictor: Scoring) -> Iterator[str]:
        """Every row that this predictor scores otherwise."""
        rows = np.array(self.rows, np.float32)  # None becomes NaN
        for name, wanted, score in (
            ("", self.scores, predictor.predict),
            ("a margin of ", self.margins, predictor.margins),
        ):
            for at, expected in enumerate(wanted or ()):
                found = np.ravel(score(rows[at : at + 1])).astype(np.float32)
                yield from compare(f"golden row {at}", name, np.array(expected, np.float32), found, self.tolerance)


def compare(place: str, name: str, wanted: Floats, found: Floats, tolerance: float) -> Iterator[str]:
    """The first number that differs."""
    if wanted.shape != found.shape:
        yield f"{place}: {len(wanted)} numbers are given, the model gives {len(found)}"
        return
    is_near = np.abs(wanted.astype(np.float64) - found) <= tolerance if tolerance else bits(wanted) == bits(found)
    for number in np.flatnonzero(~is_near)[:1]:
        output = f", output {number}" if len(wanted) > 1 else ""
        yield f"{place}{output}: expected {name}{wanted[number]}, got {found[number]}"


def bits(values: Floats) -> Any:
    return np.ascontiguousarray(values).view(np.uint32)


def verify_golden(path: Path, goldens: list[Golden], predictor: Scoring) -> None:
    """All golden rows of a model score as they should, or `ModelFileError`."""
    faults = (f"{path}: {golden.source}: {fault}" for golden in goldens for fault in golden.find_differences(predictor))
    found = list(islice(faults, MOST_FAULTS))
    if found:
        raise ModelFileError(*found)


# Reading.


def find_golden_file(model: Path) -> Path | None:
    own = model.with_name(f"{model.stem}.golden.json")
    if model.stem == "model" and not own.exists():
        own = model.with_name("golden.json")
    return own if own.exists() else None


def read_golden_file(model: Path) -> bytes:
    """The file beside the model; empty if there is none."""
    beside = find_golden_file(model)
    return read_file(beside, MOST_BYTES) if beside else b""


def digest_golden(data: bytes) -> str:
    """sha256; empty if there are none."""
    return hashlib.sha256(data).hexdigest() if data else ""


def read_goldens(file: ModelFile, attribute: str | None, contract: Contract) -> list[Golden]:
    """What the file beside the model and the attribute in it hold, or `ModelFileError`."""
    beside = find_golden_file(file.path)
    texts: list[tuple[str, bytes | str]] = [(beside.name, read_file(beside, MOST_BYTES))] if beside else []
    if attribute is not None:
        texts.append((f"attribute {ATTRIBUTE}", attribute))
    return [read_golden(source, text, file, contract) for source, text in texts]


def read_golden(source: str, text: bytes | str, file: ModelFile, contract: Contract) -> Golden:
    def refuse(problem: str) -> ModelFileError:
        return ModelFileError(f"{file.path}: {source}: {problem}")

    try:
        document = orjson.loads(text)
    except ValueError:
        raise refuse("not JSON") from None
    if not isinstance(document, dict) or not set(document) <= KEYS:
        raise refuse(f"expected an object with no other keys than {', '.join(sorted(KEYS))}")
    if document.get("model_sha256", file.digest) != file.digest:
        raise refuse(f"model_sha256 is not that of the model, {file.digest}")
    names = document.get("feature_names")
    if names is not None and contract.feature_names and names != list(contract.feature_names):
        raise refuse("feature_names: expected those of the model, in its order")
    rows = document.get("rows")
    if not isinstance(rows, list) or not 1 <= len(rows) <= MOST_ROWS:
        raise refuse(f"rows: expected a list of 1 to {MOST_ROWS} rows")
    tolerance = document.get("tolerance", 0)
    if not is_number(tolerance) or tolerance < 0:
        raise refuse("tolerance: expected a number from 0 on")
    for at, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != contract.features:
            raise refuse(f"rows[{at}]: expected a list of {contract.features} values")
        if not all(value is None or is_number(value) for value in row):
            raise refuse(f"rows[{at}]: expected numbers within float32, or null")
    if "scores" not in document and "margins" not in document:
        raise refuse("expected scores, margins or both")
    scores, margins = (read_expected(document, name, len(rows), refuse) for name in ("scores", "margins"))
    return Golden(source, rows, scores, margins, tolerance)


def read_expected(document: Any, name: str, rows: int, refuse: Any) -> list[list[float]] | None:
    """One list of numbers a row, where a row may have just a number."""
    if name not in document:
        return None
    found = document[name]
    if not isinstance(found, list) or len(found) != rows:
        raise refuse(f"{name}: expected a list with one entry for each of {rows} rows")
    lists = [entry if isinstance(entry, list) else [entry] for entry in found]
    for at, numbers in enumerate(lists):
        if not all(map(is_number, numbers)):
            raise refuse(f"{name}[{at}]: expected finite numbers")
    return lists


def is_number(value: Any) -> bool:
    """A number that float32 can hold; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= MOST_FLOAT
