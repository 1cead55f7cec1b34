"""What the image promises, checked on a built one: `make image-test` builds it and names it in IMAGE.

The server runs in a chroot with namespaces of its own, under conditions at least as strict as a cluster's (contain.sh). No
container engine takes part, so this holds wherever Buildah can mount an image. Nothing is imported from `service`.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.serving import free_port

HERE = Path(__file__).parent
REPOSITORY = HERE.parent.parent
MODEL = REPOSITORY / "examples/iris/model.ubj"
IMAGE = os.environ.get("IMAGE", "")
# Nobody in the image's /etc/passwd, as OpenShift picks users.
STRANGER = "1000840000:1000840000"
START_SECONDS = 60
STOP_SECONDS = 15


def missing() -> str:
    """Why these tests cannot run here, or nothing."""
    if not IMAGE:
        return "IMAGE names no image; `make image-test` builds one and sets it"
    if os.geteuid() != 0:
        return "mounting an image needs root"
    programs = [name for name in ("buildah", "unshare", "nsenter", "setpriv") if shutil.which(name) is None]
    if programs:
        return f"install {', '.join(programs)} (Debian: buildah, util-linux)"
    return ""


pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


def output_of(*command: str | Path) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


@dataclass(frozen=True)
class Image:
    """A mounted image: its configuration, and its files under `root`."""

    config: Mapping[str, Any]
    root: Path

    def command(self, arguments: Sequence[str], environ: Mapping[str, str]) -> list[str]:
        """`arguments` with the image's environment and working directory and nothing of ours: no HOME either."""
        variables = dict(entry.split("=", 1) for entry in self.config["Env"]) | dict(environ)
        pairs = [f"{name}={value}" for name, value in variables.items()]
        return ["/usr/bin/env", "-i", f"--chdir={self.config['WorkingDir']}", *pairs, *arguments]

    def contained(self, user: str, arguments: Sequence[str], environ: Mapping[str, str]) -> list[str]:
        namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        start = [str(HERE / "contain.sh"), str(self.root), user, str(MODEL)]
        return [*namespaces, *start, *self.command(arguments, environ)]

    def run(self, *arguments: str, user: str = STRANGER, **environ: str) -> subprocess.CompletedProcess[str]:
        command = self.contained(user, arguments, environ)
        return subprocess.run(command, capture_output=True, text=True, timeout=START_SECONDS)


@dataclass(frozen=True)
class Server:
    """A server under way; `pid` is process 1 of its own namespace, seen from here."""

    image: Image
    user: str
    port: int
    log: Path
    unshare: subprocess.Popen[bytes]
    pid: int

    def request(self, method: str, path: str, body: str | None = None) -> tuple[int, str]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with contextlib.closing(connection):
            connection.request(method, path, body)
            response = connection.getresponse()
            return response.status, response.read().decode()

    def is_ready(self) -> bool:
        try:
            return self.request("GET", "/readyz")[0] == 200
        except OSError:
            return False

    def execute(self, arguments: Sequence[str], **environ: str) -> int:
        """Exit status of one more process in the same container, as `docker exec` and health checks start it."""
        uid, gid = self.user.split(":")
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--root"]
        become = [f"--setuid={uid}", f"--setgid={gid}"]
        return subprocess.run([*enter, *become, *self.image.command(arguments, environ)], timeout=30).returncode


