"""Open Inference Protocol V2 over HTTP, JSON and binary tensors: `POST /v2/models/<model>/infer`.

One input of shape (rows, features), or one input per feature of shape (rows) or (rows, 1): the columns of a data
frame (MLServer's `pd` content type). Output: `output-0`, FP32, shape (rows) or (rows, outputs).

Binary tensors follow the JSON head, whose length is in `Inference-Header-Content-Length` (Triton's binary tensor
data extension). That header and not the content type tells: tritonclient sends no content type.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np
import orjson

from service.batch import BINARY, FLAT, NESTED, Batch, Floats, Frame, Incoming, ModelIdentity, Outgoing, Scores, Span
from service.errors import InvalidInputError, MalformedBodyError, ServiceError
from service.wire.matrix import (
    NUMBERS,
    answer,
    kind,
    only_numbers,
    read_document,
    verify_json_type,
    verify_range,
)
from service.wire.plain import split_tensor

JSON = "application/json"
OCTETS = "application/octet-stream"
OUTPUT_NAME = "output-0"
# Triton's extensions that would change what the answer means: better refused than passed over.
UNSUPPORTED = frozenset({"classification", "shared_memory_region"})
# Of a document without its numbers that is kept for the next one like it.
MAX_KEPT_BYTES = 1024
HEAD_LENGTH = "inference-header-content-length"

# Little-endian on the wire. BF16 has no numpy type: its bits are the upper half of a float32.
DTYPES = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("<u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("<i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BF16": np.dtype("<u2"),
}


@dataclass(frozen=True, slots=True)
class Reply:
    """What the answer must repeat: the id, and whether the scores go as binary."""

    id: str
    is_binary: bool


def decode(incoming: Incoming) -> Batch:
    """Rows of one request; `null` and NaN are missing values."""
    head, tensors = split(incoming)
    plain = read_plain(incoming) if head is incoming.body else None
    if plain is not None:
        return plain
    document = read_document(head)
    if not isinstance(document, dict):
        raise InvalidInputError("body", f"expected an object with the key 'inputs', got {kind(document)}")
    inputs = document.get("inputs")
    if not isinstance(inputs, list) or not inputs:
        raise InvalidInputError("inputs", "expected a list of at least one tensor")
    reply = read_reply(document, incoming)
    arrays = []
    offset = 0
    for i, tensor in enumerate(inputs):
        array, offset = read_tensor(tensor, f"inputs[{i}]", tensors, offset)
        arrays.append(array)
    if offset != len(tensors):
        raise InvalidInputError("inputs", f"expected {offset} bytes of binary data in all, got {len(tensors)}")
    if len(inputs) == 1 and not is_frame(document, inputs[0]):
        rows = to_rows(arrays[0], "inputs[0]")
        is_like_others = len(tensors) > 0 and inputs[0]["datatype"] == "FP32" and not document.get("id")
        span = Span(len(head), len(incoming.body), BINARY, len(rows)) if is_like_others else None
        return Batch(rows, "inputs[0].data", reply=reply, span=span)
    names = tuple(read_name(tensor, f"inputs[{i}].name") for i, tensor in enumerate(inputs))
    return Batch(to_columns(arrays), "inputs", names, reply=reply)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a document with one tensor says beside its numbers."""

    shape: tuple[int, ...]
    size: int
    id: str | None
    is_binary: bool


def read_plain(incoming: Incoming) -> Batch | None:
    """The rows of a document around one plain matrix; None where anything in it is unusual or wrong."""
    found = split_tensor(incoming)
    if found is None:
        return None
    around, values, (begin, end) = found
    plan = recall_plan(around) if len(around) <= MAX_KEPT_BYTES else read_plan(around)
    if plan is None or values.size != plan.size or (values.ndim > 1 and values.shape != plan.shape):
        return None
    reply = Reply(plan.id or incoming.request_id, plan.is_binary)
    # An id of the body's own would be the next request's as well.
    span = None if plan.id else Span(begin, end, FLAT if values.ndim == 1 else NESTED, plan.shape[0])
    return Batch(values.reshape(plan.shape), "inputs[0].data", reply=reply, span=span)


def read_plan(around: bytes) -> Plan | None:
    """What stands around a matrix that null stands for; None if it is not what it seems, or not right."""
    try:
        document = orjson.loads(around)
        match document:
            case {"inputs": [{"data": None} as tensor]}:
                shape = read_shape(tensor.get("shape"), "shape")
                verify_datatype(tensor.get("datatype"), "datatype")
                size = parameters(tensor, "parameters").get("binary_data_size")
                identifier, is_binary = read_wishes(document)
                if len(shape) == 2 and size is None:
                    return Plan(shape, math.prod(shape), identifier, is_binary)
    except (orjson.JSONDecodeError, ServiceError):
        pass  # read in the usual way, which says what is wrong and where
    return None


