"""What happens around a score: ids, admission, content codings, log lines, counts."""

from __future__ import annotations

import dataclasses
import gzip
import json
import re
import tracemalloc
import zlib
from typing import Any, cast

import numpy as np
import orjson
import pytest

from service.batch import Contract, Floats, Incoming
from service.edge import COMPRESS_BYTES, ROUTE_LABELS, SIBLINGS, Call, Edge
from service.head import REQUEST_ID
from service.metrics import BOOTING, READY, Block, Recorder
from service.models import LoadedModel
from service.predictor import Predictor
from service.wire import ROUTES
from tests.apps import Example, World

PREDICT, V1, V2 = "/predict", "/v1/models/iris:predict", "/v2/models/iris/infer"
ROW = [4.4, 3.0, 1.3, 0.2]
BODIES = {
    PREDICT: orjson.dumps(ROW),
    V1: orjson.dumps({"instances": [ROW]}),
    V2: orjson.dumps({"inputs": [{"name": "input-0", "shape": [1, 4], "datatype": "FP32", "data": ROW}]}),
}
OVERLOADED = "too much work at the moment (requests in flight); try again in a second"


def message(response: Any) -> str:
    return str(response.json.get("error", response.json.get("detail")))


def rejections(world: World, code: str) -> float:
    from service.metrics import REASONS

    return float(world.counts.total[world.recorder.block.layout.rejected + REASONS.index(code)])


def long_request(rows: int) -> bytes:
    return orjson.dumps({"instances": [ROW] * rows})


# Readiness.


def test_workers_that_wait_for_each_other_become_ready_at_the_same_moment(world: World) -> None:
    """And stay it: what one of them is asked next, while another starts again, changes nothing."""
    block = Block(ROUTE_LABELS, slots=2)
    block.head[Block.EXPECTED] = 2
    recorders = [Recorder(block, cast("int", block.claim())) for _ in range(2)]
    edges = [Edge(world.edge.settings, recorder, world.edge.log) for recorder in recorders]
    recorders[0].write_state(READY)
    for edge in edges:
        edge.unready = SIBLINGS
    assert [edge.probe("/readyz").status for edge in edges] == [503, 503]
    recorders[1].write_state(READY)
    assert [edge.probe("/readyz").status for edge in edges] == [200, 200]
    recorders[1].write_state(BOOTING)
    assert [edge.probe("/readyz").status for edge in edges] == [200, 200]
    edges[0].unready = "draining"
    assert [edge.probe("/readyz").status for edge in edges] == [503, 200]


# Request ids.


@pytest.mark.parametrize(
    "given",
    [
        "a",
        "0",
        "req-1",
        "x" * 128,
        "3f2504e0-4f89-11d3-9a0c-0305e82c3301",
        "Root=1-67891233-abcdef012345678912345678",
        "a/b+c=",
        "a@b:1.2_3",
    ],
)
def test_a_fit_request_id_is_kept(given: str, world: World) -> None:
    """The id of a proxy, of AWS or of a tracer comes back as it was."""
    assert world.edge.request_id(given) == given
    response = world.client.post(PREDICT, data=BODIES[PREDICT], headers={"X-Request-Id": given})
    assert response.headers["X-Request-Id"] == given


@pytest.mark.parametrize(
    "given",
    [
        "",
        " ",
        "a b",
        "x" * 129,
        "a\r\nSet-Cookie: b=c",
        "a\n",
        "\na",
        "a\r",
        "\x00",
        "ä",
        "\uff46ull",
        "<script>",
        '"',
        "a,b",
        "a;b",
        "%0d%0a",
    ],
)
def test_an_unfit_request_id_is_replaced(given: str, world: World) -> None:
    """What could end a header line, mislead a log reader or fill a disk gets an id of ours instead."""
    ours = world.edge.request_id(given)
    assert ours != given
    assert REQUEST_ID.fullmatch(ours)
    raw = given.encode().decode("latin-1")
    response = world.client.post(PREDICT, data=BODIES[PREDICT], environ_overrides={"HTTP_X_REQUEST_ID": raw})
    assert REQUEST_ID.fullmatch(response.headers["X-Request-Id"])
    assert response.headers["X-Request-Id"] != given


