"""`xgboost-server fetch`, as an init container runs it: a file in its place, one line, an exit code."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.serving import IRIS, ROOT, has_gone, wait_until
from tests.sources.places import MEGABYTE, files_in, make_model
from tests.sources.servers import BUCKET, Handler, HttpsServer, Moto, Proxy, drip, file_of, running_proxy, status

URI = f"s3://{BUCKET}/iris"


def fetch(*arguments: object, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service.cli", "fetch", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environ, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.fixture
def proxy(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with running_proxy(moto.port) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.url)
        yield between


def test_the_model_is_there_and_one_line_says_so(moto: Moto, tmp_path: Path) -> None:
    moto.put("iris/3/model.ubj", IRIS.read_bytes())
    first = fetch(URI, tmp_path / "models")
    assert (first.returncode, first.stderr) == (0, "")
    path = tmp_path / "models" / "3" / "model.ubj"
    assert first.stdout.startswith(f"{path}: fetched, version 3, {IRIS.stat().st_size:,} bytes, sha256:")
    again = fetch(URI, tmp_path / "models")
    assert again.returncode == 0
    assert again.stdout == first.stdout.replace("fetched", "already there")


def test_a_pinned_file_that_is_there_needs_neither_store_nor_credentials(moto: Moto, tmp_path: Path) -> None:
    """An init container that runs again after a restart of the pod."""
    moto.put("iris/3/model.ubj", IRIS.read_bytes())
    digest = fetch(URI, tmp_path).stdout.rpartition("sha256:")[2].strip()
    away = {"AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
    again = fetch(URI, tmp_path, "--sha256", digest, **away)
    assert (again.returncode, again.stderr) == (0, "")
    assert "already there" in again.stdout
    assert "already there" in fetch(URI, tmp_path, SCORER_MODEL_SHA256=digest, **away).stdout


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((URI, "--sha256", "0" * 64), "expected 000000000000…"),
        ((URI, "--max-bytes", "100"), "at most 100 are taken"),
        ((f"s3://{BUCKET}/gone",), "nothing there"),
        (("s3://no-such-bucket/iris",), "no such bucket"),
        (("https://example.com/model.ubj",), "is not among the hosts of SCORER_MODEL_HTTPS_HOSTS (none)"),
        (("/models/iris",), "a path; expected the URI of a model"),
        (("ftp://example.com/m",), "expected a path, or a URI that begins with"),
        ((URI, "--sha256", "abc"), "expected 64 lower-case hexadecimal digits"),
        ((URI, "--max-bytes", "1GB"), "expected a whole number"),
    ],
)
def test_what_will_not_get_better_is_exit_code_1(
    moto: Moto, tmp_path: Path, arguments: tuple[str, ...], reason: str
) -> None:
    moto.put("iris/3/model.ubj", IRIS.read_bytes())
    done = fetch(arguments[0], tmp_path, *arguments[1:])
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("xgboost-server: ")
    assert reason in line
    assert files_in(tmp_path) == []


@pytest.mark.timeout(120)
def test_what_may_get_better_is_exit_code_75(moto: Moto, tmp_path: Path) -> None:
    """EX_TEMPFAIL; each attempt has its line."""
    done = fetch(URI, tmp_path, "--timeout", "2", AWS_ENDPOINT_URL="http://127.0.0.1:1")
    assert done.returncode == 75
    *notes, last = done.stderr.splitlines()
    assert all("connection refused" in note and "again in" in note for note in notes)
    assert len(notes) >= 1
    assert "not fetched within 2 seconds (SCORER_FETCH_TIMEOUT_SECONDS); the last attempt: " in last
    assert "connection refused" in last


def test_time_is_up_even_for_a_server_that_never_comes_to_the_point(https: HttpsServer, tmp_path: Path) -> None:
    """Header upon header, so that nothing times out by itself."""

    def chatter(handler: Handler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while True:
            handler.wfile.write(b"a")
            time.sleep(0.05)  # the fault that is tested

    https.answers["/model.ubj"] = chatter
    url = https.url("/model.ubj")
    environ = {"SCORER_MODEL_HTTPS_HOSTS": f"localhost:{https.port},127.0.0.1"}
    done = fetch(url, tmp_path, "--timeout", "1", **environ)
    assert done.returncode == 75
    assert "not fetched within 1 seconds" in done.stderr
    asked = ask("newest", url, SCORER_FETCH_TIMEOUT_SECONDS="1", **environ)
    assert asked.returncode == 75
    assert "not fetched within 1 seconds" in json.loads(asked.stdout)["error"]


@pytest.mark.long
@pytest.mark.timeout(300)
def test_one_byte_a_second_is_given_up_with_the_limits_that_are_shipped(https: HttpsServer, tmp_path: Path) -> None:
    """Five attempts of ten seconds each, and the pauses between them."""
    https.answers["/model.ubj"] = drip(b"{" * 60, 1.0, declared=MEGABYTE)
    hosts = f"localhost:{https.port},127.0.0.1"
    command = [sys.executable, "-m", "service.cli", "fetch", https.url("/model.ubj"), str(tmp_path)]
    environ = os.environ | {"SCORER_MODEL_HTTPS_HOSTS": hosts}
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=280, check=False)
    print(f"given up after {time.monotonic() - began:.0f} s")
    assert done.returncode == 75
    assert "too slow" in done.stderr.splitlines()[-1]


def test_a_signed_url_appears_nowhere(https: HttpsServer, tmp_path: Path) -> None:
    """Not in the output, not in the folder, not among the arguments of the process that fetches."""
    seen: list[list[str]] = []

    def look(handler: Handler) -> None:
        processes = psutil.process_iter(["cmdline"])
        seen.extend(process.info["cmdline"] or [] for process in processes)
        file_of(IRIS.read_bytes())(handler)

    https.answers["/iris/model.ubj"] = look
    url = https.url("/iris/model.ubj?X-Amz-Signature=c0ffee0ff1ce")
    environ = {"SCORER_MODEL_HTTPS_HOSTS": f"localhost:{https.port},127.0.0.1"}
    done = fetch(url, tmp_path, **environ)
    assert done.returncode == 0
    assert "c0ffee" not in done.stdout + done.stderr
    assert all("c0ffee" not in file.read_text(errors="replace") for file in tmp_path.rglob("*") if file.is_file())
    fetchers = [command for command in seen if "service.sources" in command]
    assert fetchers
    assert not any("c0ffee" in word for command in fetchers for word in command)
    https.answers["/iris/model.ubj"] = status(403)
    assert "c0ffee" not in fetch(url, tmp_path / "other", **environ).stderr


def test_a_terminal_gets_a_bar(moto: Moto, proxy: Proxy, tmp_path: Path) -> None:
    moto.put("model.ubj", make_model(8 * MEGABYTE))
    proxy.hold_after = 4 * MEGABYTE
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "service.cli", "fetch", f"s3://{BUCKET}/model.ubj", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=theirs) as process:
        os.close(theirs)
        shown = ""
        while "%" not in shown:
            shown += os.read(ours, 1000).decode()
        proxy.release.set()
        assert process.wait(30) == 0
    os.close(ours)
    assert "fetching" in shown


def start(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "service.cli", "fetch", f"s3://{BUCKET}/model.ubj", str(folder)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_fetch_that_is_stopped_leaves_nothing_behind(
    moto: Moto, proxy: Proxy, tmp_path: Path, number: signal.Signals
) -> None:
    """The process that fetches ends as well, and the next start finds the lock free and begins anew."""
    model = make_model(8 * MEGABYTE)
    moto.put("model.ubj", model)
    proxy.hold_after = 4 * MEGABYTE
    with start(tmp_path) as process:
        assert proxy.holding.wait(30)
        (fetcher,) = psutil.Process(process.pid).children()
        process.send_signal(number)
        process.wait(30)
    wait_until(lambda: has_gone(fetcher))
    proxy.release.set()
    assert files_in(tmp_path) in ([], [".fetching/model.ubj"])
    assert fetch(f"s3://{BUCKET}/model.ubj", tmp_path).returncode == 0
    assert (tmp_path / "model.ubj").read_bytes() == model
    assert files_in(tmp_path) == ["model.ubj"]


def test_a_fetcher_that_is_killed_is_told_in_one_line(moto: Moto, proxy: Proxy, tmp_path: Path) -> None:
    moto.put("model.ubj", make_model(8 * MEGABYTE))
    proxy.hold_after = 4 * MEGABYTE
    command = [sys.executable, "-m", "service.cli", "fetch", f"s3://{BUCKET}/model.ubj", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert proxy.holding.wait(30)
        (fetcher,) = psutil.Process(process.pid).children()
        fetcher.kill()
        _, said = process.communicate(timeout=30)
    assert process.returncode == 75
    assert said.splitlines() == [
        f"xgboost-server: s3://{BUCKET}/model.ubj: the process that fetches it was killed (SIGKILL)"
    ]


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("mount") is None, reason="mounts a small file system, which needs root"
)
def test_a_full_disk_is_told_before_and_on_the_way(moto: Moto, https: HttpsServer, tmp_path: Path) -> None:
    """With a length the room is looked at first; without one the disk runs full, and what was there stays."""

    def endless(handler: Handler) -> None:
        handler.start()
        handler.wfile.write(b"{" * (8 * MEGABYTE))

    moto.put("model.ubj", make_model(8 * MEGABYTE))
    https.answers["/model.ubj"] = endless
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(tmp_path)], check=False)
    if mounted.returncode:
        pytest.skip("no right to mount")
    try:
        known = fetch(f"s3://{BUCKET}/model.ubj", tmp_path)
        hosts = f"localhost:{https.port},127.0.0.1"
        unknown = fetch(https.url("/model.ubj"), tmp_path, SCORER_MODEL_HTTPS_HOSTS=hosts)
        left = files_in(tmp_path)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
    assert (known.returncode, unknown.returncode) == (1, 1)
    assert "MB are free, the model has 8.0 MB" in known.stderr
    assert "No space left on device" in unknown.stderr
    assert left == []


# What the swap asks.


def ask(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service.sources", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environ, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_newest_version_is_one_line_of_json(moto: Moto, proxy: Proxy) -> None:
    """Cheap: no bytes of the model. The identity changes with the file and with its golden rows, and with nothing else."""
    data = IRIS.read_bytes()
    moto.put("iris/3/model.ubj", data)
    said = [json.loads(ask("newest", URI).stdout)]
    assert said[0] == {"version": "3", "identity": said[0]["identity"], "size": len(data)}
    moto.put("iris/2/model.ubj", data)
    said.append(json.loads(ask("newest", SCORER_MODEL=URI).stdout))
    moto.put("iris/3/golden.json", b"{}")
    said.append(json.loads(ask("newest", URI).stdout))
    moto.put("iris/3/model.ubj", data + b" ")
    said.append(json.loads(ask("newest", URI).stdout))
    identities = [one["identity"] for one in said]
    assert identities[0] == identities[1]
    assert len(set(identities)) == 3
    assert not any(head.startswith("GET") and "model.ubj" in head for head in proxy.requests)


def test_the_identity_of_the_newest_is_that_of_what_is_fetched(moto: Moto, tmp_path: Path) -> None:
    moto.put("iris/3/model.ubj", IRIS.read_bytes())
    newest = json.loads(ask("newest", URI).stdout)
    fetched = json.loads(ask("fetch", "--cache", str(tmp_path), URI).stdout.splitlines()[-1])["fetched"]
    assert fetched["identity"] == newest["identity"]
    assert fetched["path"] == str(tmp_path / f"3@{newest['identity']}" / "model.ubj")


def test_a_question_that_fails_is_answered_in_json_too(moto: Moto) -> None:
    done = ask("newest", "s3://no-such-bucket/iris")
    assert done.returncode == 1
    said = json.loads(done.stdout)
    assert said["is_temporary"] is False
    assert "no such bucket" in said["error"]
    later = ask("newest", URI, AWS_ENDPOINT_URL="http://127.0.0.1:1")
    assert (later.returncode, json.loads(later.stdout)["is_temporary"]) == (75, True)


def test_who_waits_for_another_process_takes_what_it_brought(moto: Moto, tmp_path: Path) -> None:
    """The lock is the kernel's: here the test holds it, as any process may."""
    moto.put("iris/3/model.ubj", IRIS.read_bytes())
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        command = [sys.executable, "-m", "service.sources", "fetch", str(tmp_path), URI]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline())["progress"]["state"] == "waiting"
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert "fetched" in json.loads(process.stdout.read().splitlines()[-1])
