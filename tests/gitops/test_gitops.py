"""argocd/ in a real Argo CD: `make test-gitops` calls this.

    KUBECONFIG    a cluster with Argo CD in the namespace argocd, whose pods reach this machine
    LOAD_IMAGE    a command that puts the images of an archive on its nodes
    SERVER_IMAGE  a built image of the server, where it need not be built

The tests build on each other, in this order, as commits do. They use the objects bootstrap and scoring of Argo CD and the
namespace scoring-dev, and remove them.
"""

from __future__ import annotations

import contextlib
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
    Repository,
    get,
    kubectl,
    look,
    run,
    settle_after,
    status,
    wait_until,
    wait_until_settled,
)
from tests.serving import ROOT, free_port

IMAGE = "localhost/xgboost-server-gitops"
NAME = "xgboost-server"


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
def repository(tmp_path_factory: pytest.TempPathFactory, digests: list[str]) -> Iterator[Repository]:
    folder = tmp_path_factory.mktemp("git")
    address, port = own_address(Release("default", IMAGE)), free_port()
    run("git", "clone", "--quiet", "--bare", "--single-branch", ROOT, folder / "served.git")
    run("git", "clone", "--quiet", folder / "served.git", folder / "work")
    found = Repository(folder / "work", f"git://{address}:{port}/served.git")
    found.git("checkout", "--quiet", "-B", "main")
    run("git", "symbolic-ref", "HEAD", "refs/heads/main", folder=folder / "served.git")
    found.prepare(IMAGE, digests[0])
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
        wait_for("git answers", lambda: answers(address, port), 30)
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
        ("application", APPLICATION),
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
    subprocess.run(["kubectl", "delete", "namespace", NAMESPACE, "--wait=false"], capture_output=True)


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


def scaler() -> int:
    found: int = get("hpa", NAME).get("spec", {}).get("maxReplicas", 0)
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


def test_the_way_in_goes_only_when_a_person_agrees(repository: Repository) -> None:
    repository.edit("  kind: nginx\n", "  kind: none\n")

    def waits() -> bool:
        state = get("application", APPLICATION, "argocd")["status"].get("operationState", {})
        return "pruning confirmation" in state.get("message", "")

    wait_until("the sync waits for a person", waits)
    assert get("ingress", NAME)
    repository.revert()
    # The sync that waits would go on waiting, for a question that nobody asks any more.
    terminate()
    wait_until_settled()
    assert get("ingress", NAME)


def terminate() -> None:
    """`argocd app terminate-op`, without its server."""
    patch = '{"status": {"operationState": {"phase": "Terminating"}}}'
    subprocess.run(
        ["kubectl", "--namespace", "argocd", "patch", "application", APPLICATION, "--type", "merge", "--patch", patch],
        capture_output=True,
    )
    look("application", APPLICATION, "refresh=normal")


def test_an_image_goes_from_a_commit_through_the_review_to_pods_and_no_request_is_lost(
    repository: Repository, digests: list[str], url: str, load: Load
) -> None:
    assert version(url) == "1"
    repository.deploy(digests[1], f"0.1.0-g{repository.git('rev-parse', '--short=12', 'HEAD')}")
    words = repository.review()
    assert "**dev**: image 0.1.0-g" in words
    assert f"→ {digests[1][:19]}…" in words
    repository.publish("the second release in dev")
    wait_until("a pod answers with the new version", lambda: version(url) == "2")
    wait_until_settled()
    wait_until("every pod does", lambda: {version(url) for _ in range(8)} == {"2"})


def test_an_image_that_is_not_there_ends_degraded_while_the_old_pods_serve_and_a_revert_mends_it(
    repository: Repository, digests: list[str], url: str, load: Load
) -> None:
    repository.edit(digests[1], f"sha256:{'1' * 64}")
    wait_until("Degraded", lambda: status()[1] == "Degraded")
    assert version(url) == "2"
    repository.revert()
    wait_until_settled()
    assert version(url) == "2"