def test_our_request_ids_are_unique(iris: Example) -> None:
    """No two requests share one, not even in two workers or after a restart."""
    worlds = [World(iris.model), World(iris.model)]
    ids = [world.edge.request_id(None) for world in worlds for _ in range(1000)]
    assert len(set(ids)) == 2000


def test_the_request_id_is_in_the_problem(world: World) -> None:
    """Who reads an error in a log of their own finds ours by it."""
    response = world.client.post(PREDICT, data=b"x", headers={"X-Request-Id": "find-me"})
    assert response.json is not None
    assert response.json["request_id"] == "find-me"


# Admission.


@pytest.mark.parametrize("path", BODIES)
def test_beyond_the_limit_in_flight_is_overload(path: str, iris: Example) -> None:
    """503 in each protocol's words, with the time to come back, and counted."""
    world = World(iris.model, SCORER_MAX_IN_FLIGHT="5")
    world.recorder.add_in_flight(6)
    response = world.client.post(path, data=BODIES[path])
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "1"
    assert message(response) == OVERLOADED
    assert response.json is not None
    assert response.json["code"] == "overloaded"
    assert rejections(world, "overloaded") == 1
    world.recorder.add_in_flight(-1)
    assert world.client.post(path, data=BODIES[path]).status_code == 200


def test_overload_is_told_before_a_byte_is_decoded(iris: Example) -> None:
    """A body that cannot even be inflated costs nothing when there is no room."""
    world = World(iris.model, SCORER_MAX_IN_FLIGHT="1")
    world.recorder.add_in_flight(2)
    response = world.client.post(PREDICT, data=b"not gzip", headers={"Content-Encoding": "gzip"})
    assert response.status_code == 503


def test_probes_and_metadata_are_answered_under_overload(iris: Example) -> None:
    """Kubernetes must not restart a pod because it is busy."""
    world = World(iris.model, SCORER_MAX_IN_FLIGHT="1")
    world.recorder.add_in_flight(100)
    for path in ("/livez", "/readyz", "/healthz", "/metrics", "/v2/health/ready"):
        assert world.client.get(path).status_code == 200


def test_rows_are_limited(iris: Example) -> None:
    """The limit itself is allowed."""
    world = World(iris.model, SCORER_MAX_ROWS_PER_REQUEST="2")
    assert world.client.post(V1, data=long_request(2)).status_code == 200
    response = world.client.post(V1, data=long_request(3))
    assert response.status_code == 413
    assert message(response) == "too many rows; the limit is 2 a request"


def test_without_a_model_scores_wait_and_probes_tell(iris: Example) -> None:
    """Alive but not ready while the model loads; ready after; not ready, but serving, while the worker drains."""
    world = World(None)
    for path, body in BODIES.items():
        response = world.client.post(path, data=body)
        assert (response.status_code, response.headers["Retry-After"]) == (503, "1")
        assert message(response) == "not ready: loading the model"
    assert world.client.get("/livez").status_code == 200
    assert world.client.get("/readyz").status_code == 503
    assert world.client.get("/v2/health/ready").status_code == 503
    assert world.client.get("/v2/models").status_code == 503
    world.edge.serve(iris.model)
    assert world.client.get("/readyz").status_code == 200
    assert world.client.post(PREDICT, data=BODIES[PREDICT]).status_code == 200
    world.edge.unready = "draining"
    assert world.client.get("/readyz").json == {"status": "not ready", "reason": "draining"}
    assert world.client.get("/livez").status_code == 200
    assert world.client.post(PREDICT, data=BODIES[PREDICT]).status_code == 200


def test_the_edge_knows_how_many_rows_the_loop_may_score(world: World) -> None:
    assert world.edge.scorer is not None
    assert world.edge.loop_rows == world.edge.scorer.predictor.loop_rows >= 1
    assert Edge(world.edge.settings, world.recorder, world.edge.log).loop_rows == 0


def begin(world: World, path: str, body: bytes, **headers: str) -> Call:
    return world.edge.begin(world.edge.routes[path], Incoming("POST", path, headers, body, "id"), 0.0)


# Content codings of requests.


