"""Heads that come again: a client or a proxy sends the same head with each request, but for a length, an id, an address.

llhttp, its callbacks and `head.py` take 5.5 µs for a head, and a pattern 1.6 (docs/performance.md). A head that both have accepted
becomes a pattern, and what matches it is known without them. The pattern has gaps only where no value can change what a
request means: the digits of the length, the id, and the values of headers that nothing reads. So whatever is recognized
here would be accepted there and mean the same; a line end inside a value, a name written in another way or one header more
makes it another head, which is llhttp's to judge.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from service.head import READ_HEADERS, REQUEST_ID_TEXT

LENGTH, REQUEST_ID = b"content-length", b"x-request-id"
# llhttp 9 gives the last of these a meaning, beside those that we read.
FIXED = frozenset(name.lower().encode() for name in READ_HEADERS) - {LENGTH, REQUEST_ID} | {b"proxy-connection"}
# What differs from request to request, or is a secret: neither compared nor kept.
GAPS = frozenset(
    (LENGTH, REQUEST_ID, b"traceparent", b"tracestate", b"authorization", b"proxy-authorization", b"cookie")
)
# Visible ASCII and blanks, less than llhttp lets pass (RFC 9110 section 5.5).
VALUE = rb"[ -~]*+"
VALUES = {LENGTH: rb"(?P<length>[0-9]{1,9})", REQUEST_ID: rb"(?P<id>" + REQUEST_ID_TEXT.encode() + rb")"}
# Requests whose body is not framed by a length alone, or does not come at once.
UNUSUAL = ("transfer-encoding", "expect")
MAX_HEADS = 8
# Of a head without its gaps.
MAX_KEPT_BYTES = 2048
# Heads that are learned between two refills, four times a second: 0.3 ms each for 500 bytes, nearly all for `re`.
ALLOWANCE = 8
LINE_END = b"\r\n"


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


class RecurringHead:
    """The lines of a head, the numbers of those whose value is a gap, and the pattern that they make."""

    __slots__ = ("_lines", "accepted", "gaps", "match")

    def __init__(self, lines: list[bytes], gaps: set[int], accepted: Accepted) -> None:
        self._lines = [start_of(line) if at in gaps else line for at, line in enumerate(lines)]
        self.gaps = gaps
        pattern = (
            re.escape(line) + (VALUES.get(name_of(line), VALUE) if at in gaps else b"")
            for at, line in enumerate(self._lines)
        )
        self.match = re.compile(LINE_END.join((*pattern, LINE_END))).match
        # `re` would keep 512 of them, which take up to 20 KB each: 10 MB for whoever sends another head each time.
        re.purge()
        # The values in its own gaps are not those of the next.
        kept = {name: value for name, value in accepted.headers.items() if name.encode() not in VALUES}
        self.accepted = replace(accepted, headers=kept)

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


class RecurringHeads:
    """The heads that a worker has met lately, newest first."""

    def __init__(self) -> None:
        self._heads: list[RecurringHead] = []
        self._allowance = ALLOWANCE

    def find(self, data: memoryview) -> tuple[re.Match[bytes], Accepted] | None:
        """The head that the bytes begin with, up to where the body begins, and what is known of the like; if it is
        known. It has a group `length`, and `id` where one was given, which is one that can be repeated."""
        for head in self._heads:
            match = head.match(data)
            if match is not None:
                return match, head.accepted
        return None

    def refill(self) -> None:
        """Allow learning again: callers who never send a head twice must not cost more than those who do gain."""
        self._allowance = ALLOWANCE

    def learn(self, data: bytes, fields: int, accepted: Accepted) -> None:
        """Keep the head that the bytes begin with, of so many fields, which has been accepted."""
        if not self._allowance or any(name in accepted.headers for name in UNUSUAL):
            return
        self._allowance -= 1
        head = data[: data.find(LINE_END * 2)]
        lines = head.split(LINE_END)
        names = [name_of(line) for line in lines[1:]]
        # A blank line before the request line, line ends of another kind.
        is_plain = len(names) == fields and all(names) and head.isascii() and head.count(b"\n") == fields
        if not is_plain or names.count(LENGTH) != 1 or names.count(REQUEST_ID) > 1:
            return
        gaps = {at for at, name in enumerate(names, 1) if name in GAPS}
        if sum(len(line) for at, line in enumerate(lines) if at not in gaps) > MAX_KEPT_BYTES:
            return
        for known in self._heads:
            more = known.gaps_for(lines)
            if more == known.gaps:
                return  # it was not recognized for another reason, such as an id that cannot be repeated
            if more is not None:
                self._heads.remove(known)
                gaps = more
                break
        self._heads.insert(0, RecurringHead(lines, gaps, accepted))
        del self._heads[MAX_HEADS:]


def name_of(line: bytes) -> bytes:
    return line.partition(b":")[0].lower()


def start_of(line: bytes) -> bytes:
    """A header line up to its value."""
    name, colon, value = line.partition(b":")
    return name + colon + value[: len(value) - len(value.lstrip(b" "))]
