"""SCORER_MODEL as a URI: fetched once a pod; a failed fetch stops the start and nothing else."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from service.packing import find_cache, kernel_cache
from tests.serving import CANCER, IRIS, ROOT, RunningServer, free_port, is_ready, running_server, wait_until
from tests.sources.servers import BUCKET, HttpsServer, Moto, Proxy, file_of, running_proxy

URI = f"s3://{BUCKET}/iris"
DIGEST = hashlib.sha256(IRIS.read_bytes()).hexdigest()
ROW = b'{"instances": [[6.8, 2.8, 4.8, 1.4]]}'


@pytest.fixture
def proxy(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """moto with the iris model as version 3, through a proxy that counts."""
    moto.put("iris/3/model.ubj", IRIS.read_bytes())
    with running_proxy(moto.port) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.url)
        yield between


@pytest.fixture
def cache(tmp_path: Path) -> str:
    """An empty one, but for the compiled kernels of this machine: they take seconds and are not what is tested."""
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    kernels = kernel_cache(find_cache(""))
    kernels.mkdir(parents=True, exist_ok=True)
    (folder / "kernels").symlink_to(kernels)
    return str(folder)


SERVE = [sys.executable, "-m", "service.cli", "serve"]
GUNICORN = [sys.executable, "-m", "gunicorn", "-c", "gunicorn.conf.py"]


@contextmanager
def starting_server(folder: Path, command: list[str] = SERVE, /, **settings: str) -> Iterator[RunningServer]:
    """As `running_server`, without waiting for it to be ready."""
    port = free_port()
    environ = os.environ | {"SCORER_PORT": str(port), "WEB_CONCURRENCY": "2", **settings}
    log = folder / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=file, stderr=file)
    server = RunningServer(process, port, 0, log)
    try:
        yield server
    finally:
        server.stop()


def is_alive(server: RunningServer) -> bool:
    try:
        return server.request("/livez").status == 200
    except OSError:
        return False


def events(server: RunningServer, name: str) -> list[dict[str, Any]]:
    return [line for line in server.lines() if line["event"] == name]


def fetchers(server: RunningServer) -> list[psutil.Process]:
    children = psutil.Process(server.pid).children(recursive=True)
    return [child for child in children if "service.sources" in child.cmdline()]


def version_of(server: RunningServer) -> str:
    return server.request("/v1/models/iris:predict", ROW).headers["X-Model-Version"]


def test_a_model_is_fetched_once_for_all_workers(proxy: Proxy, cache: str) -> None:
    """And asked for once: the second worker takes what the first has found."""
    with running_server(SCORER_MODEL=URI, SCORER_CACHE_DIR=cache, WEB_CONCURRENCY="4") as server:
        answer = server.request("/v1/models/iris:predict", ROW)
        assert answer.json() == {"predictions": [1.0]}
        assert (answer.headers["X-Model-Name"], answer.headers["X-Model-Version"]) == ("iris", "3")
        assert server.total("scorer_model_info", model="iris", version="3") == 4
    assert proxy.count("GET", "iris/3/model.ubj") == 1
    assert proxy.count("HEAD", "iris/3/model.ubj") == 1


def test_the_digest_of_what_was_fetched_is_everywhere(proxy: Proxy, cache: str) -> None:
    """In each answer, in the metadata of V1 and V2, in the metrics and in the log."""
    with running_server(SCORER_MODEL=URI, SCORER_CACHE_DIR=cache, SCORER_MODEL_SHA256=DIGEST) as server:
        for path, body in (
            ("/v1/models/iris:predict", ROW),
            ("/predict", b"[1, 2, 3, 4]"),
            ("/predict", b"[1, 2]"),
            ("/livez", None),
            ("/v2", None),
            ("/nowhere", None),
            ("/metrics", None),
        ):
            assert server.request(path, body).headers["X-Model-Digest"] == f"sha256:{DIGEST}", path
        assert server.request("/v1/models/iris").json()["digest"] == f"sha256:{DIGEST}"
        assert server.request("/v2/models/iris").json()["parameters"]["digest"] == f"sha256:{DIGEST}"
        assert server.total("scorer_model_info", digest=DIGEST) == 2
        wait_until(lambda: len(events(server, "serving")) == 2)
        assert {line["digest"] for line in events(server, "serving")} == {DIGEST}


def test_another_digest_stops_the_start_in_one_line(proxy: Proxy, tmp_path: Path, cache: str) -> None:
    settings = {"SCORER_MODEL": URI, "SCORER_CACHE_DIR": cache, "SCORER_MODEL_SHA256": "0" * 64}
    with starting_server(tmp_path, **settings) as server:
        assert server.process.wait(60) == 1
        wanted = f"{URI}: the sha256 is {DIGEST[:12]}…, expected 000000000000…"
        assert server.log.read_text() == f"xgboost-server: {wanted}\n"


def test_a_model_that_is_not_there_stops_the_start_with_the_reason(moto: Moto, tmp_path: Path, cache: str) -> None:
    settings = {"SCORER_MODEL": f"s3://{BUCKET}/gone", "SCORER_CACHE_DIR": cache}
    with starting_server(tmp_path, **settings) as server:
        assert server.process.wait(60) == 1
        (line,) = server.log.read_text().splitlines()
        assert "expected <version>/model.ubj" in line


def test_a_host_off_the_list_is_a_fault_before_anything_listens(tmp_path: Path) -> None:
    with starting_server(tmp_path, SCORER_MODEL="https://example.com/iris/model.ubj?sig=c0ffee") as server:
        assert server.process.wait(60) == 1
        assert server.log.read_text() == (
            "xgboost-server: https://example.com/iris/model.ubj?…: example.com:443 is not among the hosts of "
            "SCORER_MODEL_HTTPS_HOSTS (none)\n"
        )


def test_probes_are_answered_while_the_model_comes(moto: Moto, proxy: Proxy, tmp_path: Path, cache: str) -> None:
    """Under Gunicorn's own master, whose workers fetch: alive, not ready, and how far it is; whichever worker is asked."""
    model = IRIS.read_bytes()
    proxy.hold_after = len(model) // 2
    settings = {"SCORER_MODEL": f"{URI}/3/model.ubj", "SCORER_CACHE_DIR": cache}
    with starting_server(tmp_path, GUNICORN, **settings) as server:
        wait_until(lambda: is_alive(server))
        assert proxy.holding.wait(30)
        said: set[str] = set()
        while not all(any(word in reason for reason in said) for word in ("MB (", "another worker")):
            answer = server.request("/readyz")
            assert answer.status == 503
            said.add(answer.json()["reason"])
        assert all(reason.startswith("fetching the model") for reason in said if "(" in reason)
        assert server.request("/v2/health/ready").status == 503
        proxy.release.set()
        wait_until(lambda: is_ready(server))
        assert server.request("/v1/models/iris:predict", ROW).status == 200


