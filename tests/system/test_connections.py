"""What clients do to a server on the network: slow, silent, many, encrypted, half closed."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving import CANCER, IRIS, ROOT, RunningServer, free_port, running_server, wait_until
from tests.system.load import PATH, ROW, Load

POST = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(ROW)}\r\n\r\n".encode() + ROW


@pytest.fixture(scope="module")
def impatient() -> Iterator[RunningServer]:
    """A server that waits a second for a request and two for the next one."""
    limits = {"SCORER_READ_TIMEOUT_SECONDS": "1", "SCORER_KEEPALIVE_SECONDS": "2"}
    with running_server(None, WEB_CONCURRENCY="1", **limits) as server:
        yield server


@pytest.fixture(scope="module")
def patient() -> Iterator[RunningServer]:
    with running_server(WEB_CONCURRENCY="1") as server:
        yield server


def connect(server: RunningServer) -> socket.socket:
    return socket.create_connection((server.host, server.port), timeout=20)


def read_all(connection: socket.socket) -> bytes:
    data = b""
    while piece := connection.recv(65536):
        data += piece
    return data


def read_to_end(connection: socket.socket) -> bytes:
    with connection:
        return read_all(connection)


def send_endlessly(connection: socket.socket, data: bytes) -> None:
    """Until the other side takes no more; at most 200 MB."""
    for _ in range(200_000_000 // len(data)):
        connection.sendall(data)


@pytest.mark.parametrize(
    ("half", "part"),
    [
        (b"POST /pre", "head"),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nX-Slow: ", "head"),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 17\r\n\r\n[6.8,", "body"),
        (b"POST /predict HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n4\r\n[6.8\r\n", "body"),
    ],
)
def test_forty_half_sent_requests_delay_nobody_and_are_told_why(
    impatient: RunningServer, half: bytes, part: str
) -> None:
    """The 41st is answered while they wait; they get 408 in words and the connection ends."""
    slow = [connect(impatient) for _ in range(40)]
    for connection in slow:
        connection.sendall(half)
    with connect(impatient) as quick:
        quick.sendall(POST)
        assert quick.recv(65536).startswith(b"HTTP/1.1 200")
    for connection in slow:
        answer = read_to_end(connection)
        assert answer.startswith(b"HTTP/1.1 408 "), answer
        assert f"the {part} did not arrive within 1 seconds".encode() in answer
        assert b"Connection: close" in answer


def test_a_body_of_one_byte_at_a_time_runs_out_of_time(impatient: RunningServer) -> None:
    """Progress does not buy time: the limit is for the whole body."""
    with connect(impatient) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 17\r\n\r\n")
        answer = b""
        connection.settimeout(0.2)
        for byte in b"[6.8,2.8,4.8,1.4]":
            connection.sendall(bytes([byte]))
            try:
                answer = connection.recv(65536)
                break
            except TimeoutError:
                continue
        assert answer.startswith(b"HTTP/1.1 408 ")


def test_an_idle_connection_is_closed_in_silence(impatient: RunningServer) -> None:
    with connect(impatient) as connection:
        connection.sendall(POST)
        assert connection.recv(65536).startswith(b"HTTP/1.1 200")
        assert connection.recv(65536) == b""


def test_timeouts_are_counted(impatient: RunningServer) -> None:
    before = impatient.total("scorer_rejected_total", reason="read-timeout")
    with connect(impatient) as connection:
        connection.sendall(b"POST /pre")
        read_all(connection)
    assert impatient.total("scorer_rejected_total", reason="read-timeout") == before + 1


def test_a_client_may_close_its_side_and_still_read_a_long_answer(patient: RunningServer) -> None:
    body = b"[" + b",".join([b"[6.8,2.8,4.8,1.4]"] * 60_000) + b"]"
    with connect(patient) as connection:
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        connection.shutdown(socket.SHUT_WR)
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 200")
    assert len(json.loads(answer.partition(b"\r\n\r\n")[2])["prediction"]) == 60_000


def test_a_client_that_does_not_read_stops_being_served_and_nobody_else_does(impatient: RunningServer) -> None:
    """Its answers stay within the buffers; after the read timeout the connection is gone."""
    with connect(impatient) as deaf, connect(impatient) as quick:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.settimeout(0.5)
        with pytest.raises((TimeoutError, ConnectionError)):
            send_endlessly(deaf, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 500)
        quick.sendall(POST)
        assert quick.recv(65536).startswith(b"HTTP/1.1 200")
        wait_until(
            lambda: impatient.total("scorer_in_flight") <= 1 and impatient.total("scorer_open_connections") <= 2, 90
        )


def test_probes_answer_while_a_long_prediction_runs(patient: RunningServer) -> None:
    """The thread scores 80,000 rows; the loop goes on. Order is the proof: the probe's answer comes first."""
    body = b"[" + b",".join([b"[6.8,2.8,4.8,1.4]"] * 80_000) + b"]"
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    answered_first = 0
    for _ in range(5):
        with connect(patient) as scoring, connect(patient) as probing:
            scoring.sendall(head.encode() + body)
            probing.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
            assert probing.recv(65536).startswith(b"HTTP/1.1 200")
            scoring.setblocking(False)
            try:
                scoring.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                answered_first += 1
            scoring.settimeout(20)
            assert read_all(scoring).startswith(b"HTTP/1.1 200")
    assert answered_first > 0


