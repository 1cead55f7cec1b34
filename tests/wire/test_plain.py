"""The short way to read a matrix gives what the usual way gives, to the last bit and the last word, and stays in its bounds."""

from __future__ import annotations

import ctypes
import json
import mmap
import random
import struct
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numba
import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.batch import Incoming
from service.errors import ServiceError
from service.kernels.decimals import HIGHEST, LOWEST, round_exactly
from service.wire import ROUTES, Route
from service.wire.open_inference import Reply
from service.wire.plain import SHORT_BYTES, MatrixReader
from tests.apps import Example, World
from tests.unit.engine_models import compiled_code
from tests.wire.cases import read_cases

many = settings(
    max_examples=300,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
routes = pytest.mark.parametrize("route", ROUTES[:4], ids=lambda route: route.template)


@pytest.fixture(scope="module")
def reader() -> MatrixReader:
    return MatrixReader(compiled_code().function("read_matrix", keeps_lock=True))


def outcome(route: Route, incoming: Incoming) -> object:
    """All that a wire makes of a request."""
    try:
        batch = route.decode(incoming)
    except ServiceError as error:
        return type(error), error.message
    return batch.values.dtype, batch.values.shape, batch.values.tobytes(), batch.place, batch.names, batch.reply


def request(body: bytes, **headers: str) -> Incoming:
    return Incoming("POST", "/", headers, body, "id")


def verify(reader: MatrixReader, route: Route, incoming: Incoming) -> None:
    """The promise, of one request."""
    usual = outcome(route, incoming)
    assert outcome(route, replace(incoming, read_matrix=reader)) == usual, incoming.body[:200]


class Asked:
    """A reader that counts how often it knew the answer."""

    def __init__(self, reader: MatrixReader) -> None:
        self.reader = reader
        self.answered = 0

    def __call__(self, text: bytes, start: int) -> Any:
        found = self.reader(text, start)
        self.answered += found is not None
        return found


# Numbers.


def to_float32(number: float) -> bytes | None:
    """As the usual way does: None for what it refuses."""
    try:
        return struct.pack("<f", number)
    except OverflowError:
        return None


def doubles(source: random.Random) -> float:
    return float(struct.unpack("<d", source.randbytes(8))[0])


def floats(source: random.Random) -> float:
    return float(struct.unpack("<f", source.randbytes(4))[0])


def halfway(source: random.Random) -> float:
    """Between two float32, or a float64 beside that: rounding twice is not rounding once."""
    bits = source.randrange(0x7F7FFFFF)
    low, high = (struct.unpack("<f", struct.pack("<I", bits + k))[0] for k in range(2))
    middle = (low + high) / 2
    return float(source.choice([middle, np.nextafter(middle, 0), np.nextafter(middle, np.inf)]))


def fixed(source: random.Random) -> str:
    return f"{source.gauss(0, 10 ** source.randrange(-3, 6)):.{source.randrange(19)}f}"


def whole(source: random.Random) -> str:
    return str(source.randrange(10 ** source.randrange(1, 21)) * source.choice([1, -1]))


def powers(source: random.Random) -> str:
    """Whole numbers beside powers of two, where float32 and float64 end."""
    return str(2 ** source.randrange(20, 66) + source.randrange(-3, 4) * 2 ** source.randrange(40))


def scientific(source: random.Random) -> str:
    digits = source.randrange(1, 19)
    exponent = f"{source.choice('eE')}{source.choice(['', '+', '-'])}{source.randrange(63):0{source.randrange(1, 4)}}"
    return f"{source.choice(['', '-'])}{source.randrange(10)}.{source.randrange(10**digits):0{digits}}{exponent}"


def subnormal(source: random.Random) -> float:
    return source.randrange(2**26) * 2.0**-151


def between_doubles(source: random.Random) -> str:
    """The exact decimal digits of a point halfway between two float64, up to nineteen of them."""
    return str(source.randrange(2**53, 2**63) | 2 ** source.randrange(10))


SPELLINGS: dict[str, Callable[[random.Random], float | str]] = {
    "any float64": doubles,
    "any float32": floats,
    "halfway": halfway,
    "fixed": fixed,
    "whole": whole,
    "powers of two": powers,
    "scientific": scientific,
    "subnormal": subnormal,
    "between float64": between_doubles,
}


def spelled(number: float | str, source: random.Random) -> str:
    """As Python writes it, or as JavaScript, orjson and others do."""
    if isinstance(number, str):
        return number
    return repr(number) if source.random() < 0.5 else orjson.dumps(number).decode()


@pytest.mark.parametrize("kind", SPELLINGS)
def test_every_number_has_the_bits_that_the_usual_way_gives_it(reader: MatrixReader, kind: str) -> None:
    assert count_known(reader, kind, random.Random(kind)) > (1_000 if kind == "any float64" else 5_000)


@pytest.mark.long
def test_millions_of_numbers_have_the_bits_that_the_usual_way_gives_them(reader: MatrixReader) -> None:
    for seed in range(100):
        for kind in SPELLINGS:
            count_known(reader, kind, random.Random(f"{kind} {seed}"))


def count_known(reader: MatrixReader, kind: str, source: random.Random) -> int:
    """How many of 10,000 numbers the reader knows; each alone, at the end of its text, and all of them in a row."""
    known = []
    for _ in range(10_000):
        text = spelled(SPELLINGS[kind](source), source)
        found = None if text in ("null", "nan", "inf", "-inf") else reader(f"[{text}]".encode(), 0)
        if found is not None:
            assert found[0].tobytes() == to_float32(orjson.loads(text)), text
            known.append(text)
    together = reader(f"[{','.join(known)}]".encode(), 0)
    assert together is not None
    assert together[0].tobytes() == b"".join(struct.pack("<f", orjson.loads(text)) for text in known)
    return len(known)


def hard_cases(source: random.Random) -> Iterator[tuple[int, int]]:
    """Digits and exponents of ten: any, and those whose value is a float64, or halfway between two."""
    for _ in range(100_000):
        yield source.randrange(1, 2 ** source.randrange(1, 65)), source.randrange(LOWEST, HIGHEST + 1)
        exponent = source.randrange(28)
        most = (2**64 - 1) // 5**exponent
        yield source.randrange(1, most + 1) * 5**exponent, -exponent
        bits = source.randrange(2**53, 2**54) | 1
        yield bits * 5 ** source.randrange(5) & (2**64 - 1), -source.randrange(5)


def test_what_is_rounded_exactly_is_rounded_right() -> None:
    """Python reads decimal numbers right; the algorithm may pass, but not be wrong."""
    exactly = numba.njit(lambda digits, exponent: round_exactly(digits, exponent))
    passed = 0
    for digits, exponent in hard_cases(random.Random(5)):
        found = exactly(np.uint64(digits), exponent)
        if found < 0:
            passed += 1
        else:
            assert found == float(f"{digits}e{exponent}"), (digits, exponent)
    assert passed < 10


PLAIN = (
    "0", "5", "-5", "0.0", "-0.0", "-0e0", "0e9", "1e5", "1E+05", "1e-5", "1.50", "-1.5e-3", "16777217", "16777216.9999999999",
    "123456789012", "9999999999999999999", "0.000001234567890123456", "3.4028234663852886e38", "1e-45", "1.401298464324817e-45",
    "null", "NaN", "1234567890123456.125", "0.1000000014901161193",
)  # fmt: skip
NOT_PLAIN = (
    "-0", "01", "-01", "00", "1.", ".5", "-.5", "+1", "-", "1e", "1e+", "1.e5", "--1", "1-", "1_0", "0x1", "1,,", "", "-null", "-NaN",
    "nul", "nulls", "NaN1", "nan", "Infinity", "-Infinity", "true", "false", '"1"', "{}", "1 2", "1;2", "1e39", "-1e39",
    "3.4028235677973366e38", "1e400", "1e-400", "18446744073709551616", "12345678901234567890.5", "0.123456789012345678901234",
    "1\x00", "1\x0b", "1\xa0", "٣",
)  # fmt: skip


@pytest.mark.parametrize("text", PLAIN)
def test_what_people_write_is_plain(reader: MatrixReader, text: str) -> None:
    found = reader(f"[[{text}]]".encode(), 0)
    assert found is not None
    value = orjson.loads("null" if text == "NaN" else text)
    assert found[0].tobytes() == to_float32(np.nan if value is None else value)


@pytest.mark.parametrize("text", NOT_PLAIN)
def test_what_needs_a_closer_look_gets_one(reader: MatrixReader, text: str) -> None:
    """Whether it stands alone, among others, near the end or far from it."""
    for body in (f"[{text}]", f"[[{text}]]", f"[[1,{text}],[1,2]]", f"[[1,2],[{text},2]{',[1,2]' * 50}]"):
        assert reader(body.encode(), 0) is None


@pytest.mark.parametrize(
    "body", ["[]", "[[]]", "[[1],[]]", "[[1],[1,2]]", "[[1,2],[1]]", "[[1],]", "[[1,]]", "[1,]", "[,1]", "[[1],2]", "[1,[2]]",
             "[[[1]]]", "[[1]", "[[1", "[1", "[", "", " ", "x[1]", "[[1] [1]]", "[[1],,[1]]", "[[1]],[[1]]]]"]
)  # fmt: skip
def test_brackets_that_are_no_matrix_are_refused(reader: MatrixReader, body: str) -> None:
    found = reader(body.encode(), 0)
    assert found is None or found[1] < len(body)


# Whole requests.


def bodies() -> Iterator[bytes]:
    """Good requests in the styles of several writers."""
    rows: Any
    for rows in ([[1.5, -2.25e-3, 3], [0.1, 2.5, 16777217]], [[5.1]], [[1, None], [float("nan"), 2]], [[0.5] * 40] * 9):
        v2 = {"name": "input-0", "shape": [len(rows), len(rows[0])], "datatype": "FP32"}
        flat = [value for row in rows for value in row]
        for document in (
            rows, rows[0], {"instances": rows}, {"inputs": rows}, {"features": rows}, {"features": rows[0]}, {"X": rows},
            {"X": rows[-1]}, {"id": "7", "inputs": [{**v2, "data": flat}]}, {"inputs": [{**v2, "data": rows}], "id": "8"},
            {"parameters": {}, "inputs": [{"data": flat, **v2}], "outputs": [{"name": "output-0"}]},
        ):  # fmt: skip
            yield json.dumps(document).encode()
            yield json.dumps(document, separators=(",", ":")).encode()
            yield json.dumps(document, indent=2).replace("\n", "\r\n\t").encode()


BODIES = tuple(bodies())


@routes
def test_plain_requests_are_read_the_short_way(reader: MatrixReader, route: Route) -> None:
    """The other tests here would pass if it never were."""
    asked = Asked(reader)
    for body in BODIES:
        outcome(route, replace(request(body), read_matrix=asked))
    assert asked.answered > 20


@routes
def test_both_ways_agree_on_every_golden_request(reader: MatrixReader, route: Route) -> None:
    for case in read_cases():
        verify(reader, route, request(case.body, **{name.lower(): value for name, value in case.headers.items()}))


@routes
def test_both_ways_agree_wherever_a_body_is_cut(reader: MatrixReader, route: Route) -> None:
    for body in BODIES:
        for end in range(len(body)) if len(body) < 400 else range(0, len(body), 97):
            verify(reader, route, request(body[:end]))
            verify(reader, route, request(body[end:]))


@routes
@many
@given(data=st.data())
def test_both_ways_agree_on_a_body_with_other_bytes_in_it(
    reader: MatrixReader, route: Route, data: st.DataObject
) -> None:
    """A few bytes of a good request replaced, taken out or put in: what is left is good, or wrong in some way."""
    body = data.draw(st.sampled_from(BODIES))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body)))
        piece = data.draw(
            st.sampled_from(
                [b"", b" ", b",", b"[", b"]", b"}", b"null", b"NaN", b"-", b"e5", b"0", b"1e39", b'"', b"\\"]
            )
            | st.binary(max_size=3)
        )
        body = body[:at] + piece + body[at + data.draw(st.integers(0, 3)) :]
    verify(reader, route, request(body))


