"""What must hold on every route of the Flask application; a new route is covered unasked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from werkzeug.routing import Rule
from werkzeug.test import TestResponse

from service import __version__
from service.app import create_app, create_app_around
from service.edge import OTHER_ROUTES
from service.errors import ServiceError, StartError
from service.web import read_version
from service.wire import ROUTES
from tests.apps import Example, World

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")
UNKNOWN = ("/nowhere", "/predict/", "/v1", "/v1/", "/v1/modelz", "/v2/", "/v2/nowhere", "/v2/models/iris/")
ROW = [4.4, 3.0, 1.3, 0.2]


def urls(app: Flask) -> Iterator[tuple[str, Rule]]:
    """Every rule as a URL of the served model."""
    for rule in app.url_map.iter_rules():
        yield re.sub(r"<(?:\w+:)?version>", "1", re.sub(r"<(?:\w+:)?model>", "iris", rule.rule)), rule


def everything(app: Flask) -> Iterator[tuple[str, str]]:
    """Every method on every path, known and unknown."""
    for path in (*(url for url, _ in urls(app)), *UNKNOWN):
        for method in METHODS:
            yield method, path


def error_of(response: TestResponse) -> dict[str, Any]:
    document = response.json
    assert isinstance(document, dict)
    return document


# Everywhere.


def test_the_url_map_is_the_declared_routes(world: World) -> None:
    """What is counted, documented and served is one list."""
    templates = {re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", rule.rule) for _, rule in urls(world.app)}
    assert templates == {route.template for route in ROUTES} | set(OTHER_ROUTES)


def test_every_answer_says_who_gave_it(world: World, iris: Example) -> None:
    """Request id, model, version, digest and time stand on every answer, errors and unknown paths included."""
    identity = iris.model.identity
    for method, path in everything(world.app):
        response = world.client.open(path, method=method, headers={"X-Request-Id": "find-me"})
        headers = response.headers
        assert headers["X-Request-Id"] == "find-me", (method, path)
        assert headers["X-Model-Name"] == identity.name
        assert headers["X-Model-Version"] == identity.version
        assert headers["X-Model-Digest"] == f"sha256:{identity.digest}"
        timings = headers["Server-Timing"].split(", ")
        assert all(re.fullmatch(r"[a-z]+;dur=\d+\.\d{3}", timing) for timing in timings), headers["Server-Timing"]


def test_no_answer_is_a_fault_of_ours(world: World) -> None:
    """Any method on any path, without a body: never 5xx, and not a line in the log."""
    for method, path in everything(world.app):
        assert world.client.open(path, method=method).status_code < 500, (method, path)
    assert world.log_lines == []


def test_every_answer_is_counted_once(world: World) -> None:
    """One request more in the sum over all labels, whatever was asked and whatever came of it."""
    layout = world.recorder.block.layout
    for asked, (method, path) in enumerate(everything(world.app), start=1):
        world.client.open(path, method=method)
        assert world.counts.total[layout.requests : layout.request_seconds].sum() == asked, (method, path)


def test_every_error_is_in_the_words_of_its_protocol(world: World) -> None:
    """Below /v1 and /v2 `{"error": …}` as exactly application/json; elsewhere problem+json (RFC 9457)."""
    errors = 0
    for method, path in everything(world.app):
        response = world.client.open(path, method=method)
        if response.status_code < 400 or method == "HEAD":
            continue
        errors += 1
        document = error_of(response)
        assert document["code"], (method, path)
        if re.match(r"/v[12](/|$)", path):
            assert response.headers["Content-Type"] == "application/json"
            assert document.keys() == {"error", "code"}
            assert document["error"]
        else:
            assert response.headers["Content-Type"] == "application/problem+json"
            assert document["status"] == response.status_code
            assert document.keys() == {"type", "title", "status", "detail", "code", "request_id"}
    assert errors > 50


def test_an_unknown_path_is_404_and_names_the_scoring_paths(world: World) -> None:
    for path in UNKNOWN:
        for method in ("GET", "POST", "DELETE"):
            response = world.client.open(path, method=method)
            assert (response.status_code, error_of(response)["code"]) == (404, "route-not-found"), (method, path)
            text = response.get_data(as_text=True)
            assert all(route.template in text for route in ROUTES)


def test_a_wrong_method_is_405_and_names_the_right_ones(world: World) -> None:
    """`Allow` lists what would have been answered, and nothing else (RFC 9110 section 15.5.6)."""
    for path, rule in urls(world.app):
        for method in METHODS:
            response = world.client.open(path, method=method)
            if response.status_code != 405:
                continue
            allowed = set(response.headers["Allow"].split(", "))
            assert method not in allowed
            if method != "HEAD":
                assert error_of(response)["code"] == "method-not-allowed"
            for right in allowed:
                assert world.client.open(path, method=right).status_code != 405, (path, right, rule)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD"])
def test_only_post_scores(method: str, world: World) -> None:
    for route in ROUTES:
        path = route.template.format(model="iris", version="1")
        assert world.client.open(path, method=method).status_code == 405


def test_head_is_get_without_the_body(world: World) -> None:
    """The same status and headers, so that a monitor may ask for less."""
    for path, rule in urls(world.app):
        if "GET" not in (rule.methods or ()) or path == "/metrics":
            continue
        get, head = world.client.get(path), world.client.head(path)
        assert head.data == b""
        assert head.status_code == get.status_code
        for name in ("Content-Type", "Content-Length"):
            assert head.headers[name] == get.headers[name], path


@pytest.mark.parametrize(
    "path",
    [
        "/%00",
        "/%ff",
        "/v2/models/%2e%2e",
        "/v1/models/" + "a" * 5000,
        "/v2/models/ä",
        "/%0d%0aSet-Cookie:a=b",
        "/predict%3F",
        "/?a=%00",
    ],
)
def test_odd_paths_are_no_fault_of_ours(path: str, world: World) -> None:
    response = world.client.get(path)
    assert response.status_code < 500
    assert "Set-Cookie" not in response.headers
    assert world.log_lines == []


@pytest.mark.parametrize("path", ["/predict//", "/v1//models", "/./predict", "/v2/../predict"])
def test_slashes_and_dots_are_not_tidied_up(path: str, world: World) -> None:
    """What NGINX and we would tidy up differently could pass a rule of one and reach the other."""
    response = world.client.post("/", json=ROW, environ_overrides={"PATH_INFO": path})
    assert (response.status_code, error_of(response)["code"]) == (404, "route-not-found")


# Metadata.


def test_metadata_speaks_of_the_served_model(world: World, iris: Example) -> None:
    """What kserve's and Triton's clients ask before they score."""
    get = world.client.get
    assert get("/").json == {"status": "alive"}
    assert get("/livez").json == {"status": "alive"}
    assert get("/readyz").json == {"status": "ready"}
    assert get("/v1/models").json == {"models": ["iris"]}
    digest = f"sha256:{iris.model.identity.digest}"
    assert get("/v1/models/iris").json == {"name": "iris", "ready": True, "version": "1", "digest": digest}
    assert get("/v2/health/live").json == {"live": True}
    assert get("/v2/health/ready").json == {"ready": True}
    assert get("/v2/models/iris/ready").json == {"name": "iris", "ready": True}
    assert get("/v2/models/iris/versions/1/ready").json == {"name": "iris", "ready": True}
    server = get("/v2").json
    assert server is not None
    assert (server["name"], server["version"]) == ("xgboost-server", __version__)
    assert "binary_tensor_data" in server["extensions"]
    model = get("/v2/models/iris").json
    assert model == get("/v2/models/iris/versions/1").json
    assert model is not None
    assert (model["name"], model["versions"], model["platform"]) == ("iris", ["1"], "xgboost")
    assert model["inputs"] == [{"name": "input-0", "datatype": "FP32", "shape": [-1, 4]}]
    assert model["outputs"] == [{"name": "output-0", "datatype": "FP32", "shape": [-1]}]
    assert model["parameters"]["feature_names"] == list(iris.names)
    assert model["parameters"]["digest"] == f"sha256:{iris.model.identity.digest}"


def test_the_repository_index_lists_the_served_model(world: World) -> None:
    """Triton's clients ask by POST."""
    index = world.client.post("/v2/repository/index").json
    assert index == [{"name": "iris", "version": "1", "state": "READY", "reason": ""}]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/churn",
        "/v2/models/churn",
        "/v2/models/churn/ready",
        "/v2/models/iris/versions/2",
        "/v2/models/iris/versions/2/ready",
    ],
)
def test_another_model_is_404_with_the_one_that_is_served(path: str, world: World) -> None:
    response = world.client.get(path)
    assert response.status_code == 404
    expected = "no such model or version; this server serves iris, version 1"
    assert error_of(response) == {"error": expected, "code": "model-not-found"}


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [("", "text/plain"), ("application/openmetrics-text; version=1.0.0", "application/openmetrics-text")],
)
def test_metrics_are_served_in_the_format_that_is_asked_for(accept: str, content_type: str, world: World) -> None:
    response = world.client.get("/metrics", headers={"Accept": accept})
    assert response.headers["Content-Type"].startswith(content_type)
    assert b"scorer_model_info" in response.data


