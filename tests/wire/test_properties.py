"""What holds for any request at all, tried on a few hundred that hypothesis makes up, the same ones every time."""

from __future__ import annotations

import copy
import json
import string
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st

from service.batch import Floats, Incoming
from service.wire import ROUTES, Route
from tests.apps import Example, World

HEAD_LENGTH = "Inference-Header-Content-Length"
few = settings(
    max_examples=120,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)

IRIS_NAMES = ("sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)")
KEYS = (
    *IRIS_NAMES, "instances", "inputs", "features", "X", "id", "parameters", "outputs", "name", "shape", "datatype", "data",
    "binary_data_size", "binary_data", "binary_data_output", "content_type",
)  # fmt: skip
TEXTS = ("FP32", "BYTES", "BOOL", "INT64", "output-0", "input-0", "pd", "1.5", "NaN", "\ud800", '"', "\u0000", "é")
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**400), max_value=10**400)
    | st.floats()
    | st.sampled_from(TEXTS)
    | st.text(max_size=8)
)
documents = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=4), inner, max_size=5)
    ),
    max_leaves=20,
)
VALID: tuple[Any, ...] = (
    {"instances": [[4.4, 3.0, 1.3, 0.2], [6.8, None, 4.8, 1.4]]},
    {"X": dict.fromkeys(IRIS_NAMES, 1.5)},
    [dict.fromkeys(IRIS_NAMES, 1.5), dict.fromkeys(IRIS_NAMES)],
    {
        "id": "7",
        "parameters": {"binary_data_output": False},
        "inputs": [
            {"name": "input-0", "shape": [1, 4], "datatype": "FP32", "parameters": {}, "data": [4.4, 3.0, 1.3, 0.2]}
        ],
        "outputs": [{"name": "output-0", "parameters": {"binary_data": False}}],
    },
    {"inputs": [{"name": name, "shape": [2], "datatype": "FP64", "data": [1.5, 2.5]} for name in IRIS_NAMES]},
)


@pytest.fixture(scope="module")
def world(iris: Example) -> World:
    return World(iris.model, SCORER_MAX_BODY_BYTES="100000")


def paths(world: World) -> list[str]:
    return list(world.edge.routes)


def post_everywhere(world: World, body: bytes, headers: dict[str, str]) -> None:
    """The promise: an answer of this protocol with a status below 500, and no traceback in the log."""
    for path in paths(world):
        response = world.client.post(path, data=body, headers=headers)
        assert response.status_code < 500, (path, body)
        length = int(response.headers.get(HEAD_LENGTH, len(response.data)))
        document = json.loads(response.data[:length])
        if response.status_code != 200:
            assert document["code"]
            assert document.get("error") or document.get("detail")
    assert not world.handler.lines


def nodes(document: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value in a document."""
    yield path
    items = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in items:
        yield from nodes(value, (*path, key))


def with_value(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy that has another value at the end of this path."""
    if not path:
        return value
    changed = copy.deepcopy(document)
    owner = changed
    for key in path[:-1]:
        owner = owner[key]
    owner[path[-1]] = value
    return changed


@few
@given(documents)
def test_any_json_document_gets_an_answer_below_500(world: World, document: Any) -> None:
    """Whatever parses as JSON, or nearly, as json.dumps writes NaN and Infinity: 2xx or 4xx on every scoring route."""
    post_everywhere(world, json.dumps(document).encode(), {"Content-Type": "application/json"})


@few
@given(st.data())
def test_any_change_to_a_good_request_gets_an_answer_below_500(world: World, data: st.DataObject) -> None:
    """One value of a good request replaced by any other: the mistakes that people make."""
    document = data.draw(st.sampled_from(VALID))
    path = data.draw(st.sampled_from(list(nodes(document))))
    changed = with_value(document, path, data.draw(documents))
    post_everywhere(world, json.dumps(changed).encode(), {"Content-Type": "application/json"})


@few
@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:0123456789eE+-.nultrfasNI\\ \n', max_size=60).map(str.encode))
def test_any_bytes_get_an_answer_below_500(world: World, body: bytes) -> None:
    """Bytes, and what looks like JSON for a while."""
    post_everywhere(world, body, {})


@few
@given(
    st.sampled_from(["FP32", "FP64", "INT8", "BOOL", "BF16", "FP16", "BYTES"]),
    st.lists(st.integers(0, 5), min_size=1, max_size=3),
    st.none() | st.integers(-4, 40),
    st.binary(max_size=40),
    st.integers(-3, 3),
)
def test_any_binary_tensor_gets_an_answer_below_500(
    world: World, datatype: str, shape: list[int], size: int | None, tail: bytes, slip: int
) -> None:
    """Shapes, sizes and lengths that agree or do not."""
    tensor = {"name": "input-0", "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": size}}
    head = json.dumps({"inputs": [tensor]}).encode()
    post_everywhere(world, head + tail, {HEAD_LENGTH: str(len(head) + slip)})


