"""The wire protocols: bytes to rows, scores to bytes, errors to bytes. No server, no framework.

A wire is a module with `decode(incoming) -> Batch`, `encode(scores, batch) -> Outgoing`, `frame(batch, model, outputs) -> Frame`,
what `encode` puts around scores, and `encode_error(error, request_id) -> Outgoing`; and an entry in `ROUTES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from service.batch import Batch, Frame, Incoming, ModelIdentity, Outgoing, Scores
from service.errors import ServiceError
from service.wire import kserve_v1, open_inference, simple


@dataclass(frozen=True)
class Route:
    """A scoring path; `{model}` and `{version}` stand for the served model's."""

    template: str
    wire: str
    decode: Callable[[Incoming], Batch]
    encode: Callable[[Scores, Batch], Outgoing]
    frame: Callable[[Batch, ModelIdentity, int], Frame]
    method: str = "POST"

    @cached_property
    def label(self) -> tuple[str, str]:
        """What its requests are counted under."""
        return self.template, self.wire


ROUTES = (
    Route("/predict", "simple", simple.decode_predict, simple.encode_prediction, simple.frame_prediction),
    Route("/score", "simple", simple.decode_score, simple.encode_score, simple.frame_score),
    Route("/v1/models/{model}:predict", "kserve_v1", kserve_v1.decode, kserve_v1.encode, kserve_v1.frame),
    Route(
        "/v2/models/{model}/infer",
        "open_inference",
        open_inference.decode,
        open_inference.encode,
        open_inference.frame,
    ),
    Route(
        "/v2/models/{model}/versions/{version}/infer",
        "open_inference",
        open_inference.decode,
        open_inference.encode,
        open_inference.frame,
    ),
)

ErrorEncoder = Callable[[ServiceError, str], Outgoing]

# By the first segment of the path, so that an unknown path below /v2 still answers in V2's own words.
ERROR_ENCODERS: dict[str, tuple[str, ErrorEncoder]] = {
    "v1": ("kserve_v1", kserve_v1.encode_error),
    "v2": ("open_inference", open_inference.encode_error),
    "predict": ("simple", simple.encode_error),
    "score": ("simple", simple.encode_error),
}
NO_WIRE = "none"
WIRES = ("simple", "kserve_v1", "open_inference", NO_WIRE)


def wire_of(path: str) -> str:
    return ERROR_ENCODERS.get(path[1:].partition("/")[0], (NO_WIRE,))[0]


def encode_error(error: ServiceError, path: str, request_id: str) -> Outgoing:
    """The error in the words of the protocol that the path belongs to, else as problem+json (RFC 9457)."""
    encoder = ERROR_ENCODERS.get(path[1:].partition("/")[0], (NO_WIRE, simple.encode_error))[1]
    return encoder(error, request_id)