numbers = st.floats(width=32, allow_infinity=False) | st.floats(-1e38, 1e38) | st.integers(-(2**70), 2**70) | st.none()
scalars = numbers | st.booleans() | st.sampled_from(["1.5", "data", '"data":[1]', "\\"])


@routes
@many
@given(data=st.data())
def test_both_ways_agree_on_any_rows_under_any_keys(reader: MatrixReader, route: Route, data: st.DataObject) -> None:
    width = data.draw(st.integers(1, 5))
    row = st.lists(numbers, min_size=width, max_size=width) | st.lists(data.draw(st.sampled_from([numbers, scalars])))
    rows: Any = data.draw(st.lists(row, max_size=5) | row)
    key = data.draw(st.sampled_from(["instances", "inputs", "features", "X", "data", "", "x"]))
    others = data.draw(st.dictionaries(st.sampled_from(["instances", "X", "data", "id", "\\"]), scalars, max_size=2))
    tensor = {"name": "a", "shape": [len(rows), width], "datatype": "FP64", "data": rows, **others}
    document = data.draw(
        st.sampled_from([rows, {key: rows}, {**others, key: rows}, {"inputs": [tensor]}, {"inputs": [tensor] * 2}])
    )
    verify(reader, route, request(json.dumps(document, indent=data.draw(st.sampled_from([None, 1]))).encode()))