def test_overload_is_an_ordinary_answer(tmp_path: Path) -> None:
    """Beyond the requests a worker may hold: 503 in the protocol's words, with Retry-After; the rest is scored."""
    # Binary rows, nothing to decode, and XGBoost to score them, for want of a cache: requests come faster than they go.
    (tmp_path / "cache").write_text("a file where the folder should be")
    rows, features = 60_000, 30
    tensor = {"name": "x", "datatype": "FP32", "shape": [rows, features]}
    start = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": rows * features * 4}}]}).encode()
    body = start + bytes(rows * features * 4)
    path = "/v2/models/breast-cancer/infer"
    settings = {"SCORER_MODEL": str(CANCER), "SCORER_MAX_IN_FLIGHT": "1", "SCORER_CACHE_DIR": str(tmp_path / "cache")}
    with running_server(None, WEB_CONCURRENCY="1", **settings) as server:
        connections = [connect(server) for _ in range(12)]
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            f"Inference-Header-Content-Length: {len(start)}\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode()
        for connection in connections:
            connection.sendall(head + body)
        answers = [read_to_end(connection) for connection in connections]
        refused = [answer for answer in answers if answer.startswith(b"HTTP/1.1 503")]
        assert refused
        assert len(refused) + sum(answer.startswith(b"HTTP/1.1 200") for answer in answers) == 12
        assert all(b"Retry-After: 1\r\n" in answer and b'"code":"overloaded"' in answer for answer in refused)
        assert server.total("scorer_rejected_total", reason="overloaded") == len(refused)
        assert server.request("/readyz").status == 200


def test_requests_that_resemble_each_other_keep_their_own_ids_lengths_and_scores(patient: RunningServer) -> None:
    """Over one connection as a proxy opens it, for callers with different headers, all of them at once."""
    rows = {4.4: 0.0, 6.8: 1.0, 5.9: 2.0}
    with connect(patient) as connection:
        for number in range(60):
            first, expected = list(rows.items())[number % 3]
            body = json.dumps(
                {"instances": [[first, 3.0, *((1.3, 0.2), (4.8, 1.4), (5.1, 1.8))[number % 3]]] * (1 + number % 4)}
            )
            caller = f"X-Forwarded-For: 10.0.0.{number}\r\n" + "Accept: */*\r\n" * (number % 2)
            head = f"POST /v1/models/iris:predict HTTP/1.1\r\nHost: x\r\n{caller}X-Request-Id: id-{number}\r\n"
            connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            assert answer.getheader("X-Request-Id") == f"id-{number}"
            assert json.loads(answer.read()) == {"predictions": [expected] * (1 + number % 4)}


def test_only_what_scores_is_known_again(patient: RunningServer) -> None:
    """The same path with another method, again and again: it never becomes a score."""
    body = b"[6.8, 2.8, 4.8, 1.4]"
    with connect(patient) as connection:
        for method, status in [("GET", 405), ("PUT", 405), ("POST", 200)] * 4:
            head = f"{method} /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            answer = http.client.HTTPResponse(connection, method=method)
            answer.begin()
            assert (answer.status, len(answer.read()) > 0) == (status, True)


