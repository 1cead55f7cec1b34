"""The protocol for people with curl: `POST /predict` and `POST /score`.

    [5.1, 3.5, 1.4, 0.2]                     one row             {"prediction": 0.0}
    [[5.1, 3.5, 1.4, 0.2], …]                rows                {"prediction": [0.0, …]}
    {"sepal length (cm)": 5.1, …}            one row by names    {"prediction": 0.0}
    {"features": …} or {"instances": …}      any of the above    the same
    {"X": …}                 at /score       any of the above    {"score": …}

Errors are problem+json (RFC 9457).
"""

from __future__ import annotations

import re
from typing import Any

import orjson

from service.batch import FLAT, Batch, Frame, Incoming, ModelIdentity, Outgoing, Scores
from service.errors import InvalidInputError, ServiceError
from service.wire.matrix import answer, kind, read_document, read_rows, verify_json_type
from service.wire.plain import BARE, envelope, read_enveloped

PROBLEM = "application/problem+json"
ENVELOPES = ("features", "instances")
BEFORE_ROWS = (envelope(*ENVELOPES), BARE)
BEFORE_X = (envelope("X"),)
PREDICTION, PREDICTIONS = Frame(b'{"prediction":', b"}"), Frame(b'{"prediction":[', b"]}")
SCORE, SCORES = Frame(b'{"score":', b"}"), Frame(b'{"score":[', b"]}")


def decode_predict(incoming: Incoming) -> Batch:
    verify_json_type(incoming)
    plain = read_plain(incoming, BEFORE_ROWS)
    if plain is not None:
        return plain
    document = read_document(incoming.body)
    if not isinstance(document, dict):
        return to_batch(document, "body", incoming, keys=0)
    keys = [key for key in ENVELOPES if key in document]
    if not keys:
        verify_named(document)
        return to_batch(document, "body", incoming, keys=0)
    if len(document) > 1:
        raise InvalidInputError("body", f"expected '{keys[0]}' and no other key beside it")
    return to_batch(document[keys[0]], keys[0], incoming, keys=1)


def verify_named(document: dict[str, Any]) -> None:
    """Refuse rows under another protocol's only key: as the value of a feature they would be a number that is a list."""
    value = next(iter(document.values()), None)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]  # `[1.0]` is 1.0, see `unwrapped`
    if len(document) == 1 and isinstance(value, (list, dict)):
        keys = " or ".join(f"'{key}'" for key in ENVELOPES)
        raise InvalidInputError("body", f"expected the model's features by name, or rows under {keys}")


def decode_score(incoming: Incoming) -> Batch:
    verify_json_type(incoming)
    plain = read_plain(incoming, BEFORE_X)
    if plain is not None:
        return plain
    document = read_document(incoming.body)
    if not isinstance(document, dict) or "X" not in document:
        got = "an object without it" if isinstance(document, dict) else kind(document)
        raise InvalidInputError("body", f"expected an object with the key 'X', got {got}")
    return to_batch(document["X"], "X", incoming, keys=len(document))


def read_plain(incoming: Incoming, patterns: tuple[re.Pattern[bytes], ...]) -> Batch | None:
    """The rows of a body that is nothing but numbers in brackets, one bare row as a batch of one."""
    for before in patterns:
        found = read_enveloped(incoming, before)
        if found is not None:
            values, key, span = found
            is_bare = span.kind == FLAT
            return Batch(values.reshape(1, -1) if is_bare else values, key or "body", reply=is_bare, span=span)
    return None


def to_batch(rows: Any, place: str, incoming: Incoming, keys: int) -> Batch:
    """One bare row becomes a batch of one; `reply` remembers that it was bare."""
    is_bare = isinstance(rows, dict) or (
        isinstance(rows, list) and bool(rows) and not isinstance(rows[0], (list, dict))
    )
    body = incoming.body
    if not is_bare:
        values, names = read_rows(rows, place, keys=keys, body=body)
        return Batch(values, place, names, reply=False)
    try:
        values, names = read_rows([rows], place, keys=keys, body=body)
    except InvalidInputError as error:
        # The caller sent no list of rows, so the place must not speak of row 0.
        error.args = (error.args[0].replace(f"{place}[0]", place, 1),)
        error.message = error.args[0]
        raise
    return Batch(values, place, names, reply=True)


def frame_prediction(batch: Batch, model: ModelIdentity, outputs: int) -> Frame:
    return PREDICTION if batch.reply else PREDICTIONS


def frame_score(batch: Batch, model: ModelIdentity, outputs: int) -> Frame:
    return SCORE if batch.reply else SCORES


def encode_prediction(scores: Scores, batch: Batch) -> Outgoing:
    return answer(scores.values, PREDICTION if batch.reply else PREDICTIONS)


def encode_score(scores: Scores, batch: Batch) -> Outgoing:
    return answer(scores.values, SCORE if batch.reply else SCORES)


def encode_error(error: ServiceError, request_id: str) -> Outgoing:
    problem = {
        "type": "about:blank",
        "title": error.code,
        "status": error.status,
        "detail": error.message,
        "code": error.code,
        "request_id": request_id,
    }
    return Outgoing(error.status, PROBLEM, orjson.dumps(problem))