# The admin port.


@pytest.fixture
def guarded(iris: Example) -> World:
    return World(iris.model, SCORER_ADMIN_PORT="9100")


ADMIN = [("GET", "/metrics"), ("HEAD", "/metrics"), ("POST", "/v2/repository/index")]
CALLS = [f"/v2/repository/models/iris/{call}" for call in ("load", "unload", "rollback")]


@pytest.mark.parametrize(("method", "path"), ADMIN)
def test_the_admin_port_shows_what_is_not_for_callers(method: str, path: str, guarded: World) -> None:
    response = guarded.client.open(path, method=method, environ_overrides={"SERVER_PORT": "9100"})
    assert response.status_code == 200


@pytest.mark.parametrize(("method", "path"), ADMIN)
@pytest.mark.parametrize("host", ["localhost", "localhost:9100", "[::1]:9100"])
def test_the_callers_port_hides_it(method: str, path: str, host: str, guarded: World) -> None:
    """Whatever the Host header says: the port that the connection came in by decides."""
    callers = {"SERVER_PORT": "8000"}
    response = guarded.client.open(path, method=method, headers={"Host": host}, environ_overrides=callers)
    assert response.status_code == 404
    assert b"scorer_" not in response.data
    if method != "HEAD":
        assert error_of(response)["code"] == "route-not-found"