DOCUMENTS = (
    b'{"inputs":[{"name":"a","shape":[2],"datatype":"FP32","parameters":{"data":[1,2]}}]}',
    b'{"inputs":[{"name":"a","shape":[1,2],"datatype":"FP32","d\\u0061ta":[1,2],"parameters":{"data":[3,4]}}]}',
    b'{"inputs":[{"name":"a","shape":[1,2],"datatype":"FP32","parameters":{"data":[1,2]},"data":null}]}',
    b'{"inputs":[{"name":"a","shape":[1,2],"datatype":"FP32","parameters":{"data":[1,2]},"d\\u0061ta":null}]}',
    b'{"inputs":[{"name":"a","shape":[1,2],"datatype":"FP32","data":[1,2],"data":[3,4]}]}',
    b'{"inputs":[{"name":"a","shape":[1,2],"datatype":"FP32","data":[1,2]}],"inputs":[{"data":null}]}',
    b'{"inputs":[{"name":"\\"data\\":[1]","shape":[1,2],"datatype":"FP32","data":[1,2]}]}',
    b'{"inputs":[{"name":"a","shape":[1,2],"datatype":"FP32","data":[1,2]},{"name":"b"}]}',
    b'{"inputs":[{"name":"a","shape":[1,2],"datatype":"FP32","data":[1,2],"parameters":{"x":NaN}}]}',
    b'{"inputs":[{"name":"a","shape":[1,3],"datatype":"FP32","data":[1,2]}]}',
    b'{"inputs":[{"name":"a","shape":[4],"datatype":"FP32","data":[[1,2],[3,4]]}]}',
    b'{"inputs":{"data":[[1,2]]}}',
    b'{"data":[[1,2]]}',
    b'{"instances":[[1,2]],"instances":[[3,4]]}',
    b'{"in\\u0073tances":[[1,2]]}',
    b'{"instances":[[1,2]]}}',
    b'{"instances":[[1,2]]',
    b'{"instances":[[1,2]]} x',
    b'{"instances":[[1,2]]}\x00',
    b'{"instances":[[1,2]]}\x0b',
    b'\xef\xbb\xbf{"instances":[[1,2]]}',
    b'{"instances":[[1,2]]}\xff',
    b"[[1,2]]]",
    b"[[1,2]]}",
)