# Callers who give no ids say the same each time: 2 of 5 µs.
recall_plan = lru_cache(64)(read_plan)


def split(incoming: Incoming) -> tuple[bytes | memoryview, memoryview]:
    """JSON head and binary tail."""
    length = incoming.headers.get(HEAD_LENGTH)
    if length is None:
        # aiohttp, under tritonclient 2.73, calls every body of bytes an octet stream, JSON as well.
        if incoming.headers.get("content-type") != OCTETS:
            verify_json_type(incoming)
        return incoming.body, memoryview(b"")
    if not length.isascii() or not length.isdigit() or len(length) > 12 or int(length) > len(incoming.body):
        raise MalformedBodyError("Inference-Header-Content-Length: expected a number of bytes within the body")
    view = memoryview(incoming.body)
    return view[: int(length)], view[int(length) :]


def is_frame(document: dict[str, Any], tensor: dict[str, Any]) -> bool:
    return parameters(document, "parameters").get("content_type") == "pd" and len(tensor.get("shape", ())) == 1


def read_name(tensor: dict[str, Any], place: str) -> str:
    name = tensor.get("name")
    if not isinstance(name, str):
        raise InvalidInputError(place, f"expected a string, got {kind(name)}")
    return name


def parameters(owner: dict[str, Any], place: str) -> dict[str, Any]:
    found = owner.get("parameters")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InvalidInputError(place, f"expected an object, got {kind(found)}")
    return found


def read_reply(document: dict[str, Any], incoming: Incoming) -> Reply:
    identifier, is_binary = read_wishes(document)
    return Reply(identifier or incoming.request_id, is_binary)


def read_wishes(document: dict[str, Any]) -> tuple[str | None, bool]:
    """The id, and whether the scores are to go as binary: `outputs[0].parameters.binary_data` overrides `parameters.binary_data_output`."""
    identifier = document.get("id")
    if identifier is not None and not isinstance(identifier, str):
        raise InvalidInputError("id", f"expected a string, got {kind(identifier)}")
    is_binary = parameters(document, "parameters").get("binary_data_output") is True
    outputs = document.get("outputs")
    if outputs is not None:
        if not isinstance(outputs, list):
            raise InvalidInputError("outputs", f"expected a list, got {kind(outputs)}")
        for i, output in enumerate(outputs):
            if not isinstance(output, dict) or output.get("name") != OUTPUT_NAME or i > 0:
                raise InvalidInputError(f"outputs[{i}]", f"expected one output, named '{OUTPUT_NAME}'")
            wishes = parameters(output, f"outputs[{i}].parameters")
            for unknown in UNSUPPORTED & wishes.keys():
                raise InvalidInputError(f"outputs[{i}].parameters", f"this server does not offer '{unknown}'")
            wish = wishes.get("binary_data")
            is_binary = wish if isinstance(wish, bool) else is_binary
    return identifier, is_binary


def read_tensor(tensor: Any, place: str, tensors: memoryview, offset: int) -> tuple[Floats, int]:
    """One input as float32 in its own shape, and where the next one's bytes begin."""
    if not isinstance(tensor, dict):
        raise InvalidInputError(place, f"expected an object, got {kind(tensor)}")
    shape = read_shape(tensor.get("shape"), f"{place}.shape")
    datatype = verify_datatype(tensor.get("datatype"), f"{place}.datatype")
    size = parameters(tensor, f"{place}.parameters").get("binary_data_size")
    if size is None:
        return read_numbers(tensor, shape, place), offset
    if "data" in tensor:
        raise InvalidInputError(place, "expected either 'data' or 'binary_data_size', got both")
    return read_binary(shape, datatype, size, place, tensors, offset), offset + size


def verify_datatype(datatype: Any, place: str) -> str:
    if datatype == "BYTES":
        raise InvalidInputError(place, "expected a type of numbers; this model takes no texts")
    if not isinstance(datatype, str) or datatype not in DTYPES:
        raise InvalidInputError(place, "expected one of " + ", ".join(DTYPES))
    return datatype


def read_shape(shape: Any, place: str) -> tuple[int, ...]:
    if not isinstance(shape, list) or not 1 <= len(shape) <= 2:
        raise InvalidInputError(place, "expected a list of one or two sizes")
    for size in shape:
        if type(size) is not int or not 1 <= size <= 2**31:
            raise InvalidInputError(place, "expected whole numbers of at least 1")
    return tuple(shape)


