"""Machine code out of an object file, laid out flat: one piece that runs at any address that begins a page.

LLVM writes an object file in which the distances between its sections are left open. Here the sections that code consists
of are put one behind the other and the distances are filled in. That is all of a linker that our kernels need, because
they know nobody: an object that refers to a function of somebody else, holds an absolute address or keeps a state is
refused. ELF is the System V ABI, chapters 4 and 5; relocations are of its supplements for x86-64 (4.4) and AArch64 (5.7).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


def record(fields: str) -> np.dtype[Any]:
    """A table's row, from `name:type` after `name:type`."""
    return np.dtype([(name, kind) for name, _, kind in (field.partition(":") for field in fields.split())])


HEADER = record(
    "ident:S16 type:<u2 machine:<u2 version:<u4 entry:<u8 phoff:<u8 shoff:<u8 flags:<u4 "
    "ehsize:<u2 phentsize:<u2 phnum:<u2 shentsize:<u2 shnum:<u2 shstrndx:<u2"
)
SECTION = record("name:<u4 type:<u4 flags:<u8 address:<u8 offset:<u8 size:<u8 link:<u4 info:<u4 align:<u8 entsize:<u8")
SYMBOL = record("name:<u4 info:u1 other:u1 section:<u2 value:<u8 size:<u8")
RELOCATION = record("offset:<u8 kind:<u4 symbol:<u4 addend:<i8")

MAGIC = b"\x7fELF\x02\x01\x01"  # 64 bits, little-endian
RELOCATABLE, X86_64, AARCH64 = 1, 62, 183
PROGBITS, SYMBOLS, RELOCATIONS = 1, 2, 4
WRITE, ALLOC = 1, 2
GLOBAL = 1
PAGE = 4096


class LinkError(Exception):
    """This object cannot run by itself, and why."""


@dataclass(frozen=True)
class Linked:
    """Code, and where in it the functions begin that others may call."""

    code: bytes
    functions: Mapping[str, int]


def link(data: bytes) -> Linked:
    """The code of an object file, or `LinkError`."""
    return Object(data).link()


def join(pieces: Sequence[Linked]) -> Linked:
    """One behind the other, each from the beginning of a page as it is meant to."""
    code = bytearray()
    functions: dict[str, int] = {}
    for piece in pieces:
        code += bytes(-len(code) % PAGE)
        functions |= {name: len(code) + at for name, at in piece.functions.items()}
        code += piece.code
    return Linked(bytes(code), functions)


class Object:
    """One object file."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        if not data.startswith(MAGIC):
            raise LinkError("not an object file of 64 bits")
        header = np.frombuffer(data, HEADER, 1)[0]
        if header["type"] != RELOCATABLE or int(header["machine"]) not in PATCHES:
            raise LinkError(f"expected an object file of x86-64 or AArch64, got machine {header['machine']}")
        self._patches = PATCHES[int(header["machine"])]
        self._sections = np.frombuffer(data, SECTION, int(header["shnum"]), int(header["shoff"]))
        self._names = self._read(self._sections[int(header["shstrndx"])])
        table = next(section for section in self._sections if section["type"] == SYMBOLS)
        self._symbols = np.frombuffer(self._read(table), SYMBOL)
        self._symbol_names = self._read(self._sections[table["link"]])

    def link(self) -> Linked:
        places, code = self._lay_out()
        for target, relocation in self._relocations(places):
            self._apply(code, places, places[target] + int(relocation["offset"]), relocation)
        functions = {
            text_at(self._symbol_names, symbol["name"]): places[int(symbol["section"])] + int(symbol["value"])
            for symbol in self._symbols
            if symbol["info"] >> 4 == GLOBAL and int(symbol["section"]) in places
        }
        return Linked(bytes(code), functions)

    def _read(self, section: Any) -> bytes:
        return self._data[int(section["offset"]) : int(section["offset"] + section["size"])]

    def _lay_out(self) -> tuple[dict[int, int], bytearray]:
        """Where each section begins, and all of them; frames are for exceptions, of which there are none."""
        places: dict[int, int] = {}
        code = bytearray()
        for number, section in enumerate(self._sections):
            name = text_at(self._names, section["name"])
            if not section["flags"] & ALLOC or not section["size"] or name == ".eh_frame":
                continue
            if section["type"] != PROGBITS or section["flags"] & WRITE or section["align"] > PAGE:
                raise LinkError(f"the section {name} is neither code nor constants")
            code += bytes(-len(code) % int(section["align"]))
            places[number] = len(code)
            code += self._read(section)
        return places, code

    def _relocations(self, places: Mapping[int, int]) -> Iterator[tuple[int, Any]]:
        for section in self._sections:
            if section["type"] == RELOCATIONS and int(section["info"]) in places:
                for relocation in np.frombuffer(self._read(section), RELOCATION):
                    yield int(section["info"]), relocation

    def _apply(self, code: bytearray, places: Mapping[int, int], place: int, relocation: NDArray[Any]) -> None:
        symbol = self._symbols[relocation["symbol"]]
        if int(symbol["section"]) not in places:
            raise LinkError(f"the code needs {text_at(self._symbol_names, symbol['name']) or 'another section'}")
        kind = int(relocation["kind"])
        if kind not in self._patches:
            raise LinkError(f"a relocation of kind {kind}, which is not known here")
        target = places[int(symbol["section"])] + int(symbol["value"]) + int(relocation["addend"])
        (word,) = struct.unpack_from("<I", code, place)
        struct.pack_into("<I", code, place, self._patches[kind](word, target, place))


def text_at(texts: bytes, start: int) -> str:
    return texts[start : texts.index(b"\0", start)].decode()


# How a word of code changes, from the place that it refers to and its own.

Patch = Callable[[int, int, int], int]


def distance(word: int, target: int, place: int) -> int:
    return (target - place) & 0xFFFFFFFF


def branch(word: int, target: int, place: int) -> int:
    """Distance in instructions, 26 bits."""
    return word | ((target - place) >> 2 & 0x3FFFFFF)


def page_distance(word: int, target: int, place: int) -> int:
    """ADRP: distance in pages, two bits of it above the rest."""
    pages = (target // PAGE - place // PAGE) & 0x1FFFFF
    return word | (pages & 3) << 29 | pages >> 2 << 5


def place_in_page(shift: int) -> Patch:
    """ADD and the loads: where in its page the target is, in units of what is loaded."""

    def patch(word: int, target: int, place: int) -> int:
        return word | (target % PAGE >> shift) << 10

    return patch


PATCHES: Mapping[int, Mapping[int, Patch]] = {
    X86_64: {2: distance, 4: distance},  # PC32, PLT32
    AARCH64: {
        261: distance,  # PREL32
        275: page_distance,  # ADR_PREL_PG_HI21
        277: place_in_page(0),  # ADD_ABS_LO12_NC
        278: place_in_page(0),  # LDST8_ABS_LO12_NC
        282: branch,  # JUMP26
        283: branch,  # CALL26
        284: place_in_page(1),  # LDST16_ABS_LO12_NC
        285: place_in_page(2),  # LDST32_ABS_LO12_NC
        286: place_in_page(3),  # LDST64_ABS_LO12_NC
        299: place_in_page(4),  # LDST128_ABS_LO12_NC
    },
}
