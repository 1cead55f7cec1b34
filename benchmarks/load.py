"""wrk, one thread, replaying one request with ids of its own over keep-alive connections to 127.0.0.1."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.errors import BenchmarkError
from benchmarks.messages import Request

SCRIPT = Path(__file__).with_name("wire.lua")
# Far above any answer's time: a request that takes longer is a fault, not a slow answer.
TIMEOUT_SECONDS = 10


@dataclass(frozen=True)
class Burst:
    """What wrk saw. `refused` counts answers of 400 and above, `broken` connections and timeouts."""

    requests: int
    microseconds: int
    refused: int
    broken: int
    p50_us: int
    p99_us: int


def verify_wrk() -> None:
    if shutil.which("wrk") is None:
        raise BenchmarkError("wrk is missing: apt-get install wrk (Debian, Ubuntu), dnf install wrk (Fedora)")


def wrk_version() -> str:
    """`wrk -v` prints its version and its usage, and exits with 1."""
    first = subprocess.run(["wrk", "-v"], capture_output=True, text=True).stdout.partition("[")[0]
    return first.removeprefix("wrk ").strip()


def send(port: int, request: Request, connections: int, seconds: int, scheme: str = "http") -> Burst:
    """Load one server for so many seconds, as fast as it answers."""
    with tempfile.NamedTemporaryFile(prefix="bench-request-") as file:
        file.write(request.to_bytes())
        file.flush()
        shape = ["-t1", f"-c{connections}", f"-d{seconds}s", f"--timeout={TIMEOUT_SECONDS}s"]
        command = ["wrk", *shape, "-s", str(SCRIPT), f"{scheme}://127.0.0.1:{port}/", "--", file.name]
        run = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 3 * TIMEOUT_SECONDS)
    report = run.stdout.rstrip().rpartition("\n")[2]
    if run.returncode or not report.startswith("{"):
        raise BenchmarkError(f"wrk failed: {run.stderr.strip() or run.stdout.strip()}")
    return Burst(**json.loads(report))