def test_a_stop_does_not_wait_for_the_model(proxy: Proxy, tmp_path: Path, cache: str) -> None:
    """A pod that is deleted while it fetches goes at once, and takes the process that fetches along."""
    proxy.hold_after = 20_000
    settings = {"SCORER_MODEL": f"{URI}/3/model.ubj", "SCORER_CACHE_DIR": cache}
    with starting_server(tmp_path, GUNICORN, **settings) as server:
        assert proxy.holding.wait(30)
        wait_until(lambda: is_alive(server))
        wait_until(lambda: len(fetchers(server)) == 2)
        processes = fetchers(server)
        assert server.stop() == 0
        assert not any(process.is_running() for process in processes)
        assert events(server, "cannot serve") == []


def test_a_start_that_is_stopped_takes_the_fetch_along(proxy: Proxy, tmp_path: Path, cache: str) -> None:
    proxy.hold_after = 20_000
    settings = {"SCORER_MODEL": f"{URI}/3/model.ubj", "SCORER_CACHE_DIR": cache}
    with starting_server(tmp_path, **settings) as server:
        assert proxy.holding.wait(30)
        wait_until(lambda: len(fetchers(server)) == 1)
        (process,) = fetchers(server)
        assert server.stop() == -signal.SIGTERM
        wait_until(lambda: not process.is_running())


def test_a_worker_that_is_replaced_needs_no_store(moto: Moto, proxy: Proxy, cache: str) -> None:
    """And takes the version of its siblings, though a newer one has appeared meanwhile."""
    with running_server(SCORER_MODEL=URI, SCORER_CACHE_DIR=cache) as server:
        moto.put("iris/4/model.ubj", IRIS.read_bytes() + b" ")
        proxy.close()
        os.kill(server.workers()[0], signal.SIGKILL)
        server.wait_for_starts(3, ready=2)
        assert {version_of(server) for _ in range(20)} == {"3"}


def test_a_reload_takes_the_newest(moto: Moto, proxy: Proxy, cache: str) -> None:
    with running_server(SCORER_MODEL=URI, SCORER_CACHE_DIR=cache) as server:
        moto.put("iris/4/model.ubj", IRIS.read_bytes())
        server.signal(signal.SIGHUP)
        wait_until(lambda: server.total("scorer_worker_exits_total", cause="drained") == 2)
        assert {version_of(server) for _ in range(20)} == {"4"}
    assert proxy.count("GET", "iris/4/model.ubj") == 1


