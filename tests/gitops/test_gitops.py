"""argocd/ in a real Argo CD: `make test-gitops` calls this.

    KUBECONFIG    a cluster with Argo CD in the namespace argocd, whose pods reach this machine
    LOAD_IMAGE    a command that puts the images of an archive on its nodes
    SERVER_IMAGE  a built image of the server, where it need not be built

The tests build on each other, in this order, as commits do. They use the objects bootstrap and scoring of Argo CD, its
notifications and the namespaces scoring-dev and scoring, and remove them.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import urllib.request
from collections.abc import Iterator

import pytest

from tests.chart.helm import missing
from tests.cluster.cluster import PATH, ROW, Load, Release, has, own_address, wait_for
from tests.gitops.repository import (
    APPLICATION,
    NAMESPACE,
    PROD,
    Document,
    Repository,
    argocd,
    get,
    kubectl,
    look,
    run,
    settle_after,
    status,
    wait_until,
    wait_until_settled,
)
from tests.gitops.slack import Slack, listening_slack, running_notifications
from tests.serving import ROOT, free_port

IMAGE = "localhost/xgboost-server-gitops"
NAME = "xgboost-server"
REFUSED = "refused"


def absent() -> str:
    if not os.environ.get("KUBECONFIG"):
        return "KUBECONFIG names no cluster"
    if not os.environ.get("LOAD_IMAGE"):
        return "LOAD_IMAGE names no command that loads an image"
    for program in ("kubectl", "buildah", "git"):
        if not has(program):
            return f"{program} is missing"
    return missing()


pytestmark = [pytest.mark.skipif(bool(absent()), reason=absent()), pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def digests() -> list[str]:
    built = subprocess.run(
        [str(ROOT / "tests" / "gitops" / "images.sh"), IMAGE], check=True, stdout=subprocess.PIPE, text=True
    )
    return built.stdout.split()


@pytest.fixture(scope="module")
def slack() -> Iterator[Slack]:
    with listening_slack(own_address(Release("default", IMAGE)), free_port()) as found, running_notifications():
        yield found


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, digests: list[str], slack: Slack) -> Iterator[Repository]:
    folder = tmp_path_factory.mktemp("git")
    address, port = own_address(Release("default", IMAGE)), free_port()
    run("git", "clone", "--quiet", "--bare", "--single-branch", ROOT, folder / "served.git")
    run("git", "clone", "--quiet", folder / "served.git", folder / "work")
    found = Repository(folder / "work", f"git://{address}:{port}/served.git")
    found.git("checkout", "--quiet", "-B", "main")
    run("git", "symbolic-ref", "HEAD", "refs/heads/main", folder=folder / "served.git")
    found.prepare(IMAGE, digests[0], slack.url)
    daemon = [
        "git",
        "daemon",
        "--export-all",
        f"--base-path={folder}",
        f"--listen={address}",
        f"--port={port}",
        "--reuseaddr",
    ]
    with subprocess.Popen(daemon) as server:
        asked = ["git", "ls-remote", found.url]
        wait_for("git answers", lambda: subprocess.run(asked, capture_output=True).returncode == 0, 30)
        try:
            run("kubectl", "apply", "--filename", found.folder / "argocd" / "bootstrap.yaml")
            yield found
        finally:
            remove()
            server.terminate()


def answers(address: str, port: int) -> bool:
    with contextlib.suppress(OSError), contextlib.closing(socket.create_connection((address, port), 1)):
        return True
    return False


def remove() -> None:
    for kind, name in (
        ("application", "bootstrap"),
        ("applicationset", "scoring"),
        ("application", f"{APPLICATION},{PROD},{REFUSED}"),
        ("appproject", "bootstrap,scoring,platform"),
    ):
        subprocess.run(
            [
                "kubectl",
                "--namespace",
                "argocd",
                "delete",
                kind,
                *name.split(","),
                "--ignore-not-found",
                "--wait=false",
            ],
            capture_output=True,
        )
    subprocess.run(["kubectl", "delete", "namespace", NAMESPACE, "scoring", "--wait=false"], capture_output=True)


@pytest.fixture
def url(repository: Repository) -> str:
    """A port of the node, which every cluster's machine reaches; the Service's own address is not reached everywhere."""
    wait_until_settled()
    if not get("service", "from-outside"):
        kubectl("expose", "service", NAME, "--name", "from-outside", "--type", "NodePort", "--target-port", "http")
    port = get("service", "from-outside")["spec"]["ports"][0]["nodePort"]
    (node, *_) = [
        entry["address"]
        for entry in get("node", kubectl("get", "nodes", "--output", "name").split()[0].partition("/")[2])["status"][
            "addresses"
        ]
        if entry["type"] == "InternalIP"
    ]
    wait_for("the node's port answers", lambda: answers(node, port), 60)
    return f"http://{node}:{port}"


@pytest.fixture
def load(url: str) -> Iterator[Load]:
    with Load(url) as callers:
        yield callers
    print(f"{callers.answered} requests answered, {len(callers.failures)} lost")
    assert callers.failures == []
    assert callers.answered > 100


def version(url: str) -> str:
    request = urllib.request.Request(url + PATH, ROW, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        found: str = answer.headers["X-Model-Version"]
        return found


def scaler(namespace: str = NAMESPACE) -> int:
    found: int = get("hpa", NAME, namespace).get("spec", {}).get("maxReplicas", 0)
    return found


def pods() -> int:
    """That the Deployment is to have."""
    found: int = get("deployment", NAME)["spec"]["replicas"]
    return found


def test_one_manifest_brings_up_an_environment(repository: Repository) -> None:
    wait_until("the ApplicationSet has made it", lambda: get("application", APPLICATION, "argocd"))
    wait_until("the Ingress is there", lambda: get("ingress", NAME))
    # In place of the ingress controller: Argo CD calls an Ingress without an address Progressing.
    address = '{"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}}}'
    kubectl("patch", "ingress", NAME, "--subresource=status", "--type", "merge", "--patch", address)
    wait_until_settled()
    wait_until("the fewest pods serve", lambda: get("deployment", NAME)["status"].get("readyReplicas") == 2)


def test_a_commit_is_live(repository: Repository) -> None:
    repository.edit("maxReplicas: 4", "maxReplicas: 5")
    wait_until("the commit is live", lambda: scaler() == 5)
    wait_until_settled()


def test_what_is_changed_or_deleted_by_hand_comes_back(repository: Repository) -> None:
    kubectl("patch", "hpa", NAME, "--type", "merge", "--patch", '{"spec": {"maxReplicas": 9}}')
    wait_until("the number of pods is as in Git", lambda: scaler() == 5)
    kubectl("delete", "poddisruptionbudget", NAME)
    wait_until("the budget is there again", lambda: get("poddisruptionbudget", NAME))


def test_the_number_of_pods_is_the_scalers(repository: Repository) -> None:
    """Neither self-heal nor a sync sets it back."""
    repository.edit("minReplicas: 2", "minReplicas: 3")
    wait_until("the scaler has asked for three", lambda: pods() == 3)
    settle_after(10)
    assert (status()[0], pods()) == ("Synced", 3)
    repository.edit("maxReplicas: 5", "maxReplicas: 4")
    wait_until("a sync has passed", lambda: scaler() == 4)
    assert pods() == 3
    repository.edit("minReplicas: 3", "minReplicas: 2")
    wait_until_settled()


def test_the_way_in_goes_only_when_a_person_agrees(repository: Repository, slack: Slack) -> None:
    repository.edit("  kind: nginx\n", "  kind: none\n")

    def waits() -> bool:
        state = get("application", APPLICATION, "argocd")["status"].get("operationState", {})
        return "pruning confirmation" in state.get("message", "")

    wait_until("the sync waits for a person", waits)
    assert get("ingress", NAME)
    slack.wait_for(APPLICATION, "Waiting for pruning confirmation of", "Ingress")
    repository.revert()
    # The sync that waits would go on waiting, for a question that nobody asks any more.
    argocd("app", "terminate-op", APPLICATION)
    look("application", APPLICATION, "refresh=normal")
    wait_until_settled()
    assert get("ingress", NAME)


def test_an_image_goes_from_a_commit_through_the_review_to_pods_and_no_request_is_lost(
    repository: Repository, digests: list[str], url: str, load: Load, slack: Slack
) -> None:
    told = len(slack.messages)
    assert version(url) == "1"
    repository.deploy(digests[1], f"0.1.0-g{repository.git('rev-parse', '--short=12', 'HEAD')}")
    words = repository.review()
    print(words)
    assert "\ndev\n  image 0.1.0-g" in words
    assert f"→ {digests[1][:19]}…" in words
    repository.publish("the second release in dev")
    wait_until("a pod answers with the new version", lambda: version(url) == "2")
    wait_until_settled()
    wait_until("every pod does", lambda: {version(url) for _ in range(8)} == {"2"})
    assert slack.messages[told:] == []


def test_an_image_that_is_not_there_ends_degraded_while_the_old_pods_serve_and_a_revert_mends_it(
    repository: Repository, digests: list[str], url: str, load: Load, slack: Slack
) -> None:
    repository.edit(digests[1], f"sha256:{'1' * 64}")
    wait_until("Degraded", lambda: status()[1] == "Degraded")
    slack.wait_for(APPLICATION, "is degraded", "revert")
    assert version(url) == "2"
    repository.revert()
    wait_until_settled()
    assert version(url) == "2"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("minReplicas: 2", "minReplicas: 1", "in production at least 2"),
        ("drainSeconds: 15", "drainSeconds: soon", "drainSeconds"),
    ],
)
def test_what_helm_refuses_changes_nothing_and_someone_hears_why(
    repository: Repository, slack: Slack, old: str, new: str, reason: str
) -> None:
    """The chart is the same commit each time: a message that goes out once for each of its commits would go out once."""
    before, told = get("deployment", NAME)["metadata"]["generation"], len(slack.messages)
    repository.edit(old, new)
    slack.wait_for(APPLICATION, "differs from Git", reason, after=told)
    settle_after(10)
    assert status() == ("Unknown", "Healthy")
    assert get("deployment", NAME)["metadata"]["generation"] == before
    repository.revert()
    wait_until_settled()


def test_prod_changes_by_itself_only_in_its_window_and_by_hand_always(repository: Repository, slack: Slack) -> None:
    repository.values("prod").parent.mkdir()
    repository.values("prod").write_text(repository.values().read_text().replace("kind: nginx", "kind: none"))
    repository.publish("the first release in prod")
    wait_until("prod differs", lambda: status(PROD)[0] == "OutOfSync")
    slack.wait_for(PROD, "differs from Git")
    settle_after(10, PROD)
    assert not get("deployment", NAME, "scoring")

    repository.open_windows(are_open=True)
    wait_until_settled(PROD)
    assert scaler("scoring") == 4

    repository.open_windows(are_open=False)
    repository.edit("maxReplicas: 4", "maxReplicas: 5", "prod")
    wait_until("prod differs", lambda: status(PROD)[0] == "OutOfSync")
    settle_after(10, PROD)
    assert (status(PROD)[0], scaler("scoring")) == ("OutOfSync", 4)

    argocd("app", "sync", PROD, "--timeout", "100")
    wait_until("what was synced by hand is live", lambda: scaler("scoring") == 5)
    wait_until_settled(PROD)


def test_an_environment_whose_folder_is_gone_keeps_serving(repository: Repository, url: str, load: Load) -> None:
    """Its neighbour's change of the same commit shows that the ApplicationSet has seen it."""
    before = get("application", APPLICATION, "argocd")["metadata"]
    path = repository.values("prod")
    path.write_text(path.read_text().replace("maxReplicas: 5", "maxReplicas: 6"))
    repository.values().unlink()
    repository.publish("dev is gone")
    wait_until("the ApplicationSet has seen the commit", lambda: asked_for(PROD) == 6)
    settle_after(10)
    after = get("application", APPLICATION, "argocd")["metadata"]
    assert (after["uid"], after.get("deletionTimestamp")) == (before["uid"], None)
    assert version(url) == "2"
    repository.revert()
    wait_until("the ApplicationSet has seen the way back", lambda: asked_for(PROD) == 5)
    wait_until_settled()