@routes
@pytest.mark.parametrize("body", DOCUMENTS)
def test_both_ways_agree_on_what_looks_plain_and_is_not(reader: MatrixReader, route: Route, body: bytes) -> None:
    verify(reader, route, request(body))


@routes
def test_a_long_body_is_read_as_a_short_one_is(reader: MatrixReader, route: Route) -> None:
    """Beyond the size that threads keep memory for, and just at it."""
    for size in (SHORT_BYTES - 1, SHORT_BYTES, SHORT_BYTES + 1, 40 * SHORT_BYTES):
        row = b"[" + b",".join([b"0.5"] * 30) + b"]"
        rows = b"[" + b",".join([row] * (size // 122)) + b"]"
        for body in (rows, b'{"instances":' + rows + b"}", b'{"X":' + rows + b"}"):
            verify(reader, route, request(body + b" " * (size - len(body))))


def test_what_a_thread_read_is_not_written_over_by_what_it_reads_next(reader: MatrixReader) -> None:
    first, second = reader(b"[[1,2]]", 0), reader(b"[[3,4]]", 0)
    assert first is not None
    assert second is not None
    assert first[0].tolist() == [[1, 2]]


def test_the_reply_of_v2_is_made_of_what_stands_beside_the_data(reader: MatrixReader) -> None:
    body = b'{"id":"7","inputs":[{"name":"a","shape":[1,2],"datatype":"FP32","data":[1,2]}]}'
    batch = ROUTES[3].decode(replace(request(body), read_matrix=reader))
    assert batch.reply == Reply("7", is_binary=False)


def test_threads_do_not_read_into_each_others_memory(reader: MatrixReader) -> None:
    """As the Flask door's threads do, with the switches between them as near together as can be."""
    bodies = [json.dumps([[seed + k / 8 for k in range(30)]]).encode() for seed in range(4)]
    wanted = [np.array(json.loads(body), np.float32).tobytes() for body in bodies]

    def read_often(number: int) -> bool:
        return all(reader(bodies[number], 0)[0].tobytes() == wanted[number] for _ in range(3_000))  # type: ignore[index]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(read_often, range(4)))
    finally:
        sys.setswitchinterval(interval)


def test_the_edge_reads_with_what_came_with_the_model(iris: Example) -> None:
    """And in the usual way where nothing came; the answers are the same."""
    assert iris.model.code is not None
    answers = []
    for code in (iris.model.code, None):
        world = World(replace(iris.model, code=code))
        call = world.edge.begin(ROUTES[0], request(b"[[5.1, 3.5, 1.4, 0.2]]"), 0.0)
        assert (call.incoming.read_matrix is None) == (code is None)
        answers.append(world.edge.finish(call).outgoing)
    assert answers[0] is not None
    assert answers[0].status == 200
    assert answers[0] == answers[1]


# Bounds.

PAGE = mmap.PAGESIZE


class Fenced:
    """A page of memory between two that nobody may touch: whoever does ends the process."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, 3 * PAGE)
        self.begin = ctypes.addressof(ctypes.c_char.from_buffer(self._map)) + PAGE
        self.end = self.begin + PAGE
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        for fence in (self.begin - PAGE, self.end):
            assert protect(fence, PAGE, 0) == 0

    def write(self, address: int, text: bytes) -> int:
        ctypes.memmove(address, text, len(text))
        return address


@pytest.fixture(scope="module")
def read() -> Callable[..., int]:
    return compiled_code().function("read_matrix")


def test_nothing_outside_the_text_is_read(read: Callable[..., int]) -> None:
    """Texts of every kind and length, cut at every byte, at the end of memory and at its beginning."""
    memory = Fenced()
    room = ctypes.create_string_buffer(PAGE)
    out = ctypes.addressof(room)
    texts = [body for body in BODIES if len(body) < 700]
    texts += [f"[[1,{text}".encode() for text in (*PLAIN, *NOT_PLAIN)]
    texts += [
        b"[" * 99,
        b"[" + b"1" * 99,
        b"[0." + b"1" * 99,
        b"[1e" + b"1" * 99,
        b"[" + b" " * 99,
        b"[[1] " + b" " * 99,
    ]
    for text in texts:
        start = max(text.find(b"["), 0)
        for length in range(len(text) + 1):
            for address in (memory.begin, memory.end - length):
                memory.write(address, text[:length])
                assert 0 <= read(address, start, length, out + 16, 200, out) <= length


def test_nothing_beyond_the_room_is_written(read: Callable[..., int]) -> None:
    """Exactly enough room is enough; one number less is not plain."""
    text = b"[" + b",".join([b"[1,2,3]"] * 40) + b"]"
    source, memory = ctypes.create_string_buffer(text), Fenced()
    shape = ctypes.create_string_buffer(16)
    for capacity in (0, 1, 119, 120):
        end = read(ctypes.addressof(source), 0, len(text), memory.end - 4 * capacity, capacity, ctypes.addressof(shape))
        assert end == (len(text) if capacity == 120 else 0)


def test_what_cannot_be_a_text_is_not_plain(read: Callable[..., int]) -> None:
    source = ctypes.create_string_buffer(b"[1]")
    shape = ctypes.create_string_buffer(24)
    at, out = ctypes.addressof(source), ctypes.addressof(shape)
    for start, length in ((0, 0), (3, 3), (9, 3), (1, 3)):
        assert read(at, start, length, out + 16, 2, out) == 0


def test_documents_that_say_the_same_have_their_own_numbers_and_ids(reader: MatrixReader) -> None:
    """What stands around the numbers is kept: nothing of one request may get into the next."""
    route = next(route for route in ROUTES if route.wire == "open_inference")
    for number in range(6):
        for wishes in ("", '"parameters":{"binary_data_output":true},', '"id":"given",'):
            body = f'{{{wishes}"inputs":[{{"name":"a","shape":[1,2],"datatype":"FP32","data":[{number},2]}}]}}'
            incoming = Incoming("POST", "/", {}, body.encode(), f"id-{number}")
            verify(reader, route, incoming)
            batch = route.decode(replace(incoming, read_matrix=reader))
            assert batch.values.tolist() == [[number, 2.0]]
            assert batch.reply == Reply("given" if "given" in wishes else f"id-{number}", "true" in wishes)