def test_the_callers_port_does_not_tell_that_there_is_something_to_hide(guarded: World) -> None:
    """With any method, a hidden path answers like one that does not exist."""
    hidden_paths = [(path, "/v2/nowhere") for path in (*CALLS, "/v2/repository/index", "/v2/repository/nowhere")]
    for path, nowhere in (("/metrics", "/nowhere"), *hidden_paths):
        for method in METHODS:
            hidden, absent = (
                guarded.client.open(url, method=method, environ_overrides={"SERVER_PORT": "8000"})
                for url in (path, nowhere)
            )
            assert (hidden.status_code, hidden.headers.get("Allow")) == (
                absent.status_code,
                absent.headers.get("Allow"),
            )


def test_callers_are_served_on_their_port(guarded: World) -> None:
    """The admin port takes nothing away from them."""
    callers = {"SERVER_PORT": "8000"}
    assert guarded.client.post("/predict", json=ROW, environ_overrides=callers).status_code == 200
    for path in ("/readyz", "/v2/models/iris", "/v1/models"):
        assert guarded.client.get(path, environ_overrides=callers).status_code == 200


def test_without_an_admin_port_metrics_are_on_the_one_there_is(world: World) -> None:
    assert world.client.get("/metrics", environ_overrides={"SERVER_PORT": "8000"}).status_code == 200


# Changing the model.


@pytest.mark.parametrize("path", CALLS)
@pytest.mark.parametrize("address", ["10.0.0.1", "::ffff:10.0.0.1", "fe80::1", "", "unix:"])
def test_from_elsewhere_the_model_cannot_be_changed(path: str, address: str, world: World) -> None:
    response = world.client.post(path, environ_overrides={"REMOTE_ADDR": address})
    assert (response.status_code, error_of(response)["code"]) == (403, "forbidden")


@pytest.mark.parametrize("path", CALLS)
@pytest.mark.parametrize("header", ["X-Forwarded-For", "X-Forwarded-Host", "Forwarded", "X-Real-IP", "Via", "Origin"])
def test_a_proxy_on_this_machine_is_not_this_machine(path: str, header: str, world: World) -> None:
    """Nor is a page that is open in a browser on it: that sends Origin."""
    response = world.client.post(path, headers={header: "127.0.0.1"})
    assert (response.status_code, error_of(response)["code"]) == (403, "forbidden")


@pytest.mark.parametrize("path", CALLS)
@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"])
def test_without_a_master_that_can_do_it_the_answer_says_so(path: str, address: str, world: World) -> None:
    response = world.client.post(path, environ_overrides={"REMOTE_ADDR": address})
    assert (response.status_code, error_of(response)["code"]) == (400, "unsupported")


@pytest.mark.parametrize("path", CALLS)
def test_on_the_admin_port_whoever_reaches_it_may(path: str, guarded: World) -> None:
    anybody = {"SERVER_PORT": "9100", "REMOTE_ADDR": "10.0.0.1", "HTTP_X_FORWARDED_FOR": "10.0.0.2"}
    response = guarded.client.post(path, environ_overrides=anybody)
    assert error_of(response)["code"] == "unsupported", "allowed, but for the master that this application lacks"


