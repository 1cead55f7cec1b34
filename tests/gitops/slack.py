"""A Slack that remembers what it is told, and the notifications controller that tells it: Argo CD's own. Its core install leaves it
out; then it is started from the image that Argo CD runs."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import parse_qs

from tests.gitops.repository import get, kubectl, run, wait_until

CONTROLLER = "argocd-notifications-controller"
SECRET = "argocd-notifications-secret"  # a name
TOKEN = "xoxb-of-the-test"  # of nobody


@dataclass
class Slack:
    url: str
    messages: list[tuple[str, str]] = field(default_factory=list)  # channel and text

    def take(self, form: dict[str, list[str]], authorization: str) -> bytes:
        """https://docs.slack.dev/reference/methods/chat.postMessage"""
        if TOKEN not in (authorization.removeprefix("Bearer "), *form.get("token", ())):
            return b'{"ok": false, "error": "invalid_auth"}'
        self.messages.append((form["channel"][0], form["text"][0].strip()))
        print(f"Slack: {self.messages[-1][1]}")
        return json.dumps({"ok": True, "channel": form["channel"][0], "ts": "1.0"}).encode()

    def wait_for(self, *parts: str, after: int = 0) -> None:
        """Until there is a message to the channel of the scoring endpoints with all these parts, later than the first `after`."""

        def found() -> str:
            told = [text for channel, text in self.messages[after:] if channel == "scoring"]
            return next((text for text in told if all(part in text for part in parts)), "")

        wait_until(f"Slack hears of {' … '.join(parts)}", found, 90)


@contextlib.contextmanager
def listening_slack(address: str, port: int) -> Iterator[Slack]:
    slack = Slack(f"http://{address}:{port}/api/")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            answer = slack.take(parse_qs(body), self.headers.get("Authorization", ""))
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer((address, port), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield slack
        finally:
            server.shutdown()


def apply(document: object) -> None:
    run("kubectl", "--namespace", "argocd", "apply", "--filename", "-", input=json.dumps(document))


@contextlib.contextmanager
def running_notifications() -> Iterator[None]:
    apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "stringData": {"slack-token": TOKEN}})
    own = not get("deployment", CONTROLLER, "argocd")
    if own:
        apply(deployment())
    try:
        kubectl("rollout", "status", f"deployment/{CONTROLLER}", "--timeout=100s", namespace="argocd")
        yield
    finally:
        gone = [f"secret/{SECRET}", "configmap/argocd-notifications-cm", *([f"deployment/{CONTROLLER}"] if own else [])]
        kubectl("delete", "--ignore-not-found", *gone, namespace="argocd")


def deployment() -> dict[str, object]:
    """As in Argo CD's own manifests, with the account of the application controller, which may read what this one reads."""
    server = get("statefulset", "argocd-application-controller", "argocd")["spec"]["template"]["spec"]
    labels = {"app.kubernetes.io/name": CONTROLLER}
    container = {
        "name": CONTROLLER,
        "image": server["containers"][0]["image"],
        "args": ["argocd"],
        "env": [{"name": "ARGOCD_BINARY_NAME", "value": "argocd-notifications"}],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": CONTROLLER},
        "spec": {
            "selector": {"matchLabels": labels},
            "strategy": {"type": "Recreate"},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"serviceAccountName": server["serviceAccountName"], "containers": [container]},
            },
        },
    }
