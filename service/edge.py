"""Everything that happens around a score, once: id, admission, decode, score, encode, errors, counting, log lines.

Both doors use it alike. A door makes an `Incoming`, asks for a `Call` with `begin`, has it scored with `finish` (on a
thread if it has more than `loop_rows`), packs `call.outgoing` into HTTP and hands the call to `close`, which counts it.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
import re
import time
import zlib

import orjson

from service.batch import Batch, Frame, Incoming, Observation, Outgoing, ReadMatrix, Stages
from service.errors import (
    InternalError,
    MalformedBodyError,
    ModelNotFoundError,
    NotReadyError,
    OverloadedError,
    PayloadTooLargeError,
    PredictionError,
    ServiceError,
    UnsupportedMediaTypeError,
)
from service.head import REQUEST_ID
from service.metrics import Recorder
from service.models import LoadedModel
from service.scoring import Scorer
from service.settings import Settings
from service.wire import ROUTES, WIRES, Route, encode_error, wire_of
from service.wire.plain import MatrixReader

# Paths that score nothing; `{model}` and `{version}` as in the scoring routes.
OTHER_ROUTES = (
    "/",
    "/livez",
    "/readyz",
    "/healthz",
    "/metrics",
    "/v1/models",
    "/v1/models/{model}",
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models",
    "/v2/models/{model}",
    "/v2/models/{model}/ready",
    "/v2/models/{model}/versions/{version}",
    "/v2/models/{model}/versions/{version}/ready",
    "/v2/repository/index",
    "/v2/repository/models/{model}/load",
    "/v2/repository/models/{model}/unload",
    "/v2/repository/models/{model}/rollback",
)
UNMATCHED = "unmatched"
# The labels of the metrics: every route with its wire, and what matched none.
ROUTE_LABELS = (
    *(route.label for route in ROUTES),
    *((route, wire_of(route)) for route in OTHER_ROUTES),
    *((UNMATCHED, wire) for wire in WIRES),
)
PROBES = ("/livez", "/readyz", "/healthz")
SIBLINGS = "other workers are loading the model"
JSON = "application/json"
ALIVE = Outgoing(200, JSON, b'{"status":"alive"}')
READY = Outgoing(200, JSON, b'{"status":"ready"}')
# Below this size the time to compress is longer than the time to send: 32 KiB take 0.3 ms, or 2,500 scores as JSON.
COMPRESS_BYTES = 32 * 1024
INFLATION = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


class Call:
    """One scoring request on its way through the edge; `outgoing` is there when it is answered."""

    __slots__ = ("batch", "began", "incoming", "outgoing", "route", "seen")

    def __init__(self, route: Route, incoming: Incoming, began: float) -> None:
        self.route = route
        self.incoming = incoming
        self.began = began
        # The bytes as they came: inflation replaces the body.
        self.seen = Observation(route.label, request_bytes=len(incoming.body))
        self.batch: Batch | None = None
        self.outgoing: Outgoing | None = None


class Edge:
    """Answers scoring requests with the model it was given; until then it is not ready."""

    def __init__(self, settings: Settings, recorder: Recorder, log: logging.Logger) -> None:
        self.settings = settings
        self.recorder = recorder
        self.log = log
        self._unready = "loading the model"
        self.scorer: Scorer | None = None
        # More rows than these would hold the event loop for too long: they are scored on a thread.
        self.loop_rows = 0
        self._read_matrix: ReadMatrix | None = None
        # Exact paths of the served model, so that the fast door finds a route with one look-up.
        self.routes: dict[str, Route] = {}
        self.identity_headers: tuple[tuple[str, str], ...] = ()
        self._max_in_flight = settings.max_in_flight
        self._max_rows = settings.max_rows_per_request
        self._slow_seconds = settings.slow_request_seconds
        self._sampled = int(settings.access_log_ratio * 2**32)
        self._random = random.Random()
        self._id_prefix = f"{os.getpid():x}-{self._random.getrandbits(48):012x}-"
        self._id_count = itertools.count(1)

    @property
    def unready(self) -> str:
        """Why probes are told no; empty where they are told yes.

        What a worker that waits for its siblings says is looked up in the memory they share: a note of its own would be
        old for as long as it sleeps, and a probe would find one worker ready and then another not.
        """
        if self._unready == SIBLINGS and self.recorder.block.see_ready():
            self._unready = ""
        return self._unready

    @unready.setter
    def unready(self, reason: str) -> None:
        self._unready = reason

    def serve(self, model: LoadedModel) -> None:
        """Answer with this model from now on."""
        scorer = Scorer(model)
        identity = model.identity
        self.identity_headers = (
            ("X-Model-Name", identity.name),
            ("X-Model-Version", identity.version),
            ("X-Model-Digest", f"sha256:{identity.digest}"),
        )
        self.routes = {route.template.format(model=identity.name, version=identity.version): route for route in ROUTES}
        self.recorder.write_model(identity, model.load_seconds, model.predictor.engine)
        self.loop_rows = model.predictor.loop_rows
        self._read_matrix = MatrixReader(model.code.function("read_matrix", keeps_lock=True)) if model.code else None
        self.scorer = scorer
        self.unready = ""

    def request_id(self, given: str | None) -> str:
        """The caller's id where it is one we can repeat in a header and a log, else a new one."""
        if given is not None and REQUEST_ID.fullmatch(given):
            return given
        return self.new_id()

    def new_id(self) -> str:
        return f"{self._id_prefix}{next(self._id_count):x}"

    def verify_model(self, name: str, version: str | None) -> Scorer:
        """The scorer, if that is the model it has."""
        scorer = self.verify_loaded()
        identity = scorer.identity
        if name != identity.name or version not in (None, identity.version):
            raise ModelNotFoundError(identity.name, identity.version)
        return scorer

    def verify_loaded(self) -> Scorer:
        if self.scorer is None:
            raise NotReadyError(self.unready)
        return self.scorer

    def frame(self, route: Route, batch: Batch) -> Frame:
        """What stands around the scores of this batch in the answer."""
        scorer = self.verify_loaded()
        return route.frame(batch, scorer.identity, scorer.contract.outputs)

    # One scoring request.

    def begin(self, route: Route, incoming: Incoming, began: float) -> Call:
        """Admit and decode; the call has its answer already if either was refused."""
        call = Call(route, incoming, began)
        start = time.perf_counter()
        try:
            scorer = self.verify_loaded()
            if self.recorder.in_flight > self._max_in_flight:
                raise OverloadedError("requests in flight")
            if "content-encoding" in incoming.headers:
                self.inflate(incoming)
            incoming.read_matrix = self._read_matrix
            batch = route.decode(incoming)
            if len(batch.values) > self._max_rows:
                raise PayloadTooLargeError("rows", self._max_rows)
            scorer.align(batch)
            call.batch = batch
        except ServiceError as error:
            self._refuse(call, error)
        except Exception:  # a fault of ours must end in an answer, whatever it is
            self._refuse(call, self._log_fault(incoming, InternalError()))
        call.seen.decode_seconds = time.perf_counter() - start
        return call

    def finish(self, call: Call) -> Call:
        """Score and encode, unless the call has its answer."""
        if call.outgoing is not None or call.batch is None or self.scorer is None:
            return call
        start = time.perf_counter()
        try:
            scores = self.scorer.predict(call.batch)
            predicted = time.perf_counter()
            call.outgoing = outgoing = call.route.encode(scores, call.batch)
            if len(outgoing.body) >= COMPRESS_BYTES:
                self.deflate(outgoing, call.incoming.headers.get("accept-encoding"))
        except Exception:  # the library's own errors have no common class
            self._refuse(call, self._log_fault(call.incoming, PredictionError()))
            return call
        call.seen.predict_seconds = predicted - start
        call.seen.encode_seconds = time.perf_counter() - predicted
        return call

    def finish_together(self, calls: list[Call]) -> None:
        """The same for several calls with one prediction; their scores have the bits that each would have alone."""
        scorer = self.scorer
        if scorer is None or len(calls) == 1:
            self.finish(calls[0])
            return
        start = time.perf_counter()
        batches = [call.batch for call in calls if call.batch is not None]
        try:
            scores = scorer.predict_together(batches)
            predicted = time.perf_counter()
        except Exception:  # as in finish
            for call in calls:  # one of them is at fault, and the others must not pay for it
                self.finish(call)
            return
        for call, batch, own in zip(calls, batches, scores, strict=True):
            call.seen.predict_seconds = predicted - start
            try:
                call.outgoing = outgoing = call.route.encode(own, batch)
                if len(outgoing.body) >= COMPRESS_BYTES:
                    self.deflate(outgoing, call.incoming.headers.get("accept-encoding"))
            except Exception:  # as in finish
                self._refuse(call, self._log_fault(call.incoming, PredictionError()))
        mean = (time.perf_counter() - predicted) / len(calls)
        for call in calls:
            call.seen.encode_seconds = mean

    def close(self, call: Call, ended: float) -> Observation:
        """What there is to count about an answered call; writes its log line if it gets one."""
        outgoing, seen = call.outgoing, call.seen
        if outgoing is None:
            raise RuntimeError("a call without an answer")
        seen.status = outgoing.status
        seen.seconds = ended - call.began
        seen.response_bytes = len(outgoing.body)
        if self.scorer is not None:
            seen.is_scoring = True
            if call.batch is not None and outgoing.status == 200:
                seen.rows = len(call.batch.values)
        if seen.seconds >= self._slow_seconds or self._sampled:
            self.log_request(seen, call.incoming.request_id)
        return seen

    # Any request.

    def probe(self, path: str) -> Outgoing:
        """Answer to a probe: alive as long as anything answers, ready once the model is loaded, until the drain."""
        if path == "/livez":
            return ALIVE
        if not self.unready:
            return READY
        body = orjson.dumps({"status": "not ready", "reason": self.unready})
        return Outgoing(503, JSON, body, (("Retry-After", "1"),))

    def inflate(self, incoming: Incoming) -> None:
        """Undo the body's content coding, never beyond the largest body that is allowed."""
        coding = incoming.headers["content-encoding"].strip().lower()
        if coding in ("", "identity"):
            return
        window = INFLATION.get(coding)
        if window is None:
            raise UnsupportedMediaTypeError("Content-Encoding: expected gzip, deflate or none")
        limit = self.settings.max_body_bytes
        stream = zlib.decompressobj(window)
        try:
            body = stream.decompress(incoming.body, limit + 1)
        except zlib.error:
            raise MalformedBodyError(f"the body is not {coding} as Content-Encoding says") from None
        if len(body) > limit:
            raise PayloadTooLargeError("bytes after inflation", limit)
        if not stream.eof or stream.unused_data:
            raise MalformedBodyError("the compressed body is cut short, or has bytes after its end")
        incoming.body = body

    def deflate(self, outgoing: Outgoing, accept: str | None) -> None:
        """Compress the answer for a caller who accepts it."""
        if accept is None:
            return
        codings = {part.partition(";")[0].strip().lower() for part in accept.split(",") if not refused(part)}
        coding = next((coding for coding in ("gzip", "deflate") if coding in codings), None)
        if coding is None:
            return
        stream = zlib.compressobj(1, zlib.DEFLATED, INFLATION[coding])
        outgoing.body = stream.compress(outgoing.body) + stream.flush()
        outgoing.headers += (("Content-Encoding", coding), ("Vary", "Accept-Encoding"))

    def refuse(self, error: ServiceError, path: str, request_id: str) -> Outgoing:
        """The answer to a request that failed, in the words of the path's protocol."""
        outgoing = encode_error(error, path, request_id)
        if error.retry_after_seconds is not None:
            outgoing.headers += (("Retry-After", str(error.retry_after_seconds)),)
        if error.allow:
            outgoing.headers += (("Allow", ", ".join(error.allow)),)
        if error.status == 415:
            outgoing.headers += (("Accept-Encoding", "gzip, deflate, identity"),)
        return outgoing

    def _refuse(self, call: Call, error: ServiceError) -> None:
        call.seen.rejected = error.code
        call.batch = None
        call.outgoing = self.refuse(error, call.incoming.path, call.incoming.request_id)

    def _log_fault(self, incoming: Incoming, error: ServiceError) -> ServiceError:
        """One traceback for a fault of ours; a caller's mistake gets none."""
        self.log.exception("fault", extra={"request_id": incoming.request_id, "path": incoming.path})
        return error

    def log_request(self, seen: Observation, request_id: str) -> None:
        """A line for every slow request, and for the share of all that the settings ask for."""
        is_slow = seen.seconds >= self._slow_seconds
        if not is_slow and (not self._sampled or self._random.getrandbits(32) >= self._sampled):
            return
        self.log.info(
            "slow request" if is_slow else "request",
            extra={
                "request_id": request_id,
                "route": seen.label[0],
                "wire": seen.label[1],
                "status": seen.status,
                "seconds": round(seen.seconds, 6),
                "decode_seconds": round(seen.decode_seconds, 6),
                "predict_seconds": round(seen.predict_seconds, 6),
                "encode_seconds": round(seen.encode_seconds, 6),
                "rows": seen.rows,
                "error": seen.rejected,
            },
        )


def refused(coding: str) -> bool:
    """`gzip;q=0` means: not gzip (RFC 9110 section 12.4.2)."""
    return re.search(r";\s*q=0(\.0*)?\s*$", coding, re.IGNORECASE) is not None


def server_timing(seen: Observation | Stages) -> str:
    """Milliseconds of each stage, as the Server-Timing header has them."""
    return (
        f"decode;dur={seen.decode_seconds * 1e3:.3f}, predict;dur={seen.predict_seconds * 1e3:.3f}, "
        f"encode;dur={seen.encode_seconds * 1e3:.3f}"
    )
