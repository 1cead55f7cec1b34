"""The cases: who gets which request, over how many connections, and against whom ours is held."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import orjson

from benchmarks.messages import Answer, Request
from benchmarks.workload import MODEL_NAME, Floats, create_rows

Read = Callable[[Answer], Floats]


@dataclass(frozen=True)
class Contender:
    """One line of a case's table. `read` gets the scores out of an answer; None where there are none.

    `counterpart` is the label of our own answer to the same question, where a table compares each with its own.
    """

    label: str
    server: str
    request: Request
    read: Read | None
    counterpart: str = ""


@dataclass(frozen=True)
class Case:
    """`baselines` are (heading, label) of the contenders that the others are compared with."""

    title: str
    rows: Floats
    connections: int
    contenders: tuple[Contender, ...]
    baselines: tuple[tuple[str, str], ...]
    by_latency: bool = False


FLASK = "plain Flask, gthread"
UVICORN = "uvicorn, raw ASGI"
V1, V2, BINARY = "xgboost-server, V1", "xgboost-server, V2", "xgboost-server, V2 binary"
JSON = {"Content-Type": "application/json"}
RIVALS = (("Flask", FLASK), ("uvicorn", UVICORN))
LIVEZ = "xgboost-server, /livez"


def create_cases() -> tuple[Case, ...]:
    one, hundred, thousand = create_rows(1), create_rows(100), create_rows(1000)
    return (
        Case("1 row, JSON, 16 connections", one, 16, json_contenders(one), RIVALS),
        Case(
            "1 row, JSON, 1 connection",
            one,
            1,
            (*json_contenders(one), livez(LIVEZ, "ours")),
            (*RIVALS, ("empty answer", LIVEZ)),
            by_latency=True,
        ),
        Case("100 rows, JSON, 16 connections", hundred, 16, json_contenders(hundred), RIVALS),
        Case(
            "1,000 rows, 4 connections",
            thousand,
            4,
            (*json_contenders(thousand), binary_contender(thousand)),
            RIVALS,
        ),
        Case(
            "empty answer, 16 connections",
            one,
            16,
            (
                livez(LIVEZ, "ours"),
                livez("bare protocol, asyncio", "bare"),
                livez("bare protocol, uvloop", "bare uvloop"),
            ),
            (("asyncio", "bare protocol, asyncio"), ("uvloop", "bare protocol, uvloop")),
        ),
    )


def json_contenders(rows: Floats) -> tuple[Contender, ...]:
    simple = Request("/predict", encode_json(rows), JSON)
    return (
        v1_contender(V1, "ours", rows),
        Contender("xgboost-server, /predict", "ours", simple, json_reader("prediction")),
        *rival_contenders(rows),
    )


def rival_contenders(rows: Floats) -> tuple[Contender, ...]:
    request = Request("/predict", encode_json(rows), JSON)
    return (
        Contender(UVICORN, "uvicorn", request, json_reader("predictions"), V1),
        Contender(FLASK, "flask", request, json_reader("predictions"), V1),
    )


def v1_contender(label: str, server: str, rows: Floats) -> Contender:
    request = Request(f"/v1/models/{MODEL_NAME}:predict", encode_json(rows), JSON)
    return Contender(label, server, request, json_reader("predictions"), V1)


def v2_contender(label: str, server: str, rows: Floats) -> Contender:
    """Open Inference Protocol V2 in JSON: one tensor, its values in one list."""
    tensor = {"name": "input-0", "shape": rows.shape, "datatype": "FP32", "data": rows.reshape(-1)}
    body = orjson.dumps({"inputs": [tensor]}, option=orjson.OPT_SERIALIZE_NUMPY)
    return Contender(label, server, Request(f"/v2/models/{MODEL_NAME}/infer", body, JSON), read_tensor, V2)


def binary_contender(rows: Floats, label: str = BINARY, server: str = "ours") -> Contender:
    """V2 with binary tensors both ways, as tritonclient asks for them."""
    values = rows.astype("<f4").tobytes()
    tensor = {
        "name": "input-0",
        "shape": rows.shape,
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(values)},
    }
    head = orjson.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    request = Request(f"/v2/models/{MODEL_NAME}/infer", head + values, headers)
    return Contender(label, server, request, read_binary, BINARY)


def livez(label: str, server: str) -> Contender:
    return Contender(label, server, Request("/livez"), None)


def encode_json(rows: Floats) -> bytes:
    """The shortest decimals that are these float32: what a client's own four decimals look like."""
    return orjson.dumps({"instances": rows}, option=orjson.OPT_SERIALIZE_NUMPY)


def json_reader(key: str) -> Read:
    def read(answer: Answer) -> Floats:
        return np.asarray(orjson.loads(answer.body)[key], dtype=np.float32).reshape(-1)

    return read


def read_tensor(answer: Answer) -> Floats:
    return np.asarray(orjson.loads(answer.body)["outputs"][0]["data"], dtype=np.float32).reshape(-1)


def read_binary(answer: Answer) -> Floats:
    head = int(answer.headers["inference-header-content-length"])
    return np.frombuffer(answer.body[head:], dtype="<f4").astype(np.float32)


def narrow(cases: Sequence[Case], servers: Sequence[str]) -> tuple[Case, ...]:
    """The cases with these servers alone, without those that nobody is left for."""
    narrowed = (narrow_case(case, servers) for case in cases)
    return tuple(case for case in narrowed if case.contenders)


def narrow_case(case: Case, servers: Sequence[str]) -> Case:
    contenders = tuple(contender for contender in case.contenders if contender.server in servers)
    labels = {contender.label for contender in contenders}
    baselines = tuple(baseline for baseline in case.baselines if baseline[1] in labels)
    return replace(case, contenders=contenders, baselines=baselines)
