"""A real NGINX with the configuration that an Ingress of the chart comes to.

Rendered by hand after the template of the F5 NGINX Ingress Controller (nginx/kubernetes-ingress, commit 0eb3072d of 2026-08-21:
internal/configs/version1/nginx.tmpl, nginx.ingress.tmpl, and the defaults in internal/configs/config_params.go). Only what the
chart's annotations touch is here; an annotation that is not known here stops the test.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.chart.helm import Manifest
from tests.serving import free_port

# The one of the controller is newer than Debian 12's; NGINX_BINARY may name another. (NGINX reads a variable NGINX itself.)
NGINX = os.environ.get("NGINX_BINARY") or shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin") or ""
MISSING = "nginx is missing: Debian's package nginx-light"

# Annotations that change nothing in what these tests look at: policies and certificates are the cluster's.
WITHOUT_EFFECT = {"policies", "hsts", "ssl-redirect", "redirect-to-https", "limit-req-scale", "use-cluster-ip"}


def version() -> tuple[int, ...]:
    told = subprocess.run([NGINX, "-v"], check=True, capture_output=True, text=True).stderr
    return tuple(int(part) for part in told.partition("nginx/")[2].split()[0].split("."))


def survives_reload() -> bool:
    """Whether this NGINX can keep callers' idle connections while it reloads (keepalive_min_timeout, from 1.27.4)."""
    return version() >= (1, 27, 4)


def known(snippet: str) -> str:
    """The snippet as this NGINX understands it: Debian 12 has 1.22."""
    return snippet if survives_reload() else re.sub(r"^ *keepalive_min_timeout .*\n?", "", snippet, flags=re.MULTILINE)


class Annotations:
    """The Ingress's annotations of the controller; tells which were never asked for."""

    def __init__(self, ingress: Manifest) -> None:
        found = ingress["metadata"]["annotations"].items()
        self._values = {
            name.removeprefix("nginx.org/"): value for name, value in found if name.startswith("nginx.org/")
        }
        self._unused = set(self._values) - WITHOUT_EFFECT

    def get(self, name: str, default: str = "") -> str:
        self._unused.discard(name)
        value: str = self._values.get(name, default)
        return value

    def line(self, directive: str, name: str, default: str = "") -> str:
        value = self.get(name, default)
        return f"{directive} {value};" if value else ""

    def check(self) -> None:
        assert not self._unused, f"annotations that tests/chart/nginx.py does not render: {sorted(self._unused)}"


def upstream(annotations: Annotations, servers: Sequence[str], nowhere: str) -> list[str]:
    fails, pause = annotations.get("max-fails", "1"), annotations.get("fail-timeout", "10s")
    keepalive = annotations.get("keepalive")
    return [
        "upstream pods {",
        "  zone pods 256k;",
        f"  {annotations.get('lb-method', 'random two least_conn')};",
        *(f"  server {server} max_fails={fails} fail_timeout={pause} max_conns=0;" for server in servers),
        # Without endpoints the controller points at a server of its own, on a Unix socket, that answers 502.
        *([] if servers else [f"  server {nowhere};"]),
        *([f"  keepalive {keepalive};"] if keepalive else []),
        "}",
    ]


def limit_zone(annotations: Annotations) -> list[str]:
    rate = annotations.get("limit-req-rate")
    key = annotations.get("limit-req-key", "${binary_remote_addr}")
    return [f"limit_req_zone {key} zone=pods_limit:10m rate={rate};"] if rate else []


def limit(annotations: Annotations) -> list[str]:
    if not annotations.get("limit-req-rate"):
        return []
    delay = "nodelay" if annotations.get("limit-req-no-delay") == "true" else ""
    return [
        f"limit_req zone=pods_limit burst={annotations.get('limit-req-burst')} {delay};",
        f"limit_req_status {annotations.get('limit-req-reject-code', '429')};",
    ]


