"""kserve 0.21's InferenceRESTClient, unchanged: protocol V1, and the Open Inference Protocol (V2).

It asks for JSON bodies on the health calls, and shows the `error` of an answer only if the Content-Type is exactly
`application/json`.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.clients.conftest import Floats, Served, assert_close, assert_same

WHY = "run `make test-clients`"
kserve = pytest.importorskip("kserve", reason=WHY)
infer_type = pytest.importorskip("kserve.protocol.infer_type", reason=WHY)
httpx = pytest.importorskip("httpx", reason=WHY)

Run = Callable[[Coroutine[Any, Any, Any]], Any]

CALLERS = 20
DATATYPES = {
    np.dtype("?"): "BOOL",
    **{np.dtype(f"f{size}"): f"FP{size * 8}" for size in (2, 4, 8)},
    **{np.dtype(f"i{size}"): f"INT{size * 8}" for size in (1, 2, 4, 8)},
    **{np.dtype(f"u{size}"): f"UINT{size * 8}" for size in (1, 2, 4, 8)},
}
REQUESTS = pytest.mark.parametrize("binary", [True, False])
# What a V2 request says about its answer, and whether that answer is binary.
ANSWERS = pytest.mark.parametrize(
    ("wish", "is_binary"),
    [
        pytest.param({}, False, id="default"),
        pytest.param({"parameters": {"binary_data_output": True}}, True, id="all-binary"),
        pytest.param({"parameters": {"binary_data_output": False}}, False, id="all-json"),
        pytest.param({"outputs": {"binary_data": True}}, True, id="output-binary"),
        pytest.param({"outputs": {"binary_data": False}}, False, id="output-json"),
        pytest.param(
            {"parameters": {"binary_data_output": True}, "outputs": {"binary_data": False}}, False, id="output-wins"
        ),
        pytest.param({"parameters": {"binary_data_output": True}, "outputs": None}, True, id="output-by-name"),
    ],
)


@pytest.fixture(scope="session")
def run() -> Iterator[Run]:
    """Runs the client's coroutines from any thread on one event loop, which is how threads share a client."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield lambda call: asyncio.run_coroutine_threadsafe(call, loop).result(60)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope="session")
def v1(run: Run) -> Iterator[Any]:
    client = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v1"))
    yield client
    run(client.close())


@pytest.fixture(scope="session")
def v2(run: Run) -> Iterator[Any]:
    client = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2"))
    yield client
    run(client.close())


def tensor(values: NDArray[Any], *, name: str = "input-0", binary: bool = True) -> Any:
    given = kserve.InferInput(name, list(values.shape), DATATYPES[values.dtype])
    given.set_data_from_numpy(values, binary_data=binary)
    return given


def infer_request(model: str, inputs: list[Any], wish: dict[str, Any] | None = None, **options: Any) -> Any:
    """`wish` as in ANSWERS."""
    if wish:
        options["parameters"] = wish.get("parameters")
        if "outputs" in wish:
            options["request_outputs"] = [infer_type.RequestedOutput("output-0", wish["outputs"])]
    return kserve.InferRequest(model, inputs, **options)


def scores_of(response: Any) -> Floats:
    """The one output of a V2 answer."""
    (output,) = response.outputs
    assert (output.name, output.datatype) == ("output-0", "FP32")
    scores: Floats = output.as_numpy()
    return scores


def predictions_of(response: dict[str, Any]) -> Floats:
    """The scores of a V1 answer; JSON has the digits of float32."""
    assert set(response) == {"predictions"}
    return np.array(response["predictions"], np.float32)


# What a client asks before it scores.


def test_server_is_live(run: Run, v1: Any, v2: Any, example: Served) -> None:
    assert run(v1.is_server_live(example.url)) is True
    assert run(v2.is_server_live(example.url)) is True


def test_server_is_ready(run: Run, v2: Any, example: Served) -> None:
    """V1 has no such call."""
    assert run(v2.is_server_ready(example.url)) is True


def test_base_url_may_end_in_a_slash(run: Run, v1: Any, v2: Any, iris: Served) -> None:
    assert run(v1.is_server_live(f"{iris.url}/")) is True
    assert run(v1.is_model_ready(f"{iris.url}/", iris.name)) is True
    assert run(v2.is_server_ready(f"{iris.url}/")) is True


