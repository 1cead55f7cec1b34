"""`make chart-golden`: writes anew what follows from chart and server, for a person to look at and commit.

The golden renders of every case in ci/, the dashboard, the settings that values.schema.json allows by name, the chart's README.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys

from charts.dashboard import to_text
from service.settings import SETTINGS
from tests.chart.helm import CASES, CHART, GOLDEN, TOOLS, abridged, missing, render

SCHEMA = CHART / "values.schema.json"


def free_settings() -> list[str]:
    """Names that `settings` may hold: those that no other value of the chart sets."""
    templates = "".join(path.read_text(encoding="utf-8") for path in (CHART / "templates").glob("*"))
    taken = set(re.findall(r"\{name: ([A-Z0-9_]+), value:", templates)) | {"WEB_CONCURRENCY"}
    return [setting.variable for setting in SETTINGS if setting.variable not in taken]


def write_schema() -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    # Not `propertyNames`: Helm 4.3 reports its fault at another value, a random one.
    schema["properties"]["settings"]["properties"] = {name: {"type": "string"} for name in free_settings()}
    SCHEMA.write_text(json.dumps(schema, indent=2) + "\n", encoding="utf-8")


def write_dashboard() -> None:
    (CHART / "dashboards" / "xgboost-server.json").write_text(to_text(), encoding="utf-8")


def write_readme() -> None:
    subprocess.run([TOOLS / "helm-docs", "--chart-search-root", CHART, "--sort-values-order", "file"], check=True)


def write_goldens() -> None:
    for stale in GOLDEN.glob("*.yaml"):
        stale.unlink()
    for name, values in CASES.items():
        (GOLDEN / f"{name}.yaml").write_text(abridged(render(values)), encoding="utf-8")


def main() -> None:
    if reason := missing():
        sys.exit(reason)
    write_schema()
    write_dashboard()
    write_readme()
    write_goldens()


if __name__ == "__main__":
    main()
