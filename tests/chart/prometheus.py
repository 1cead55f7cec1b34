"""A real Prometheus that scrapes one server each second, and answers the dashboard's queries as Grafana would ask them."""

from __future__ import annotations

import json
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.chart.helm import find_tool
from tests.serving import free_port, wait_until

PROMETHEUS = find_tool("prometheus")
MISSING = "prometheus is missing: Debian's package, which `make test-chart` fetches"
# What Grafana puts in for its variables.
VARIABLES = {"$namespace": "scoring", "$job": "churn", "$pod": ".*", "$__rate_interval": "5s"}

Series = dict[str, Any]


class Prometheus:
    """By its address."""

    def __init__(self, url: str) -> None:
        self._url = url

    def query(self, expression: str) -> list[Series]:
        for name, value in VARIABLES.items():
            expression = expression.replace(name, value)
        asked = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"{self._url}/api/v1/query?{asked}", timeout=30) as answer:
            result: list[Series] = json.load(answer)["data"]["result"]
        return result

    def query_since_start(self, expression: str) -> list[Series]:
        """Every series that the expression had at any second; a change of the model is over after a few."""
        return self.query(f"last_over_time(({expression})[10m:1s])")

    def has_had(self, expression: str) -> bool:
        """At a whole second, which `query_since_start` looks at: what is true between two may be true at none."""
        try:
            return bool(self.query_since_start(expression))
        except OSError:  # it does not listen yet
            return False


@contextmanager
def running_prometheus(folder: Path, target: str) -> Iterator[Prometheus]:
    """With the labels that the chart's ServiceMonitor gives to metrics."""
    targets = {"targets": [target], "labels": {"namespace": "scoring", "pod": "churn-1"}}
    job = {"job_name": "churn", "scrape_interval": "1s", "scrape_timeout": "1s", "static_configs": [targets]}
    (folder / "prometheus.yml").write_text(yaml.safe_dump({"scrape_configs": [job]}))
    address = f"127.0.0.1:{free_port()}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                PROMETHEUS,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        found = Prometheus(f"http://{address}")
        wait_until(lambda: found.has_had("scorer_start_time_seconds"), 60)
        yield found
    finally:
        process.terminate()
        process.wait(30)
