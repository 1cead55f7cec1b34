"""The values that travel between the doors, the wires and the scorer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Headers = tuple[tuple[str, str], ...]
# From a text and the position of a bracket to the matrix that begins there and where it ends, if it is a plain one.
ReadMatrix = Callable[[bytes, int], tuple[Floats, int] | None]


@dataclass(slots=True)
class Incoming:
    """One request, whole: header names in lower case, the body already inflated.

    `read_matrix` is machine code for plain matrices of numbers, where the edge has some: it travels with the request, so
    that a wire that has no use for it need not know of it.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    request_id: str
    query: str = ""
    read_matrix: ReadMatrix | None = None


@dataclass(slots=True)
class Outgoing:
    """One answer. `content_type` is exact: some clients compare it byte by byte."""

    status: int
    content_type: str
    body: bytes
    headers: Headers = ()


# How a matrix is written: a list of rows, one list of numbers, float32 as they are in memory (little-endian).
NESTED, FLAT, BINARY = range(3)


class Span(NamedTuple):
    """Where in a body its only matrix stands, and how it is written, if all else in the body would mean the same around
    another matrix.

    `rows` is how many rows it must have there; 0: any.
    """

    begin: int
    end: int
    kind: int = NESTED
    rows: int = 0


@dataclass(frozen=True, slots=True)
class Frame:
    """An answer but for its scores, which go between `before` and `after` as numbers with commas.

    Where the answer repeats the request's id, `start` and then the id as JSON stand before all that. `is_flat` says that
    the scores of all rows are one list, also where a row has several. Where there is a `size_header`, scores are binary,
    and it is the name of the header that tells where they begin.
    """

    before: bytes
    after: bytes
    start: bytes = b""
    is_flat: bool = False
    content_type: str = "application/json"
    size_header: str = ""

    def fill(self, numbers: bytes, identifier: bytes = b"") -> bytes:
        """The answer's body."""
        if self.start:
            return b"".join((self.start, identifier, self.before, numbers, self.after))
        return self.before + numbers + self.after

    def headers(self, identifier: bytes = b"") -> Headers:
        """Headers that the answer has beside those of every answer."""
        if not self.size_header:
            return ()
        return ((self.size_header, str(len(self.start) + len(identifier) + len(self.before))),)


@dataclass(slots=True)
class Batch:
    """Rows to score: float32, shape (rows, columns), NaN where a value is missing.

    `names` are the columns as the caller named them, or None when they are in the model's order.
    `place` is where the rows stand in the request (`instances`), for error messages.
    `reply` is whatever the wire that decoded the request needs again to encode the answer.
    `span` is there where the next request may be the same but for its numbers.
    """

    values: Floats
    place: str
    names: tuple[str, ...] | None = None
    version: str | None = None
    reply: object = None
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class ModelIdentity:
    """Which model gave a score: name, version, sha256 of its file."""

    name: str
    version: str
    digest: str


@dataclass(frozen=True, slots=True)
class Progress:
    """Numbers of the last generation of workers whose swap is over, and of the last that had to be given up."""

    announced: int
    reverted: int


@dataclass(frozen=True, slots=True)
class Contract:
    """What a model expects and gives.

    `feature_names` is empty when the file holds none. `outputs` is the number of values a row gets.
    """

    features: int
    feature_names: tuple[str, ...]
    feature_types: tuple[str, ...]
    objective: str
    outputs: int
    rounds: int


@dataclass(slots=True)
class Scores:
    """float32, shape (rows,) for one value a row, or (rows, outputs)."""

    values: Floats
    model: ModelIdentity


class Stages(NamedTuple):
    """Seconds that a request took in each stage; of requests that were scored together, the prediction is that of all."""

    decode_seconds: float = 0.0
    predict_seconds: float = 0.0
    encode_seconds: float = 0.0


@dataclass(slots=True)
class Observation:
    """What there is to count once a request has been answered.

    `label` are its route and its wire. `is_scoring` says that it was for a model that is loaded, `rows` how many rows of it
    were scored, and the last three how long that took.
    """

    label: tuple[str, str]
    status: int = 0
    seconds: float = 0.0
    rejected: str = ""
    request_bytes: int = 0
    response_bytes: int = 0
    is_scoring: bool = False
    rows: int = 0
    decode_seconds: float = 0.0
    predict_seconds: float = 0.0
    encode_seconds: float = 0.0