def asked_for(application: str) -> int:
    """The most pods by the Application's own values, whether they are live or not."""
    source = get("application", application, "argocd")["spec"]["source"]
    found: int = source["helm"]["valuesObject"]["autoscaling"]["maxReplicas"]
    return found


def test_an_applicationset_that_is_deleted_takes_nothing_along_and_comes_back(
    repository: Repository, url: str, load: Load
) -> None:
    """Its Applications go with it for a moment; what they made does not."""

    def uid(kind: str, name: str, namespace: str = "argocd") -> str:
        found: str = get(kind, name, namespace).get("metadata", {}).get("uid", "")
        return found

    generator, deployment = uid("applicationset", "scoring"), uid("deployment", NAME, NAMESPACE)
    kubectl("delete", "applicationset", "scoring", namespace="argocd")
    look("application", "bootstrap", "refresh=normal")
    wait_until("it is there again", lambda: uid("applicationset", "scoring") not in ("", generator))
    wait_until_settled()
    settle_after(10)
    wait_until_settled()
    assert uid("deployment", NAME, NAMESPACE) == deployment


OUTSIDE = """\
apiVersion: v1
kind: ConfigMap
metadata: {name: refused-beside}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: refused-elsewhere, namespace: default}
---
apiVersion: v1
kind: Secret
metadata: {name: refused-secret}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: refused-for-all}
rules: []
"""


