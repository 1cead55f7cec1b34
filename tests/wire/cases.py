"""Reads the golden requests: `golden/<protocol>/NAME.json`, each a request beside the answer it must get.

    {
      "promise":  what holds, in a sentence,
      "model":    the example that is served,
      "request":  {"path", "method" (POST), "headers", and one of
                   "body" (sent as JSON), "body_text", "body_base64",
                   "body_parts" (texts, and {"repeat", "times"} for what is too long to print)},
      "answer":   {"status" (one, or a list of what is right),
                   "content_type", "code", "headers": exactly these,
                   "error": texts that the message contains,
                   "body": the JSON document, or "body_has": part of it,
                   "binary_base64": the bytes after it}
    }

Further members of a request: "binary_base64", bytes that follow the JSON head (its length goes into the header, unless
"headers" has one); "compress", gzip or deflate, and "cut", bytes to take from the end of that. A header that is null is
not sent; without a word on it, the content type is `application/json`.

Numbers in an answer are equal as float32, or one unit in the last place apart: the C library's exp decides.
"""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "golden"
HEAD_LENGTH = "Inference-Header-Content-Length"
COMPRESS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}


@dataclass(frozen=True)
class Case:
    """One golden request."""

    name: str
    promise: str
    model: str
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    answer: dict[str, Any]

    @classmethod
    def from_file(cls, file: Path) -> Case:
        document = json.loads(file.read_text(encoding="utf-8"))
        request = document["request"]
        body = read_body(request)
        headers: dict[str, str | None] = {"Content-Type": "application/json"}
        if "binary_base64" in request:
            headers[HEAD_LENGTH] = str(len(body))
            body += base64.b64decode(request["binary_base64"])
        if "compress" in request:
            body = COMPRESS[request["compress"]](body)
            body = body[: len(body) - request.get("cut", 0)]
        headers |= request.get("headers", {})
        return cls(
            f"{file.parent.name}/{file.stem}",
            document["promise"],
            document["model"],
            request.get("method", "POST"),
            request["path"],
            {name: value for name, value in headers.items() if value is not None},
            body,
            document["answer"],
        )


def read_cases() -> Iterator[Case]:
    for file in sorted(GOLDEN.glob("*/*.json")):
        yield Case.from_file(file)


def read_body(request: dict[str, Any]) -> bytes:
    if "body" in request:
        return json.dumps(request["body"]).encode()
    if "body_text" in request:
        return str(request["body_text"]).encode()
    if "body_base64" in request:
        return base64.b64decode(request["body_base64"])
    return "".join(
        part if isinstance(part, str) else part["repeat"] * part["times"] for part in request.get("body_parts", ())
    ).encode()


def differences(expected: Any, found: Any, place: str = "body", *, partly: bool = False) -> Iterator[str]:
    """Where two JSON documents differ; `partly`: the one found may have more members."""
    if isinstance(expected, float) and isinstance(found, float):
        wanted, got = np.float32(expected), np.float32(found)
        if abs(wanted - got) > np.spacing(np.abs(wanted)):
            yield f"{place}: expected {wanted}, got {got}"
    elif type(expected) is not type(found):
        yield f"{place}: expected {expected!r}, got {found!r}"
    elif isinstance(expected, dict):
        if missing := expected.keys() - found.keys():
            yield f"{place}: lacks {sorted(missing)}"
        if not partly and (more := found.keys() - expected.keys()):
            yield f"{place}: has {sorted(more)} as well"
        for key in expected.keys() & found.keys():
            yield from differences(expected[key], found[key], f"{place}.{key}", partly=partly)
    elif isinstance(expected, list):
        if len(expected) != len(found):
            yield f"{place}: expected {len(expected)} items, got {len(found)}"
        for i, (one, other) in enumerate(zip(expected, found, strict=False)):
            yield from differences(one, other, f"{place}[{i}]", partly=partly)
    elif expected != found:
        yield f"{place}: expected {expected!r}, got {found!r}"
