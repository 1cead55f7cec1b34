"""What callers meet at the edge: a real NGINX, with the configuration that the chart's Ingress comes to.

The configuration is rendered by hand after the controller's template (nginx.py says which), for the controller itself cannot run
without a cluster. In the cluster job of .github/workflows the controller does it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chart.helm import HERE, Manifest, find, manifests, missing
from tests.chart.nginx import MISSING, NGINX, Nginx, running_nginx, survives_reload, version
from tests.serving import RunningServer, free_port, running_server

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=missing()),
    pytest.mark.skipif(not NGINX, reason=MISSING),
]

HOST = "iris.example.com"
V1 = "/v1/models/iris:predict"
ROW = b'{"instances": [[6.8, 2.8, 4.8, 1.4]]}'
PROBLEM, ENVELOPE = "application/problem+json", "application/json"
CODES = {413: "payload-too-large", 429: "rate-limited", 502: "bad-gateway", 503: "overloaded", 504: "gateway-timeout"}


def ingress(*sets: str) -> Manifest:
    return find(manifests(HERE / "base-values.yaml", 'model.name="iris"', f'edge.host="{HOST}"', *sets), "Ingress")


def ask(nginx: Nginx, path: str, body: bytes = ROW, **headers: str) -> tuple[int, dict[str, str], bytes]:
    with contextlib.closing(connect(nginx)) as connection:
        return ask_on(connection, path, body, **headers)


def connect(nginx: Nginx) -> http.client.HTTPConnection:
    return http.client.HTTPConnection(nginx.host, nginx.port, timeout=30)


def ask_on(
    connection: http.client.HTTPConnection, path: str, body: bytes, **headers: str
) -> tuple[int, dict[str, str], bytes]:
    dashed = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("POST", path, body, {"Host": HOST, "Content-Type": "application/json", **dashed})
    answer = connection.getresponse()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


class Pod:
    """A stand-in for a server that misbehaves: takes whole requests, counts them, and does with the connection as told."""

    def __init__(self, behave: Callable[[socket.socket, bytes], None]) -> None:
        self._behave = behave
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.requests: list[bytes] = []
        self._acceptor = threading.Thread(target=self._accept, daemon=True)
        self._acceptor.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self._listener.accept()[0],), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            request = b""
            while not request.endswith(ROW):
                piece = connection.recv(65536)
                if not piece:
                    return
                request += piece
            self.requests.append(request)
            self._behave(connection, request)

    def close(self) -> None:
        """Not before its thread has let go: one that is about to accept would accept for whoever gets the descriptor next."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listener.close()


