"""NGINX in front of a server: TLS to the caller, keep-alive both ways, as an ingress controller sets it up."""

from __future__ import annotations

import os
import shutil
import ssl
import subprocess
from pathlib import Path

from benchmarks.errors import BenchmarkError
from benchmarks.messages import INGRESS_HEADERS
from benchmarks.servers import Server

# No access log: it would make NGINX look dearer than it need be. Else the defaults, but for what a benchmark outgrows:
# a connection may have more than 1,000 requests, and a body of the largest case stays in memory.
CONFIGURATION = """\
{user}
worker_processes 1;
daemon off;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/bodies;
    proxy_temp_path {folder}/answers;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream scorer {{
        server 127.0.0.1:{upstream};
        keepalive 32;
        keepalive_requests 1000000;
    }}
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {folder}/certificate.pem;
        ssl_certificate_key {folder}/key.pem;
        keepalive_requests 1000000;
        client_max_body_size 16m;
        client_body_buffer_size 1m;
        location / {{
            proxy_pass http://scorer;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $host;
            proxy_set_header X-Request-ID $request_id;
            proxy_set_header X-Real-IP $remote_addr;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_set_header X-Forwarded-Host $host;
            proxy_set_header X-Forwarded-Port $server_port;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header X-Forwarded-Scheme $scheme;
            proxy_set_header X-Scheme $scheme;
        }}
    }}
}}
"""


def verify_nginx() -> None:
    for program in ("nginx", "openssl"):
        if shutil.which(program) is None:
            raise BenchmarkError(f"{program} is missing: apt-get install nginx-light openssl (Debian, Ubuntu)")


def nginx_version() -> str:
    return (
        subprocess.run(["nginx", "-v"], capture_output=True, text=True).stderr.strip().removeprefix("nginx version: ")
    )


def create_proxy(folder: Path, upstream: int) -> Server:
    """NGINX with a certificate of its own making; whatever it writes goes into this folder."""
    create_certificate(folder)
    user = "user root;" if os.geteuid() == 0 else ""
    configuration = CONFIGURATION.format(folder=folder, user=user, upstream=upstream, port="{port}")
    # Its configuration knows no variables of the environment, and the port is known only when it starts.
    start = 'printf "%s" "$CONFIGURATION" > "$0/nginx.conf" && exec nginx -p "$0" -c "$0/nginx.conf"'
    return Server("nginx", ("sh", "-c", start, str(folder)), {"CONFIGURATION": escape(configuration)})


def escape(configuration: str) -> str:
    """Braces doubled, but for those of the port, which `servers.Process` fills in."""
    return configuration.replace("{", "{{").replace("}", "}}").replace("{{port}}", "{port}")


def create_certificate(folder: Path) -> None:
    name = INGRESS_HEADERS["Host"]
    shape = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=DNS:{name}"]
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "certificate.pem")]
    subprocess.run(["openssl", "req", *shape, *names, *files], check=True, capture_output=True)


def create_trust(folder: Path) -> ssl.SSLContext:
    """What a caller needs to believe the certificate."""
    return ssl.create_default_context(cafile=str(folder / "certificate.pem"))
