"""tritonclient[http] 2.73, unchanged: the Open Inference Protocol (V2) in JSON and in binary tensors.

It sends no Content-Type, tells binary from JSON by `Inference-Header-Content-Length`, and reads nothing but
`{"error": …}` from whatever is not a 200.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.clients.conftest import Floats, Served, assert_close, assert_same

WHY = "run `make test-clients`"
triton = pytest.importorskip("tritonclient.http", reason=WHY)
triton_aio = pytest.importorskip("tritonclient.http.aio", reason=WHY)
triton_utils = pytest.importorskip("tritonclient.utils", reason=WHY)

CALLERS = 20
# How the scores come back: True and False ask for it output by output, None leaves it to the client, which then asks
# for binary with `binary_data_output`.
ANSWERS = pytest.mark.parametrize("binary_answer", [None, True, False])
REQUESTS = pytest.mark.parametrize("binary", [True, False])
CODINGS = pytest.mark.parametrize("coding", ["gzip", "deflate"])


@pytest.fixture
def client(example: Served) -> Iterator[Any]:
    with triton.InferenceServerClient(example.address) as client:
        yield client


@pytest.fixture
def iris_client(iris: Served) -> Iterator[Any]:
    with triton.InferenceServerClient(iris.address) as client:
        yield client


@pytest.fixture
def cancer_client(breast_cancer: Served) -> Iterator[Any]:
    with triton.InferenceServerClient(breast_cancer.address) as client:
        yield client


def tensor(values: NDArray[Any], *, name: str = "input-0", binary: bool = True) -> Any:
    datatype = triton_utils.np_to_triton_dtype(values.dtype)
    return triton.InferInput(name, list(values.shape), datatype).set_data_from_numpy(values, binary_data=binary)


def outputs(binary: bool | None) -> list[Any] | None:
    return None if binary is None else [triton.InferRequestedOutput("output-0", binary_data=binary)]


def columns(example: Served, values: Floats, *, is_binary: Callable[[int], bool], ndim: int = 1) -> list[Any]:
    """One input per feature, named as the feature, last feature first."""
    shape = (-1,) if ndim == 1 else (-1, 1)
    inputs = [
        tensor(values[:, i].reshape(shape), name=name, binary=is_binary(i))
        for i, name in enumerate(example.feature_names)
    ]
    return inputs[::-1]


def infer(client: Any, example: Served, inputs: list[Any], *, binary_answer: bool | None = None, **options: Any) -> Any:
    result = client.infer(example.name, inputs, outputs=outputs(binary_answer), **options)
    # None and True ask for binary; False asks for JSON.
    assert ("data" in result.get_output("output-0")) == (binary_answer is False)
    return result.as_numpy("output-0")


def record_answers(client: Any) -> list[Any]:
    """The HTTP answers that the client gets from now on: its results do not show their headers."""
    answers = []
    post = client._post

    def recording_post(*args: Any, **kwargs: Any) -> Any:
        answers.append(post(*args, **kwargs))
        return answers[-1]

    client._post = recording_post
    return answers


# What a client asks before it scores.


def test_server_is_live_and_ready(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()


def test_model_is_ready_under_its_name_and_version_only(client: Any, example: Served) -> None:
    assert client.is_model_ready(example.name)
    assert client.is_model_ready(example.name, "1")
    assert not client.is_model_ready(example.name, "2")
    assert not client.is_model_ready("nobody")


def test_server_metadata(client: Any) -> None:
    metadata = client.get_server_metadata()
    assert metadata["name"] == "xgboost-server"
    assert metadata["version"]
    assert {"binary_tensor_data", "parameters"} <= set(metadata["extensions"])


def test_model_metadata(client: Any, example: Served) -> None:
    metadata = client.get_model_metadata(example.name)
    assert metadata == client.get_model_metadata(example.name, "1")
    assert metadata["name"] == example.name
    assert metadata["versions"] == ["1"]
    assert metadata["platform"]
    assert metadata["inputs"] == [{"name": "input-0", "datatype": "FP32", "shape": [-1, len(example.feature_names)]}]
    assert metadata["outputs"] == [{"name": "output-0", "datatype": "FP32", "shape": [-1]}]


def test_metadata_is_all_a_client_needs(client: Any, example: Served) -> None:
    metadata = client.get_model_metadata(example.name)
    (expected,), (given,) = metadata["inputs"], metadata["outputs"]
    row = example.rows[:1].astype(triton_utils.triton_to_np_dtype(expected["datatype"]))
    request = triton.InferInput(expected["name"], list(row.shape), expected["datatype"]).set_data_from_numpy(row)
    result = client.infer(example.name, [request], outputs=[triton.InferRequestedOutput(given["name"])])
    assert_same(result.as_numpy(given["name"]), example.scores[:1])


def test_repository_index(client: Any, example: Served) -> None:
    (entry,) = client.get_model_repository_index()
    assert (entry["name"], entry["version"], entry["state"]) == (example.name, "1", "READY")


# Scores.


@REQUESTS
@ANSWERS
def test_row_alone(client: Any, example: Served, binary: bool, binary_answer: bool | None) -> None:
    for row, score in example.single_rows():
        assert_same(infer(client, example, [tensor(row, binary=binary)], binary_answer=binary_answer), score)


@REQUESTS
@ANSWERS
def test_rows_together(client: Any, example: Served, binary: bool, binary_answer: bool | None) -> None:
    scores = infer(client, example, [tensor(example.rows, binary=binary)], binary_answer=binary_answer)
    assert_close(scores, example.scores)


def test_version_in_the_path(client: Any, example: Served) -> None:
    result = client.infer(example.name, [tensor(example.rows[:1])], model_version="1")
    assert_same(result.as_numpy("output-0"), example.scores[:1])
    assert result.get_response()["model_name"] == example.name
    assert result.get_response()["model_version"] == "1"


def test_missing_values_in_json_are_the_literal_nan(client: Any, example: Served) -> None:
    """The client writes NaN, which is not JSON; a server that insists on JSON loses its callers here."""
    request = tensor(example.rows[-1:], binary=False)
    body, json_size = triton.InferenceServerClient.generate_request_body([request])
    assert json_size is None
    assert body.count(b"NaN") == len(example.feature_names)
    assert_same(infer(client, example, [request]), example.scores[-1:])


@REQUESTS
def test_doubles(client: Any, example: Served, binary: bool) -> None:
    for i in range(len(example.doubles)):
        scores = infer(client, example, [tensor(example.doubles[i : i + 1], binary=binary)])
        assert_same(scores, example.scores[i : i + 1])


@pytest.mark.parametrize("datatype", ["FP16", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"])
@REQUESTS
def test_narrow_types(cancer_client: Any, breast_cancer: Served, datatype: str, binary: bool) -> None:
    """The golden values do not fit these types, but what does fit is scored as the same numbers in FP32 are."""
    values = breast_cancer.rows if datatype == "FP16" else np.rint(np.nan_to_num(breast_cancer.rows)).clip(0, 127)
    narrow = values.astype(triton_utils.triton_to_np_dtype(datatype))
    for i in range(len(narrow)):
        row = narrow[i : i + 1]
        expected = infer(cancer_client, breast_cancer, [tensor(row.astype(np.float32))])
        assert_same(infer(cancer_client, breast_cancer, [tensor(row, binary=binary)]), expected)


@pytest.mark.parametrize("datatype", ["BF16", "BOOL"])
def test_binary_types(cancer_client: Any, breast_cancer: Served, datatype: str) -> None:
    """BF16 exists in binary only, BOOL is 0 and 1."""
    values = breast_cancer.rows if datatype == "BF16" else breast_cancer.rows > np.nanmedian(breast_cancer.rows)
    narrow = values.astype(triton_utils.triton_to_np_dtype(datatype))
    for i in range(len(narrow)):
        row = narrow[i : i + 1]
        expected = infer(cancer_client, breast_cancer, [tensor(row.astype(np.float32))])
        assert_same(infer(cancer_client, breast_cancer, [tensor(row)]), expected)


@pytest.mark.parametrize("ndim", [1, 2])
@pytest.mark.parametrize(
    "is_binary",
    [
        pytest.param(lambda i: True, id="binary"),
        pytest.param(lambda i: False, id="json"),
        pytest.param(lambda i: i % 2 == 0, id="mixed"),
    ],
)
@ANSWERS
def test_one_input_per_feature(
    client: Any, example: Served, is_binary: Callable[[int], bool], ndim: int, binary_answer: bool | None
) -> None:
    for row, score in example.single_rows():
        inputs = columns(example, row, is_binary=is_binary, ndim=ndim)
        assert_same(infer(client, example, inputs, binary_answer=binary_answer), score)
    inputs = columns(example, example.rows, is_binary=is_binary, ndim=ndim)
    assert_close(infer(client, example, inputs, binary_answer=binary_answer), example.scores)


# Compression.


@CODINGS
@REQUESTS
def test_compressed_request(client: Any, example: Served, coding: str, binary: bool) -> None:
    for row, score in example.single_rows():
        inputs = [tensor(row, binary=binary)]
        assert_same(infer(client, example, inputs, request_compression_algorithm=coding), score)


@CODINGS
@ANSWERS
def test_compressed_answer(client: Any, example: Served, coding: str, binary_answer: bool | None) -> None:
    rows, expected = example.many()
    answers = record_answers(client)
    scores = infer(client, example, [tensor(rows)], binary_answer=binary_answer, response_compression_algorithm=coding)
    assert_close(scores, expected)
    (answer,) = answers
    assert answer.get("Content-Encoding") == coding
    assert answer.get("Vary") == "Accept-Encoding"


@CODINGS
def test_compressed_request_and_answer(cancer_client: Any, breast_cancer: Served, coding: str) -> None:
    rows, expected = breast_cancer.many()
    answers = record_answers(cancer_client)
    scores = infer(
        cancer_client,
        breast_cancer,
        [tensor(rows)],
        request_compression_algorithm=coding,
        response_compression_algorithm=coding,
    )
    assert_close(scores, expected)
    assert answers[0].get("Content-Encoding") == coding


def test_answer_is_not_compressed_unasked(cancer_client: Any, breast_cancer: Served) -> None:
    rows, expected = breast_cancer.many()
    answers = record_answers(cancer_client)
    assert_close(infer(cancer_client, breast_cancer, [tensor(rows)]), expected)
    assert answers[0].get("Content-Encoding") is None


# What else a request may carry.


@ANSWERS
def test_request_id_is_echoed(iris_client: Any, iris: Served, binary_answer: bool | None) -> None:
    result = iris_client.infer(
        iris.name, [tensor(iris.rows[:1])], outputs=outputs(binary_answer), request_id="order 66 “a”"
    )
    assert result.get_response()["id"] == "order 66 “a”"


def test_parameters_for_a_scheduler_are_ignored(client: Any, example: Served) -> None:
    scores = infer(
        client,
        example,
        [tensor(example.rows[:1])],
        sequence_id="session",
        sequence_start=True,
        priority=1,
        timeout=1_000_000,
        parameters={"origin": "batch", "attempt": 2, "ratio": 0.5, "is_test": True},
    )
    assert_same(scores, example.scores[:1])


# Errors: the client must be able to show our sentence, and to go on with the same connection.


BAD_REQUESTS: dict[str, tuple[Callable[[Served], dict[str, Any]], str, str]] = {
    "width": (
        lambda iris: {"inputs": [tensor(iris.rows[:, :3])]},
        "400",
        "inputs[0].data: expected 4 values a row, got 3",
    ),
    "width-json": (
        lambda iris: {"inputs": [tensor(iris.rows[:, :3], binary=False)]},
        "400",
        "inputs[0].data: expected 4 values a row, got 3",
    ),
    "dimensions": (lambda iris: {"inputs": [tensor(iris.rows[0])]}, "400", "expected [rows, features]"),
    "infinite": (
        lambda iris: {"inputs": [tensor(np.full((1, 4), np.inf, np.float32))]},
        "400",
        "expected a finite number that float32 can hold",
    ),
    "beyond-float32": (
        lambda iris: {"inputs": [tensor(np.full((1, 4), 1e39))]},
        "400",
        "expected a finite number that float32 can hold",
    ),
    "beyond-float32-json": (
        lambda iris: {"inputs": [tensor(np.full((1, 4), 1e39), binary=False)]},
        "400",
        "inputs[0].data[0]",
    ),
    "texts": (
        lambda iris: {"inputs": [tensor(np.full((1, 4), "5.1", np.object_))]},
        "400",
        "inputs[0].datatype: expected a type of numbers",
    ),
    "texts-json": (
        lambda iris: {"inputs": [tensor(np.full((1, 4), "5.1", np.object_), binary=False)]},
        "400",
        "inputs[0].datatype: expected a type of numbers",
    ),
    "missing-feature": (
        lambda iris: {"inputs": columns(iris, iris.rows, is_binary=lambda i: True)[1:]},
        "400",
        "inputs: missing: 'petal width (cm)'",
    ),
    "unknown-feature": (
        lambda iris: {
            "inputs": [*columns(iris, iris.rows, is_binary=lambda i: True), tensor(iris.rows[:, 0], name="colour")]
        },
        "400",
        "inputs: unknown: 'colour'",
    ),
    "columns-of-different-length": (
        lambda iris: {"inputs": [tensor(iris.rows[i:, i], name=name) for i, name in enumerate(iris.feature_names)]},
        "400",
        "inputs[1].shape: expected 12 rows as in the first input",
    ),
    "unknown-output": (
        lambda iris: {"inputs": [tensor(iris.rows)], "outputs": [triton.InferRequestedOutput("predict")]},
        "400",
        "outputs[0]: expected one output, named 'output-0'",
    ),
    "unknown-model": (
        lambda iris: {"inputs": [tensor(iris.rows)], "model_name": "nobody"},
        "404",
        "no such model or version; this server serves iris, version 1",
    ),
    "unknown-version": (
        lambda iris: {"inputs": [tensor(iris.rows)], "model_version": "2"},
        "404",
        "no such model or version; this server serves iris, version 1",
    ),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_error_is_ours(iris_client: Any, iris: Served, case: str) -> None:
    build, status, message = BAD_REQUESTS[case]
    with pytest.raises(triton_utils.InferenceServerException) as caught:
        iris_client.infer(**{"model_name": iris.name, **build(iris)})
    assert caught.value.status() == status
    assert message in caught.value.message()
    assert "exception occurred in the client" not in caught.value.message()
    assert_same(infer(iris_client, iris, [tensor(iris.rows[:1])]), iris.scores[:1])


@pytest.mark.parametrize(
    "call",
    [
        lambda client: client.get_model_metadata("nobody"),
        lambda client: client.get_model_metadata("iris", "2"),
        # What Triton has beyond the protocol.
        lambda client: client.get_model_config("iris"),
        lambda client: client.get_inference_statistics("iris"),
        lambda client: client.get_system_shared_memory_status(),
    ],
    ids=["model", "version", "config", "statistics", "shared-memory"],
)
def test_what_is_not_there_is_a_404_with_words(iris_client: Any, call: Callable[[Any], Any]) -> None:
    with pytest.raises(triton_utils.InferenceServerException, match="no such ") as caught:
        call(iris_client)
    assert caught.value.status() == "404"


def test_a_load_of_what_is_served_is_done_and_an_unload_is_refused_with_words(iris_client: Any) -> None:
    iris_client.load_model("iris")
    with pytest.raises(triton_utils.InferenceServerException, match="stop the server instead") as caught:
        iris_client.unload_model("iris")
    assert caught.value.status() == "400"


def test_error_of_an_async_request_is_ours(iris_client: Any, iris: Served) -> None:
    request = iris_client.async_infer(iris.name, [tensor(iris.rows[:, :3])])
    with pytest.raises(triton_utils.InferenceServerException, match="expected 4 values a row, got 3"):
        request.get_result(timeout=30)


# Many at once.


def test_one_client_many_requests_under_way(example: Served) -> None:
    """`async_infer` is how one client is shared. Threads cannot share it: its sockets belong to one thread's event
    loop (gevent: "Cannot switch to a different thread"), whatever the server does.
    """
    with triton.InferenceServerClient(example.address, concurrency=CALLERS) as client:
        pending = [
            (client.async_infer(example.name, [tensor(row)], outputs=outputs(i % 2 == 0), request_id=str(i)), i, score)
            for i in range(5)
            for row, score in example.single_rows()
        ]
        for request, i, score in pending:
            result = request.get_result(timeout=30)
            assert result.get_response()["id"] == str(i)
            assert_same(result.as_numpy("output-0"), score)


def test_threads_with_a_client_each(example: Served) -> None:
    def score_all(caller: int) -> None:
        with triton.InferenceServerClient(example.address) as client:
            for row, score in example.single_rows():
                assert_same(infer(client, example, [tensor(row, binary=caller % 2 == 0)]), score)

    with ThreadPoolExecutor(CALLERS) as threads:
        list(threads.map(score_all, range(CALLERS)))


# tritonclient.http.aio has another HTTP client beneath it, with headers of its own: `Content-Type:
# application/octet-stream` on every body, and `Accept-Encoding: gzip, deflate, br` on every request.


def with_aio(example: Served, work: Callable[[Any], Awaitable[None]]) -> None:
    async def main() -> None:
        async with triton_aio.InferenceServerClient(example.address) as client:
            await work(client)

    asyncio.run(main())


def test_aio_metadata(example: Served) -> None:
    async def work(client: Any) -> None:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        assert await client.is_model_ready(example.name)
        assert not await client.is_model_ready("nobody")
        assert (await client.get_server_metadata())["name"] == "xgboost-server"
        assert (await client.get_model_metadata(example.name, "1"))["name"] == example.name
        assert len(await client.get_model_repository_index()) == 1

    with_aio(example, work)


@REQUESTS
@ANSWERS
def test_aio_row_alone(example: Served, binary: bool, binary_answer: bool | None) -> None:
    async def work(client: Any) -> None:
        for row, score in example.single_rows():
            request = tensor(row, binary=binary)
            result = await client.infer(example.name, [request], outputs=outputs(binary_answer))
            assert_same(result.as_numpy("output-0"), score)

    with_aio(example, work)


@pytest.mark.parametrize("coding", ["gzip", "deflate", None])
@ANSWERS
def test_aio_compression(iris: Served, coding: str | None, binary_answer: bool | None) -> None:
    async def work(client: Any) -> None:
        rows, expected = iris.many()
        result = await client.infer(
            iris.name,
            [tensor(rows)],
            outputs=outputs(binary_answer),
            request_compression_algorithm=coding,
            response_compression_algorithm=coding,
        )
        assert_close(result.as_numpy("output-0"), expected)

    with_aio(iris, work)


def test_aio_requests_at_once(example: Served) -> None:
    async def work(client: Any) -> None:
        async def score_all() -> None:
            for row, score in example.single_rows():
                assert_same((await client.infer(example.name, [tensor(row)])).as_numpy("output-0"), score)

        await asyncio.gather(*(score_all() for _ in range(CALLERS)))

    with_aio(example, work)


def test_aio_error_is_ours(iris: Served) -> None:
    async def work(client: Any) -> None:
        with pytest.raises(triton_utils.InferenceServerException, match="expected 4 values a row, got 3"):
            await client.infer(iris.name, [tensor(iris.rows[:, :3])])
        with pytest.raises(triton_utils.InferenceServerException, match="no such model or version"):
            await client.infer("nobody", [tensor(iris.rows)])

    with_aio(iris, work)