def applied(repository: Repository, source: Document, namespace: str = NAMESPACE) -> Document:
    """An Application of the project `scoring`, once Argo CD has judged it."""
    document = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Application",
        "metadata": {"name": REFUSED},
        "spec": {
            "project": "scoring",
            "destination": {"name": "in-cluster", "namespace": namespace},
            "source": {"repoURL": repository.url, "path": "refused", "targetRevision": "main", **source},
            "syncPolicy": {"automated": {"enabled": True}, "retry": {"limit": 0}},
        },
    }
    kubectl("delete", "application", REFUSED, "--ignore-not-found", namespace="argocd")
    run("kubectl", "--namespace", "argocd", "apply", "--filename", "-", input=json.dumps(document))

    def judged() -> Document:
        found: Document = get("application", REFUSED, "argocd").get("status", {})
        return found if found.get("conditions") or found.get("operationState", {}).get("finishedAt") else {}

    found: Document = wait_until("Argo CD has judged it", judged)
    return found


def test_an_endpoint_makes_no_object_of_the_cluster_no_other_kind_and_nothing_elsewhere(repository: Repository) -> None:
    folder = repository.folder / "refused"
    folder.mkdir()
    (folder / "objects.yaml").write_text(OUTSIDE)
    repository.publish("objects that the project does not allow")
    found = applied(repository, {})["operationState"]
    told = {entry["kind"] + " " + entry["name"]: entry["message"] for entry in found["syncResult"]["resources"]}
    assert found["phase"] == "Failed"
    print(told)
    assert "ClusterRole is not permitted in project scoring" in told["ClusterRole refused-for-all"]
    assert "Secret is not permitted in project scoring" in told["Secret refused-secret"]
    assert "namespace default is not permitted in project 'scoring'" in told["ConfigMap refused-elsewhere"]
    for kind, name, namespace in (
        ("clusterrole", "refused-for-all", NAMESPACE),
        ("secret", "refused-secret", NAMESPACE),
        ("configmap", "refused-elsewhere", "default"),
        ("configmap", "refused-beside", NAMESPACE),  # allowed, but a sync is all or nothing
    ):
        assert not get(kind, name, namespace)


def test_an_endpoint_goes_into_no_namespace_but_its_own(repository: Repository) -> None:
    (condition,) = applied(repository, {}, "kube-system")["conditions"]
    assert condition["type"] == "InvalidSpecError"
    assert "namespace 'kube-system' do not match any of the allowed destinations" in condition["message"]


def test_an_endpoint_comes_from_no_repository_but_its_own(repository: Repository) -> None:
    (condition,) = applied(repository, {"repoURL": repository.url.replace("served", "other")})["conditions"]
    assert condition["type"] == "InvalidSpecError"
    assert "is not permitted in project 'scoring'" in condition["message"]
