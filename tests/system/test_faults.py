"""Workers that die, reload or stop: no request lost, no count lost. Load: clients that never retry."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from contextlib import ExitStack

import pytest

from tests.serving import RunningServer, running_server, wait_until
from tests.system.load import PATH, ROW, Load

WORKERS = "4"


def scored(server: RunningServer) -> float:
    return server.total("scorer_requests_total", route="/v1/models/{model}:predict", status="200")


def wait_for_count(server: RunningServer, requests: int) -> None:
    """A request is counted when its answer has been sent: whoever asks another worker at once may find it missing."""
    wait_until(lambda: scored(server) >= requests)
    assert scored(server) == requests


def test_metrics_are_the_requests_sent_whichever_worker_is_asked() -> None:
    with running_server(WEB_CONCURRENCY=WORKERS) as server:
        with Load(server, clients=8, requests=250) as load:
            load.join()
        assert not load.failures
        server.wait_for_total(2000, "scorer_rows_total")  # of what one answer counts, this is written last
        for _ in range(12):
            assert scored(server) == 2000
        assert server.total("scorer_rows_total") == 2000
        assert server.total("scorer_model_requests_total", model="iris", version="1") == 2000
        assert server.total("scorer_stage_seconds_count", stage="predict") == 2000
        assert server.total("scorer_in_flight") == 1, "the scrape itself"


def reloads(server: RunningServer) -> int:
    return server.log.read_text().count("Hang up: Master")


def test_connections_spread_over_the_workers() -> None:
    """Four requests at once must not queue behind one worker while three are idle."""
    with running_server(WEB_CONCURRENCY=WORKERS) as server:
        # A worker that the machine does not let run meanwhile gets fewer, and that is meant: so not every time.
        held = [spread(server) for _ in range(10)]
        assert all(sum(each) >= 16 for each in held)
        assert max(map(min, held)) >= 3, held


def spread(server: RunningServer) -> list[int]:
    """How many of sixteen connections each worker has."""
    with ExitStack() as stack:
        for _ in range(16):
            stack.enter_context(socket.create_connection((server.host, server.port)))
        wait_until(lambda: server.total("scorer_open_connections") >= 16)
        held = [sum(1 for link in os.listdir(f"/proc/{pid}/fd") if is_client(pid, link)) for pid in server.workers()]
    wait_until(lambda: server.total("scorer_open_connections") == 1)
    return held


def is_client(pid: int, descriptor: str) -> bool:
    """Whether this descriptor is an accepted connection: its inode is in the table of established ones."""
    try:
        target = os.readlink(f"/proc/{pid}/fd/{descriptor}")
    except FileNotFoundError:  # closed in the meantime
        return False
    if not target.startswith("socket:["):
        return False
    with open("/proc/net/tcp") as table:
        rows = [line.split() for line in table.readlines()[1:]]
    return any(row[3] == "01" and row[9] == target[8:-1] for row in rows)


@pytest.mark.parametrize(
    ("number", "cause"), [(signal.SIGKILL, "killed"), (signal.SIGSEGV, "crashed"), (signal.SIGTERM, "drained")]
)
def test_a_dead_worker_loses_no_count_and_is_counted_by_cause(number: signal.Signals, cause: str) -> None:
    with running_server(WEB_CONCURRENCY=WORKERS) as server:
        with Load(server, clients=8, requests=100) as load:
            load.join()
        before = load.answered
        assert before == 800
        wait_for_count(server, before)
        for starts, victim in enumerate(server.workers(), 5):
            cpu = server.total("scorer_cpu_seconds_total")
            os.kill(victim, number)
            server.wait_for_starts(starts, ready=4)
            assert victim not in server.workers()
            assert scored(server) == before
            assert server.total("scorer_cpu_seconds_total") >= cpu
        assert server.total("scorer_worker_exits_total", cause=cause) == 4
        assert server.total("scorer_worker_exits_total") == 4


def test_a_killed_worker_costs_at_most_the_requests_it_had() -> None:
    with running_server(WEB_CONCURRENCY=WORKERS) as server, Load(server, clients=8) as load:
        wait_until(lambda: load.answered > 200)
        os.kill(server.workers()[0], signal.SIGKILL)
        server.wait_for_starts(5, ready=4)
        answered = load.answered
        wait_until(lambda: load.answered > answered + 200)
    assert len(load.failures) <= 8, load.failures


@pytest.mark.timeout(600)
def test_twenty_reloads_under_load_lose_nothing_and_count_everything() -> None:
    with running_server(WEB_CONCURRENCY=WORKERS) as server:
        with Load(server, clients=6) as load:
            for turn in range(20):
                server.signal(signal.SIGHUP)
                # Until it is taken, as two signals that wait are one; not until the old workers have gone.
                wait_until(lambda: reloads(server) > turn, seconds=60)  # noqa: B023 - waited for before the next
            wait_until(lambda: server.total("scorer_worker_exits_total") == 80, seconds=300)
        assert not load.failures, load.failures[:5]
        wait_for_count(server, load.answered)
        assert server.total("scorer_worker_exits_total", cause="drained") == 80


@pytest.mark.timeout(300)
def test_overlapping_reloads_and_kills_neither_lose_nor_double_a_count() -> None:
    """Reload, kill and scrape at random moments: no counter ever falls, and the sum at rest is the sum sent."""
    with running_server(WEB_CONCURRENCY=WORKERS) as server:
        seen = 0.0
        with Load(server, clients=4) as load:
            for turn in range(30):
                if turn % 3 == 0:
                    server.signal(signal.SIGHUP)
                if turn % 5 == 4:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(server.workers()[-1], signal.SIGKILL)
                for _ in range(5):
                    with contextlib.suppress(OSError):  # the worker that was asked is the one that was killed
                        now = scored(server)
                        assert now >= seen
                        seen = now
        wait_until(lambda: server.total("scorer_workers", state="ready") == 4, seconds=60)
        counted, killed = scored(server), server.total("scorer_worker_exits_total", cause="killed")
        # A worker that is killed between writing an answer and counting it takes that one count along, and an answer
        # that was counted may be lost on its way: one for each client at most, each time.
        assert abs(counted - load.answered) <= 4 * killed
        assert 1 <= killed <= 6, "a worker that was already going may be gone before its kill arrives"


def test_stopping_answers_what_is_under_way() -> None:
    """Requests that were sent before the stop are answered, also those still in the kernel's queue."""
    with running_server(WEB_CONCURRENCY=WORKERS) as server:
        body = b"[" + b",".join([b"[6.8,2.8,4.8,1.4]"] * 50_000) + b"]"
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        connections = [socket.create_connection((server.host, server.port), timeout=30) for _ in range(24)]
        for connection in connections:
            connection.sendall(head + body)
        server.signal(signal.SIGTERM)
        answers = [read_all(connection) for connection in connections]
        assert [answer[:12] for answer in answers] == [b"HTTP/1.1 200"] * 24
        assert server.process.wait(60) == 0