def test_model_is_ready_under_its_name_only(run: Run, v1: Any, v2: Any, example: Served) -> None:
    assert run(v1.is_model_ready(example.url, example.name)) is True
    assert run(v2.is_model_ready(example.url, example.name)) is True
    assert run(v2.is_model_ready(example.url, "nobody")) is False
    with pytest.raises(httpx.HTTPStatusError, match=r"no such model or version.* '404 Not Found'"):
        run(v1.is_model_ready(example.url, "nobody"))


# V1.


def predict(run: Run, v1: Any, served: Served, body: dict[str, Any]) -> Floats:
    return predictions_of(run(v1.infer(served.url, body, model_name=served.name)))


def test_v1_tutorial(run: Run, v1: Any, iris: Served) -> None:
    """The request of KServe's XGBoost tutorial, and the answer printed there."""
    request = {"instances": [[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]]}
    assert run(v1.infer(iris.url, request, model_name=iris.name)) == {"predictions": [1.0, 1.0]}


@pytest.mark.parametrize("key", ["instances", "inputs"])
def test_v1_row_alone(run: Run, v1: Any, example: Served, key: str) -> None:
    """Rows have NaN where a value is missing; the client writes null."""
    for row, score in example.single_rows():
        assert_same(predict(run, v1, example, {key: row.tolist()}), score)


def test_v1_decimals(run: Run, v1: Any, example: Served) -> None:
    """6.8 as a caller writes it, not 6.800000190734863."""
    for row, score in zip(example.doubles, example.scores, strict=True):
        assert_same(predict(run, v1, example, {"instances": [row.tolist()]}), score[np.newaxis])


def test_v1_rows_together(run: Run, v1: Any, example: Served) -> None:
    assert_close(predict(run, v1, example, {"instances": example.rows.tolist()}), example.scores)


def test_v1_named_rows_in_any_order(run: Run, v1: Any, example: Served) -> None:
    for row, score in example.single_rows():
        named = dict(reversed(list(zip(example.feature_names, row[0].tolist(), strict=True))))
        assert_same(predict(run, v1, example, {"instances": [named]}), score)


def test_v1_bytes_with_the_literal_nan(run: Run, v1: Any, example: Served) -> None:
    """A body that the caller has made: Python's json writes NaN, which is not JSON, and no Content-Type goes with it."""
    body = json.dumps({"instances": example.rows[-1:].tolist()}).encode()
    assert body.count(b"NaN") == len(example.feature_names)
    assert_same(predictions_of(run(v1.infer(example.url, body, model_name=example.name))), example.scores[-1:])


def test_v1_long_answer_is_compressed(run: Run, v1: Any, breast_cancer: Served) -> None:
    """The client always accepts gzip and undoes it."""
    rows, expected = breast_cancer.many()
    headers: dict[str, str] = {}
    response = run(
        v1.infer(
            breast_cancer.url, {"instances": rows.tolist()}, model_name=breast_cancer.name, response_headers=headers
        )
    )
    assert headers["content-encoding"] == "gzip"
    assert_close(predictions_of(response), expected)


@pytest.mark.parametrize(
    ("model", "body", "status", "message"),
    [
        ("iris", {"instances": [[1.0, 2.0, 3.0]]}, 400, "instances: expected 4 values a row, got 3"),
        ("iris", {"inputs": [[1.0] * 5]}, 400, "inputs: expected 4 values a row, got 5"),
        ("iris", {"instances": [[1.0] * 4, [1.0] * 3]}, 400, "instances[1]: expected 4 values as in the first row"),
        ("iris", {"instances": [[1.0, 2.0, "3", 4.0]]}, 400, "instances[0][2]: expected a number, got a string"),
        ("iris", {"instances": [{"sepal length (cm)": 1.0}]}, 400, "missing: 'sepal width (cm)'"),
        ("iris", {"instances": []}, 400, "instances: expected at least one row"),
        ("iris", {"instances": 1.0}, 400, "instances: expected a list of rows, got a number"),
        ("iris", {"rows": [[1.0] * 4]}, 400, "expected the key 'instances'"),
        ("nobody", {"instances": [[1.0] * 4]}, 404, "no such model or version; this server serves iris, version 1"),
    ],
)
def test_v1_error_is_ours(
    run: Run, v1: Any, iris: Served, model: str, body: dict[str, Any], status: int, message: str
) -> None:
    with pytest.raises(httpx.HTTPStatusError) as caught:
        run(v1.infer(iris.url, body, model_name=model))
    assert caught.value.response.status_code == status
    assert message in str(caught.value)


