"""Many callers at a time, whose requests are recognized and scored together: nobody gets another's answer."""

from __future__ import annotations

import http.client
import json
import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest

from tests.apps import Example
from tests.serving import CANCER, RunningServer, running_server

CALLERS, ROUNDS = 32, 60
PATHS = ("/v1/models/breast-cancer:predict", "/predict", "/score", "/v2/models/breast-cancer/infer")


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server(None, SCORER_MODEL=str(CANCER), WEB_CONCURRENCY="2") as server:
        yield server


def write_body(path: str, rows: list[list[float]]) -> bytes:
    if path.startswith("/v2"):
        flat = [value for row in rows for value in row]
        tensor = {"name": "x", "shape": [len(rows), len(rows[0])], "datatype": "FP32", "data": flat}
        return json.dumps({"inputs": [tensor]}).encode()
    key = "X" if path == "/score" else "instances"
    return json.dumps({key: rows}).encode()


def read_scores(path: str, body: bytes) -> list[float]:
    document: dict[str, Any] = json.loads(body)
    key = {"/predict": "prediction", "/score": "score"}.get(path, "predictions")
    scores: list[float] = document["outputs"][0]["data"] if path.startswith("/v2") else document[key]
    return scores


def test_everybody_gets_the_scores_of_their_own_rows(server: RunningServer, cancer: Example) -> None:
    """32 connections, four protocols, one to three rows, all sent before any answer is read: to the last bit, each time, with
    the id that was sent. Most of it is recognized, as the same heads and bodies come again."""
    chance = random.Random(7)
    before = server.total("scorer_rows_total")
    sent = 0
    with ExitStack() as stack:
        callers = [
            stack.enter_context(socket.create_connection((server.host, server.port), timeout=20))
            for _ in range(CALLERS)
        ]
        for turn in range(ROUNDS):
            asked = []
            for number, caller in enumerate(callers):
                path, start, count = PATHS[number % 4], chance.randrange(len(cancer.rows) - 3), chance.randint(1, 3)
                body = write_body(path, cancer.rows[start : start + count].tolist())
                head = f"POST {path} HTTP/1.1\r\nHost: a\r\nX-Request-Id: {turn}-{number}\r\nContent-Length: {len(body)}\r\n\r\n"
                caller.sendall(head.encode() + body)
                asked.append((caller, path, start, count, f"{turn}-{number}"))
                sent += count
            for caller, path, start, count, request_id in asked:
                response = http.client.HTTPResponse(caller)
                response.begin()
                body = response.read()
                assert (response.status, response.getheader("X-Request-Id")) == (200, request_id), body
                scores = np.array(read_scores(path, body), np.float32)
                assert scores.tobytes() == cancer.scores[start : start + count].tobytes()
    server.wait_for_total(before + sent, "scorer_rows_total")
