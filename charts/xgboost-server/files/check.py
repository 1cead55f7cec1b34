"""What `helm test` runs in a pod: is the endpoint what its callers and its operators were promised?

    python check.py service|admin|edge

Reads the environment: SERVICE_URL, ADMIN_URL, EDGE_URL, EDGE_HOST, MODEL, ROWS, PREDICTIONS and EXTRA_PATHS (JSON). Prints a line
for each promise, and ends with status 1 if one is broken. The standard library alone, for it runs in the server's image.
"""

import http.client
import json
import math
import os
import socket
import ssl
import sys
from urllib.parse import urlsplit

NOT_FOR_CALLERS = ("/metrics", "/v2/repository/index", "/v2/repository/models/any/load")
NOT_FOR_OUTSIDERS = (*NOT_FOR_CALLERS, "/livez", "/readyz", "/v2", "/v1/models")


class ProxyConnection(http.client.HTTPSConnection):
    """To the proxy's address, in the name of the host: the proxy chooses its certificate by that, and is checked for it."""

    def __init__(self, address, host):
        super().__init__(host, timeout=10)
        self.address = address

    def connect(self):
        plain = socket.create_connection(self.address, self.timeout)
        self.sock = ssl.create_default_context().wrap_socket(plain, server_hostname=self.host)


def connect(target, host):
    if target.scheme == "https":
        return ProxyConnection((target.hostname, target.port or 443), host)
    return http.client.HTTPConnection(target.hostname, target.port, timeout=10)


def ask(url, method, path, body=None, host=None):
    """Status and body of one answer; in place of the status, what was in the way of it."""
    target = urlsplit(url)
    connection = connect(target, host or target.hostname)
    try:
        headers = {"Content-Type": "application/json", "Host": host or target.netloc}
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        return f"{url}: {error}", b""
    finally:
        connection.close()


def expect(promise, kept, found):
    print(f"{'ok' if kept else 'BROKEN'}: {promise}" + ("" if kept else f"; found {found}"), flush=True)
    return kept


def is_close(found, expected):
    """Equal to float32's precision, in numbers and in lists of them."""
    if isinstance(expected, list):
        return isinstance(found, list) and len(found) == len(expected) and all(map(is_close, found, expected))
    return isinstance(found, int | float) and math.isclose(found, expected, rel_tol=1e-6, abs_tol=1e-9)


def scores_golden_rows(url, host=None):
    """Through KServe's V1 protocol; without golden rows only that the model is there and says what is wrong with a row."""
    model, rows, expected = os.environ["MODEL"], json.loads(os.environ["ROWS"]), json.loads(os.environ["PREDICTIONS"])
    path = f"/v1/models/{model}:predict"
    status, body = ask(url, "POST", path, json.dumps({"instances": rows}).encode(), host)
    if not rows:
        return expect(
            f"POST {path} answers in JSON", status in (200, 400) and isinstance(json.loads(body), dict), status
        )
    found = json.loads(body).get("predictions") if status == 200 else status
    return expect(f"POST {path} gives the golden predictions", is_close(found, expected), found)


def hides(url, paths, host=None):
    """Neither to readers nor to writers."""
    kept = True
    for path in paths:
        for method in ("GET", "POST"):
            status, _ = ask(url, method, path, None, host)
            kept &= expect(f"{method} {path} is not there", status == 404, status)
    return kept


def check_service():
    url = os.environ["SERVICE_URL"]
    return scores_golden_rows(url) & hides(url, NOT_FOR_CALLERS)


def check_admin():
    status, body = ask(os.environ["ADMIN_URL"], "GET", "/metrics")
    served = status == 200 and b"\nscorer_model_info{" in body and b"\nscorer_requests_total{" in body
    return expect("GET /metrics of the admin port has the server's metrics", served, status)


def check_edge():
    url, host = os.environ["EDGE_URL"], os.environ["EDGE_HOST"]
    wanted = json.loads(os.environ["EXTRA_PATHS"])
    return scores_golden_rows(url, host) & hides(url, [path for path in NOT_FOR_OUTSIDERS if path not in wanted], host)


CHECKS = {"service": check_service, "admin": check_admin, "edge": check_edge}

if __name__ == "__main__":
    sys.exit(0 if CHECKS[sys.argv[1]]() else 1)