def child_of(process: subprocess.Popen[bytes]) -> int:
    """The one child of `process`, which forks it at once."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not (pids := children.read_text().split()):
        assert process.poll() is None, "unshare ended"
        time.sleep(0.01)
    return int(pids[0])


def end(unshare: subprocess.Popen[bytes]) -> None:
    """Kill process 1 of the namespace, which takes every process and mount in it along.

    `--kill-child` alone does not: the kernel forgets that wish when the server becomes another user (prctl(2),
    PR_SET_PDEATHSIG).
    """
    if unshare.poll() is None:
        os.kill(child_of(unshare), signal.SIGKILL)
        unshare.wait()


@contextlib.contextmanager
def serving(image: Image, user: str, log: Path) -> Iterator[Server]:
    """A ready server with the iris model and two workers, killed at the end if it still runs."""
    port = free_port()
    environ = {
        "SCORER_MODEL": "/model.ubj",
        "SCORER_MODEL_NAME": "iris",
        "SCORER_PORT": str(port),
        "WEB_CONCURRENCY": "2",
    }
    command = image.contained(user, [*image.config["Entrypoint"], *image.config["Cmd"]], environ)
    with log.open("wb") as output:
        unshare = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
    try:
        server = Server(image, user, port, log, unshare, child_of(unshare))
        limit = time.monotonic() + START_SECONDS
        while not server.is_ready():
            assert unshare.poll() is None, f"the server ended with {unshare.returncode}:\n{log.read_text()}"
            assert time.monotonic() < limit, f"not ready after {START_SECONDS} s:\n{log.read_text()}"
            time.sleep(0.05)
        yield server
    finally:
        end(unshare)


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    config = json.loads(output_of("buildah", "inspect", "--type", "image", IMAGE))["Docker"]["config"]
    container = output_of("buildah", "from", "--pull-never", IMAGE)
    try:
        root = Path(output_of("buildah", "mount", container))
        (root / "model.ubj").touch()
        yield Image(config, root)
    finally:
        output_of("buildah", "rm", container)


@pytest.fixture(scope="module")
def server(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(image, STRANGER, tmp_path_factory.mktemp("image") / "log") as server:
        yield server


def test_configuration(image: Image) -> None:
    config = image.config
    assert config["Entrypoint"] == ["xgboost-server"]
    assert config["Cmd"] == ["serve"]
    assert config["StopSignal"] == "SIGTERM"
    assert list(config["ExposedPorts"]) == ["8000/tcp"]
    assert config["Healthcheck"]["Test"][0] == "CMD", "the shell form needs a shell"


def test_user_is_a_number(image: Image) -> None:
    """A kubelet can only tell that a user is not root (runAsNonRoot) when it is a number."""
    assert [int(part) > 0 for part in image.config["User"].split(":")] == [True, True]


def test_labels(image: Image) -> None:
    names = ["title", "description", "licenses", "version", "revision", "created", "base.name"]
    labels = image.config["Labels"]
    assert [name for name in names if not labels.get(f"org.opencontainers.image.{name}")] == []
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert labels["org.opencontainers.image.version"] == project["version"]
    assert labels["org.opencontainers.image.description"] == project["description"]
    assert labels["org.opencontainers.image.licenses"] == project["license"]


def own_files(image: Image) -> Iterator[tuple[Path, os.stat_result]]:
    """What the Dockerfile adds to the base, without the links."""
    for folder in ("app", "opt"):
        for path in (image.root / folder).rglob("*"):
            if not path.is_symlink():
                yield path, path.stat()


def test_files_belong_to_root_and_nobody_else_writes_them(image: Image) -> None:
    assert [path for path, status in own_files(image) if status.st_uid != 0 or status.st_mode & 0o022] == []


def test_files_can_be_read_by_everyone(image: Image) -> None:
    """Also when the working copy that the image was built from could not."""
    assert [path for path, status in own_files(image) if status.st_mode & 0o444 != 0o444] == []
    assert [path for path, status in own_files(image) if path.is_dir() and status.st_mode & 0o111 != 0o111] == []


def test_no_file_of_ours_changes_the_user(image: Image) -> None:
    assert [path for path, status in own_files(image) if status.st_mode & 0o6000] == []


def test_no_build_tools(image: Image) -> None:
    folders = [image.root / folder for folder in ("usr/bin", "usr/local/bin", "opt/venv/bin")]
    programs = {path.name for folder in folders for path in folder.iterdir()}
    assert {"env", "xgboost-server"} <= programs
    assert programs & {"cc", "gcc", "g++", "c++", "clang", "ld", "make", "cmake", "cargo", "rustc"} == set()
    site_packages = next((image.root / "opt/venv/lib").glob("python3.*/site-packages"))
    packages = {path.name for path in site_packages.iterdir()}
    assert {"service", "xgboost"} <= packages
    assert packages & {"pip", "setuptools", "wheel", "pytest"} == set()


def test_no_left_overs_of_the_build(image: Image) -> None:
    folders = ("tmp", "mnt", "src", "root/.cache", "opt/build", "opt/project", "var/lib/apt/lists")
    assert [path for folder in folders for path in (image.root / folder).glob("*")] == []


def test_start_compiles_nothing(image: Image) -> None:
    """Bytecode that is missing would be compiled by every process of every container, and never kept."""
    result = image.run("python", "-v", "-c", "import gunicorn.app.wsgiapp, service.app, xgboost")
    assert result.returncode == 0, result.stderr[-2000:]
    compiled = [line for line in result.stderr.splitlines() if line.startswith("# code object from /")]
    assert compiled == []


def test_without_a_model_it_says_what_is_missing(image: Image) -> None:
    result = image.run(*image.config["Entrypoint"], *image.config["Cmd"])
    assert result.returncode != 0
    assert "SCORER_MODEL" in result.stdout + result.stderr
    assert "Traceback" not in result.stdout + result.stderr


def test_conditions_are_as_strict_as_promised(server: Server) -> None:
    process = Path(f"/proc/{server.pid}")
    status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines())
    assert status["NSpid"].split()[-1] == "1"
    assert set(status["Uid"].split()) == {STRANGER.split(":")[0]}
    assert int(status["CapEff"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert "\0HOME=" not in (process / "environ").read_text()
    writable = "import os; exit(any(os.access(d, os.W_OK) for d in ('/', '/app', '/opt/venv', '/dev', '/var/tmp')))"
    assert server.execute(["python", "-c", writable]) == 0


def test_score(server: Server) -> None:
    """The rows of KServe's own tutorial."""
    body = json.dumps({"instances": [[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]]})
    status, answer = server.request("POST", "/v1/models/iris:predict", body)
    assert (status, json.loads(answer)) == (200, {"predictions": [1.0, 1.0]})


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics"])
def test_operations(server: Server, path: str) -> None:
    assert server.request("GET", path)[0] == 200


def test_health_check_succeeds(server: Server) -> None:
    assert server.execute(server.image.config["Healthcheck"]["Test"][1:], SCORER_PORT=str(server.port)) == 0


def test_health_check_fails_when_nothing_answers(server: Server) -> None:
    assert server.execute(server.image.config["Healthcheck"]["Test"][1:], SCORER_PORT=str(free_port())) != 0


@pytest.mark.parametrize("user", ["the image's", "a stranger"])
def test_stops_when_told_and_logs_no_error(image: Image, user: str, tmp_path: Path) -> None:
    """SIGTERM to process 1 ends it with status 0; its log is one JSON object a line, none of them an error."""
    who = image.config["User"] if user == "the image's" else STRANGER
    with serving(image, who, tmp_path / "log") as server:
        assert server.request("POST", "/v1/models/iris:predict", '{"instances": [[6.8, 2.8, 4.8, 1.4]]}')[0] == 200
        os.kill(server.pid, signal.SIGTERM)
        assert server.unshare.wait(timeout=STOP_SECONDS) == 0
    lines = [json.loads(line) for line in server.log.read_text().splitlines()]
    assert lines
    assert [line for line in lines if line["level"] not in ("DEBUG", "INFO", "WARNING")] == []