def read_binary(
    shape: tuple[int, ...], datatype: str, size: Any, place: str, tensors: memoryview, offset: int
) -> Floats:
    """A view on the body where the type is FP32; a converted copy otherwise."""
    dtype = DTYPES[datatype]
    expected = math.prod(shape) * dtype.itemsize
    if type(size) is not int or size != expected:
        raise InvalidInputError(
            f"{place}.parameters.binary_data_size", f"expected {expected} for this shape and datatype"
        )
    if offset + size > len(tensors):
        raise InvalidInputError(place, f"expected {expected} bytes of binary data, got {len(tensors) - offset}")
    raw = np.frombuffer(tensors, dtype, count=math.prod(shape), offset=offset)
    if datatype == "BF16":
        values = (raw.astype(np.uint32) << np.uint32(16)).view(np.float32)
    else:
        with np.errstate(over="ignore", invalid="ignore"):
            values = raw.astype(np.float32, copy=False)
    values = values.reshape(shape)
    verify_range(values, place)
    return values


def read_numbers(tensor: dict[str, Any], shape: tuple[int, ...], place: str) -> Floats:
    """JSON data, flat in row-major order or nested as the shape says."""
    place = f"{place}.data"
    values = to_array(tensor.get("data"), place, shape)
    if values.size != math.prod(shape) or (values.ndim > 1 and values.shape != shape):
        raise InvalidInputError(
            place,
            f"expected {math.prod(shape)} numbers for shape {list(shape)}, got {values.size}"
            if values.size != math.prod(shape)
            else f"nested differently from shape {list(shape)}",
        )
    verify_range(values, place)
    return values.reshape(shape)


def to_array(data: Any, place: str, shape: tuple[int, ...]) -> Floats:
    if not isinstance(data, list):
        raise InvalidInputError(place, f"expected a list of numbers, got {kind(data)}")
    if not (all(map(only_numbers, data)) if are_lists(data) else only_numbers(data)):
        explain(data, place, shape)
    try:
        with np.errstate(over="ignore"):
            return np.array(data, dtype=np.float32)
    except (ValueError, TypeError, OverflowError):
        explain(data, place, shape)
        raise InvalidInputError(place, "expected numbers") from None


def are_lists(data: list[Any]) -> bool:
    return bool(data) and {list}.issuperset(map(type, data))


def explain(data: list[Any], place: str, shape: tuple[int, ...]) -> None:
    """Raise for the first value that is not a number; else return."""
    for i, value in enumerate(data):
        if isinstance(value, list) and len(shape) == 2:
            if len(value) != shape[1]:
                raise InvalidInputError(f"{place}[{i}]", f"expected {shape[1]} numbers, got {len(value)}")
            explain(value, f"{place}[{i}]", ())
        elif type(value) not in NUMBERS:
            raise InvalidInputError(f"{place}[{i}]", f"expected a number, got {kind(value)}")


def to_rows(values: Floats, place: str) -> Floats:
    if values.ndim != 2:
        raise InvalidInputError(f"{place}.shape", "expected [rows, features]")
    return values


def to_columns(arrays: list[Floats]) -> Floats:
    """Columns of equal length, each (rows,) or (rows, 1), as a matrix."""
    rows = arrays[0].shape[0]
    for i, array in enumerate(arrays):
        if array.ndim == 2 and array.shape[1] != 1:
            raise InvalidInputError(f"inputs[{i}].shape", "expected [rows] or [rows, 1]: one input per feature")
        if array.shape[0] != rows:
            raise InvalidInputError(f"inputs[{i}].shape", f"expected {rows} rows as in the first input")
    return np.ascontiguousarray(np.stack([array.reshape(rows) for array in arrays], axis=1))


def frame(batch: Batch, model: ModelIdentity, outputs: int) -> Frame:
    """What stands around the scores of a batch, with a place for its id: binary if the request asked for it."""
    reply = batch.reply
    if not isinstance(reply, Reply):
        raise TypeError("a batch of another wire")
    rows = len(batch.values)
    shape = (rows,) if outputs == 1 else (rows, outputs)
    start = orjson.dumps({"model_name": model.name, "model_version": model.version})[:-1] + b',"id":'
    output: dict[str, Any] = {"name": OUTPUT_NAME, "shape": shape, "datatype": "FP32"}
    if reply.is_binary:
        output["parameters"] = {"binary_data_size": 4 * rows * outputs}
        before = b',"outputs":[' + orjson.dumps(output) + b"]}"
        return Frame(before, b"", start, content_type=OCTETS, size_header="Inference-Header-Content-Length")
    before = b',"outputs":[' + orjson.dumps(output)[:-1] + b',"data":['
    return Frame(before, b"]}]}", start, is_flat=True)


def encode(scores: Scores, batch: Batch) -> Outgoing:
    values = scores.values
    outputs = 1 if values.ndim == 1 else values.shape[1]
    own = frame(batch, scores.model, outputs)
    return answer(values, own, orjson.dumps(cast("Reply", batch.reply).id))


def encode_error(error: ServiceError, request_id: str) -> Outgoing:
    """tritonclient reads `error` of every status but 200."""
    return Outgoing(error.status, JSON, orjson.dumps({"error": error.message, "code": error.code}))
