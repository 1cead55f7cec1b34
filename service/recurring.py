"""Requests that come again: a client or a proxy sends the same head each time, but for a length, an id, an address, and around
its numbers the same body.

llhttp, its callbacks and `head.py` take 5.5 µs for a head; to hold one against those that they have accepted takes 0.2
(docs/performance.md). A head that both have accepted is kept as texts with gaps between them. The gaps are only where no
value can change what a request means: the digits of the length, the id, and the values of headers that nothing reads. So
whatever is recognized here would be accepted there and mean the same; a line end inside a value, a name written in
another way or one header more makes it another head, which is llhttp's to judge.

A body that a wire has read whose matrix of numbers was plain is kept likewise: what stood before the matrix, and what behind it.
Of such a request nothing is new but its numbers, its id and its length: machine code (`recognition`) reads all
three in one call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from service.batch import Floats, Frame, Span
from service.head import MAX_HEAD_BYTES, READ_HEADERS, REQUEST_ID_CHARS, REQUEST_ID_LENGTH
from service.machine_code import MachineCode

LENGTH, REQUEST_ID = b"content-length", b"x-request-id"
# llhttp 9 gives the last of these a meaning, beside those that we read.
FIXED = frozenset(name.lower().encode() for name in READ_HEADERS) - {LENGTH, REQUEST_ID} | {b"proxy-connection"}
# What differs from request to request, or is a secret: neither compared nor kept.
GAPS = frozenset(
    (LENGTH, REQUEST_ID, b"traceparent", b"tracestate", b"authorization", b"proxy-authorization", b"cookie")
)
# Requests whose body is not framed by a length alone, or does not come at once.
UNUSUAL = ("transfer-encoding", "expect")
# Four routes for three kinds of clients are twelve.
MAX_HEADS = 16
# Of each head: clients behind one proxy write their JSON with other blanks, and V2's has the number of rows in it.
MAX_FORMS = 8
# A value that is longer is none to keep, where nothing reads it: certificates, tokens under other names.
LONG_VALUE = 256
MAX_GAPS = 32
# Of a head without its gaps, and of what stands around a matrix.
MAX_KEPT_BYTES = 2048
# What learning may cost between two refills, four times a second: a look at a head takes 5 to 30 µs, new tables at most 350.
ALLOWANCE, NEW_TABLES = 72, 8
LINE_END = b"\r\n"

# What `recognition` knows of all this: cells of eight bytes, whole numbers, most of them addresses.
#
# What may stand in a gap: nothing but the end; visible ASCII and blanks, which is less than llhttp lets pass (RFC 9110 section 5.5); up to nine
# digits; an id that can be repeated.
NO_GAP, VALUE_GAP, LENGTH_GAP, REQUEST_ID_GAP = range(4)
GAP_OF = {LENGTH: LENGTH_GAP, REQUEST_ID: REQUEST_ID_GAP}
LENGTH_DIGITS, MAX_ID = 9, REQUEST_ID_LENGTH
# A text is its address and its size. A step: a text and the gap behind it.
SIZE, GAP = 1, 2
STEP_CELLS = 3
# A form: what stands before the matrix and behind it, how it is written, how many rows it must have, 0 for any, and how often
# it was met.
BEFORE, AFTER, KIND, FIXED_ROWS, FORM_HITS = 0, 2, 4, 5, 6
FORM_CELLS = 7
STEPS, STEP_COUNT, FORMS, FORM_COUNT, HEAD_HITS = range(5)
HEAD_CELLS = 5
# What was read, and what it may be.
BUFFER, BYTES, MAX_BODY, MAX_HEAD, ID_CHARS = range(5)
# What is known.
HEADS, HEAD_COUNT = range(5, 7)
# Where rows go: floats, how many there may be, how many make a row; rows in one request at most, and rows until now.
VALUES, ROOM, FEATURES, MAX_ROWS, TAKEN = range(7, 12)
# What was found: bytes counted from the buffer's beginning, rows, and two cells for whoever reads the matrix.
ID, ID_END, BODY, ROWS, SHAPE = range(12, 17)
CELLS = 18
# Machine code reads windows of 32 bytes and words of eight from wherever a text ends.
PADDING = 64


@dataclass(frozen=True, slots=True)
class Accepted:
    """What was found out about a head after which the connection goes on: its target and the path in it, and the headers
    that are read, by lower-case name."""

    method: str
    target: str
    path: str
    version: str
    headers: dict[str, str]
    keep_alive: bool = True


@dataclass(slots=True, eq=False)
class Form:
    """A body but for its numbers, under which head and route it comes, and the answer to it but for what differs in that.

    `hits`: how often it was met, less and less the longer ago.
    """

    before: bytes
    after: bytes
    span: Span
    label: tuple[str, str]
    accepted: Accepted
    frame: Frame
    hits: int = 0


class RecurringHead:
    """The lines of a head, the numbers of those whose value is a gap, and the forms of the bodies that come with it."""

    __slots__ = ("_lines", "accepted", "forms", "gaps", "has_id", "hits", "steps")

    def __init__(self, lines: list[bytes], gaps: set[int], accepted: Accepted) -> None:
        self._lines = [start_of(line) if at in gaps else line for at, line in enumerate(lines)]
        self.gaps = gaps
        self.steps = self._to_steps()
        self.has_id = any(gap == REQUEST_ID_GAP for _, gap in self.steps)
        # The values in its own gaps are not those of the next.
        kept = {name: value for name, value in accepted.headers.items() if name.encode() not in GAP_OF}
        self.accepted = replace(accepted, headers=kept)
        self.forms: list[Form] = []
        self.hits = 0

    def _to_steps(self) -> list[tuple[bytes, int]]:
        """Texts, and what may stand behind each."""
        steps, text = [], b""
        for at, line in enumerate(self._lines):
            text += line
            if at in self.gaps:
                steps.append((text, GAP_OF.get(name_of(line), VALUE_GAP)))
                text = b""
            text += LINE_END
        return [*steps, (text + LINE_END, NO_GAP)]

    def gaps_for(self, lines: list[bytes]) -> set[int] | None:
        """The gaps that this head must have for these lines to be the same; None if they never are."""
        if len(lines) != len(self._lines):
            return None
        gaps = set(self.gaps)
        for at, (line, own) in enumerate(zip(lines, self._lines, strict=True)):
            if start_of(line) != start_of(own) or (line != own and (not at or name_of(line) in FIXED)):
                return None
            if line != own:
                gaps.add(at)
        return gaps


class Recurring:
    """What a worker has met lately, most often met first; `buffer` is what connections read into, with `PADDING` behind it.

    What recognizes is machine code, which is there once a model is.
    """

    def __init__(self, buffer: bytearray, max_body_bytes: int) -> None:
        self.heads: list[RecurringHead] = []
        self.forms: list[Form] = []
        self._heads = np.empty((0, HEAD_CELLS), np.int64)
        self._forms = np.empty((0, FORM_CELLS), np.int64)
        self._allowance = ALLOWANCE
        self._buffer = buffer
        self._id_chars = np.zeros(256, np.uint8)
        self._id_chars[list(REQUEST_ID_CHARS.encode())] = 1
        cells = np.zeros(CELLS, np.int64)
        cells[BUFFER] = address_of(buffer)
        cells[MAX_BODY], cells[MAX_HEAD] = max_body_bytes, MAX_HEAD_BYTES
        cells[ID_CHARS] = self._id_chars.ctypes.data
        self._address = cells.ctypes.data
        # Whole numbers; a memoryview is twice as fast as numpy where one is read or written.
        self.cells: memoryview[int] = cells.data
        self._lay_out()

    def serve(self, code: MachineCode, rows: Floats, max_rows: int) -> Callable[[], int]:
        """`recognition.recognize` for what is kept here: rows go to where these rows are, a request has so many at most."""
        cells = self.cells
        cells[VALUES], cells[ROOM] = rows.ctypes.data, rows.size
        cells[FEATURES], cells[MAX_ROWS], cells[TAKEN] = rows.shape[1], max_rows, 0
        return code.bind("recognize", self._address)

    def request_id(self) -> str:
        """The id of what was recognized last, empty if it has none."""
        return self._buffer[self.cells[ID] : self.cells[ID_END]].decode("ascii")

    def body(self) -> bytes:
        """The body of what was recognized last."""
        return bytes(self._buffer[self.cells[BODY] : self.cells[BYTES]])

    @property
    def may_learn(self) -> bool:
        return self._allowance > 0

    def refill(self) -> None:
        """Allow learning again: callers who never send a head twice must not cost more than those who do gain."""
        self._allowance = ALLOWANCE

    def learn(self, data: bytes, fields: int, accepted: Accepted) -> None:
        """Keep the head that the bytes begin with, of so many fields, which has been accepted."""
        if not self.may_learn or any(name in accepted.headers for name in UNUSUAL):
            return
        self._allowance -= 1
        head, end, _ = data.partition(LINE_END * 2)
        lines = head.split(LINE_END)
        names = [name_of(line) for line in lines[1:]]
        # A blank line before the request line, line ends of another kind.
        is_plain = end and len(names) == fields and all(names) and head.isascii() and head.count(b"\n") == fields
        if not is_plain or names.count(LENGTH) != 1 or names.count(REQUEST_ID) > 1:
            return
        gaps = {at for at, name in enumerate(names, 1) if is_gap(name, lines[at])}
        kept = sum(len(line) for at, line in enumerate(lines) if at not in gaps)
        if kept > MAX_KEPT_BYTES or len(gaps) > MAX_GAPS:
            return
        for known in self.heads:
            more = known.gaps_for(lines)
            if more == known.gaps:
                return  # it was not recognized for another reason, such as an id that cannot be repeated
            if more is not None and len(more) <= MAX_GAPS:
                self._widen(known, lines, more)
                return
        self._count_hits()
        make_room(self.heads, MAX_HEADS)
        self.heads.append(RecurringHead(lines, gaps, accepted))
        self._lay_out()

    def _widen(self, head: RecurringHead, lines: list[bytes], gaps: set[int]) -> None:
        """Put a head with more gaps in the place of this one."""
        self._count_hits()
        wider = RecurringHead(lines, gaps, head.accepted)
        wider.forms, wider.hits = head.forms, head.hits
        self.heads[self.heads.index(head)] = wider
        self._lay_out()

    def learn_form(self, head: RecurringHead, body: bytes, span: Span, label: tuple[str, str], frame: Frame) -> None:
        """Keep what stands around the matrix of a body that came with this head."""
        size = span.begin + len(body) - span.end
        if not self.may_learn or size > MAX_KEPT_BYTES or "content-encoding" in head.accepted.headers:
            return
        if span.rows > self.cells[MAX_ROWS]:
            return  # none like it would be taken
        before, after = body[: span.begin], body[span.end :]
        if any(
            (known.before, known.after, known.span.kind, known.span.rows) == (before, after, span.kind, span.rows)
            for known in head.forms
        ):
            return  # it was not taken for another reason, such as too many rows
        self._count_hits()
        make_room(head.forms, MAX_FORMS)
        head.forms.append(Form(before, after, span, label, head.accepted, frame))
        self._lay_out()

    def _count_hits(self) -> None:
        """What machine code has counted since the tables were laid out; what was counted before counts half."""
        for head, hits in zip(self.heads, self._heads[:, HEAD_HITS].tolist(), strict=True):
            head.hits = head.hits // 2 + hits
        for form, hits in zip(self.forms, self._forms[:, FORM_HITS].tolist(), strict=True):
            form.hits = form.hits // 2 + hits
        self._heads[:, HEAD_HITS] = self._forms[:, FORM_HITS] = 0

    def _lay_out(self) -> None:
        """The tables that machine code reads, in place of the last ones; what is met most often is looked for first."""
        self._allowance -= NEW_TABLES
        self.heads.sort(key=count_of, reverse=True)
        for head in self.heads:
            head.forms.sort(key=count_of, reverse=True)
        self.forms = [form for head in self.heads for form in head.forms]
        texts = Texts()
        steps = [[*texts.add(text), gap] for head in self.heads for text, gap in head.steps]
        forms = [
            [*texts.add(form.before), *texts.add(form.after), form.span.kind, form.span.rows, 0] for form in self.forms
        ]
        self._texts = np.frombuffer(texts.data + bytes(PADDING), np.uint8)
        base = self._texts.ctypes.data
        self._steps = np.array(steps, np.int64).reshape(-1, STEP_CELLS)
        self._steps[:, 0] += base
        self._forms = np.array(forms, np.int64).reshape(-1, FORM_CELLS)
        self._forms[:, [BEFORE, AFTER]] += base
        heads, step, form_ = [], self._steps.ctypes.data, self._forms.ctypes.data
        for head in self.heads:
            heads.append([step, len(head.steps), form_, len(head.forms), 0])
            step += 8 * STEP_CELLS * len(head.steps)
            form_ += 8 * FORM_CELLS * len(head.forms)
        self._heads = np.array(heads, np.int64).reshape(-1, HEAD_CELLS)
        self.cells[HEADS], self.cells[HEAD_COUNT] = self._heads.ctypes.data, len(heads)


class Texts:
    """Texts one behind the other, each once."""

    def __init__(self) -> None:
        self.data = bytearray()
        self._places: dict[bytes, int] = {}

    def add(self, text: bytes) -> tuple[int, int]:
        """Where it begins, and its size."""
        at = self._places.setdefault(text, len(self.data))
        if at == len(self.data):
            self.data += text
        return at, len(text)


def make_room(known: list[Any], most: int) -> None:
    """For one more: without the one that was met least, of those the one that was learned last."""
    if len(known) >= most:
        known.remove(min(reversed(known), key=count_of))


def count_of(known: RecurringHead | Form) -> int:
    return known.hits


def is_gap(name: bytes, line: bytes) -> bool:
    """Whether a header's value is neither compared nor kept, from the first time on."""
    return name in GAPS or (len(line) > LONG_VALUE and name not in FIXED)


def address_of(buffer: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def name_of(line: bytes) -> bytes:
    return line.partition(b":")[0].lower()


def start_of(line: bytes) -> bytes:
    """A header line up to its value."""
    name, colon, value = line.partition(b":")
    return name + colon + value[: len(value) - len(value.lstrip(b" "))]