def test_v1_explain_is_refused_in_words(run: Run, v1: Any, iris: Served) -> None:
    with pytest.raises(httpx.HTTPStatusError) as caught:
        run(v1.explain(iris.url, iris.name, {"instances": iris.rows[:1].tolist()}))
    assert not caught.value.response.is_server_error
    assert caught.value.response.json()["error"] in str(caught.value)


# V2.


def infer(run: Run, v2: Any, served: Served, request: Any, headers: dict[str, str] | None = None) -> Any:
    """The answer; `headers` takes those of the answer."""
    return run(v2.infer(served.url, request, model_name=served.name, response_headers=headers))


@REQUESTS
@ANSWERS
def test_v2_row_alone(run: Run, v2: Any, example: Served, binary: bool, wish: dict[str, Any], is_binary: bool) -> None:
    for row, score in example.single_rows():
        headers: dict[str, str] = {}
        request = infer_request(example.name, [tensor(row, binary=binary)], wish)
        assert_same(scores_of(infer(run, v2, example, request, headers)), score)
        assert ("inference-header-content-length" in headers) == is_binary


@REQUESTS
@ANSWERS
def test_v2_rows_together(
    run: Run, v2: Any, example: Served, binary: bool, wish: dict[str, Any], is_binary: bool
) -> None:
    request = infer_request(example.name, [tensor(example.rows, binary=binary)], wish)
    assert_close(scores_of(infer(run, v2, example, request)), example.scores)


@pytest.mark.parametrize("is_flat", [True, False])
def test_v2_dictionary(run: Run, v2: Any, example: Served, is_flat: bool) -> None:
    for row, score in example.single_rows():
        data = (row[0] if is_flat else row).tolist()
        request = {"inputs": [{"name": "input-0", "shape": list(row.shape), "datatype": "FP32", "data": data}]}
        assert_same(scores_of(infer(run, v2, example, request)), score)


def test_v2_answer_names_model_and_request(run: Run, v2: Any, example: Served) -> None:
    request = infer_request(example.name, [tensor(example.rows[:1])], request_id="order 66")
    response = infer(run, v2, example, request)
    assert (response.model_name, response.id) == (example.name, "order 66")


@REQUESTS
def test_v2_doubles(run: Run, v2: Any, example: Served, binary: bool) -> None:
    for i in range(len(example.doubles)):
        request = infer_request(example.name, [tensor(example.doubles[i : i + 1], binary=binary)])
        assert_same(scores_of(infer(run, v2, example, request)), example.scores[i : i + 1])


@pytest.mark.parametrize(
    ("datatype", "binary"),
    # The client refuses to write FP16 as JSON.
    [("f2", True), *((f"{kind}{size}", binary) for kind in "iu" for size in (1, 2, 4, 8) for binary in (True, False))],
)
def test_v2_narrow_types(run: Run, v2: Any, breast_cancer: Served, datatype: str, binary: bool) -> None:
    """The golden values do not fit these types, but what does fit is scored as the same numbers in FP32 are."""
    values = breast_cancer.rows if datatype == "f2" else np.rint(np.nan_to_num(breast_cancer.rows)).clip(0, 127)
    for row in values.astype(datatype)[:, np.newaxis]:
        plain = infer_request(breast_cancer.name, [tensor(row.astype(np.float32))])
        narrow = infer_request(breast_cancer.name, [tensor(row, binary=binary)])
        expected = scores_of(infer(run, v2, breast_cancer, plain))
        assert_same(scores_of(infer(run, v2, breast_cancer, narrow)), expected)