def location(path: str, annotations: Annotations) -> list[str]:
    return [
        f"location = {path} {{",
        "proxy_http_version 1.1;",
        'proxy_set_header Connection "";' if annotations.get("keepalive") else "",
        annotations.line("proxy_connect_timeout", "proxy-connect-timeout", "60s"),
        annotations.line("proxy_read_timeout", "proxy-read-timeout", "60s"),
        annotations.line("proxy_send_timeout", "proxy-send-timeout", "60s"),
        annotations.line("client_max_body_size", "client-max-body-size", "1m"),
        annotations.line("client_body_buffer_size", "client-body-buffer-size"),
        "proxy_set_header Host $host;",
        "proxy_set_header X-Real-IP $remote_addr;",
        "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;",
        "proxy_set_header X-Forwarded-Host $host;",
        "proxy_set_header X-Forwarded-Port $server_port;",
        "proxy_set_header X-Forwarded-Proto $scheme;",
        "proxy_buffering on;",
        annotations.line("proxy_next_upstream", "proxy-next-upstream"),
        annotations.line("proxy_next_upstream_timeout", "proxy-next-upstream-timeout"),
        annotations.line("proxy_next_upstream_tries", "proxy-next-upstream-tries"),
        "proxy_pass http://pods;",
        *limit(annotations),
        "}",
    ]


def server(ingress: Manifest, annotations: Annotations, listen: str, controller: Sequence[str]) -> list[str]:
    (rule,) = ingress["spec"]["rules"]
    return [
        "server {",
        f"listen {listen};",
        "server_tokens off;" if annotations.get("server-tokens") == "false" else "server_tokens on;",
        f"server_name {rule['host']};",
        known(annotations.get("server-snippets")),
        *controller,
        *(line for path in rule["http"]["paths"] for line in location(path["path"], annotations)),
        "}",
    ]


def configuration(ingress: Manifest, servers: Sequence[str], *, listen: str, controller: Sequence[str] = ()) -> str:
    """`controller`: lines that the operators of the controller may put into its ConfigMap, such as real_ip_header."""
    annotations = Annotations(ingress)
    nowhere = f"127.0.0.1:{free_port()}"
    lines = [
        *(["user root;"] if os.geteuid() == 0 else []),  # its files here belong to whoever runs the tests
        "worker_processes 2;",
        "daemon off;",
        "pid nginx.pid;",
        "error_log stderr notice;",
        "events { worker_connections 1024; }",
        "http {",
        "default_type application/octet-stream;",
        "access_log off;",
        "keepalive_timeout 75s;",
        "keepalive_requests 1000;",
        *(f"{kind}_temp_path temp;" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")),
        *upstream(annotations, servers, nowhere),
        *limit_zone(annotations),
        *server(ingress, annotations, listen, controller),
        f"server {{ listen {nowhere}; return 502; }}",
        "}",
    ]
    annotations.check()
    return "\n".join(line for line in lines if line) + "\n"


class Nginx:
    """A process of its own in a folder of its own; reloads as the controller does when pods come or go."""

    def __init__(self, folder: Path, ingress: Manifest, host: str, port: int, controller: Sequence[str]) -> None:
        self.host = host
        self.port = port
        self._folder = folder
        self._ingress = ingress
        self._controller = controller
        self._process: subprocess.Popen[bytes] | None = None

    def write(self, servers: Sequence[str]) -> None:
        text = configuration(self._ingress, servers, listen=f"{self.host}:{self.port}", controller=self._controller)
        (self._folder / "nginx.conf").write_text(text)

    def start(self, servers: Sequence[str]) -> None:
        self.write(servers)
        with (self._folder / "log").open("wb") as log:
            command = [NGINX, "-p", str(self._folder), "-c", "nginx.conf", "-e", "stderr"]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        while not (self._folder / "nginx.pid").exists():
            assert self._process.poll() is None, self.log()
            time.sleep(0.01)

    def reload(self, servers: Sequence[str]) -> None:
        assert self._process is not None
        self.write(servers)
        self._process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)

    def log(self) -> str:
        return (self._folder / "log").read_text()


@contextlib.contextmanager
def running_nginx(
    folder: Path, ingress: Manifest, servers: Sequence[str], *, host: str = "127.0.0.1", controller: Sequence[str] = ()
) -> Iterator[Nginx]:
    folder.mkdir(exist_ok=True)
    nginx = Nginx(folder, ingress, host, free_port(), controller)
    nginx.start(servers)
    try:
        yield nginx
    finally:
        nginx.stop()
