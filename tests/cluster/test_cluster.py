"""The chart on a real Kubernetes, whichever KUBECONFIG names: `make test-cluster` builds the image and calls this.

    KUBECONFIG, CLUSTER_IMAGE   cluster, and an image with the iris model that its nodes have
    EDGE_URL                    where the F5 controller of the cluster listens, seen from here
    EDGE_URL_FROM_PODS          the same, seen from a pod

Without EDGE_URL an NGINX on this machine stands in for the controller, with a configuration rendered by hand after the
controller's template (tests/chart/nginx.py); this machine must reach the pods' addresses. NGINX from 1.27.4 is reloaded whenever
pods come or go, as the controller does. An older one loses requests of callers at each reload, whatever is behind it: it gets the
Service's address instead (edge.nginx.useClusterIp) and is never reloaded.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import obstore
import pytest
import yaml
from moto.server import ThreadedMotoServer
from obstore.store import S3Store

from charts.dashboard import ROWS
from tests.chart.helm import Manifest, find, missing
from tests.chart.nginx import MISSING, NGINX, Nginx, survives_reload
from tests.chart.prometheus import MISSING as PROMETHEUS_MISSING
from tests.chart.prometheus import PROMETHEUS, running_prometheus
from tests.cluster.cluster import HOST, RELEASE, Controller, Load, Release, has, is_ready, own_address, wait_for
from tests.serving import IRIS, free_port

IMAGE = os.environ.get("CLUSTER_IMAGE", "")
EDGE_URL = os.environ.get("EDGE_URL", "")


def absent() -> str:
    if not os.environ.get("KUBECONFIG"):
        return "KUBECONFIG names no cluster"
    if not IMAGE:
        return "CLUSTER_IMAGE names no image; `make test-cluster` builds one"
    if not has("kubectl"):
        return "kubectl is missing"
    return missing() or ("" if EDGE_URL or NGINX else MISSING)


pytestmark = [pytest.mark.skipif(bool(absent()), reason=absent()), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Release, str]]:
    """The release, and the address of the proxy."""
    namespace = f"scorer-test-{os.getpid()}"
    bare = Release(namespace, IMAGE)
    subprocess.run(["kubectl", "create", "namespace", namespace], check=True, capture_output=True)
    try:
        if EDGE_URL:
            release = Release(namespace, IMAGE, os.environ.get("EDGE_URL_FROM_PODS", ""))
            release.upgrade()
            yield release, EDGE_URL
        else:
            port = free_port()
            release = Release(
                namespace, IMAGE, f"http://{own_address(bare)}:{port}", use_cluster_ip=not survives_reload()
            )
            release.upgrade()
            with stand_in_for_the_controller(release, tmp_path_factory.mktemp("edge"), port) as url:
                yield release, url
    finally:
        subprocess.run(["kubectl", "delete", "namespace", namespace, "--wait=false"], check=True, capture_output=True)


@contextmanager
def stand_in_for_the_controller(release: Release, folder: Path, port: int) -> Iterator[str]:
    ingress = find(list(yaml.safe_load_all(release.helm("get", "manifest", RELEASE).stdout)), "Ingress")
    nginx = Nginx(folder, ingress, "0.0.0.0", port, ())
    nginx.start([] if survives_reload() else [release.service_address()])
    controller = Controller(release, nginx, 8000) if survives_reload() else None
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        if controller:
            controller.stop()
        nginx.stop()


@pytest.fixture
def release(installed: tuple[Release, str]) -> Release:
    return installed[0]


@pytest.fixture
def load(installed: tuple[Release, str]) -> Iterator[Load]:
    """Callers, from before the test until after it, of whom none may lose a request."""
    wait_for("the edge lets scores through", lambda: not answers_badly(installed[1]))
    with Load(installed[1]) as callers:
        yield callers
    print(f"{callers.answered} requests answered, {len(callers.failures)} lost")
    assert callers.failures == []
    assert callers.answered > 100


def answers_badly(url: str) -> list[str]:
    with Load(url, clients=1) as probe:
        time.sleep(0.2)
    return probe.failures


def pod_names(release: Release) -> set[str]:
    return {pod["metadata"]["name"] for pod in release.pods()}


def is_gone(release: Release, pod: str) -> bool:
    return pod not in pod_names(release)


def test_helm_test_is_green(release: Release) -> None:
    """Golden rows through the Service and through the proxy, metrics on the admin port, nothing else outside."""
    result = release.helm("test", RELEASE, "--logs", "--timeout", "300s", check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("Phase:          Succeeded") == (4 if release.edge_url else 3)
    assert "BROKEN" not in result.stdout


def test_our_own_kernels_serve_in_a_locked_down_pod(release: Release) -> None:
    """A cache that cannot be written would leave it to XGBoost, unnoticed."""
    logs = [release.kubectl("logs", pod["metadata"]["name"]).stdout for pod in release.ready_pods()]
    assert logs
    assert all('"engine":"packed"' in log for log in logs)
    assert not any('"level":"ERROR"' in log for log in logs)


@contextmanager
def forwarded(command: list[str], remote: str) -> Iterator[int]:
    """The port of this machine from which `kubectl port-forward` leads to the remote one."""
    port = free_port()
    with subprocess.Popen(["kubectl", *command, f"{port}:{remote}"], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()  # it listens
            yield port
        finally:
            process.terminate()


def test_the_notes_curl_works(release: Release) -> None:
    notes = release.helm("get", "notes", RELEASE).stdout
    (forward,) = re.findall(r"kubectl (.* port-forward .*) 8080:(\d+) &", notes)
    (curl,) = re.findall(r"^ *curl (http://127\.0\.0\.1:8080.*)$", notes, re.MULTILINE)
    with forwarded(forward[0].split(), forward[1]) as port:
        command = f"curl --silent --fail {curl.replace(':8080/', f':{port}/')}"
        found = subprocess.run(command, shell=True, check=True, capture_output=True, text=True, timeout=30)
    assert found.stdout == '{"predictions":[1.0,1.0]}'


def test_the_notes_curl_through_the_proxy_works(installed: tuple[Release, str]) -> None:
    """With the proxy's address in place of what DNS would tell."""
    release, url = installed
    wait_for("the edge lets scores through", lambda: not answers_badly(url))
    notes = release.helm("get", "notes", RELEASE).stdout
    (curl,) = re.findall(rf"^ *curl (http://{re.escape(HOST)}/.*)$", notes, re.MULTILINE)
    proxy = urlsplit(url)
    command = f"curl --silent --fail --connect-to {HOST}:80:{proxy.hostname}:{proxy.port or 80} {curl}"
    found = subprocess.run(command, shell=True, check=True, capture_output=True, text=True, timeout=30)
    assert found.stdout == '{"predictions":[1.0,1.0]}'