@few
@given(
    st.dictionaries(
        st.sampled_from(["Content-Type", "Content-Encoding", "Accept-Encoding", "Accept", "X-Request-Id", HEAD_LENGTH]),
        st.text(alphabet=string.printable.replace("\n", "").replace("\r", ""), max_size=20)
        | st.sampled_from(["gzip", "deflate", "identity", "application/json", "gzip;q=0", "*/*", ";", ",", "5"]),
    )
)
def test_any_headers_get_an_answer_below_500(world: World, headers: dict[str, str]) -> None:
    """Whatever stands in the headers that we read."""
    post_everywhere(world, json.dumps(VALID[0]).encode(), headers)


# Bodies that are cheap to send and could be dear to read, each about 60 KB.
HOSTILE = {
    "escaped quotes without an end": '{"instances": [[NaN, "' + '\\"' * 30_000,
    "quotes": '{"instances": [[NaN, ' + '"' * 60_000,
    "backslashes": '{"instances": [[NaN, "' + "\\" * 60_000,
    "a long string": '{"instances": [[NaN, "' + "a" * 60_000,
    "NaN all over": '{"instances": [[' + "NaN," * 15_000 + "1]]}",
    "NaN without a comma": '{"instances": [[' + "NaN" * 20_000,
    "brackets": '{"instances": ' + "[" * 60_000,
    "brackets in turns": '{"instances": [NaN' + ",[]" * 20_000 + "]}",
    "objects in turns": '{"instances": [' + '{"a":1},' * 7_500 + '{"a":NaN}]}',
    "keys": '{"instances": [{' + ",".join(f'"k{i}":1' for i in range(6_000)) + "}]}",
    "equal keys": '{"instances": [{' + '"k":1,' * 10_000 + '"k":1}]}',
    "escaped keys": '{"instances": [{' + ",".join(f'"\\u006b{i}":1' for i in range(4_000)) + "}]}",
    "colons": '{"instances": [{"' + ":" * 60_000 + '": 1}]}',
    "digits": '{"instances": [[NaN, ' + "9" * 60_000 + "]]}",
    "zeros after the point": '{"instances": [[NaN, 0.' + "0" * 60_000 + "1]]}",
    "minus signs": '{"instances": [[NaN, ' + "-" * 60_000,
    "white space": '{"instances": [[NaN' + " " * 60_000 + "x",
    "small tensors": '{"inputs": [' + '{"name":"a","shape":[1],"datatype":"FP32","data":[1]},' * 1_000 + "1]}",
    "outputs": '{"inputs": [1], "outputs": [' + '{"name":"output-0"},' * 3_000 + "1]}",
}


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", HOSTILE)
def test_no_body_is_dear_to_read(world: World, kind: str) -> None:
    """60 KB of anything are read or refused at once: a quadratic step takes eight seconds a route, past the timeout."""
    body = HOSTILE[kind].encode()
    for path in paths(world):
        response = world.client.post(path, data=body)
        assert 400 <= response.status_code < 500


