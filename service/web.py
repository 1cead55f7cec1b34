"""The Flask door: every route as a view. Views pack and unpack; what happens to a request is in the edge."""

from __future__ import annotations

import ipaddress
import re
import time
from typing import Any

import flask
import orjson
from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException, MethodNotAllowed, NotFound, RequestEntityTooLarge
from werkzeug.routing import BaseConverter

from service import __version__
from service.batch import Incoming, Observation, Outgoing
from service.edge import PROBES, UNMATCHED, Edge, server_timing
from service.errors import (
    ForbiddenError,
    InternalError,
    InvalidInputError,
    MalformedBodyError,
    MalformedRequestError,
    MethodNotAllowedError,
    PayloadTooLargeError,
    RouteNotFoundError,
    ServiceError,
    UnsupportedError,
)
from service.machine import ControlGroup
from service.scoring import Scorer
from service.scrape import render
from service.swaps import Repository
from service.wire import ROUTES, Route, wire_of
from service.wire.open_inference import OUTPUT_NAME

# Not for callers: on the admin port alone where there is one.
ADMIN_PATHS = re.compile(r"/metrics|/v2/repository/.*")
# A request that has one of these came through a proxy, or from a page in a browser, and only seems to be local.
FOREIGN_HEADERS = ("X-Forwarded-For", "X-Forwarded-Host", "Forwarded", "X-Real-IP", "Via", "Origin")
# The worker's loop puts a list there and counts what it finds in it: only the loop writes the worker's counters.
OBSERVATIONS = "scorer.observations"


def add_routes(app: Flask, edge: Edge, group: ControlGroup, repository: Repository | None) -> None:
    """All views, and what every answer has: headers, errors in the protocol's words, a count."""
    app.config["MAX_CONTENT_LENGTH"] = edge.settings.max_body_bytes
    app.url_map.merge_slashes = False
    app.url_map.converters["name"] = NameConverter
    for route in ROUTES:
        app.add_url_rule(to_rule(route.template), route.template, scoring_view(edge, route), methods=[route.method])
    for path, view in (
        *((probe, probe_view(edge, probe)) for probe in PROBES),
        *metadata_views(edge),
        ("/metrics", metrics_view(edge, group)),
    ):
        app.add_url_rule(to_rule(path), path, view)
    for path, view in repository_views(edge, repository):
        app.add_url_rule(to_rule(path), path, view, methods=["POST"])
    app.before_request(lambda: open_request(edge))
    app.after_request(lambda response: close_request(edge, response))
    app.register_error_handler(Exception, lambda error: answer_error(edge, error))


class NameConverter(BaseConverter):
    """A model's name or version: no colon, which begins KServe's verbs (`:predict`)."""

    regex = "[^/:]+"


def to_rule(template: str) -> str:
    return template.replace("{", "<name:").replace("}", ">")


# Around every request.


def open_request(edge: Edge) -> None:
    g.began = time.perf_counter()
    g.call = None
    g.rejected = ""
    g.request_id = edge.request_id(request.headers.get("X-Request-Id"))
    if request.environ["PATH_INFO"].startswith("//"):
        raise NotFound  # werkzeug 3.1 would take it for a single slash
    admin_port = edge.settings.admin_port
    if admin_port and ADMIN_PATHS.fullmatch(request.path) and request.environ.get("SERVER_PORT") != str(admin_port):
        raise NotFound


def close_request(edge: Edge, response: Response) -> Response:
    """Headers of every answer, and its count."""
    ended = time.perf_counter()
    response.headers["X-Request-Id"] = g.request_id
    for name, value in edge.identity_headers:
        response.headers[name] = value
    if g.call is not None:
        response.headers["Server-Timing"] = server_timing(g.call.seen)
        seen = edge.close(g.call, ended)
    else:
        response.headers["Server-Timing"] = f"total;dur={(ended - g.began) * 1e3:.3f}"
        route = request.url_rule.endpoint if request.url_rule is not None else UNMATCHED
        known = route.startswith("/")
        seen = Observation(
            (route if known else UNMATCHED, wire_of(request.path)),
            response.status_code,
            ended - g.began,
            rejected=g.rejected,
            response_bytes=response.content_length or 0,
        )
        edge.log_request(seen, g.request_id)
    observations = request.environ.get(OBSERVATIONS)
    if observations is not None:
        observations.append(seen)
    else:
        with edge.recorder.lock:
            edge.recorder.observe(seen)
    return response


