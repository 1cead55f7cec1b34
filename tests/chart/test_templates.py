"""What the manifests promise, value by value."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from service.metrics import BUCKETS
from service.settings import SETTINGS
from service.wire import ROUTES
from tests.chart.helm import CASES, CHART, HERE, Manifest, find, manifests, missing, render, run_helm

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

BASE = HERE / "base-values.yaml"
every_case = pytest.mark.parametrize("case", CASES)


def base(*sets: str) -> list[Manifest]:
    return manifests(BASE, *sets)


def pod_of(documents: list[Manifest]) -> dict[str, Any]:
    spec: dict[str, Any] = find(documents, "Deployment")["spec"]["template"]["spec"]
    return spec


def server_of(documents: list[Manifest]) -> dict[str, Any]:
    (server,) = pod_of(documents)["containers"]
    assert isinstance(server, dict)
    return server


def environment_of(container: dict[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry.get("value", "") for entry in container["env"]}


def all_pods(documents: list[Manifest]) -> Iterator[dict[str, Any]]:
    yield pod_of(documents)
    yield from (document["spec"] for document in documents if document["kind"] == "Pod")


# The pod.


@every_case
def test_pods_run_locked_down(case: str) -> None:
    for pod in all_pods(manifests(CASES[case])):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        for container in pod["containers"] + pod.get("initContainers", []):
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
            assert container["resources"]["requests"]["cpu"]


@every_case
def test_no_variable_is_set_twice(case: str) -> None:
    names = [entry["name"] for entry in server_of(manifests(CASES[case]))["env"]]
    assert len(names) == len(set(names))


def test_image_is_named_by_digest_where_there_is_one() -> None:
    assert server_of(base('image.tag="2"'))["image"].endswith(
        "/xgboost-server@sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    )


def test_image_without_digest_or_tag_is_that_of_the_charts_version() -> None:
    image = server_of(base('environment="development"', 'image.digest=""'))["image"]
    assert image == "registry.example.com/xgboost-server:0.1.0"


@pytest.mark.parametrize(
    ("resources", "workers"),
    [
        ('{"preset": "small"}', "1"),
        ('{"preset": "xlarge"}', "8"),
        ('{"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"cpu": "500m", "memory": "1Gi"}}', "1"),
        ('{"requests": {"cpu": 1, "memory": "1Gi"}, "limits": {"cpu": 2.5, "memory": "1Gi"}}', "2"),
        ('{"requests": {"cpu": "3", "memory": "1Gi"}, "limits": {"memory": "1Gi"}}', "3"),
        ('{"requests": {"cpu": "1", "memory": "1G"}, "limits": {"cpu": "3999m", "memory": "1G"}}', "3"),
    ],
)
def test_workers_follow_the_cpus(resources: str, workers: str) -> None:
    assert environment_of(server_of(base(f"resources={resources}")))["WEB_CONCURRENCY"] == workers


def test_explicit_resources_replace_the_preset_whole() -> None:
    found = server_of(base('resources={"requests": {"cpu": 1, "memory": "1Gi"}, "limits": {"memory": "1Gi"}}'))[
        "resources"
    ]
    assert found == {"requests": {"cpu": 1, "memory": "1Gi"}, "limits": {"memory": "1Gi"}}


@pytest.mark.parametrize(
    ("sets", "pre_stop", "grace"),
    [
        ((), 10, 50),
        (("drainSeconds=6",), 5, 21),
        (("drainSeconds=90",), 30, 130),
        (('edge={"kind": "aws-nlb"}', 'networkPolicy={"enabled": false}'), 45, 85),
        (("terminationGracePeriodSeconds=300",), 10, 300),
    ],
)
def test_stop_sequence_follows_from_the_drain(sets: tuple[str, ...], pre_stop: int, grace: int) -> None:
    documents = base(*sets)
    assert server_of(documents)["lifecycle"] == {"preStop": {"sleep": {"seconds": pre_stop}}}
    assert pod_of(documents)["terminationGracePeriodSeconds"] == grace


def test_drain_is_told_to_the_server() -> None:
    assert environment_of(server_of(base("drainSeconds=90")))["SCORER_DRAIN_SECONDS"] == "90"


def test_probes_ask_for_life_and_readiness() -> None:
    server = server_of(base("startupSeconds=300"))
    assert server["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "http"}
    assert server["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
    startup = server["startupProbe"]
    assert startup["httpGet"] == {"path": "/livez", "port": "http"}
    assert startup["failureThreshold"] * startup["periodSeconds"] == 300


def test_an_update_never_has_fewer_pods_than_wanted() -> None:
    assert find(base(), "Deployment")["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_pods_roll_when_a_file_changes_and_not_when_the_chart_does() -> None:
    def template(text: str) -> Any:
        return find(base(f'files={{"ca.pem": "{text}"}}'), "Deployment")["spec"]["template"]

    assert template("one")["metadata"]["annotations"] != template("two")["metadata"]["annotations"]
    assert "0.1.0" not in json.dumps(template("one")["metadata"])


def test_files_are_mounted_read_only() -> None:
    documents = base('files={"ca.pem": "text"}')
    assert find(documents, "ConfigMap", "-files")["data"] == {"ca.pem": "text"}
    mounts = {mount["name"]: mount for mount in server_of(documents)["volumeMounts"]}
    assert mounts["files"] == {"name": "files", "mountPath": "/etc/xgboost-server", "readOnly": True}


def test_a_selector_never_changes_with_labels_or_versions() -> None:
    """Kubernetes refuses to change it."""
    selector = find(base('labels={"team": "scoring"}'), "Deployment")["spec"]["selector"]["matchLabels"]
    assert selector == {
        "app.kubernetes.io/name": "xgboost-server",
        "app.kubernetes.io/instance": "churn",
        "app.kubernetes.io/component": "server",
    }


@every_case
def test_every_service_and_policy_finds_the_pods_and_no_test_pod(case: str) -> None:
    documents = manifests(CASES[case])
    labels = find(documents, "Deployment")["spec"]["template"]["metadata"]["labels"].items()
    tests = [document["metadata"]["labels"].items() for document in documents if document["kind"] == "Pod"]
    for document in documents:
        spec = document.get("spec", {})
        selector = (
            spec.get("selector", spec.get("podSelector")) if document["kind"] not in ("Pod", "ServiceMonitor") else None
        )
        if selector:
            wanted = selector.get("matchLabels", selector).items()
            assert wanted <= labels
            assert not any(wanted <= test for test in tests)


def test_names_are_short_enough_for_labels_and_services() -> None:
    documents = base(f'fullnameOverride="{"a" * 45}"')
    assert max(len(document["metadata"]["name"]) for document in documents) <= 63


# The model.


@pytest.mark.parametrize(
    ("uri", "place", "volume"),
    [
        ("file:///models/churn/model.ubj", "/models/churn/model.ubj", None),
        ("s3://bucket/churn/7/model.ubj", "/model/model.ubj", "emptyDir"),
        ("s3://bucket/churn", "/model", "emptyDir"),
        ("gs://bucket/churn/model.json", "/model/model.json", "emptyDir"),
        ("az://container/churn/", "/model", "emptyDir"),
        ("https://example.com/model.json?version=7", "/model/model.json", "emptyDir"),
        ("pvc://models/churn/7/model.ubj", "/model/churn/7/model.ubj", "persistentVolumeClaim"),
        ("pvc://models", "/model", "persistentVolumeClaim"),
        ("oci://registry.example.com/churn@sha256:9f86", "/model/model.ubj", "image"),
    ],
)
def test_a_model_comes_in_by_its_uri(uri: str, place: str, volume: str | None) -> None:
    documents = base(f'model.uri="{uri}"')
    assert environment_of(server_of(documents))["SCORER_MODEL"] == place
    sources = [source for source in pod_of(documents)["volumes"] if source["name"] == "model"]
    assert [next(key for key in source if key != "name") for source in sources] == ([volume] if volume else [])
    assert [container["name"] for container in pod_of(documents).get("initContainers", [])] == (
        ["fetch-model"] if volume == "emptyDir" else []
    )


def test_a_large_model_has_room_wherever_the_server_puts_it() -> None:
    """An emptyDir that overflows evicts its pod."""
    documents = base('model.uri="s3://bucket/churn"', 'model.volumeSize="20Gi"')
    sizes = {source["name"]: source["emptyDir"]["sizeLimit"] for source in pod_of(documents)["volumes"]}
    assert sizes == {"model": "20Gi", "cache": "20Gi", "tmp": "20Gi"}


FETCHED = 'model.uri="s3://bucket/churn"'


@pytest.mark.parametrize(
    ("sets", "seconds"),
    [
        ((), 600),
        (("startupSeconds=900",), 1020),
        ((FETCHED,), 1200),
        ((FETCHED, 'settings={"SCORER_FETCH_TIMEOUT_SECONDS": "1800.5"}'), 2401),
        ((FETCHED, "progressDeadlineSeconds=785"), 785),
        (("progressDeadlineSeconds=185",), 185),
    ],
)
def test_an_update_does_not_count_as_failed_before_a_pod_can_be_ready(sets: tuple[str, ...], seconds: int) -> None:
    assert find(base(*sets), "Deployment")["spec"]["progressDeadlineSeconds"] == seconds


def test_the_server_and_the_chart_agree_how_long_a_fetch_may_take() -> None:
    (setting,) = (setting for setting in SETTINGS if setting.variable == "SCORER_FETCH_TIMEOUT_SECONDS")
    numbers = (CHART / "templates" / "_numbers.tpl").read_text(encoding="utf-8")
    assert f'SCORER_FETCH_TIMEOUT_SECONDS | default "{setting.default}"' in numbers


def test_annotations_of_the_deployment_are_its_own() -> None:
    """Those of the pods would roll them."""
    deployment = find(base('deploymentAnnotations={"reloader.stakater.com/auto": "true"}'), "Deployment")
    assert deployment["metadata"]["annotations"] == {"reloader.stakater.com/auto": "true"}
    assert deployment["spec"] == find(base(), "Deployment")["spec"]


def test_a_fetched_model_is_checked_twice_against_its_digest() -> None:
    """By who fetches it, and by who serves it."""
    documents = base('model.uri="s3://bucket/churn/7/model.ubj"')
    digest = "08c8c78b40b3b3ff3e4e3c0a1c1bd6d5b4b1e0a7b58a3b8b6f8f0f5e1d2c3b4a"
    (fetch,) = pod_of(documents)["initContainers"]
    assert fetch["args"] == ["fetch", "s3://bucket/churn/7/model.ubj", "/model", "--sha256", digest]
    assert environment_of(server_of(documents))["SCORER_MODEL_SHA256"] == digest


def test_the_server_cannot_change_the_model() -> None:
    for uri in ("s3://bucket/churn", "pvc://models", "oci://registry.example.com/churn@sha256:9f86"):
        mounts = {mount["mountPath"]: mount for mount in server_of(base(f'model.uri="{uri}"'))["volumeMounts"]}
        assert mounts["/model"]["readOnly"] is True


def test_a_fetch_over_https_speaks_to_its_own_host_and_those_that_are_named() -> None:
    documents = base('model.uri="https://example.com/model.ubj"', 'model.httpsHosts=["cdn.example.com"]')
    (fetch,) = pod_of(documents)["initContainers"]
    assert environment_of(fetch)["SCORER_MODEL_HTTPS_HOSTS"] == "example.com,cdn.example.com"


def test_a_signed_query_is_not_shown_in_annotations() -> None:
    documents = base('model.uri="https://example.com/model.ubj?signature=secret"')
    assert "secret" not in json.dumps(find(documents, "Deployment")["spec"]["template"]["metadata"])


def test_image_and_model_are_named_where_operators_look() -> None:
    annotations = find(base(), "Deployment")["spec"]["template"]["metadata"]["annotations"]
    assert annotations["xgboost-server/model-uri"] == "file:///models/churn/model.ubj"
    assert annotations["xgboost-server/model-sha256"].startswith("08c8c78b")


# Scaling and stopping.


@pytest.mark.parametrize(
    ("scaler", "kinds", "has_replicas"),
    [
        ("hpa", {"HorizontalPodAutoscaler"}, False),
        ("keda", {"ScaledObject"}, False),
        ("none", set(), True),
    ],
)
def test_one_scaler_at_a_time_and_no_replicas_beside_it(scaler: str, kinds: set[str], has_replicas: bool) -> None:
    """Replicas in a manifest would set the count back at each sync (argoproj/argo-cd#5105)."""
    prometheus = '"http://prometheus:9090"' if scaler == "keda" else '""'
    documents = base(
        f'autoscaling.scaler="{scaler}"',
        f"autoscaling.keda.serverAddress={prometheus}",
        "monitoring.serviceMonitor.enabled=true",
    )
    assert {document["kind"] for document in documents} & {"HorizontalPodAutoscaler", "ScaledObject"} == kinds
    assert ("replicas" in find(documents, "Deployment")["spec"]) is has_replicas


def test_hpa_scales_from_two_to_ten_pods_at_half_the_cpu() -> None:
    spec = find(base(), "HorizontalPodAutoscaler")["spec"]
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 10)
    (metric,) = spec["metrics"]
    assert metric["containerResource"]["container"] == server_of(base())["name"]
    assert metric["containerResource"]["target"] == {"type": "Utilization", "averageUtilization": 50}
    assert spec["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 300


def test_hpa_metrics_have_one_order() -> None:
    """Argo CD sees another order as a change (argoproj/argo-cd#1079)."""
    spec = find(base("autoscaling.memoryPercent=80"), "HorizontalPodAutoscaler")["spec"]
    assert [metric["containerResource"]["name"] for metric in spec["metrics"]] == ["cpu", "memory"]


def test_keda_keeps_pods_when_prometheus_is_lost() -> None:
    spec = find(manifests(CASES["keda"]), "ScaledObject")["spec"]
    assert spec["fallback"] == {"failureThreshold": 3, "replicas": 6, "behavior": "currentReplicasIfHigher"}
    (trigger,) = spec["triggers"]
    assert trigger["metadata"]["ignoreNullValues"] == "false"
    assert trigger["metricType"] == "AverageValue"
    assert 'service="churn-xgboost-server-admin"' in trigger["metadata"]["query"]


def test_a_budget_lets_nodes_be_drained() -> None:
    spec = find(base(), "PodDisruptionBudget")["spec"]
    assert spec["maxUnavailable"] == 1
    assert spec["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    spec = find(
        base("autoscaling.minReplicas=3", 'disruptionBudget.maxUnavailable=""', "disruptionBudget.minAvailable=2"),
        "PodDisruptionBudget",
    )["spec"]
    assert spec["minAvailable"] == 2
    assert "maxUnavailable" not in spec


# The edge.


@pytest.mark.parametrize(
    ("sets", "kinds", "service"),
    [
        ((), {"Ingress"}, "ClusterIP"),
        (('edge.kind="gateway"', 'edge.gateway.parentRefs=[{"name": "public"}]'), {"HTTPRoute"}, "ClusterIP"),
        (('edge.kind="aws-nlb"', "networkPolicy.enabled=false"), set(), "LoadBalancer"),
        (('edge.kind="none"',), set(), "ClusterIP"),
    ],
)
def test_one_way_in_at_a_time(sets: tuple[str, ...], kinds: set[str], service: str) -> None:
    documents = base(*sets)
    assert {document["kind"] for document in documents} & {"Ingress", "HTTPRoute"} == kinds
    assert find(documents, "Service", "-xgboost-server")["spec"]["type"] == service


def test_a_load_balancer_never_publishes_the_admin_port() -> None:
    documents = manifests(CASES["aws-nlb"])
    published = [
        document for document in documents if document["kind"] == "Service" and document["spec"]["type"] != "ClusterIP"
    ]
    assert [port["targetPort"] for service in published for port in service["spec"]["ports"]] == ["http", "http"]
    assert find(documents, "Service", "-admin")["spec"]["type"] == "ClusterIP"


def test_a_load_balancer_is_internal_and_keeps_the_callers_addresses() -> None:
    annotations = find(manifests(CASES["aws-nlb"]), "Service", "-xgboost-server")["metadata"]["annotations"]
    prefix = "service.beta.kubernetes.io/aws-load-balancer-"
    assert annotations[f"{prefix}scheme"] == "internal"
    assert annotations[f"{prefix}nlb-target-type"] == "ip"
    assert "preserve_client_ip.enabled=true" in annotations[f"{prefix}target-group-attributes"]
    assert annotations[f"{prefix}healthcheck-path"] == "/readyz"


def ingress_paths(documents: list[Manifest]) -> list[str]:
    paths = find(documents, "Ingress")["spec"]["rules"][0]["http"]["paths"]
    assert {path["pathType"] for path in paths} == {"Exact"}
    return [path["path"] for path in paths]


def test_the_edge_lets_scoring_paths_through_and_nothing_else() -> None:
    """All routes that score, in whatever protocol; one for a version is asked for by name, in edge.extraPaths."""
    scoring = [route.template.replace("{model}", "churn") for route in ROUTES]
    assert ingress_paths(base()) == [path for path in scoring if "{version}" not in path]


def test_gateway_and_ingress_let_the_same_paths_through() -> None:
    spec = find(manifests(CASES["gateway"]), "HTTPRoute")["spec"]
    matches = [match["path"] for rule in spec["rules"] for match in rule["matches"]]
    assert {path["type"] for path in matches} == {"Exact"}
    assert [path["value"] for path in matches] == ingress_paths(base())


def annotations_of(*sets: str) -> dict[str, str]:
    return {
        name.removeprefix("nginx.org/"): value
        for name, value in find(base(*sets), "Ingress")["metadata"]["annotations"].items()
    }


def test_connections_to_the_pods_are_kept() -> None:
    """Without the annotation the controller writes no `keepalive`, and NGINX opens a connection for every request."""
    assert int(annotations_of()["keepalive"]) > 0


def test_one_value_limits_the_body_at_the_edge_and_in_the_server() -> None:
    sets = "server.maxBodyBytes=2097152"
    assert annotations_of(sets)["client-max-body-size"] == "2097152"
    assert environment_of(server_of(base(sets)))["SCORER_MAX_BODY_BYTES"] == "2097152"


def test_a_post_is_sent_again_only_where_that_is_wanted() -> None:
    assert annotations_of()["proxy-next-upstream"] == "error timeout non_idempotent"
    assert annotations_of("edge.nginx.retries.nonIdempotent=false")["proxy-next-upstream"] == "error timeout"
    assert annotations_of("edge.nginx.retries.causes=[]")["proxy-next-upstream"] == "off"


def test_rate_limit_answers_429() -> None:
    assert not any(name.startswith("limit-req") for name in annotations_of())
    annotations = annotations_of('edge.nginx.rateLimit.rate="100r/s"')
    assert annotations["limit-req-rate"] == "100r/s"
    assert annotations["limit-req-reject-code"] == "429"


def test_a_certificate_brings_redirect_and_strict_transport() -> None:
    assert annotations_of()["ssl-redirect"] == "false"
    annotations = annotations_of('edge.nginx.tlsSecret="churn-tls"')
    assert (annotations["ssl-redirect"], annotations["hsts"]) == ("true", "true")
    tls = find(base('edge.nginx.tlsSecret="churn-tls"'), "Ingress")["spec"]["tls"]
    assert tls == [{"hosts": ["churn.example.com"], "secretName": "churn-tls"}]


def test_errors_of_nginx_are_json_in_our_shapes() -> None:
    snippet = annotations_of()["server-snippets"]
    bodies = [json.loads(body) for body in re.findall(r"return \d+ '(.*)';", snippet)]
    problems = [body for body in bodies if "detail" in body]
    envelopes = [body for body in bodies if "error" in body]
    assert [body["status"] for body in problems] == [404, 413, 429, 502, 503, 504]
    assert [body["code"] for body in envelopes] == [body["code"] for body in problems]
    assert all(set(body) == {"type", "title", "status", "detail", "code", "request_id"} for body in problems)
    assert all(set(body) == {"error", "code"} for body in envelopes)
    assert "error_page" not in annotations_of("edge.nginx.jsonErrors=false")["server-snippets"]


def test_without_what_needs_a_snippet_there_is_none() -> None:
    """Controllers refuse snippets by default."""
    sets = ("edge.nginx.jsonErrors=false", "edge.nginx.keepaliveMinSeconds=0")
    assert "server-snippets" not in annotations_of(*sets)


def test_idle_connections_of_callers_outlive_a_reload() -> None:
    assert annotations_of()["server-snippets"].startswith("keepalive_min_timeout 30s;\n")


def test_annotations_of_ones_own_win() -> None:
    assert annotations_of('edge.nginx.annotations={"nginx.org/keepalive": "8"}')["keepalive"] == "8"


# Who may speak to whom.


def peers(policy: Manifest, port: str) -> list[Any]:
    rules = [rule for rule in policy["spec"]["ingress"] if port in {entry["port"] for entry in rule["ports"]}]
    return [peer for rule in rules for peer in rule["from"]]


def test_callers_reach_the_callers_port_and_prometheus_the_admin_port() -> None:
    policy = find(base(), "NetworkPolicy")
    namespaces = [
        [
            peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
            for peer in peers(policy, port)
            if "namespaceSelector" in peer
        ]
        for port in ("http", "admin")
    ]
    assert namespaces == [["nginx-ingress"], ["monitoring"]]


@pytest.mark.parametrize(
    ("uri", "identity", "ports"),
    [
        ("file:///models/churn/model.ubj", "false", [53, 53]),
        ("pvc://models", "true", [53, 53]),
        ("s3://bucket/churn", "false", [53, 53, 443]),
        ("s3://bucket/churn", "true", [53, 53, 443, 80]),
    ],
)
def test_pods_get_out_to_dns_and_the_models_source_only(uri: str, identity: str, ports: list[int]) -> None:
    policy = find(base(f'model.uri="{uri}"', f"serviceAccount.awsPodIdentity={identity}"), "NetworkPolicy")
    assert [port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]] == ports