@pytest.mark.skipif(not PROMETHEUS, reason=PROMETHEUS_MISSING)
def test_every_query_of_the_dashboard_has_data_of_a_pod(release: Release, load: Load, tmp_path: Path) -> None:
    """Those of limits too, which a test without a pod cannot see (tests/chart/test_dashboard.py)."""
    queries = [query for row in ROWS for panel in row.panels for query in panel.queries]
    service = ["--namespace", release.namespace, "port-forward", f"service/{release.name}-admin"]
    with forwarded(service, "9000") as port, running_prometheus(tmp_path, f"127.0.0.1:{port}") as prometheus:
        scored = 'rate(scorer_stage_seconds_count{stage="predict"}[5s]) > 0'
        wait_for("Prometheus has seen scores", lambda: prometheus.has_had(scored), 60)
        assert [query.expression for query in queries if not prometheus.query_since_start(query.expression)] == []


def test_pods_have_no_token_for_the_kubernetes_api(release: Release) -> None:
    for pod in release.pods():
        mounts = [mount["mountPath"] for container in pod["spec"]["containers"] for mount in container["volumeMounts"]]
        assert not [path for path in mounts if "serviceaccount" in path]


def test_a_rolling_update_loses_no_request(release: Release, load: Load) -> None:
    before = pod_names(release)
    release.upgrade('podAnnotations={"test": "rolled"}')
    wait_for("the old pods are gone", lambda: not before & pod_names(release))


def test_an_eviction_loses_no_request_and_the_budget_keeps_one_pod(release: Release, load: Load) -> None:
    for _ in range(2):
        wait_for("two pods are ready", lambda: len(release.ready_pods()) >= 2)
        first, second, *_ = sorted(pod["metadata"]["name"] for pod in release.ready_pods())
        assert release.evict(first).returncode == 0
        if len(release.pods()) <= 2:
            refused = release.evict(second)
            assert "disruption budget" in refused.stderr
        wait_for("the evicted pod is gone", partial(is_gone, release, first))
    wait_for("two pods are ready", lambda: len(release.ready_pods()) >= 2)