@pytest.mark.parametrize("coding", ["gzip", "x-gzip", "GZIP", " gzip ", "deflate", "identity", "Identity", ""])
def test_content_codings_that_are_undone(coding: str, world: World) -> None:
    """Codings are case-insensitive; `identity` and an empty header are no coding."""
    name = coding.strip().lower()
    body = BODIES[V1]
    body = gzip.compress(body) if "gzip" in name else zlib.compress(body) if name == "deflate" else body
    response = world.client.post(V1, data=body, headers={"Content-Encoding": coding})
    assert (response.status_code, response.json) == (200, {"predictions": [0.0]})


@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "gzip, gzip", "gzip;q=1", "*"])
def test_content_codings_that_are_refused(coding: str, world: World) -> None:
    response = world.client.post(V1, data=b"x", headers={"Content-Encoding": coding})
    assert response.status_code == 415
    assert response.headers["Accept-Encoding"] == "gzip, deflate, identity"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x1f\x8b",
        gzip.compress(BODIES[V1])[:-1],
        gzip.compress(BODIES[V1])[:-8],
        gzip.compress(BODIES[V1]) + b"x",
        gzip.compress(BODIES[V1]) * 2,
        zlib.compress(BODIES[V1]),
        gzip.compress(BODIES[V1])[:-8] + b"\0" * 8,
    ],
    ids=[
        "empty",
        "magic only",
        "a byte short",
        "no checksum",
        "a byte more",
        "two members",
        "deflate",
        "wrong checksum",
    ],
)
def test_gzip_that_is_not_whole_is_malformed(body: bytes, world: World) -> None:
    """A body that was cut on its way is not scored, not even the part that could be read."""
    response = world.client.post(V1, data=body, headers={"Content-Encoding": "gzip"})
    assert response.status_code == 400
    assert response.json is not None
    assert response.json["code"] == "malformed-body"


@pytest.mark.parametrize(("more", "status"), [(0, 200), (1, 413)])
def test_the_limit_holds_after_inflation(more: int, status: int, iris: Example) -> None:
    """As many bytes as the limit are read, one more is refused."""
    world = World(iris.model, SCORER_MAX_BODY_BYTES="1000")
    body = gzip.compress(BODIES[V1].ljust(1000 + more))
    assert world.client.post(V1, data=body, headers={"Content-Encoding": "gzip"}).status_code == status


def test_a_bomb_is_never_inflated(iris: Example) -> None:
    """50 MB in 50 KB take no more memory than the limit allows."""
    world = World(iris.model, SCORER_MAX_BODY_BYTES="100000")
    bomb = zlib.compress(bytes(50_000_000))
    begin(world, V1, BODIES[V1])
    tracemalloc.start()
    try:
        call = begin(world, V1, bomb, **{"content-encoding": "deflate"})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert call.outgoing is not None
    assert call.outgoing.status == 413
    assert peak < 1_000_000


# Content codings of answers.


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate, br", "gzip"),
        ("br;q=1.0, gzip;q=0.8", "gzip"),
        ("GZip", "gzip"),
        ("gzip;q=0", None),
        ("gzip; q=0.0", None),
        ("gzip;q=0.000, deflate", "deflate"),
        ("gzip;Q=0", None),
        ("gzip;q=0.001", "gzip"),
        ("br", None),
        ("identity", None),
        ("", None),
        (None, None),
    ],
)
def test_a_long_answer_is_compressed_for_who_accepts_it(accept: str | None, coding: str | None, world: World) -> None:
    """`q=0` means no (RFC 9110 section 12.4.2); caches learn what the answer depends on."""
    headers = {} if accept is None else {"Accept-Encoding": accept}
    response = world.client.post(V1, data=long_request(20_000), headers=headers)
    assert response.headers.get("Content-Encoding") == coding
    body = response.data
    if coding:
        assert len(body) < COMPRESS_BYTES
        assert response.headers["Vary"] == "Accept-Encoding"
        body = gzip.decompress(body) if coding == "gzip" else zlib.decompress(body)
    assert json.loads(body) == {"predictions": [0.0] * 20_000}


def test_a_short_answer_is_not_compressed(world: World) -> None:
    """It would take longer to compress than to send."""
    response = world.client.post(V1, data=BODIES[V1], headers={"Accept-Encoding": "gzip"})
    assert "Content-Encoding" not in response.headers


