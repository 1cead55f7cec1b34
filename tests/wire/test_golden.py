"""Walks the golden requests through the application. A bug report arrives here as one small file."""

from __future__ import annotations

import base64
import json

import pytest
from werkzeug.test import TestResponse

from tests.apps import Example, World
from tests.wire.cases import GOLDEN, Case, differences, read_cases

CASES = list(read_cases())
PROTOCOLS = sorted(folder.name for folder in GOLDEN.iterdir())
# Whatever a caller sent as a value: golden requests put it where a message could pick it up.
CANARIES = ("s3cr3t-canary", "987654.321", "987654.3")
LIMITS = {"SCORER_MAX_BODY_BYTES": "300000", "SCORER_MAX_ROWS_PER_REQUEST": "1000"}


@pytest.fixture(scope="module")
def worlds(iris: Example, cancer: Example) -> dict[str, World]:
    """An application for each model that the golden requests name, with limits that a small file can reach."""
    return {example.name: World(example.model, **LIMITS) for example in (iris, cancer)}


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_golden_request_gets_its_answer(case: Case, worlds: dict[str, World]) -> None:
    """Each golden request gets the status, the content type, the message and the scores that stand beside it."""
    response = send(case, worlds)
    answer = case.answer
    statuses = answer["status"] if isinstance(answer["status"], list) else [answer["status"]]
    assert response.status_code in statuses, f"{case.promise} Got: {response.data[:500]!r}"
    if "content_type" in answer:
        assert response.headers["Content-Type"] == answer["content_type"]
    for name, value in answer.get("headers", {}).items():
        assert response.headers[name] == value
    document, tail = read_answer(response)
    for key, partly in (("body", False), ("body_has", True)):
        if key in answer:
            assert not list(differences(answer[key], document, partly=partly))
    if "binary_base64" in answer:
        assert tail == base64.b64decode(answer["binary_base64"])
    if "code" in answer:
        assert document["code"] == answer["code"]
        errors = answer["error"] if isinstance(answer["error"], list) else [answer["error"]]
        for text in errors:
            assert text in error_message(document)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_golden_request_is_never_a_fault_of_ours(case: Case, worlds: dict[str, World]) -> None:
    """No 5xx, no traceback in the log, and no value of the caller in an error or in the log."""
    world = worlds[case.model]
    before = len(world.handler.lines)
    response = send(case, worlds)
    logged = world.handler.lines[before:]
    assert response.status_code < 500
    assert not [line for line in logged if "exc_info" in line]
    told = "".join(logged) + (response.get_data(as_text=True) if response.status_code != 200 else "")
    assert not [canary for canary in CANARIES if canary in told]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_protocol_shows_what_it_takes_and_what_it_refuses(protocol: str) -> None:
    """Each folder has at least 25 requests, good ones and bad ones."""
    statuses = [case.answer["status"] for case in CASES if case.name.startswith(f"{protocol}/")]
    assert len(statuses) >= 25
    assert {200, 400, 404, 405, 413, 415} <= {status for status in statuses if isinstance(status, int)}


def send(case: Case, worlds: dict[str, World]) -> TestResponse:
    return worlds[case.model].client.open(case.path, method=case.method, headers=case.headers, data=case.body)


def read_answer(response: TestResponse) -> tuple[dict[str, object], bytes]:
    """The JSON document of an answer and the binary tensor behind it."""
    length = int(response.headers.get("Inference-Header-Content-Length", len(response.data)))
    return json.loads(response.data[:length]), response.data[length:]


def error_message(document: dict[str, object]) -> str:
    """V1 and V2 say it in `error`, problem+json in `detail`."""
    return str(document.get("error", document.get("detail")))
