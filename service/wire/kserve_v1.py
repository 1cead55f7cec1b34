"""KServe V1: `POST /v1/models/<model>:predict`.

    {"instances": [[6.8, 2.8, 4.8, 1.4], …]}  →  {"predictions": [1.0, …]}

`inputs` may stand for `instances` and wins where both are given, as in KServe 0.20. The content type of an error
is exactly `application/json`: kserve's client (0.21) shows the text of no other.
"""

from __future__ import annotations

import orjson

from service.batch import Batch, Frame, Incoming, ModelIdentity, Outgoing, Scores
from service.errors import InvalidInputError, ServiceError
from service.wire.matrix import answer, kind, read_document, read_rows, verify_json_type
from service.wire.plain import envelope, read_enveloped

JSON = "application/json"
ENVELOPE = envelope("instances", "inputs")
FRAME = Frame(b'{"predictions":[', b"]}")


def decode(incoming: Incoming) -> Batch:
    verify_json_type(incoming)
    plain = read_enveloped(incoming, ENVELOPE)
    if plain is not None and plain[0].ndim == 2:
        values, key, span = plain
        return Batch(values, key, span=span)
    document = read_document(incoming.body)
    if not isinstance(document, dict):
        raise InvalidInputError("body", f"expected an object with the key 'instances', got {kind(document)}")
    key = "inputs" if "inputs" in document else "instances"
    if key not in document:
        raise InvalidInputError("body", "expected the key 'instances', a list of rows")
    values, names = read_rows(document[key], key, keys=len(document), body=incoming.body)
    return Batch(values, key, names)


def frame(batch: Batch, model: ModelIdentity, outputs: int) -> Frame:
    return FRAME


def encode(scores: Scores, batch: Batch) -> Outgoing:
    return answer(scores.values, FRAME)


def encode_error(error: ServiceError, request_id: str) -> Outgoing:
    return Outgoing(error.status, JSON, orjson.dumps({"error": error.message, "code": error.code}))
