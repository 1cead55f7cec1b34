"""A stream does what asyncio's own transport does; here over real sockets, with a real loop."""

from __future__ import annotations

import asyncio
import selectors
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import cast

import pytest

from service.door import Door
from service.edge import ROUTE_LABELS
from service.metrics import Block, Recorder
from service.stream import HIGH_WATER, Stream
from service.worker import StreamSelector


class Selector(selectors.DefaultSelector):
    """Hands streams their events, as the worker's does."""

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        others = []
        for key, events in super().select(timeout):
            if isinstance(key.data, Stream):
                key.data.on_ready(events)
            else:
                others.append((key, events))
        return others


class Protocol(asyncio.BufferedProtocol):
    """Remembers what it is told."""

    def __init__(self, buffer: memoryview) -> None:
        self.buffer = buffer
        self.seen: list[str] = []
        self.data = b""
        self.stays_open = False
        self.fault: Exception | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.seen.append("made")

    def get_buffer(self, sizehint: int) -> memoryview:
        raise AssertionError("a stream reads into the buffer that it was given")

    def buffer_updated(self, nbytes: int) -> None:
        self.data += self.buffer[:nbytes]
        if self.fault:
            raise self.fault

    def eof_received(self) -> bool:
        self.seen.append("eof")
        return self.stays_open

    def pause_writing(self) -> None:
        self.seen.append("pause")

    def resume_writing(self) -> None:
        self.seen.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.seen.append("lost")


class World:
    """A stream, its protocol, and the client at the other end."""

    def __init__(self) -> None:
        selector = Selector()
        self.loop = asyncio.SelectorEventLoop(selector)
        self.faults: list[BaseException] = []
        self.loop.set_exception_handler(lambda loop, context: self.faults.append(context["exception"]))
        listener = socket.create_server(("127.0.0.1", 0))
        self.client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
        listener.close()
        server.setblocking(False)
        self.client.setblocking(False)
        buffer = memoryview(bytearray(4096))
        self.protocol = Protocol(buffer)
        self.stream = Stream(server, self.protocol, self.loop, selector, buffer)

    def until(self, holds: Callable[[], object]) -> None:
        """Turn the loop until this holds."""
        for _ in range(100_000):
            if holds():
                return
            self.loop.call_later(0.0001, self.loop.stop)
            self.loop.run_forever()
        raise AssertionError(f"it never came to that: {self.protocol.seen}")

    def turn(self) -> None:
        for _ in range(5):
            self.loop.call_later(0.0001, self.loop.stop)
            self.loop.run_forever()

    def received(self, wanted: int) -> bytes:
        """What the client can read, until it has so many bytes."""
        got = bytearray()

        def read() -> bool:
            with suppress(BlockingIOError):
                got.extend(self.client.recv(1 << 20))
            return len(got) >= wanted

        self.until(read)
        return bytes(got)

    def has_ended(self) -> bool:
        try:
            return self.client.recv(1) == b""
        except BlockingIOError:
            return False


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.stream.abort()
    world.turn()
    assert world.protocol.seen.count("lost") == 1
    world.client.close()
    world.loop.close()


def test_bytes_arrive_and_answers_leave(world: World) -> None:
    world.client.send(b"question")
    world.until(lambda: world.protocol.data == b"question")
    world.stream.write(b"answer")
    assert world.received(6) == b"answer"


def test_a_client_that_does_not_read_holds_the_writer_and_gets_every_byte_in_the_end(world: World) -> None:
    sent = bytes(range(256)) * 40_000
    world.stream.write(sent)
    world.stream.write(b"end")
    assert "pause" in world.protocol.seen
    assert "resume" not in world.protocol.seen
    assert world.received(len(sent) + 3) == sent + b"end"
    assert world.protocol.seen.count("pause") == world.protocol.seen.count("resume") == 1
    assert len(sent) > HIGH_WATER


def test_close_sends_what_is_left_and_then_ends(world: World) -> None:
    sent = b"x" * 8_000_000
    world.stream.write(sent)
    world.stream.close()
    assert world.stream.is_closing()
    assert world.received(len(sent)) == sent
    world.until(world.has_ended)
    world.until(lambda: "lost" in world.protocol.seen)


def test_a_client_that_closes_its_side_can_still_read(world: World) -> None:
    world.protocol.stays_open = True
    world.client.send(b"question")
    world.client.shutdown(socket.SHUT_WR)
    world.until(lambda: "eof" in world.protocol.seen)
    world.stream.resume_reading()
    world.turn()
    assert world.protocol.seen.count("eof") == 1
    world.stream.write(b"answer")
    assert world.received(6) == b"answer"


def test_a_client_that_goes_ends_the_connection(world: World) -> None:
    world.client.close()
    world.until(lambda: "lost" in world.protocol.seen)
    world.stream.write(b"too late")
    world.stream.close()


def test_a_reset_ends_the_connection_while_bytes_are_unsent(world: World) -> None:
    world.stream.write(b"x" * 8_000_000)
    world.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    world.client.close()
    world.until(lambda: "lost" in world.protocol.seen)
    assert not world.faults


def test_the_end_of_writing_waits_for_what_is_unsent(world: World) -> None:
    sent = b"x" * 8_000_000
    world.stream.write(sent)
    world.stream.write_eof()
    assert world.received(len(sent)) == sent
    world.until(world.has_ended)
    world.client.send(b"still heard")
    world.until(lambda: world.protocol.data == b"still heard")


def test_nothing_is_read_while_reading_is_paused(world: World) -> None:
    world.stream.pause_reading()
    world.client.send(b"question")
    world.turn()
    assert world.protocol.data == b""
    world.stream.resume_reading()
    world.until(lambda: world.protocol.data == b"question")


def test_a_fault_of_the_protocol_costs_its_own_connection_only(world: World) -> None:
    world.protocol.fault = ValueError("ours")
    world.client.send(b"question")
    world.until(lambda: "lost" in world.protocol.seen)
    assert world.faults == [world.protocol.fault]


def test_the_addresses_of_both_ends_are_known_until_the_socket_is_closed(world: World) -> None:
    assert world.stream.get_extra_info("peername") == world.client.getsockname()
    assert world.stream.get_extra_info("sockname") == world.client.getpeername()
    assert world.stream.get_extra_info("sslcontext") is None
    world.stream.abort()
    world.turn()
    assert world.stream.get_extra_info("peername", "gone") == "gone"


def test_a_turn_that_is_too_long_leaves_the_rest_to_the_next_which_begins_with_it() -> None:
    """With no time at all a turn serves one stream, and still each in its order."""
    recorder = Recorder(Block(ROUTE_LABELS, slots=1), 0)
    door = cast("Door", SimpleNamespace(ready_sockets=0))
    selector = StreamSelector(recorder, door, turn_seconds=0)
    loop = asyncio.SelectorEventLoop(selector)
    buffer = memoryview(bytearray(4096))
    clients, protocols = [], []
    for _ in range(3):
        client, server = socket.socketpair()
        server.setblocking(False)
        protocols.append(Protocol(buffer))
        Stream(server, protocols[-1], loop, selector, buffer)
        clients.append(client)
    served = []
    for _ in range(3):
        for client in clients:
            client.send(b"!")
        selector.select(1)
        served.append([protocol.data.count(b"!") for protocol in protocols])
    assert [sum(map(bool, counts)) for counts in served] == [1, 2, 3]
    for client in clients:
        client.close()
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    loop.close()
