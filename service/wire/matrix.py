"""JSON rows to float32 matrices, with the place of whatever is wrong.

Rows of numbers and nothing else are read before by `plain`, where there is machine code for it. Here they cost one parse and
one conversion in C. Only when that fails are the values walked in Python, to find the place for the message.
"""

from __future__ import annotations

import json
import re
import struct
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import orjson

from service.batch import Floats, Frame, Incoming, Outgoing
from service.errors import (
    FeatureMismatchError,
    InvalidInputError,
    MalformedBodyError,
    UnsupportedMediaTypeError,
)

KINDS = {
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
    type(None): "null",
}
# true and false are 1 and 0, as in pandas and in XGBoost's own boolean columns; null is a missing value.
NUMBERS = frozenset((int, float, bool, type(None)))
# A name in a message is the caller's own text: enough of it to find it again, no more.
SHOWN_NAME_LENGTH = 64
# The form of struct that refuses what float32 cannot hold: the native one makes it infinity.
LITTLE_ENDIAN = np.dtype("<f4")
ROWS_AT_ONCE = 1024
SHOWN_NAMES = 5


def to_numbers(values: Floats) -> bytes:
    """Scores as JSON without the outer brackets: the shortest decimal numbers that read back as the same float32."""
    return orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]


def write_scores(values: Floats, frame: Frame) -> bytes:
    """Scores as they go into this frame."""
    if frame.size_header:
        return values.astype(LITTLE_ENDIAN, copy=False).tobytes()
    return to_numbers(values.reshape(-1) if frame.is_flat else values)


def answer(values: Floats, frame: Frame, identifier: bytes = b"") -> Outgoing:
    """These scores in this frame; the id is JSON."""
    body = frame.fill(write_scores(values, frame), identifier)
    return Outgoing(200, frame.content_type, body, frame.headers(identifier))


def kind(value: object) -> str:
    return KINDS.get(type(value), "something else")


def shown(names: Sequence[str]) -> str:
    """A few names for a message, cut to a bearable length."""
    some = ", ".join(f"'{name[:SHOWN_NAME_LENGTH]}'" for name in names[:SHOWN_NAMES])
    return some + (f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else "")


def verify_json_type(incoming: Incoming) -> None:
    """Refuse what says that it is something else than JSON.

    The KServe tutorial's curl says `application/x-www-form-urlencoded` and tritonclient says nothing at all;
    both send JSON.
    """
    content_type = incoming.headers.get("content-type")
    if content_type is None or content_type == "application/json":
        return
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type in ("", "application/json", "application/x-www-form-urlencoded", "text/plain", "text/json"):
        return
    if media_type.startswith("application/") and media_type.endswith("+json"):
        return
    raise UnsupportedMediaTypeError("Content-Type: expected application/json")


# A string, which is left alone (also one without an end, or this would be quadratic), or one of the words that Python's
# json module writes and JSON does not know.
NOT_JSON = re.compile(rb'("(?:[^"\\]++|\\.)*+(?:"|\\?\Z))|(?<![\w.+-])(?:NaN|(-?)Infinity)(?![\w.])', re.DOTALL)