def test_a_binary_answer_is_compressed_as_a_whole(world: World) -> None:
    """The head's length speaks of the bytes before compression, as in Triton."""
    tensor = {"name": "input-0", "shape": [20_000, 4], "datatype": "FP32", "data": ROW * 20_000}
    document = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    response = world.client.post(V2, data=orjson.dumps(document), headers={"Accept-Encoding": "gzip"})
    assert response.headers["Content-Encoding"] == "gzip"
    body = gzip.decompress(response.data)
    head = int(response.headers["Inference-Header-Content-Length"])
    assert json.loads(body[:head])["outputs"][0]["parameters"]["binary_data_size"] == 80_000
    assert len(body) == head + 80_000


# Log lines.


def post_each(world: World, times: int = 1) -> None:
    for path, body in BODIES.items():
        for _ in range(times):
            world.client.post(path, data=body)


def test_by_default_nothing_is_logged(world: World) -> None:
    """Neither good requests nor callers' mistakes fill the log."""
    post_each(world, 20)
    world.client.post(PREDICT, data=b"x")
    world.client.get("/nowhere")
    assert world.log_lines == []


def test_every_slow_request_is_logged(iris: Example) -> None:
    """One JSON line with where the time went; at zero seconds all are slow."""
    world = World(iris.model, SCORER_SLOW_REQUEST_SECONDS="0")
    world.client.post(V1, data=BODIES[V1], headers={"X-Request-Id": "slow-1"})
    (line,) = world.log_lines
    assert line["event"] == "slow request"
    assert line["level"] == "INFO"
    assert line["request_id"] == "slow-1"
    assert (line["route"], line["wire"]) == ("/v1/models/{model}:predict", "kserve_v1")
    assert (line["status"], line["rows"], line["error"]) == (200, 1, "")
    parts = [line[f"{stage}_seconds"] for stage in ("decode", "predict", "encode")]
    assert all(part > 0 for part in parts)
    assert sum(parts) <= line["seconds"] + 1e-5
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4}", line["time"])


def test_a_refused_request_says_why_in_its_line(iris: Example) -> None:
    world = World(iris.model, SCORER_ACCESS_LOG_RATIO="1")
    world.client.post(V1, data=b'{"instances": [["a"]]}')
    world.client.get("/v2/nowhere")
    first, second = world.log_lines
    assert (first["event"], first["status"], first["error"], first["rows"]) == ("request", 400, "invalid-input", 0)
    assert (second["route"], second["status"], second["error"]) == ("unmatched", 404, "route-not-found")


@pytest.mark.parametrize(("ratio", "fewest", "most"), [("0", 0, 0), ("0.5", 230, 370), ("1", 600, 600)])
def test_the_access_log_is_a_sample(ratio: str, fewest: int, most: int, iris: Example) -> None:
    """The share of requests that the setting asks for: 600 at one half stray by 70 once in a hundred million runs."""
    world = World(iris.model, SCORER_ACCESS_LOG_RATIO=ratio)
    post_each(world, 200)
    assert fewest <= len(world.log_lines) <= most


def test_no_log_line_holds_a_value_of_the_caller(iris: Example) -> None:
    """Neither values nor paths that nobody knows; a request's features are other people's data."""
    world = World(iris.model, SCORER_ACCESS_LOG_RATIO="1")
    for path in BODIES:
        for value in (b'"s3cr3t-canary"', b"987654.321", b"[987654.321]", b"s3cr3t-canary"):
            world.client.post(path, data=BODIES[path].replace(b"4.4", value))
    world.client.get("/s3cr3t-canary?token=s3cr3t-canary")
    world.client.get("/v2/models/s3cr3t-canary")
    logged = "".join(world.handler.lines)
    assert len(world.log_lines) == 14
    assert "s3cr3t-canary" not in logged
    assert "987654" not in logged


# Counts.


def test_what_is_refused_is_counted_by_its_code(world: World) -> None:
    for body in (b"", b"[]", b"[1]", b"[1, 2, 3, 4]"):
        world.client.post(PREDICT, data=body)
    world.client.get("/nowhere")
    codes = ("malformed-body", "invalid-input", "feature-mismatch", "route-not-found")
    assert [rejections(world, code) for code in codes] == [1, 1, 1, 1]


