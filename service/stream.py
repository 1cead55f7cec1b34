"""A client's socket, read and written straight from the selector.

asyncio's own transport goes from the selector through a key, a handle, a deque and a context before it reads; that takes
3 of 28 µs of a one-row request (asyncio of Python 3.11; docs/performance.md). `Stream` is an `asyncio.Transport` without
that way: the selector calls `on_ready`. It does what that transport does and no more; TLS stays with asyncio.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
from typing import Any

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
# Unsent bytes from which the protocol is asked to stop writing, and to go on; asyncio's own figures.
HIGH_WATER = 64 * 1024
LOW_WATER = 16 * 1024


class Stream(asyncio.Transport):
    """A plain TCP connection; `buffer` is read into, and may be shared by all streams of a loop."""

    __slots__ = (
        "_buffer",
        "_events",
        "_is_closing",
        "_is_ended",
        "_is_held",
        "_is_losing",
        "_loop",
        "_must_write_eof",
        "_protocol",
        "_receive_into",
        "_selector",
        "_send",
        "_socket",
        "_unsent",
    )

    def __init__(
        self,
        client: socket.socket,
        protocol: asyncio.BufferedProtocol,
        loop: asyncio.AbstractEventLoop,
        selector: selectors.BaseSelector,
        buffer: memoryview,
    ) -> None:
        super().__init__()
        self._socket = client
        self._protocol = protocol
        self._loop = loop
        self._selector = selector
        self._buffer = buffer
        self._receive_into = client.recv_into
        self._send = client.send
        self._events = 0  # what the selector watches for
        self._unsent = bytearray()
        self._is_closing = False
        self._is_losing = False
        self._is_ended = False  # the client has closed its side
        self._is_held = False  # the protocol has been asked to stop writing
        self._must_write_eof = False
        protocol.connection_made(self)
        self._watch(READ)

    # The selector's side.

    def on_ready(self, events: int) -> None:
        """The socket can be read from, written to, or both; or could be, when the selector last looked."""
        try:
            if events & self._events & READ:
                self._receive()
            if events & self._events & WRITE:
                self._send_rest()
        except Exception as error:  # the loop must outlive whatever goes wrong in one connection
            self.abort()
            context = {"message": "fault in a connection", "exception": error, "transport": self}
            self._loop.call_exception_handler(context)

    def _receive(self) -> None:
        try:
            count = self._receive_into(self._buffer)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.abort()
            return
        if count:
            self._protocol.buffer_updated(count)
            return
        self._is_ended = True
        if self._protocol.eof_received():
            self._watch(self._events & ~READ)
        else:
            self.close()

    def _send_rest(self) -> None:
        try:
            del self._unsent[: self._send(self._unsent)]
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self.abort()
            return
        if not self._unsent:
            self._watch(self._events & ~WRITE)
            self._finish()
        if self._is_held and len(self._unsent) <= LOW_WATER:
            self._is_held = False
            self._protocol.resume_writing()

    def _finish(self) -> None:
        """All is sent: do what waited for it."""
        if self._is_closing:
            self._lose_soon()
        elif self._must_write_eof:
            self._shut_down()

    def _watch(self, events: int) -> None:
        if events == self._events:
            return
        if not events:
            self._selector.unregister(self._socket)
        elif not self._events:
            self._selector.register(self._socket, events, self)
        else:
            self._selector.modify(self._socket, events, self)
        self._events = events

    # The protocol's side, as `asyncio.Transport` describes it.

    def write(self, data: Any) -> None:
        if self._is_losing:
            return
        if not self._unsent:
            try:
                sent = self._send(data)
            except (BlockingIOError, InterruptedError):
                sent = 0
            except OSError:
                self.abort()
                return
            if sent == len(data):
                return
            data = memoryview(data)[sent:]
        self._unsent += data
        self._watch(self._events | WRITE)
        if len(self._unsent) > HIGH_WATER and not self._is_held:
            self._is_held = True
            self._protocol.pause_writing()

    def pause_reading(self) -> None:
        self._watch(self._events & ~READ)

    def resume_reading(self) -> None:
        if not self._is_closing and not self._is_ended:
            self._watch(self._events | READ)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self._must_write_eof = True
        if not self._unsent:
            self._shut_down()

    def _shut_down(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:  # the client has gone
            self.abort()

    def is_closing(self) -> bool:
        return self._is_closing

    def close(self) -> None:
        """No more reading; the connection ends when all is sent."""
        if self._is_closing:
            return
        self._is_closing = True
        self._watch(self._events & ~READ)
        if not self._unsent:
            self._lose_soon()

    def abort(self) -> None:
        self._is_closing = True
        self._unsent.clear()
        self._lose_soon()

    def _lose_soon(self) -> None:
        if not self._is_losing:
            self._is_losing = True
            self._watch(0)
            self._loop.call_soon(self._lose)

    def _lose(self) -> None:
        try:
            self._protocol.connection_lost(None)
        finally:
            self._socket.close()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """`socket`, `sockname` or `peername`."""
        if name == "socket":
            return self._socket
        try:
            if name == "sockname":
                return self._socket.getsockname()
            if name == "peername":
                return self._socket.getpeername()
        except OSError:  # closed in the meantime
            pass
        return default