def test_five_hundred_idle_connections_leave_room(patient: RunningServer) -> None:
    idle = [connect(patient) for _ in range(500)]
    assert patient.request(PATH, ROW).json() == {"predictions": [1.0]}
    for connection in idle:
        connection.close()


def test_long_answers_are_compressed_for_those_who_accept_it(patient: RunningServer) -> None:
    rows = json.dumps({"instances": [[6.8, 2.8, 4.8, 1.4]] * 20_000}).encode()
    plain = patient.request(PATH, rows)
    packed = patient.request(PATH, rows, {"Accept-Encoding": "gzip"})
    assert packed.headers["Content-Encoding"] == "gzip"
    assert packed.headers["Vary"] == "Accept-Encoding"
    assert gzip.decompress(packed.body) == plain.body


def test_tls_by_gunicorns_own_options(tmp_path: Path) -> None:
    """Certificates are Gunicorn's settings; scores, Flask routes and late handshakes work through them."""
    certificate, key = make_certificate(tmp_path)
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py", "--bind", f"127.0.0.1:{port}"]
    options = {"GUNICORN_CMD_ARGS": f"--certfile {certificate} --keyfile {key}"}
    environment = {"SCORER_MODEL": str(IRIS), "SCORER_PORT": str(port), "WEB_CONCURRENCY": "1", **options}
    context = ssl.create_default_context(cafile=str(certificate))
    with subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE) as process:
        try:
            wait_until(lambda: is_listening(port))
            connection = http.client.HTTPSConnection("localhost", port, timeout=20, context=context)
            for _ in range(3):
                connection.request("POST", PATH, ROW)
                assert connection.getresponse().read() == b'{"predictions":[1.0]}'
            connection.request("GET", "/v2/models/iris")
            assert json.loads(connection.getresponse().read())["name"] == "iris"
            # Whole requests, which are recognized when they come again.
            for _ in range(4):
                connection.sock.sendall(POST)
                answer = http.client.HTTPResponse(connection.sock)
                answer.begin()
                assert answer.read() == b'{"predictions":[1.0]}'
            connection.close()
            with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
                plain.sendall(POST)
                assert b"200 OK" not in plain.recv(65536)
        finally:
            process.terminate()
            process.communicate()
    assert process.returncode == 0


def make_certificate(folder: Path) -> tuple[Path, Path]:
    certificate, key = folder / "cert.pem", folder / "key.pem"
    try:
        subprocess.run(
            [
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "1",
                "-subj",
                "/CN=localhost",
                "-addext",
                "subjectAltName=DNS:localhost",
                "-keyout",
                str(key),
                "-out",
                str(certificate),
            ],
            check=True,
            capture_output=True,
        )
    except FileNotFoundError:
        pytest.skip("needs openssl to make a certificate: apt-get install openssl")
    return certificate, key


def is_listening(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def test_the_admin_port_alone_has_what_is_not_for_callers() -> None:
    admin = free_port()
    with running_server(WEB_CONCURRENCY="1", SCORER_ADMIN_PORT=str(admin)) as server:
        for path in ("/metrics", "/v2/repository/index"):
            assert server.request(path, b"" if "index" in path else None, port=server.port).status == 404
        assert server.request("/metrics", port=admin).status == 200
        assert server.request(PATH, ROW, port=server.port).json() == {"predictions": [1.0]}
        assert server.request("/readyz", port=admin).status == 200


def test_the_same_load_leaves_memory_and_descriptors_as_they_were() -> None:
    """2,000 connections come and go: nothing of them stays."""
    # Without the look for new versions: the worker that is elected to it has one descriptor more from then on.
    with running_server(WEB_CONCURRENCY="1", SCORER_MODEL_POLL_SECONDS="0") as server:
        counts = []
        for _ in range(3):
            for _ in range(500):
                server.request("/livez")
            with Load(server, clients=4, requests=200) as load:
                load.join()
            wait_until(lambda: server.total("scorer_open_connections") == 1)
            counts.append((server.total("scorer_open_files"), server.total("scorer_memory_bytes", kind="uss")))
        assert counts[2][0] == counts[1][0]
        assert counts[2][1] < counts[1][1] + 2_000_000