def answer_error(edge: Edge, error: Exception) -> Response:
    problem = to_service_error(edge, error)
    if isinstance(problem, InternalError):
        edge.log.exception("fault", extra={"request_id": g.request_id, "route": str(request.url_rule)})
    g.rejected = problem.code
    return to_response(edge.refuse(problem, request.path, g.request_id))


def to_service_error(edge: Edge, error: Exception) -> ServiceError:
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, NotFound):
        return RouteNotFoundError([route.template for route in ROUTES])
    if isinstance(error, MethodNotAllowed):
        return MethodNotAllowedError(sorted(set(error.valid_methods or ()) - {"OPTIONS"}))
    if isinstance(error, RequestEntityTooLarge):
        return PayloadTooLargeError("bytes", edge.settings.max_body_bytes)
    if isinstance(error, HTTPException) and error.code is not None and error.code < 500:
        return MalformedRequestError("not a request that this server understands")
    return InternalError()


def to_response(outgoing: Outgoing) -> Response:
    response = Response(outgoing.body, outgoing.status)
    response.headers["Content-Type"] = outgoing.content_type
    response.headers.extend(outgoing.headers)
    return response


# Scoring.


def scoring_view(edge: Edge, route: Route) -> Any:
    def view(model: str | None = None, version: str | None = None) -> Response:
        if model is not None:
            edge.verify_model(model, version)
        incoming = Incoming(
            request.method,
            request.path,
            {name.lower(): value for name, value in request.headers.items()},
            request.get_data(cache=False),
            g.request_id,
        )
        g.call = edge.finish(edge.begin(route, incoming, g.began))
        return to_response(g.call.outgoing)

    return view


# Health, metadata, metrics.


def probe_view(edge: Edge, path: str) -> Any:
    return lambda: to_response(edge.probe(path))


def metrics_view(edge: Edge, group: ControlGroup) -> Any:
    def view() -> Response:
        text, content_type = render(edge.recorder.block, group, request.headers.get("Accept", ""))
        return to_response(Outgoing(200, content_type, text))

    return view


def repository_views(edge: Edge, repository: Repository | None) -> tuple[tuple[str, Any], ...]:
    """Triton's model repository extension, and a call of our own that goes back to the version before."""

    def index() -> Response:
        identity = edge.verify_loaded().identity
        if repository is None:
            entries = [{"version": identity.version, "state": "READY", "reason": ""}]
        else:
            entries = repository.entries()
        if not is_operator(edge):  # reasons tell of files and of the machine
            entries = [entry | {"reason": entry["reason"] and "the log says why"} for entry in entries]
        return flask.jsonify([{"name": identity.name, **entry} for entry in entries])

    def verify(model: str) -> Repository:
        if not is_operator(edge):
            raise ForbiddenError
        edge.verify_model(model, None)
        if repository is None:
            raise UnsupportedError("the model can be changed only where `xgboost-server serve` runs the workers")
        return repository

    def load(model: str) -> Response:
        return answer(model, verify(model).load(read_version(request.get_data(cache=False))))

    def rollback(model: str) -> Response:
        return answer(model, verify(model).roll_back())

    def unload(model: str) -> Response:
        verify(model)
        raise UnsupportedError("a server has one model and cannot be without it; stop the server instead")

    def answer(model: str, version: str) -> Response:
        return flask.jsonify(name=model, version=version, load=True)

    return (
        ("/v2/repository/index", index),
        ("/v2/repository/models/{model}/load", load),
        ("/v2/repository/models/{model}/rollback", rollback),
        ("/v2/repository/models/{model}/unload", unload),
    )