def test_the_metadata_service_of_the_machine_is_out_of_reach() -> None:
    policy = find(base('model.uri="s3://bucket/churn"'), "NetworkPolicy")
    assert policy["spec"]["egress"][1]["to"] == [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}}]


def test_a_role_is_named_on_the_account() -> None:
    account = find(manifests(CASES["nginx"]), "ServiceAccount")
    assert account["metadata"]["annotations"] == {
        "eks.amazonaws.com/role-arn": "arn:aws:iam::111122223333:role/churn-model-reader"
    }


def test_an_account_that_is_there_is_used() -> None:
    documents = base('serviceAccount={"create": false, "name": "reader"}')
    assert pod_of(documents)["serviceAccountName"] == "reader"
    assert not [document for document in documents if document["kind"] == "ServiceAccount"]


# Watching.


def test_prometheus_scrapes_the_admin_port_and_no_other() -> None:
    documents = manifests(CASES["nginx"])
    monitor = find(documents, "ServiceMonitor")
    (endpoint,) = monitor["spec"]["endpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("admin", "/metrics")
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    services = [
        document
        for document in documents
        if document["kind"] == "Service" and wanted <= document["metadata"]["labels"].items()
    ]
    assert [service["metadata"]["name"] for service in services] == ["churn-xgboost-server-admin"]
    assert monitor["metadata"]["labels"]["release"] == "kube-prometheus-stack"


def test_the_latency_objective_may_be_any_bound_of_the_histogram_and_nothing_else() -> None:
    """Between two bounds nobody knows how many requests were slower."""
    schema = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
    rules = schema["properties"]["monitoring"]["properties"]["rules"]["properties"]
    assert tuple(rules["latencySeconds"]["enum"]) == BUCKETS


# helm test and the notes.


@every_case
def test_test_pods_are_hooks_that_clean_up_and_have_fixed_names(case: str) -> None:
    documents = manifests(CASES[case])
    pods = [document for document in documents if document["kind"] == "Pod"]
    names = ["churn-xgboost-server-test-service", "churn-xgboost-server-test-admin"]
    assert [pod["metadata"]["name"] for pod in pods][:2] == names
    for hook in (*pods, find(documents, "ConfigMap", "-test")):
        annotations = hook["metadata"]["annotations"]
        assert annotations["helm.sh/hook"] == "test"
        assert annotations["helm.sh/hook-delete-policy"] == "before-hook-creation,hook-succeeded"


def test_the_way_through_the_proxy_is_tested_where_its_address_is_known() -> None:
    pods = [document["metadata"]["name"] for document in manifests(CASES["nginx"]) if document["kind"] == "Pod"]
    assert pods[2:] == ["churn-xgboost-server-test-edge"]


def test_golden_rows_reach_the_test_pods_as_json() -> None:
    pod = find(manifests(CASES["development"]), "Pod", "-service")
    environment = environment_of(pod["spec"]["containers"][0])
    assert json.loads(environment["ROWS"]) == [[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]]
    assert json.loads(environment["PREDICTIONS"]) == [1.0, 1.0]


def test_a_test_pod_gets_the_authorities_of_the_proxys_certificate() -> None:
    pod = find(manifests(CASES["gateway"]), "Pod", "-edge")["spec"]
    (check,) = pod["containers"]
    (mount,) = (mount for mount in check["volumeMounts"] if mount["name"] == "authorities")
    assert environment_of(check)["SSL_CERT_FILE"] == f"{mount['mountPath']}/ca.pem"
    (volume,) = (volume for volume in pod["volumes"] if volume["name"] == "authorities")
    assert "ca.pem" in find(manifests(CASES["gateway"]), "ConfigMap", volume["configMap"]["name"])["data"]


def test_paths_that_are_let_through_on_purpose_are_no_fault_in_a_test_pod() -> None:
    pod = find(manifests(CASES["nginx"]), "Pod", "-edge")["spec"]
    assert json.loads(environment_of(pod["containers"][0])["EXTRA_PATHS"]) == ["/v1/models/churn", "/v2/models/churn"]


def test_yaml_holds_no_key_twice() -> None:
    """A later one would silently win."""

    class Strict(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            assert len(keys) == len(set(map(str, keys))), node.start_mark
            return super().construct_mapping(node, deep)

    for case in CASES.values():
        list(yaml.load_all(render(case), Loader=Strict))


def notes(case: str) -> str:
    """Of `helm install`, as if, without a cluster: Helm 3 would want one."""
    result = run_helm(
        "helm4", "install", "churn", CHART, "--dry-run=client", "--namespace", "scoring", "--values", CASES[case]
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.partition("NOTES:\n")[2]


def test_notes_print_a_curl_for_each_way_in() -> None:
    body = """-d '{"instances":[[6.8,2.8,4.8,1.4]]}'"""
    assert (
        f"curl https://churn.example.com/v1/models/churn:predict -H 'Content-Type: application/json' {body}"
        in notes("nginx")
    )
    assert "curl http://churn.example.com/v1/models/churn:predict" in notes("gateway")
    assert 'curl "https://$host/v1/models/churn:predict"' in notes("aws-nlb")
    assert "curl http://127.0.0.1:8080/v1/models/iris:predict" in notes("development")


def test_notes_say_what_is_switched_off() -> None:
    assert "Nobody is alerted" in notes("gateway")
    assert "Nobody is alerted" not in notes("nginx")