def test_only_the_served_model_can_be_changed(world: World) -> None:
    response = world.client.post("/v2/repository/models/churn/load")
    assert (response.status_code, error_of(response)["code"]) == (404, "model-not-found")


@pytest.mark.parametrize(
    ("body", "version"),
    [
        (b"", ""),
        (b"{}", ""),
        (b'{"parameters": {}}', ""),
        (b'{"parameters": {"version": "7"}}', "7"),
        (b'{"parameters": {"version": ""}}', ""),
    ],
)
def test_a_load_may_name_a_version(body: bytes, version: str) -> None:
    assert read_version(body) == version


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"{", "not JSON"),
        (b"[]", "body: expected nothing"),
        (b"7", "body: expected nothing"),
        (b"null", "body: expected nothing"),
        (b'{"parameters": ["7"]}', "body: expected nothing"),
        (b'{"version": "7"}', "body: expected nothing, or"),
        (b'{"version": "7", "parameters": {}}', "body: expected nothing, or"),
        (b'{"parameters": {"version": 7}}', "parameters.version: expected a string"),
        (b'{"parameters": {"config": "{}"}}', "parameters: an unknown key; expected none but version"),
    ],
)
def test_a_body_that_asks_for_something_else_is_refused(body: bytes, reason: str) -> None:
    """Triton's own parameters, such as a configuration, are none of ours: better refused than passed over."""
    with pytest.raises(ServiceError, match=reason):
        read_version(body)


# Faults of ours.


@pytest.mark.parametrize("path", ["/boom", "/v1/boom", "/v2/boom"])
def test_a_fault_in_a_view_is_a_500_with_a_request_id(path: str, world: World) -> None:
    """One line with the traceback in the log; the caller gets the id to ask for it and nothing of our insides."""

    def boom() -> str:
        raise ZeroDivisionError("s3cr3t-canary")

    world.app.add_url_rule(path, "boom", boom)
    response = world.client.get(path, headers={"X-Request-Id": "find-me"})
    assert response.status_code == 500
    assert response.headers["X-Request-Id"] == "find-me"
    assert response.headers["X-Model-Name"] == "iris"
    assert error_of(response)["code"] == "internal-error"
    body = response.get_data(as_text=True)
    assert not [word for word in ("s3cr3t-canary", "ZeroDivisionError", "Traceback", ".py") if word in body]
    (line,) = world.log_lines
    assert (line["level"], line["request_id"]) == ("ERROR", "find-me")
    assert line["exc_info"].startswith("Traceback")
    assert "ZeroDivisionError" in line["exc_info"]


def test_a_body_over_the_limit_is_refused_by_its_length(iris: Example) -> None:
    """The length that the head promises is enough: nothing is read."""
    world = World(iris.model, SCORER_MAX_BODY_BYTES="10")
    response = world.client.post("/predict", data=b"[4.4, 3.0, 1.3, 0.2]")
    assert (response.status_code, error_of(response)["code"]) == (413, "payload-too-large")


# Creating applications.


def test_the_application_is_created_from_the_environment(iris: Example, monkeypatch: pytest.MonkeyPatch) -> None:
    """`service.app:create_app()` is all that a WSGI server needs."""
    monkeypatch.setenv("SCORER_MODEL", str(iris.path))
    monkeypatch.setenv("SCORER_MODEL_NAME", "flowers")
    client = create_app().test_client()
    response = client.post("/v1/models/flowers:predict", json={"instances": [ROW]})
    assert response.json == {"predictions": [0.0]}
    assert client.get("/readyz").status_code == 200
    assert b'scorer_workers{state="ready"} 1.0' in client.get("/metrics").data


def test_an_application_without_its_model_is_not_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORER_MODEL", str(tmp_path / "gone.ubj"))
    with pytest.raises(StartError, match="no such file"):
        create_app()


def test_two_applications_do_not_know_each_other(iris: Example, cancer: Example) -> None:
    """No state at module level: models and metrics are each application's own."""
    one, other = World(iris.model), World(cancer.model)
    one.client.post("/predict", json=ROW)
    assert one.client.get("/v1/models").json == {"models": ["iris"]}
    assert other.client.get("/v1/models").json == {"models": ["breast-cancer"]}
    assert one.counts.total[one.recorder.block.layout.rows] == 1
    assert other.counts.total[other.recorder.block.layout.rows] == 0


def test_the_edge_is_in_the_application(world: World) -> None:
    """Where a WSGI server's hooks find it."""
    assert create_app_around(world.edge).extensions["scorer"] is world.edge