@pytest.mark.parametrize("fault", ["gone", "junk", "truncated"])
def test_a_reload_that_cannot_be_served_changes_nothing(moto: Moto, proxy: Proxy, cache: str, fault: str) -> None:
    """Neither for the workers there are nor for one that is replaced afterwards."""
    with running_server(SCORER_MODEL=URI, SCORER_CACHE_DIR=cache) as server:
        if fault == "gone":
            moto.delete("iris/3/model.ubj")
        elif fault == "junk":
            moto.put("iris/4/model.ubj", b"\x80\x04 a pickle")
        else:
            moto.put("iris/4/model.ubj", CANCER.read_bytes()[:20_000])
        server.signal(signal.SIGHUP)
        wait_until(lambda: events(server, "model refused"))
        os.kill(server.workers()[0], signal.SIGKILL)
        server.wait_for_starts(3, ready=2)
        assert {version_of(server) for _ in range(20)} == {"3"}
    assert [path.parent.name.partition("@")[0] for path in Path(cache).glob("sources/*/*/model.ubj")] == ["3"]


def test_a_pinned_model_in_the_cache_survives_a_restart_without_the_store(moto: Moto, proxy: Proxy, cache: str) -> None:
    settings = {"SCORER_MODEL": URI, "SCORER_MODEL_SHA256": DIGEST, "SCORER_CACHE_DIR": cache}
    with running_server(None, **settings):
        pass
    proxy.close()
    with running_server(None, **settings) as server:
        assert version_of(server) == "3"


def test_a_restart_with_the_same_model_in_the_store_downloads_nothing(proxy: Proxy, cache: str) -> None:
    for _ in range(2):
        with running_server(SCORER_MODEL=URI, SCORER_CACHE_DIR=cache):
            pass
    assert proxy.count("GET", "iris/3/model.ubj") == 1
    assert proxy.count("HEAD", "iris/3/model.ubj") == 2


def test_breaks_on_the_way_are_in_the_log(proxy: Proxy, cache: str) -> None:
    proxy.break_after, proxy.breaks = 20_000, 1
    with running_server(SCORER_MODEL=URI, SCORER_CACHE_DIR=cache) as server:
        # But for how far it is, every five seconds.
        (line,) = (line for line in events(server, "fetching the model") if "reason" in line)
    assert "the connection broke" in str(line["reason"])
    assert "again in" in str(line["reason"])


def test_a_signed_url_is_in_no_line_and_no_metric(https: HttpsServer, cache: str) -> None:
    https.answers["/iris/model.ubj"] = file_of(IRIS.read_bytes(), breaks=2)
    settings = {
        "SCORER_MODEL": https.url("/iris/model.ubj?X-Amz-Signature=c0ffee0ff1ce"),
        "SCORER_MODEL_HTTPS_HOSTS": f"localhost:{https.port},127.0.0.1",
        "SCORER_CACHE_DIR": cache,
    }
    with running_server(None, **settings) as server:
        metrics = server.request("/metrics").body.decode()
        assert 'model="iris"' in metrics
        assert "c0ffee" not in metrics + server.log.read_text()
        assert "c0ffee" not in server.request("/v2/models/iris").body.decode()


def test_no_thread_and_no_library_of_a_store_is_in_the_master(proxy: Proxy, cache: str) -> None:
    """Which forks: also after a reload that fetched."""
    with running_server(SCORER_MODEL=URI, SCORER_CACHE_DIR=cache) as server:
        server.signal(signal.SIGHUP)
        wait_until(lambda: server.total("scorer_worker_exits_total", cause="drained") == 2)
        for pid, threads in ((server.pid, 1), (server.workers()[0], None)):
            process = psutil.Process(pid)
            assert not any("obstore" in mapped.path for mapped in process.memory_maps())
            assert threads in (None, process.num_threads())


def test_gunicorn_started_by_hand_serves_from_a_uri_too(proxy: Proxy, cache: str) -> None:
    with running_server(GUNICORN, SCORER_MODEL=URI, SCORER_CACHE_DIR=cache) as server:
        assert version_of(server) == "3"
    assert proxy.count("GET", "iris/3/model.ubj") == 1


def test_check_takes_a_uri(proxy: Proxy, cache: str) -> None:
    command = [sys.executable, "-m", "service.cli", "check", URI]
    environ = os.environ | {"SCORER_CACHE_DIR": cache}
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{URI} can be served" in done.stdout
    assert DIGEST in "".join(done.stdout.split())