def hangs_up(connection: socket.socket, request: bytes) -> None:
    """As a process that is killed does."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def never_answers(connection: socket.socket, request: bytes) -> None:
    connection.recv(1)  # until the proxy gives up


def answers(status: str, body: bytes) -> Callable[[socket.socket, bytes], None]:
    def behave(connection: socket.socket, request: bytes) -> None:
        # It closes, and says so: else the proxy would send the next request into a connection that is gone.
        headers = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n"
        head = f"HTTP/1.1 {status}\r\n{headers}\r\n"
        connection.sendall(head.encode() + body)

    return behave


@contextlib.contextmanager
def pods(*behaviours: Callable[[socket.socket, bytes], None]) -> Iterator[list[Pod]]:
    found = [Pod(behave) for behave in behaviours]
    try:
        yield found
    finally:
        for pod in found:
            pod.close()


def assert_is_ours(status: int, headers: dict[str, str], body: bytes, path: str) -> None:
    """The shape that the server itself gives an error on this path (docs/api.md)."""
    found: dict[str, Any] = json.loads(body)
    assert found["code"] == CODES[status]
    assert headers["x-request-id"]
    assert ("retry-after" in headers) is (status in (429, 503))
    if path.startswith("/v"):
        assert headers["content-type"] == ENVELOPE
        assert set(found) == {"error", "code"}
    else:
        assert headers["content-type"] == PROBLEM
        assert set(found) == {"type", "title", "status", "detail", "code", "request_id"}
        assert found["status"] == status
        assert found["request_id"] == headers["x-request-id"]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server(
        SCORER_ADMIN_PORT=str(free_port()), SCORER_MODEL_NAME="iris", SCORER_MAX_ROWS_PER_REQUEST="10"
    ) as running:
        yield running


@pytest.fixture(scope="module")
def edge(server: RunningServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    sets = ("server.maxBodyBytes=100000",)
    with running_nginx(tmp_path_factory.mktemp("edge"), ingress(*sets), [f"{server.host}:{server.port}"]) as nginx:
        yield nginx


both_shapes = pytest.mark.parametrize("path", [V1, "/predict"])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (V1, ROW),
        ("/predict", b"[6.8, 2.8, 4.8, 1.4]"),
        ("/score", b'{"X": [[6.8, 2.8, 4.8, 1.4]]}'),
        (
            "/v2/models/iris/infer",
            b'{"inputs": [{"name": "i", "shape": [1, 4], "datatype": "FP32", "data": [6.8, 2.8, 4.8, 1.4]}]}',
        ),
    ],
)
def test_scores_come_through(edge: Nginx, path: str, body: bytes) -> None:
    status, headers, _ = ask(edge, path, body)
    assert status == 200
    assert headers["x-model-name"] == "iris"


@pytest.mark.parametrize(
    "path",
    [
        "/metrics",
        "/livez",
        "/readyz",
        "/v2/repository/index",
        "/v1/models/iris",
        "/v2",
        "/predict/",
        "/PREDICT",
        "//predict/x",
        "/v1/models/iris:predict/x",
    ],
)
def test_whatever_does_not_score_is_not_there(edge: Nginx, path: str) -> None:
    status, headers, body = ask(edge, path)
    assert status == 404
    assert json.loads(body)["code"] == "route-not-found"
    assert headers["content-type"] == (ENVELOPE if path.startswith("/v") else PROBLEM)


@both_shapes
def test_413_of_the_edge_is_in_our_shape(edge: Nginx, path: str) -> None:
    status, headers, body = ask(edge, path, b"[" + b" " * 100_000 + b"]")
    assert status == 413
    assert_is_ours(status, headers, body, path)
    assert b"100000 bytes" in body


def test_413_of_the_server_comes_through_in_its_own_words(edge: Nginx) -> None:
    status, headers, body = ask(edge, V1, json.dumps({"instances": [[1, 2, 3, 4]] * 11}).encode())
    assert status == 413
    assert b"rows" in body
    assert headers["x-model-name"] == "iris"


@both_shapes
def test_429_is_in_our_shape_and_comes_when_the_burst_is_spent(
    server: RunningServer, tmp_path: Path, path: str
) -> None:
    limited = ingress('edge.nginx.rateLimit={"rate": "1r/m", "burst": 2}')
    with running_nginx(tmp_path, limited, [f"{server.host}:{server.port}"]) as nginx:
        found = [ask(nginx, path) for _ in range(4)]
    assert [status for status, _, _ in found] == [200, 200, 200, 429]
    assert_is_ours(*found[-1], path)


@both_shapes
def test_502_is_in_our_shape(tmp_path: Path, path: str) -> None:
    """Nobody listens at the pod's address any more."""
    with running_nginx(tmp_path, ingress(), [f"127.0.0.1:{free_port()}"]) as nginx:
        answer = ask(nginx, path)
    assert answer[0] == 502
    assert_is_ours(*answer, path)


def test_without_any_pod_the_controllers_own_502_comes_through_in_html(tmp_path: Path) -> None:
    """A limit that README.md of the chart tells: the controller then passes requests to a server of its own, and what a server
    answers comes through. Only interception would change that, and it would take the server's own words for 413 and 503."""
    with running_nginx(tmp_path, ingress(), []) as nginx:
        status, headers, _ = ask(nginx, V1)
    assert (status, headers["content-type"]) == (502, "text/html")