def test_a_bad_digest_never_becomes_ready_and_a_rollback_mends_it(release: Release, load: Load) -> None:
    """The new pods say what is wrong, the old ones serve on, whoever asks."""
    revision = yaml.safe_load(release.helm("history", RELEASE, "--max", "1", "--output", "yaml").stdout)[0]["revision"]
    before = {pod["metadata"]["name"] for pod in release.ready_pods()}
    release.upgrade(f'model.sha256="{"0" * 64}"', wait=False)
    new = wait_for("a new pod", lambda: pod_names(release) - before)

    def refusal() -> str:
        return "".join(release.kubectl("logs", name, "--tail=5", check=False).stdout for name in new)

    wait_for("the new pod refuses the model", lambda: "000000000000" in refusal())
    time.sleep(15)  # for whatever would become ready after all
    assert not [pod for pod in release.pods() if pod["metadata"]["name"] not in before and is_ready(pod)]
    assert len([pod for pod in release.ready_pods() if pod["metadata"]["name"] in before]) >= 2

    release.helm("rollback", RELEASE, str(revision))
    release.wait_until_rolled_out()
    assert {pod["metadata"]["annotations"]["xgboost-server/model-sha256"] for pod in release.ready_pods()} != {"0" * 64}


@contextmanager
def object_store(address: str) -> Iterator[str]:
    """A server of S3's API on this machine, with the iris model as the first version in a bucket; its URL."""
    server = ThreadedMotoServer(ip_address=address, port=0, verbose=False)
    server.start()
    try:
        url = f"http://{address}:{server.get_host_and_port()[1]}"
        urllib.request.urlopen(urllib.request.Request(f"{url}/models", b"", method="PUT"), timeout=30).close()
        store = S3Store(
            "models",
            endpoint=url,
            access_key_id="key",
            secret_access_key="secret",
            client_options={"allow_http": True},
        )
        obstore.put(store, "iris/1/model.ubj", IRIS)
        yield url
    finally:
        server.stop()


def test_a_model_in_an_object_store_is_fetched_by_the_init_container(release: Release, load: Load) -> None:
    with object_store(own_address(release)) as url:
        environment = {
            "AWS_ENDPOINT_URL": url,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_REGION": "us-east-1",
        }
        entries = [{"name": name, "value": value} for name, value in environment.items()]
        release.upgrade(
            'model.uri="s3://models/iris/1/model.ubj"',
            f"env={json.dumps(entries)}",
            f"networkPolicy.modelPort={url.rpartition(':')[2]}",
        )
        wait_for("the pods with the baked model are gone", lambda: all(map(has_fetched, release.pods())))
        for pod in release.ready_pods():
            log = release.kubectl("logs", pod["metadata"]["name"], "--container", "fetch-model").stdout
            assert "/model/model.ubj: fetched" in log
        # While the store is still there: a pod that a scaler adds later would wait for it for ever.
        release.upgrade()
        wait_for("the pods that fetched are gone", lambda: not any(map(has_fetched, release.pods())))


def has_fetched(pod: Manifest) -> bool:
    return bool(pod["spec"].get("initContainers"))


def test_the_scaler_adds_pods_under_load_and_takes_them_away_after(installed: tuple[Release, str]) -> None:
    release, url = installed
    if release.kubectl("top", "pod", check=False).returncode != 0:
        pytest.skip("no metrics-server: kubectl top does not answer")

    def replicas() -> int:
        (scaler,) = release.get("hpa")
        return int(scaler["status"]["currentReplicas"])

    wait_for("two pods", lambda: replicas() == 2)
    with Load(url, clients=8, pause=0) as callers:
        wait_for("more pods", lambda: replicas() > 2)
        wait_for("more pods are ready", lambda: len(release.ready_pods()) > 2)
    wait_for("two pods again", lambda: replicas() == 2, 600)
    print(f"{callers.answered} requests answered, {len(callers.failures)} lost")
    assert callers.failures == []


def test_uninstall_leaves_nothing(release: Release) -> None:
    """The last test: nothing of the release is there any more, of whatever kind."""
    release.helm("uninstall", RELEASE, "--wait", "--timeout", "180s")
    listed = release.kubectl("api-resources", "--verbs=list", "--namespaced", "--output=name").stdout.split()
    kinds = ",".join(kind for kind in listed if not kind.startswith(("events", "pods.metrics")))

    def left() -> str:
        return release.kubectl(
            "get", kinds, "--selector", f"app.kubernetes.io/instance={RELEASE}", "--output=name"
        ).stdout

    wait_for("the last pod is gone", lambda: not left(), 180)
