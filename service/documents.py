"""Model documents, JSON or UBJSON, read strictly and without recursion.

XGBoost 3.2 trusts what it reads: a file nested 200,000 deep ends it with a segmentation fault, a length of 2^60 makes it
read past the end. So its files are read here first. Where the two could disagree about what a file says (a key given
twice: the last one counts in JSON, the first one in UBJSON; bytes after the end), the file is refused.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# XGBoost's own files are nested 9 deep.
MOST_LEVELS = 32
# Values that are Python objects, 28 bytes and more each; numbers in typed arrays of UBJSON are none.
MOST_VALUES = 1 << 25
# Bytes looked at together when brackets are counted.
PIECE = 1 << 20
# What XGBoost guesses the format by: a quote after the first bracket, and white space to C's `isspace`.
JSON_HEAD = re.compile(rb".[ \t\n\v\f\r]*\"", re.DOTALL)


class DocumentError(ValueError):
    """Not a document; the message says what is wrong where, and repeats nothing of it."""


def read_document(data: bytes | bytearray) -> Any:
    """Objects as dicts, arrays as lists or numpy arrays, or `DocumentError`. The format is guessed as XGBoost does."""
    is_json = JSON_HEAD.match(data) is not None
    try:
        return read_json(data) if is_json else read_ubjson(data)
    except DocumentError as error:
        raise DocumentError(f"not a document of {'JSON' if is_json else 'UBJSON'}: {error}") from None


# JSON.


def read_json(data: bytes | bytearray) -> Any:
    """A document of JSON, with the literals NaN and Infinity that XGBoost writes and reads."""
    verify_levels(data)
    try:
        return json.loads(data.decode(), object_pairs_hook=make_object)
    except UnicodeDecodeError as error:
        raise DocumentError(f"byte {error.start}: expected UTF-8") from None
    except json.JSONDecodeError as error:
        raise DocumentError(f"character {error.pos}: {error.msg}") from None
    except DocumentError:
        raise
    except ValueError:
        raise DocumentError("a number with thousands of digits") from None


def make_object(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    found = dict(pairs)
    if len(found) < len(pairs):
        raise DocumentError("an object has a key twice")
    return found


def verify_levels(data: bytes | bytearray) -> None:
    """Brackets outside of strings, counted piece by piece, nowhere nested deeper than `MOST_LEVELS`."""
    if b"\\" in data:  # an escaped quote does not end a string; the length stays
        data = data.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    level, quotes = 0, 0
    for begin in range(0, len(data), PIECE):
        piece = np.frombuffer(data, np.uint8, min(PIECE, len(data) - begin), begin)
        is_quote = piece == ord('"')
        outside = (np.cumsum(is_quote, dtype=np.uint32) + quotes) % 2 == 0
        steps = np.isin(piece, (ord("{"), ord("["))).astype(np.int8) - np.isin(piece, (ord("}"), ord("]")))
        levels = np.cumsum(np.where(outside, steps, 0), dtype=np.int64) + level
        if levels.max() > MOST_LEVELS:
            raise DocumentError(
                f"byte {begin + int(np.argmax(levels > MOST_LEVELS))}: nested deeper than {MOST_LEVELS}"
            )
        level, quotes = int(levels[-1]), (quotes + int(is_quote.sum())) % 2


# UBJSON as XGBoost writes it: lengths are always int64, arrays of numbers are typed, numbers are big-endian.

TYPES = {b"d": ">f4", b"D": ">f8", b"i": ">i1", b"U": ">u1", b"I": ">i2", b"l": ">i4", b"L": ">i8"}
SCALARS = {ord(kind): struct.Struct(">" + code) for kind, code in zip(TYPES, "fdbBhiq", strict=True)}
SCALARS[ord("C")] = struct.Struct(">b")
CONSTANTS = {ord("Z"): None, ord("T"): True, ord("F"): False}
LENGTH = struct.Struct(">q")
# In place of the number of values to come: until the bracket that closes.
TO_BRACKET = -1


@dataclass(slots=True)
class Open:
    """A container whose values are being read."""

    items: dict[str, Any] | list[Any]
    left: int


def read_ubjson(data: bytes | bytearray) -> Any:
    """The document; typed arrays are big-endian views on `data`."""
    try:
        return UbjsonReader(data).read()
    except (IndexError, struct.error):
        raise DocumentError(f"cut off: it goes on after its {len(data)} bytes") from None


class UbjsonReader:
    """One document. Typed arrays are views on its bytes: 5,000 deep trees cost no Python object per number."""

    def __init__(self, data: bytes | bytearray) -> None:
        self._data = memoryview(data)
        self._at = 0
        self._open: list[Open] = []
        self._values = 0

    def read(self) -> Any:
        document: list[Any] = []
        self._open.append(Open(document, 1))
        while self._open:
            top = self._open[-1]
            if self._is_complete(top):
                self._open.pop()
            elif isinstance(top.items, list):
                top.items.append(self._read_value())
            else:
                self._read_member(top.items)
        if self._at < len(self._data):
            raise DocumentError(f"{len(self._data) - self._at} bytes follow the end of the document")
        return document[0]

    def _is_complete(self, top: Open) -> bool:
        """Whether the container ends here; if not, one value less is left of it."""
        if top.left == TO_BRACKET:
            is_end = self._data[self._at] == (ord("]") if isinstance(top.items, list) else ord("}"))
            self._at += is_end
            return is_end
        top.left -= 1
        return top.left < 0

    def _read_member(self, items: dict[str, Any]) -> None:
        name = self._read_text()
        if name in items:
            raise DocumentError(f"byte {self._at}: an object has a key twice")
        items[name] = self._read_value()

    def _read_value(self) -> Any:
        kind = self._data[self._at]
        self._at += 1
        self._values += 1
        if self._values > MOST_VALUES:
            raise DocumentError(f"more than {MOST_VALUES} values")
        if kind in SCALARS:
            return self._unpack(SCALARS[kind])
        if kind == ord("["):
            return self._read_array()
        if kind == ord("S"):
            return self._read_text()
        if kind == ord("{"):
            return self._begin({}, TO_BRACKET)
        if kind in CONSTANTS:
            return CONSTANTS[kind]
        raise DocumentError(f"byte {self._at - 1}: {kind} is no type of UBJSON that XGBoost knows")

    def _read_array(self) -> Any:
        head = self._data[self._at]
        if head == ord("$"):
            return self._read_typed()
        if head != ord("#"):
            return self._begin([], TO_BRACKET)
        self._at += 1
        return self._begin([], self._read_length(1))

    def _begin(self, items: Any, left: int) -> Any:
        if len(self._open) > MOST_LEVELS:
            raise DocumentError(f"byte {self._at}: nested deeper than {MOST_LEVELS}")
        self._open.append(Open(items, left))
        return items

    def _read_typed(self) -> NDArray[Any]:
        code = TYPES.get(bytes(self._data[self._at + 1 : self._at + 2]))
        if code is None:
            raise DocumentError(f"byte {self._at + 1}: no type of numbers that XGBoost knows")
        if self._data[self._at + 2] != ord("#"):
            raise DocumentError(f"byte {self._at + 2}: expected the length of a typed array")
        self._at += 3
        dtype = np.dtype(code)
        count = self._read_length(dtype.itemsize)
        array = np.frombuffer(self._data, dtype, count, self._at)
        self._at += array.nbytes
        return array

    def _unpack(self, form: struct.Struct) -> Any:
        (value,) = form.unpack_from(self._data, self._at)
        self._at += form.size
        return value

    def _read_length(self, size: int) -> int:
        """How many things follow, each of at least `size` bytes."""
        if self._data[self._at] != ord("L"):
            raise DocumentError(f"byte {self._at}: expected a length, an int64")
        self._at += 1
        length = int(self._unpack(LENGTH))
        if not 0 <= length <= (len(self._data) - self._at) // size:
            raise DocumentError(f"byte {self._at}: a length of {length} in a document of {len(self._data)} bytes")
        return length

    def _read_text(self) -> str:
        length = self._read_length(1)
        text = bytes(self._data[self._at : self._at + length])
        self._at += length
        # XGBoost 3.2 cuts names beyond ASCII in the middle of a letter; nothing here depends on them.
        return text.decode("utf-8", "replace")
