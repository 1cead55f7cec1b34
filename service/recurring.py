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
MAX_HEADS = 8
# Of each head: clients behind one proxy write their JSON with other blanks.
MAX_FORMS = 4
# Of a head without its gaps, and of what stands around a matrix.
MAX_KEPT_BYTES = 2048
# Heads and forms that are learned between two refills, four times a second: 0.1 ms each.
ALLOWANCE = 8
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
# A form: what stands before the matrix and behind it, how it is written, and how many rows it must have, 0 for any.
BEFORE, AFTER, KIND, FIXED_ROWS = 0, 2, 4, 5
FORM_CELLS = 6
STEPS, STEP_COUNT, FORMS, FORM_COUNT = range(4)
HEAD_CELLS = 4
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


@dataclass(frozen=True, slots=True)
class Form:
    """A body but for its numbers, under which head and route it comes, and the answer to it but for what differs in that."""

    before: bytes
    after: bytes
    span: Span
    label: tuple[str, str]
    accepted: Accepted
    frame: Frame


class RecurringHead:
    """The lines of a head, the numbers of those whose value is a gap, and the forms of the bodies that come with it."""

    __slots__ = ("_lines", "accepted", "forms", "gaps", "has_id", "steps")

    def __init__(self, lines: list[bytes], gaps: set[int], accepted: Accepted) -> None:
        self._lines = [start_of(line) if at in gaps else line for at, line in enumerate(lines)]
        self.gaps = gaps
        self.steps = self._to_steps()
        self.has_id = any(gap == REQUEST_ID_GAP for _, gap in self.steps)
        # The values in its own gaps are not those of the next.
        kept = {name: value for name, value in accepted.headers.items() if name.encode() not in GAP_OF}
        self.accepted = replace(accepted, headers=kept)
        self.forms: list[Form] = []

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
    """What a worker has met lately, newest first; `buffer` is what connections read into, with `PADDING` behind it.

    What recognizes is machine code, which is there once a model is.
    """

    def __init__(self, buffer: bytearray, max_body_bytes: int) -> None:
        self.heads: list[RecurringHead] = []
        self.forms: list[Form] = []
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
        if not self._allowance or any(name in accepted.headers for name in UNUSUAL):
            return
        self._allowance -= 1
        head, end, _ = data.partition(LINE_END * 2)
        lines = head.split(LINE_END)
        names = [name_of(line) for line in lines[1:]]
        # A blank line before the request line, line ends of another kind.
        is_plain = end and len(names) == fields and all(names) and head.isascii() and head.count(b"\n") == fields
        if not is_plain or names.count(LENGTH) != 1 or names.count(REQUEST_ID) > 1:
            return
        gaps = {at for at, name in enumerate(names, 1) if name in GAPS}
        if sum(len(line) for at, line in enumerate(lines) if at not in gaps) > MAX_KEPT_BYTES:
            return
        for known in self.heads:
            more = known.gaps_for(lines)
            if more == known.gaps:
                return  # it was not recognized for another reason, such as an id that cannot be repeated
            if more is not None:
                self.heads.remove(known)
                gaps = more
                break
        self.heads.insert(0, RecurringHead(lines, gaps, accepted))
        del self.heads[MAX_HEADS:]
        self._lay_out()

    def learn_form(self, accepted: Accepted, body: bytes, span: Span, label: tuple[str, str], frame: Frame) -> None:
        """Keep what stands around the matrix of a body that came with a head that is known."""
        size = span.begin + len(body) - span.end
        if not self._allowance or size > MAX_KEPT_BYTES or "content-encoding" in accepted.headers:
            return
        self._allowance -= 1
        for head in self.heads:
            if head.accepted is accepted:
                form = Form(body[: span.begin], body[span.end :], span, label, accepted, frame)
                head.forms.insert(0, form)
                del head.forms[MAX_FORMS:]
                self._lay_out()

    def _lay_out(self) -> None:
        """The tables that machine code reads, in place of the last ones."""
        self.forms = [form for head in self.heads for form in head.forms]
        texts = Texts()
        steps = [[*texts.add(text), gap] for head in self.heads for text, gap in head.steps]
        forms = [
            [*texts.add(form.before), *texts.add(form.after), form.span.kind, form.span.rows] for form in self.forms
        ]
        self._texts = np.frombuffer(texts.data + bytes(PADDING), np.uint8)
        base = self._texts.ctypes.data
        self._steps = np.array(steps, np.int64).reshape(-1, STEP_CELLS)
        self._steps[:, 0] += base
        self._forms = np.array(forms, np.int64).reshape(-1, FORM_CELLS)
        self._forms[:, [BEFORE, AFTER]] += base
        heads, step, form_ = [], self._steps.ctypes.data, self._forms.ctypes.data
        for head in self.heads:
            heads.append([step, len(head.steps), form_, len(head.forms)])
            step += 8 * STEP_CELLS * len(head.steps)
            form_ += 8 * FORM_CELLS * len(head.forms)
        self._heads = np.array(heads, np.int64).reshape(-1, HEAD_CELLS)
        self.cells[HEADS], self.cells[HEAD_COUNT] = self._heads.ctypes.data, len(heads)


class Texts:
    """Texts one behind the other, each once."""

    def __init__(self) -> None:
        self.data = b""

    def add(self, text: bytes) -> tuple[int, int]:
        """Where it begins, and its size."""
        at = self.data.find(text)
        if at < 0:
            at = len(self.data)
            self.data += text
        return at, len(text)


def address_of(buffer: bytearray) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


def name_of(line: bytes) -> bytes:
    return line.partition(b":")[0].lower()


def start_of(line: bytes) -> bytes:
    """A header line up to its value."""
    name, colon, value = line.partition(b":")
    return name + colon + value[: len(value) - len(value.lstrip(b" "))]