def read_document(body: bytes | memoryview) -> Any:
    """The parsed body. The literal NaN, which is not JSON, is read as null: three client libraries write it."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        text = bytes(body)
        if b"NaN" in text or b"Infinity" in text:
            return read_json(NOT_JSON.sub(to_json_literal, text))
        raise not_json(error, text) from None


def to_json_literal(match: re.Match[bytes]) -> bytes:
    """Infinity becomes a number beyond float32, which is then refused with its place."""
    text, sign = match.groups()
    return text or (b"null" if sign is None else sign + b"1e39")


def read_json(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise not_json(error, text) from None


def not_json(error: orjson.JSONDecodeError, text: bytes) -> MalformedBodyError:
    if not text.strip():
        return MalformedBodyError("the body is empty; expected JSON")
    if "not valid UTF-8" in error.msg:  # in orjson 3.13 with the name of Python's own type
        return MalformedBodyError("the body is not UTF-8; expected JSON in UTF-8")
    return MalformedBodyError(f"not JSON: {error.msg} at line {error.lineno}, column {error.colno}")


def only_numbers(values: Iterable[Any]) -> bool:
    """Whether these are numbers, booleans and nulls. numpy 2.4 reads the string "1.5" as a number, so ask before."""
    return NUMBERS.issuperset(map(type, values))


def read_rows(rows: object, place: str, *, keys: int, body: bytes) -> tuple[Floats, tuple[str, ...] | None]:
    """Matrix and column names of a list of rows; the names are None where rows are plain lists.

    `keys` is the number of keys of the object around the rows.
    """
    if not isinstance(rows, list):
        raise InvalidInputError(place, f"expected a list of rows, got {kind(rows)}")
    if not rows:
        raise InvalidInputError(place, "expected at least one row, got an empty list")
    if isinstance(rows[0], dict):
        return read_named_rows(rows, place, keys, body)
    # Every key has two quotes: where there are no more, no string can hide among the values.
    if body.count(b'"') != 2 * keys:
        explain(rows, place)
    return to_matrix(rows, place), None


def to_matrix(rows: list[Any], place: str) -> Floats:
    """Rows as float32. Numbers alone are packed by `struct`, which refuses what float32 cannot hold and is twice as fast
    as numpy (30,000 numbers: 0.21 ms against 0.41); nulls and mistakes take the longer way."""
    try:
        width = len(rows[0])
        packed = [pack_rows(rows[i : i + ROWS_AT_ONCE], width) for i in range(0, len(rows), ROWS_AT_ONCE)]
    except (struct.error, OverflowError, TypeError):
        return to_matrix_slowly(rows, place)
    return np.frombuffer(packed[0] if len(packed) == 1 else b"".join(packed), LITTLE_ENDIAN).reshape(len(rows), width)


def pack_rows(rows: list[Any], width: int) -> bytes:
    if len(rows) == 1:
        return struct.pack(f"<{width}f", *rows[0])
    if {width} != set(map(len, rows)):
        raise TypeError("rows of several lengths")
    return struct.pack(f"<{width * len(rows)}f", *chain.from_iterable(rows))


def to_matrix_slowly(rows: list[Any], place: str) -> Floats:
    """Rows without strings as float32, null as NaN, or the place of what is wrong."""
    try:
        with np.errstate(over="ignore"):
            values = np.array(rows, dtype=np.float32)
    except (ValueError, TypeError, OverflowError):
        explain(rows, place)
        raise InvalidInputError(place, "expected rows of numbers") from None
    if values.ndim != 2:
        explain(rows, place)
        raise InvalidInputError(place, "expected rows of numbers")
    verify_range(values, place)
    return values


def verify_range(values: Floats, place: str) -> None:
    """Refuse infinity and what overflows to it in float32; NaN is a missing value."""
    infinite = np.isinf(values)
    if infinite.any():
        where = "".join(f"[{index}]" for index in np.argwhere(infinite)[0])
        raise InvalidInputError(place + where, "expected a finite number that float32 can hold")


def explain(rows: list[Any], place: str) -> None:
    """Raise for the first value that is not a number and the first row of another width; else return."""
    width = len(rows[0]) if isinstance(rows[0], list) else 0
    for i, row in enumerate(rows):
        if not isinstance(row, list):
            raise InvalidInputError(f"{place}[{i}]", f"expected a row (a list of numbers), got {kind(row)}")
        if len(row) != width:
            raise InvalidInputError(f"{place}[{i}]", f"expected {width} values as in the first row, got {len(row)}")
        if not only_numbers(row):
            j = next(j for j, value in enumerate(row) if type(value) not in NUMBERS)
            raise InvalidInputError(f"{place}[{i}][{j}]", f"expected a number, got {kind(row[j])}")


def read_named_rows(rows: list[Any], place: str, keys: int, body: bytes) -> tuple[Floats, tuple[str, ...]]:
    """Rows as objects, every one with the keys of the first, in any order."""
    names = tuple(rows[0])
    table = []
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise InvalidInputError(f"{place}[{i}]", f"expected an object as in the first row, got {kind(row)}")
        try:
            values = [row[name] for name in names]
        except KeyError:
            missing = [name for name in names if name not in row]
            raise FeatureMismatchError(f"{place}[{i}]", f"missing {shown(missing)}") from None
        if len(row) != len(names):
            unknown = [name for name in row if name not in rows[0]]
            raise FeatureMismatchError(f"{place}[{i}]", f"{shown(unknown)} not in the first row")
        table.append(values if only_numbers(values) else unwrapped(values, names, f"{place}[{i}]"))
    # A colon for each key, and those within names. More, or escapes that may hide one: look closely.
    colons = keys + len(rows) * sum(1 + name.count(":") for name in names)
    if body.count(b":") != colons or b"\\u" in body:
        refuse_duplicates(body)
    return to_matrix(table, place), names


def unwrapped(values: list[Any], names: tuple[str, ...], place: str) -> list[Any]:
    """`[1.0]` is 1.0: KServe's own server reads a named row as a data frame of one-value columns."""
    single = [value[0] if isinstance(value, list) and len(value) == 1 else value for value in values]
    for name, value in zip(names, single, strict=True):
        if type(value) not in NUMBERS:
            where = f"{place}.{name[:SHOWN_NAME_LENGTH]}"
            raise InvalidInputError(where, f"expected a number, got {kind(value)}")
    return single


def refuse_duplicates(body: bytes) -> None:
    """orjson keeps the last of two equal keys; the standard library can be asked. It is slower, and rarely needed."""
    try:
        json.loads(body, object_pairs_hook=verify_pairs, parse_int=no_number, parse_float=no_number)
    except (RecursionError, ValueError):
        raise MalformedBodyError(
            "not JSON that can be read: nested too deeply, or NaN where no number can be"
        ) from None


def no_number(text: str) -> None:
    """Only keys matter here, and a number of 4,301 digits would raise."""


def verify_pairs(pairs: list[tuple[str, Any]]) -> None:
    twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
    if twice:
        raise FeatureMismatchError("", f"given twice: {shown(twice)}")