@both_shapes
def test_503_of_the_edge_is_in_our_shape(server: RunningServer, tmp_path: Path, path: str) -> None:
    """As where the controller's operators limit connections."""
    limited = ('if ($http_x_provoke = "503") { return 503; }',)
    with running_nginx(tmp_path, ingress(), [f"{server.host}:{server.port}"], controller=limited) as nginx:
        answer = ask(nginx, path, X_Provoke="503")
    assert answer[0] == 503
    assert_is_ours(*answer, path)


def test_503_of_the_server_comes_through_in_its_own_words(tmp_path: Path) -> None:
    body = b'{"error":"loading the model","code":"not-ready"}'
    with (
        pods(answers("503 Service Unavailable", body)) as (pod,),
        running_nginx(tmp_path, ingress(), [pod.address]) as nginx,
    ):
        status, _, found = ask(nginx, V1)
    assert (status, found) == (503, body)


@both_shapes
def test_504_is_in_our_shape_and_asked_for_once(tmp_path: Path, path: str) -> None:
    """A second pod would be kept as long: an overload would double itself."""
    slow = ingress("edge.readSeconds=2", "edge.nginx.retries.seconds=1")
    with (
        pods(never_answers, never_answers) as found,
        running_nginx(tmp_path, slow, [pod.address for pod in found]) as nginx,
    ):
        answer = ask(nginx, path)
        assert sum(len(pod.requests) for pod in found) == 1
    assert answer[0] == 504
    assert_is_ours(*answer, path)


def test_a_score_is_asked_for_again_when_a_pod_is_killed(tmp_path: Path) -> None:
    """Twelve times, for NGINX chooses the first pod at random."""
    score = b'{"predictions":[1.0]}'
    with (
        pods(hangs_up, answers("200 OK", score)) as (killed, other),
        running_nginx(tmp_path, ingress("edge.nginx.maxFails=0"), [killed.address, other.address]) as nginx,
    ):
        found = [ask(nginx, V1) for _ in range(12)]
        assert killed.requests, "otherwise this shows nothing"
    assert {(status, body) for status, _, body in found} == {(200, score)}


def test_nothing_is_sent_twice_where_that_is_not_wanted(tmp_path: Path) -> None:
    once = ingress("edge.nginx.retries.nonIdempotent=false")
    with pods(hangs_up, hangs_up) as found, running_nginx(tmp_path, once, [pod.address for pod in found]) as nginx:
        status, _, _ = ask(nginx, V1)
        assert sum(len(pod.requests) for pod in found) == 1
    assert status == 502


def test_a_pod_that_does_not_listen_is_passed_over_even_then(tmp_path: Path) -> None:
    """Nothing was sent, so nothing is sent twice."""
    score = b'{"predictions":[1.0]}'
    once = ingress("edge.nginx.retries.nonIdempotent=false", "edge.nginx.maxFails=0")
    with (
        pods(answers("200 OK", score)) as (pod,),
        running_nginx(tmp_path, once, [f"127.0.0.1:{free_port()}", pod.address]) as nginx,
    ):
        assert [ask(nginx, V1)[0] for _ in range(12)] == [200] * 12


def test_one_request_is_tried_on_two_pods_at_most(tmp_path: Path) -> None:
    with (
        pods(hangs_up, hangs_up, hangs_up) as found,
        running_nginx(tmp_path, ingress(), [pod.address for pod in found]) as nginx,
    ):
        status, _, _ = ask(nginx, V1)
        assert sum(len(pod.requests) for pod in found) == 2
    assert status == 502


def test_connections_to_the_pod_are_kept(edge: Nginx, server: RunningServer) -> None:
    """Two workers of NGINX, so two at most are new."""
    before = server.total("scorer_connections_total")
    for _ in range(20):
        assert ask(edge, V1)[0] == 200
    assert server.total("scorer_connections_total") - before <= 2 + 2  # and the two scrapes