@pytest.mark.parametrize("parameters", [None, {"content_type": "pd"}])
@pytest.mark.parametrize("kinds", [(True, True), (False, False), (True, False)], ids=["binary", "json", "mixed"])
def test_v2_one_input_per_feature(
    run: Run, v2: Any, example: Served, kinds: tuple[bool, bool], parameters: dict[str, str] | None
) -> None:
    """Named as the features, last feature first."""
    for row, score in example.single_rows():
        inputs = [
            tensor(row[:, i], name=name, binary=kinds[i % 2])
            for i, name in reversed([*enumerate(example.feature_names)])
        ]
        request = infer_request(example.name, inputs, {"parameters": parameters})
        assert_same(scores_of(infer(run, v2, example, request)), score)


@pytest.mark.parametrize("is_binary", [True, False])
def test_v2_long_answer_is_compressed(run: Run, v2: Any, breast_cancer: Served, is_binary: bool) -> None:
    """The client always accepts gzip; the length of the JSON head is that of the inflated answer."""
    rows, expected = breast_cancer.many()
    headers: dict[str, str] = {}
    wish = {"parameters": {"binary_data_output": is_binary}}
    response = infer(run, v2, breast_cancer, infer_request(breast_cancer.name, [tensor(rows)], wish), headers)
    assert headers["content-encoding"] == "gzip"
    assert_close(scores_of(response), expected)


BAD_REQUESTS: dict[str, tuple[Callable[[Served], Any], str, int, str]] = {
    "width": (
        lambda iris: infer_request("iris", [tensor(iris.rows[:, :3])]),
        "iris",
        400,
        "inputs[0].data: expected 4 values a row, got 3",
    ),
    "width-json": (
        lambda iris: infer_request("iris", [tensor(iris.rows[:, :3], binary=False)]),
        "iris",
        400,
        "inputs[0].data: expected 4 values a row, got 3",
    ),
    "missing-data": (
        lambda iris: {"inputs": [{"name": "input-0", "shape": [1, 4], "datatype": "FP32"}]},
        "iris",
        400,
        "inputs[0].data: expected a list of numbers",
    ),
    "shape": (
        lambda iris: {"inputs": [{"name": "input-0", "shape": [1, 4], "datatype": "FP32", "data": [1.0] * 8}]},
        "iris",
        400,
        "inputs[0].data: expected 4 numbers for shape [1, 4], got 8",
    ),
    "text": (
        lambda iris: {"inputs": [{"name": "i", "shape": [1, 4], "datatype": "FP32", "data": [1.0, "2", 3.0, 4.0]}]},
        "iris",
        400,
        "inputs[0].data[1]: expected a number, got a string",
    ),
    "unknown-output": (
        lambda iris: infer_request(
            "iris", [tensor(iris.rows)], request_outputs=[infer_type.RequestedOutput("predict")]
        ),
        "iris",
        400,
        "outputs[0]: expected one output, named 'output-0'",
    ),
    "unknown-model": (
        lambda iris: infer_request("nobody", [tensor(iris.rows)]),
        "nobody",
        404,
        "no such model or version; this server serves iris, version 1",
    ),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_v2_error_is_ours(run: Run, v2: Any, iris: Served, case: str) -> None:
    build, model, status, message = BAD_REQUESTS[case]
    with pytest.raises(httpx.HTTPStatusError) as caught:
        run(v2.infer(iris.url, build(iris), model_name=model))
    assert caught.value.response.status_code == status
    assert message in str(caught.value)


# Many at once.


def test_v1_threads_share_a_client(run: Run, v1: Any, example: Served) -> None:
    def score_all(caller: int) -> None:
        for row, score in example.single_rows():
            assert_same(predict(run, v1, example, {"instances": row.tolist()}), score)

    with ThreadPoolExecutor(CALLERS) as threads:
        list(threads.map(score_all, range(CALLERS)))


def test_v2_threads_share_a_client(run: Run, v2: Any, example: Served) -> None:
    def score_all(caller: int) -> None:
        for i, (row, score) in enumerate(example.single_rows()):
            wish = {"parameters": {"binary_data_output": caller % 3 == 0}}
            name = f"{caller}-{i}"
            request = infer_request(example.name, [tensor(row, binary=caller % 2 == 0)], wish, request_id=name)
            response = infer(run, v2, example, request)
            assert response.id == name
            assert_same(scores_of(response), score)

    with ThreadPoolExecutor(CALLERS) as threads:
        list(threads.map(score_all, range(CALLERS)))
