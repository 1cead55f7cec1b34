"""Bodies that hold one plain matrix, the common case, read without a Python object for each number.

What stands before the matrix is recognized by a pattern, the matrix is read by machine code (`service.kernels.decimals`), and what
stands behind it is a closing brace or, in V2, whatever the wire makes of it. Whatever is not as plain as that gives None and is read in
the usual way, as if nobody had looked before; so is everything where there is no machine code.
"""

from __future__ import annotations

import ctypes
import re
import struct
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from service.batch import FLAT, Floats, Incoming, Span

BLANKS = b" \t\n\r"
BLANK = rb"[ \t\n\r]*+"
# What a matrix begins with that may be plain, null and NaN included: rows by names are told apart at once.
MATRIX = rb"(?=\[" + BLANK + rb"[\[\dnN-])"
BARE = re.compile(BLANK + MATRIX)
# A number takes at least two bytes: there is a comma or a bracket behind it.
BYTES_OF_NUMBER = 2
# Up to this size rows are read into memory that the thread has for it; numpy takes a microsecond for memory of its own.
SHORT_BYTES = 8192
SHORT_COUNT = SHORT_BYTES // BYTES_OF_NUMBER
FLOAT = np.dtype("<f4")
FLOAT_BYTES = 4
SHAPE = struct.Struct("=qq")
# In that memory the values follow the shape.
BEGIN = SHAPE.size
# Where in a bytes object its characters are.
TEXT = bytes.__basicsize__ - 1


class MatrixReader:
    """`decimals.read_matrix`, compiled; any number of threads may call it at a time.

    `read` keeps the interpreter's lock: the event loop would lend it to the Flask threads, for up to 5 ms, to gain a
    fraction of one.
    """

    def __init__(self, read: Callable[..., int]) -> None:
        verify_texts()
        self._read = read
        self._rooms = threading.local()

    def __call__(self, text: bytes, start: int) -> tuple[Floats, int] | None:
        """The matrix whose bracket is at `start`, one bare row as one dimension, and where it ends; None if it is not
        plain."""
        length = len(text)
        if length > SHORT_BYTES:
            return self._read_long(text, start)
        try:
            room, shape, values = self._rooms.room
        except AttributeError:
            room, shape, values = self._rooms.room = make_room()
        end = self._read(id(text) + TEXT, start, length, values, SHORT_COUNT, shape)
        if not end:
            return None
        rows, width = SHAPE.unpack_from(room)
        if not rows:
            return np.ndarray((width,), FLOAT, room[BEGIN : BEGIN + FLOAT_BYTES * width]), end
        return np.ndarray((rows, width), FLOAT, room[BEGIN : BEGIN + FLOAT_BYTES * rows * width]), end

    def _read_long(self, text: bytes, start: int) -> tuple[Floats, int] | None:
        values = np.empty((len(text) - start) // BYTES_OF_NUMBER, FLOAT)
        shape = np.empty(2, np.int64)
        end = self._read(id(text) + TEXT, start, len(text), values.ctypes.data, len(values), shape.ctypes.data)
        if not end:
            return None
        rows, width = shape.tolist()
        return (values[: rows * width].reshape(rows, width) if rows else values[:width]), end


def verify_texts() -> None:
    """See that the characters of bytes lie where CPython has them: at the end of the object, before a zero."""
    text = b"here"
    if ctypes.string_at(id(text) + TEXT, len(text)) != text:
        raise NotImplementedError("bytes of this Python have another form than is known here")


def make_room() -> tuple[Any, int, int]:
    """Memory for a short matrix, and the addresses of its shape and its values."""
    room = ctypes.create_string_buffer(BEGIN + FLOAT_BYTES * SHORT_COUNT)
    address = ctypes.addressof(room)
    return room, address, address + BEGIN


def envelope(*keys: str) -> re.Pattern[bytes]:
    """What stands before the matrix in an object that has one of these keys and no other."""
    choice = "|".join(f'(?P<{key}>"{key}")' for key in keys).encode()
    return re.compile(BLANK.join((b"", rb"\{", b"(?:" + choice + b")", b":", MATRIX)))


def read_enveloped(incoming: Incoming, before: re.Pattern[bytes]) -> tuple[Floats, str, Span] | None:
    """The matrix of a body that is nothing else, a bare row as one dimension; the key that it stands under, empty
    where the body is the matrix itself; and where."""
    read, body = incoming.read_matrix, incoming.body
    if read is None or type(body) is not bytes:
        return None
    match = before.match(body)
    found = read(body, match.end()) if match else None
    if match is None or found is None:
        return None
    values, end = found
    key = match.lastgroup or ""
    if body[end:].strip(BLANKS) != (b"}" if key else b""):
        return None
    is_bare = values.ndim == 1
    return values, key, Span(match.end(), end, FLAT, 1) if is_bare else Span(match.end(), end)


NAME = b'"data"'
DATA = re.compile(BLANK.join((NAME, b":", MATRIX)))


def split_tensor(incoming: Incoming) -> tuple[bytes, Floats, tuple[int, int]] | None:
    """A V2 document with null in the place of its data; the data, of one dimension where they are flat; and where they
    stand; else None.

    The document has one "data" and no escape in a name: where that null then is the data of the only input, the matrix was.
    """
    read, body = incoming.read_matrix, incoming.body
    if read is None or type(body) is not bytes:
        return None
    match = DATA.search(body)
    found = read(body, match.end()) if match else None
    if match is None or found is None:
        return None
    values, end = found
    if body.find(NAME, end) >= 0 or body.find(NAME, 0, match.start()) >= 0:
        return None
    around = body[: match.end()] + b"null" + body[end:]
    return None if b"\\" in around else (around, values, (match.end(), end))