def test_without_the_annotation_every_request_would_open_one(server: RunningServer, tmp_path: Path) -> None:
    """Which is why the chart always sets it; NGINX from 1.29.7 keeps connections unasked."""
    if version() >= (1, 29, 7):
        pytest.skip("this NGINX keeps connections unasked")
    bare = ingress()
    del bare["metadata"]["annotations"]["nginx.org/keepalive"]
    with running_nginx(tmp_path, bare, [f"{server.host}:{server.port}"]) as nginx:
        before = server.total("scorer_connections_total")
        for _ in range(20):
            ask(nginx, V1)
        assert server.total("scorer_connections_total") - before >= 20


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_connection_that_was_idle_for_longer_than_nginx_keeps_it_loses_nothing(edge: Nginx) -> None:
    """NGINX lets go after 60 s, the server after 75: asked every 57 to 63 s, a server that let go first would reset some."""
    with contextlib.closing(connect(edge)) as connection:
        for pause in (0, 57, 60, 63):
            time.sleep(pause)
            assert ask_on(connection, V1, ROW)[0] == 200


def test_the_pod_is_told_who_calls(tmp_path: Path) -> None:
    with pods(answers("200 OK", b"{}")) as (pod,), running_nginx(tmp_path, ingress(), [pod.address]) as nginx:
        ask(nginx, V1, X_Forwarded_For="203.0.113.9", X_Real_IP="203.0.113.9")
    (request,) = pod.requests
    assert b"\r\nX-Real-IP: 127.0.0.1\r\n" in request, "what a caller claims counts for nothing"
    assert b"\r\nX-Forwarded-For: 203.0.113.9, 127.0.0.1\r\n" in request
    assert b"203.0.113.9\r\n" not in request


def test_behind_a_trusted_load_balancer_each_caller_has_a_limit_of_its_own(
    server: RunningServer, tmp_path: Path
) -> None:
    """With real-ip-header and set-real-ip-from in the controller's ConfigMap."""
    limited = ingress('edge.nginx.rateLimit={"rate": "1r/m", "burst": 1}')
    trusted = ("set_real_ip_from 127.0.0.1;", "real_ip_header X-Forwarded-For;")
    with running_nginx(tmp_path, limited, [f"{server.host}:{server.port}"], controller=trusted) as nginx:
        one = [ask(nginx, V1, X_Forwarded_For="203.0.113.1")[0] for _ in range(3)]
        other = ask(nginx, V1, X_Forwarded_For="203.0.113.2")[0]
    assert (one, other) == ([200, 200, 429], 200)


def test_the_version_of_nginx_is_not_told(edge: Nginx) -> None:
    assert ask(edge, "/nowhere")[1]["server"] == "nginx"


def reload_under_load(nginx: Nginx, address: str) -> tuple[int, list[str]]:
    """Requests answered and lost by four callers who never try again, while NGINX reloads ten times."""
    stop = threading.Event()
    answered: list[int] = []
    lost: list[str] = []

    def call() -> None:
        connection = connect(nginx)
        while not stop.is_set():
            try:
                answered.append(ask_on(connection, V1, ROW)[0])
            except (OSError, http.client.HTTPException) as error:
                lost.append(repr(error))
                connection.close()
            time.sleep(0.001)
        connection.close()

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for _ in range(10):
        time.sleep(0.3)
        nginx.reload([address])
    time.sleep(0.5)
    stop.set()
    for caller in callers:
        caller.join()
    return answered.count(200), lost


def test_a_reload_loses_no_request_of_a_caller_who_never_tries_again(server: RunningServer, tmp_path: Path) -> None:
    if not survives_reload():
        pytest.skip("NGINX before 1.27.4 closes idle connections when it reloads; NGINX_BINARY names another one")
    address = f"{server.host}:{server.port}"
    with running_nginx(tmp_path, ingress(), [address]) as nginx:
        answered, lost = reload_under_load(nginx, address)
    print(f"{answered} answered, {len(lost)} lost")
    assert lost == []
    assert answered > 100
