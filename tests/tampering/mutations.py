"""Random changes of valid model files, in their bytes and in what they say; the same seed gives the same file."""

from __future__ import annotations

import json
import random
import re
import struct
from collections.abc import Callable, Iterator
from typing import Any

from tests.tampering import ubjson
from tests.tampering.cases import BASES, document_of

WHOLE = (
    -(2**63),
    -(2**31),
    -1000,
    -2,
    -1,
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    9,
    40,
    1000,
    2**15,
    2**24,
    2**31 - 1,
    2**31,
    2**32,
    2**40,
    2**63 - 1,
)
REAL = (float("nan"), float("inf"), float("-inf"), 0.0, -0.0, 1e-45, 1e39, -1e39, 3.4e38, 0.5, -7.25, 1e300)
TEXTS = (
    "",
    "0",
    "1",
    "-1",
    "2",
    "3",
    "4",
    "8",
    "9",
    "1e5",
    "2147483648",
    "99999999999",
    "nan",
    "gbtree",
    "dart",
    "q",
    "c",
    "[1,2]",
    "\u0000",
)
BYTES = (0, 1, 0x7F, 0x80, 0xFF, *b'"{}[]#$:,LlidSUZTF0-9eN\\')


def make_mutation(seed: int) -> tuple[str, bytes]:
    """What was done to which file, and the file."""
    dice = random.Random(seed)
    base = dice.choice([*BASES, "linear"])
    form = dice.choice(("json", "ubj"))
    change = dice.choice((*ON_BYTES, change_document, change_document, change_document))
    document = document_of(base)
    if change is change_document:
        for _ in range(dice.choice((1, 1, 1, 2, 5))):
            change_document(document, dice)
        return f"{seed}-{base}-document.{form}", write(document, form)
    data = bytearray(write(document, form))
    for _ in range(dice.choice((1, 1, 2, 8))):
        if len(data) > 8:
            change(data, dice)
    return f"{seed}-{base}-{change.__name__}.{form}", bytes(data)


def write(document: Any, form: str) -> bytes:
    return json.dumps(document).encode() if form == "json" else ubjson.write(document)


# In bytes.


def flip_bit(data: bytearray, dice: random.Random) -> None:
    data[dice.randrange(1, len(data))] ^= 1 << dice.randrange(8)


def change_byte(data: bytearray, dice: random.Random) -> None:
    data[dice.randrange(1, len(data))] = dice.choice(BYTES)


def insert_bytes(data: bytearray, dice: random.Random) -> None:
    at = dice.randrange(1, len(data))
    data[at:at] = bytes(dice.choice(BYTES) for _ in range(dice.choice((1, 4, 8))))


def delete_bytes(data: bytearray, dice: random.Random) -> None:
    at = dice.randrange(1, len(data))
    del data[at : at + dice.choice((1, 4, 8, 100))]


def splice(data: bytearray, dice: random.Random) -> None:
    """A piece of the file over another place of it."""
    length = dice.choice((4, 8, 32, 200))
    source, at = dice.randrange(1, len(data)), dice.randrange(1, len(data))
    data[at : at + length] = data[source : source + length]


def truncate(data: bytearray, dice: random.Random) -> None:
    del data[dice.randrange(1, len(data)) :]


def change_number(data: bytearray, dice: random.Random) -> None:
    """Digits of a text, or four or eight bytes."""
    found = [match.span() for match in re.finditer(rb"-?\d+(\.\d+)?", bytes(data[:4000]))]
    if data[1:2] == b'"' and found:
        begin, end = dice.choice(found)
        data[begin:end] = str(dice.choice((*WHOLE, *REAL))).encode()
        return
    at = dice.randrange(1, max(2, len(data) - 8))
    form, values = dice.choice(((">i", WHOLE), (">q", WHOLE), (">f", REAL)))
    try:
        value = struct.pack(form, dice.choice(values))
    except (struct.error, OverflowError):
        value = b"\xff" * 4
    data[at : at + len(value)] = value


ON_BYTES: tuple[Callable[[bytearray, random.Random], None], ...] = (
    flip_bit, change_byte, insert_bytes, delete_bytes, splice, truncate, change_number,
)  # fmt: skip


# In what it says.


def change_document(document: Any, dice: random.Random) -> None:
    """One value, list or member, at any depth."""
    places = list(find_places(document, dice))
    if not places:  # a change before this one has left nothing
        return
    holder, key = dice.choice(places)
    value = holder[key]
    if isinstance(value, list) and value and dice.random() < 0.9:
        change_list(value, dice)
    elif dice.random() < 0.08:
        del holder[key]
    else:
        holder[key] = change_value(value, dice)


def find_places(document: Any, dice: random.Random) -> Iterator[tuple[Any, Any]]:
    """Members of all objects; of lists of objects, those of one."""
    if isinstance(document, list):
        objects = [member for member in document if isinstance(member, dict)]
        if objects:
            yield from find_places(dice.choice(objects), dice)
        return
    for key, value in document.items():
        yield document, key
        if isinstance(value, dict | list):
            yield from find_places(value, dice)


def change_list(values: list[Any], dice: random.Random) -> None:
    at, other = dice.randrange(len(values)), dice.randrange(len(values))
    match dice.randrange(8):
        case 0:
            del values[at]
        case 1:
            values.insert(at, values[other])
        case 2:
            values[at], values[other] = values[other], values[at]
        case 3:
            values[at] = values[other]
        case _:
            values[at] = change_value(values[at], dice)


def change_value(value: Any, dice: random.Random) -> Any:
    if dice.random() < 0.05:
        return dice.choice((None, True, {}, [], "x", 1, 0.5))
    if isinstance(value, bool | int):
        return dice.choice((value + 1, value - 1, dice.randrange(60), dice.choice(WHOLE)))
    if isinstance(value, float):
        return dice.choice((value * 2, -value, dice.choice(REAL)))
    if isinstance(value, str):
        return dice.choice((*TEXTS, value + "0", value[:-1]))
    return dice.choice((None, [], {}, value))