def test_late_requests_on_idle_connections_are_told_to_close() -> None:
    """A keep-alive client that sends within the two seconds after the stop gets its answer, and the hint."""
    with running_server(WEB_CONCURRENCY="1") as server:
        connection = socket.create_connection((server.host, server.port), timeout=10)
        request = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(ROW)}\r\n\r\n".encode() + ROW
        connection.sendall(request)
        assert b"Connection: close" not in connection.recv(65536)
        server.signal(signal.SIGTERM)
        wait_until(lambda: is_draining(server), every=0.01)  # from then on it lingers for two seconds
        connection.sendall(request)
        answer = read_all(connection)
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"Connection: close" in answer


def is_draining(server: RunningServer) -> bool:
    return b"draining" in server.request("/readyz").body


def test_readiness_fails_first_when_draining() -> None:
    with running_server(WEB_CONCURRENCY="1") as server:
        connection = socket.create_connection((server.host, server.port), timeout=10)
        connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        server.signal(signal.SIGTERM)
        wait_until(lambda: is_draining(server), every=0.01)
        connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = read_all(connection)
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"draining" in answer


def test_a_hung_worker_is_killed_and_replaced() -> None:
    """The heartbeat comes from the loop: a stopped loop is noticed. SIGSTOP stands for a loop that hangs."""
    with running_server(WEB_CONCURRENCY="2", GUNICORN_CMD_ARGS="") as server:
        victim = server.workers()[0]
        os.kill(victim, signal.SIGSTOP)
        began = time.monotonic()
        while time.monotonic() < began + 20:
            # A stopped sibling must not starve anyone: every fresh connection is answered by the other.
            assert server.request("/livez").status == 200
            time.sleep(0.2)
        server.wait_for_starts(3, ready=2, seconds=60)
        assert victim not in server.workers()
        assert server.total("scorer_worker_exits_total", cause="timeout") == 1


def test_an_orphan_does_not_outlive_its_master() -> None:
    with running_server(WEB_CONCURRENCY="2") as server:
        workers = server.workers()
        os.kill(server.pid, signal.SIGKILL)
        wait_until(lambda: not any(is_running(pid) for pid in workers), seconds=20)


def is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().split()[2] != "Z"
    except FileNotFoundError:
        return False


def read_all(connection: socket.socket) -> bytes:
    data = b""
    with connection:
        while piece := connection.recv(65536):
            data += piece
    return data