def is_operator(edge: Edge) -> bool:
    """Whether this call may change what is served: the admin port is for that; without one, only this machine may."""
    if edge.settings.admin_port:
        return True  # else it would not have come here
    return is_loopback(request.remote_addr or "") and not any(name in request.headers for name in FOREIGN_HEADERS)


def is_loopback(client: str) -> bool:
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return False
    # Python 3.11 does not take ::ffff:127.0.0.1 for a loopback address.
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def read_version(body: bytes) -> str:
    """The version that the body names; empty for the newest."""
    try:
        document = orjson.loads(body or b"{}")
    except orjson.JSONDecodeError:
        raise MalformedBodyError("the body is not JSON") from None
    # A version in another place would be passed over, and the newest loaded.
    is_plain = isinstance(document, dict) and document.keys() <= {"parameters"}
    parameters = document.get("parameters", {}) if is_plain else None
    if not isinstance(parameters, dict):
        raise InvalidInputError("body", 'expected nothing, or {"parameters": {"version": "…"}}')
    if parameters.keys() - {"version"}:
        raise InvalidInputError("parameters", "an unknown key; expected none but version")
    version = parameters.get("version", "")
    if not isinstance(version, str):
        raise InvalidInputError("parameters.version", "expected a string")
    return version


def metadata_views(edge: Edge) -> tuple[tuple[str, Any], ...]:
    """What clients of V1 and V2 ask before they score; kserve's client (0.21) wants JSON from each."""

    def server() -> Response:
        return flask.jsonify(status="alive")

    def v1_models() -> Response:
        return flask.jsonify(models=[edge.verify_loaded().identity.name])

    def v1_model(model: str) -> Response:
        identity = edge.verify_model(model, None).identity
        return flask.jsonify(name=model, ready=True, version=identity.version, digest=f"sha256:{identity.digest}")

    def v2() -> Response:
        extensions = ["binary_tensor_data", "model_repository", "parameters"]
        return flask.jsonify(name="xgboost-server", version=__version__, extensions=extensions)

    def v2_live() -> Response:
        return flask.jsonify(live=True)

    def v2_ready() -> Response | tuple[Response, int]:
        ready = not edge.unready
        return flask.jsonify(ready=ready) if ready else (flask.jsonify(ready=ready, reason=edge.unready), 503)

    def v2_model(model: str, version: str | None = None) -> Response:
        return flask.jsonify(describe(edge.verify_model(model, version)))

    def v2_model_ready(model: str, version: str | None = None) -> Response:
        edge.verify_model(model, version)
        return flask.jsonify(name=model, ready=True)

    return (
        ("/", server),
        ("/v1/models", v1_models),
        ("/v1/models/{model}", v1_model),
        ("/v2", v2),
        ("/v2/health/live", v2_live),
        ("/v2/health/ready", v2_ready),
        ("/v2/models", v1_models),
        ("/v2/models/{model}", v2_model),
        ("/v2/models/{model}/ready", v2_model_ready),
        ("/v2/models/{model}/versions/{version}", v2_model),
        ("/v2/models/{model}/versions/{version}/ready", v2_model_ready),
    )


def describe(scorer: Scorer) -> dict[str, Any]:
    """Model metadata of the Open Inference Protocol; -1 is any number of rows."""
    contract, identity = scorer.contract, scorer.identity
    outputs = [-1] if contract.outputs == 1 else [-1, contract.outputs]
    return {
        "name": identity.name,
        "versions": [identity.version],
        "platform": "xgboost",
        "inputs": [{"name": "input-0", "datatype": "FP32", "shape": [-1, contract.features]}],
        "outputs": [{"name": OUTPUT_NAME, "datatype": "FP32", "shape": outputs}],
        "parameters": {
            "digest": f"sha256:{identity.digest}",
            "objective": contract.objective,
            "feature_names": list(contract.feature_names),
            "rounds": contract.rounds,
            "engine": scorer.predictor.engine,
            **({"engine_reason": scorer.predictor.reason} if scorer.predictor.reason else {}),
        },
    }