# One matrix, many ways to write it.


def turned(items: list[Any]) -> list[Any]:
    """Another order, which, unlike the reverse, does not undo itself."""
    return items[1:] + items[:1]


def number(value: np.float32, nan: float | None) -> float | None:
    return nan if np.isnan(value) else float(value)


def writings(rows: Floats) -> Iterator[tuple[str, bytes, dict[str, str]]]:
    """The same rows in every form that we read: path without the model, body, headers."""
    for nan in (None, float("nan")):
        lists = [[number(value, nan) for value in row] for row in rows]
        named = [dict(turned(list(zip(IRIS_NAMES, row, strict=True)))) for row in lists]
        flat = [value for row in lists for value in row]
        columns = [
            {"name": name, "shape": [len(rows)], "datatype": "FP32", "data": list(column)}
            for name, column in zip(IRIS_NAMES, zip(*lists, strict=True), strict=True)
        ]
        for path, document in (
            ("/predict", lists),
            ("/predict", {"instances": lists}),
            ("/predict", {"features": named}),
            ("/score", {"X": lists}),
            ("/score", {"X": named}),
            ("/v1/models/{model}:predict", {"instances": lists}),
            ("/v1/models/{model}:predict", {"inputs": named}),
            ("/v2/models/{model}/infer", {"inputs": [tensor(rows, data=flat)]}),
            ("/v2/models/{model}/infer", {"inputs": [tensor(rows, data=lists)]}),
            ("/v2/models/{model}/infer", {"inputs": turned(columns)}),
        ):
            yield path, json.dumps(document).encode(), {}
    for datatype, dtype in (("FP32", "<f4"), ("FP64", "<f8")):
        tail = rows.astype(dtype).tobytes()
        head = orjson.dumps({"inputs": [tensor(rows, datatype, parameters={"binary_data_size": len(tail)})]})
        yield "/v2/models/{model}/infer", head + tail, {HEAD_LENGTH.lower(): str(len(head))}


def tensor(rows: Floats, datatype: str = "FP32", **more: Any) -> dict[str, Any]:
    return {"name": "input-0", "shape": list(rows.shape), "datatype": datatype, **more}


def route_of(template: str) -> Route:
    return next(route for route in ROUTES if route.template == template)


float32 = st.floats(width=32, allow_infinity=False)


@few
@given(np_st.arrays(np.float32, st.tuples(st.integers(1, 6), st.just(4)), elements=float32))
def test_any_matrix_arrives_as_it_was_sent(world: World, rows: Floats) -> None:
    """Every bit of every number, whichever wire brings it and whether rows come as lists, by names or as columns."""
    for path, body, headers in writings(rows):
        call = world.edge.begin(route_of(path), Incoming("POST", path, headers, body, "id"), 0.0)
        assert call.batch is not None, (path, body, call.outgoing)
        arrived = call.batch.values
        assert arrived.dtype == np.float32
        missing = np.isnan(rows)
        assert (np.isnan(arrived) == missing).all()
        assert (arrived.view(np.uint32) == rows.view(np.uint32))[~missing].all()


@few
@given(np_st.arrays(np.float32, st.tuples(st.integers(1, 6), st.just(4)), elements=float32))
def test_any_matrix_scores_alike_through_all_wires(world: World, rows: Floats) -> None:
    """One model, one answer, whatever the protocol."""
    scores = set()
    for path, body, headers in writings(rows):
        call = world.edge.finish(world.edge.begin(route_of(path), Incoming("POST", path, headers, body, "id"), 0.0))
        assert call.outgoing is not None
        document = json.loads(call.outgoing.body)
        found = document.get("prediction", document.get("score", document.get("predictions")))
        scores.add(tuple(found if found is not None else document["outputs"][0]["data"]))
    assert len(scores) == 1