def test_rows_are_counted_where_they_were_scored(world: World) -> None:
    """A request that was refused adds none."""
    world.client.post(V1, data=long_request(7))
    world.client.post(V1, data=long_request(3).replace(b"4.4", b'"x"'))
    layout, total = world.recorder.block.layout, world.counts.total
    assert total[layout.rows] == 7
    assert total[layout.model_requests] == 2


def test_body_bytes_are_counted_as_they_came(world: World) -> None:
    """What went over the wire: a compressed body by its compressed length."""
    body = gzip.compress(long_request(1000))
    world.client.post(V1, data=body, headers={"Content-Encoding": "gzip"})
    layout, total = world.recorder.block.layout, world.counts.total
    assert total[layout.request_bytes] == len(body)


# Faults of ours.


class Broken:
    """A model that fails on rows that passed every check."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.loop_rows = 1
        self.engine = "packed"

    def predict(self, values: Floats) -> Floats:
        raise RuntimeError("s3cr3t-canary: the library's own words")


@pytest.fixture
def broken(iris: Example) -> LoadedModel:
    return dataclasses.replace(iris.model, predictor=cast("Predictor", Broken(iris.model.predictor.contract)))


@pytest.mark.parametrize("path", BODIES)
def test_a_model_that_fails_is_a_500_without_its_words(path: str, broken: LoadedModel) -> None:
    """The caller learns the request id and nothing of our insides; the log has one line with the traceback."""
    world = World(broken)
    response = world.client.post(path, data=BODIES[path], headers={"X-Request-Id": "find-me"})
    assert response.status_code == 500
    assert response.json is not None
    assert response.json["code"] == "prediction-failed"
    assert "s3cr3t-canary" not in response.get_data(as_text=True)
    assert "Traceback" not in response.get_data(as_text=True)
    (line,) = world.log_lines
    assert (line["level"], line["request_id"]) == ("ERROR", "find-me")
    assert "RuntimeError" in line["exc_info"]
    assert rejections(world, "prediction-failed") == 1


def test_a_decoder_that_fails_is_a_500_without_its_words(world: World) -> None:
    """The same for our own code: a bug in a wire is a fault of ours and not the caller's."""

    def decode(incoming: Incoming) -> Any:
        raise KeyError("s3cr3t-canary")

    route = dataclasses.replace(ROUTES[0], decode=decode)
    call = world.edge.begin(route, Incoming("POST", "/predict", {}, b"", "find-me"), 0.0)
    assert call.outgoing is not None
    assert call.outgoing.status == 500
    assert b"s3cr3t-canary" not in call.outgoing.body
    assert [line["request_id"] for line in world.log_lines] == ["find-me"]
    assert "KeyError" in world.log_lines[0]["exc_info"]


def calls_of(world: World, bodies: list[bytes]) -> list[Call]:
    route = world.edge.routes["/v1/models/iris:predict"]
    requests = [Incoming("POST", "/v1/models/iris:predict", {}, body, f"id-{i}") for i, body in enumerate(bodies)]
    return [world.edge.begin(route, incoming, 0.0) for incoming in requests]


def test_calls_scored_together_are_answered_as_alone(world: World, iris: Example) -> None:
    """One prediction for calls of several sizes: each gets the bytes that it would get by itself."""
    lists = [[None if np.isnan(value) else float(value) for value in row] for row in iris.rows]
    bodies = [orjson.dumps({"instances": lists[i : i + 1 + i % 3]}) for i in range(len(lists))]
    alone = calls_of(world, bodies)
    for call in alone:
        world.edge.finish(call)
    together = calls_of(world, bodies)
    world.edge.finish_together(together)
    assert [call.outgoing for call in together] == [call.outgoing for call in alone]


def test_a_prediction_that_fails_for_all_is_tried_for_each(broken: LoadedModel) -> None:
    """Each is answered, with a fault of ours in its own words."""
    world = World(broken)
    calls = calls_of(world, [b'{"instances": [[1, 2, 3, 4]]}'] * 3)
    world.edge.finish_together(calls)
    assert [call.outgoing.status for call in calls if call.outgoing] == [500] * 3
