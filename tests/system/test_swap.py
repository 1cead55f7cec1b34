"""The model is changed while the server serves: no request lost, no answer mixed, and old or new whatever is killed."""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import quantiles
from typing import Any, Protocol

import numpy as np
import psutil
import pytest
import xgboost

from tests.serving import IRIS, ROOT, Answer, RunningServer, free_port, has_gone, running_server, wait_until
from tests.system.load import Load

WORKERS = "4"
ROWS = np.random.default_rng(5).normal(size=(4, 6)).astype(np.float32)
BODY = json.dumps({"instances": ROWS.tolist()}).encode()
PATH = "/v1/models/churn:predict"
REPOSITORY = "/v2/repository/models/churn"
OFTEN = "0.2"


@dataclass(frozen=True)
class Version:
    """A model file, and what XGBoost scores with it, row by row."""

    data: bytes
    digest: str
    scores: bytes


@cache
def version(number: int, *, rounds: int = 10, depth: int = 4) -> Version:
    random = np.random.default_rng(number)
    rows = random.normal(size=(400, 6)).astype(np.float32)
    data = xgboost.DMatrix(rows, rows[:, 0] * number + rows[:, 1])
    booster = xgboost.train({"max_depth": depth, "nthread": 1, "seed": number}, data, rounds)
    raw = bytes(booster.save_raw("ubj"))
    scores = np.concatenate([booster.predict(xgboost.DMatrix(ROWS[i : i + 1], nthread=1)) for i in range(len(ROWS))])
    return Version(raw, hashlib.sha256(raw).hexdigest(), scores.astype(np.float32).tobytes())


def large(number: int) -> Version:
    """Packed in seconds rather than in a blink: time to kill somebody."""
    return version(number, rounds=600, depth=8)


def add(models: Path, number: int, found: Version | None = None) -> Path:
    """A new version in the folder, in one rename, as a careful operator does it."""
    beside = models / f".{number}"
    beside.mkdir(parents=True)
    (beside / "model.ubj").write_bytes((found or version(number)).data)
    beside.rename(models / str(number))
    return models / str(number) / "model.ubj"


class Serving(Protocol):
    def __call__(
        self, model: Path, *, poll: str = "0", command: list[str] | None = None, **settings: str
    ) -> AbstractContextManager[RunningServer]: ...


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Serving:
    """Starts four workers that find a version only when they are told; the run folder is in a place of the test's own.

    The cache is these tests' own, with the kernels in it: what is packed for them is packed now, and stays nowhere.
    """
    cache_dir = str(tmp_path_factory.mktemp("cache"))
    check = [sys.executable, "-m", "service.cli", "check", str(IRIS)]
    environment = os.environ | {"SCORER_CACHE_DIR": cache_dir}
    subprocess.run(check, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, check=True)

    @contextmanager
    def start(
        model: Path, *, poll: str = "0", command: list[str] | None = None, **settings: str
    ) -> Iterator[RunningServer]:
        temporary = model.parent / "tmp"
        temporary.mkdir(exist_ok=True)
        values = {
            "SCORER_MODEL": str(model),
            "SCORER_MODEL_NAME": "churn",
            "SCORER_MODEL_POLL_SECONDS": poll,
            "SCORER_CACHE_DIR": cache_dir,
            "WEB_CONCURRENCY": WORKERS,
            "TMPDIR": str(temporary),
        }
        with running_server(command, **values | settings) as server:
            yield server

    return start


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder of versions with version 1 in it."""
    add(tmp_path / "churn", 1)
    return tmp_path / "churn"


def run_folder(model: Path) -> Path:
    (found,) = (model.parent / "tmp").glob("xgboost-server-run-*")
    return found


def load(server: RunningServer, wanted: str = "", **headers: str) -> Answer:
    body = json.dumps({"parameters": {"version": wanted}}).encode() if wanted else b""
    return server.request(f"{REPOSITORY}/load", body, headers)


def roll_back(server: RunningServer) -> Answer:
    return server.request(f"{REPOSITORY}/rollback", b"")


def index(server: RunningServer) -> list[dict[str, str]]:
    entries: list[dict[str, str]] = server.request("/v2/repository/index", b"").json()
    return entries


def states(server: RunningServer) -> dict[str, str]:
    return {entry["version"]: entry["state"] for entry in index(server)}


def served(server: RunningServer, connections: int = 24) -> set[str]:
    """Digests of the versions that answer on so many connections."""
    answers = [server.request(PATH, BODY, port=server.port) for _ in range(connections)]
    assert {answer.status for answer in answers} == {200}
    return {answer.headers["X-Model-Digest"].removeprefix("sha256:") for answer in answers}


def swaps(server: RunningServer, result: str = "done") -> float:
    return server.total("scorer_model_swaps_total", result=result)


def events(server: RunningServer, event: str) -> list[dict[str, Any]]:
    return [line for line in server.lines() if line["event"] == event]


def wait_for_event(server: RunningServer, event: str, count: int = 1) -> None:
    wait_until(lambda: server.log.read_text().count(f'"{event}"') >= count, 60, every=0.005)


class Judge:
    """Verifies answers: the scores are those of the version that the answer names, and it is no version that has gone."""

    def __init__(self, *known: Version) -> None:
        self._known = {found.digest: (place, found) for place, found in enumerate(known)}
        # Since when no version before this one may answer.
        self.announced: list[tuple[float, int]] = []

    def announce(self, found: Version) -> None:
        self.announced.append((time.monotonic(), self._known[found.digest][0]))

    def verify(self, sent: float, status: int, headers: http.client.HTTPMessage, body: bytes) -> str:
        if status != 200:
            return f"{status} {body!r}"
        place, found = self._known[headers["X-Model-Digest"].removeprefix("sha256:")]
        if np.array(json.loads(body)["predictions"], np.float32).tobytes() != found.scores:
            return f"another version's scores: {body!r}"
        last = max((place for at, place in self.announced if at < sent), default=0)
        return "" if place >= last else f"version {place} after {last} was announced"


# Under load.


@contextmanager
def idle_connections(server: RunningServer, count: int) -> Iterator[None]:
    """Old workers wait two seconds for what may come on these, and then close them."""
    connections = [socket.create_connection((server.host, server.port)) for _ in range(count)]
    yield
    assert {connection.recv(1) for connection in connections} == {b""}
    for connection in connections:
        connection.close()


def swap_under_load(serving: Serving, models: Path, count: int) -> None:
    """`count` swaps under six keep-alive clients; prints how long they took and what they cost the others.

    The clients rest for some milliseconds: where every core is busy all the time, a swap measures the scheduler.
    """
    known = [version(number) for number in range(1, count + 2)]
    judge = Judge(*known)
    with serving(models) as server:
        with Load(server, clients=6, path=PATH, body=BODY, verify=judge.verify, pause=0.005) as clients:
            time.sleep(3)
            began = time.monotonic()
            for number in range(2, count + 2):
                add(models, number)
                with idle_connections(server, 8):
                    answer = load(server)
                judge.announce(known[number - 1])
                assert (answer.status, answer.json()["version"]) == (200, str(number)), answer.body
                assert served(server) == {known[number - 1].digest}
            ended = time.monotonic()
        assert not clients.failures, clients.failures[:5]
        wait_until(lambda: swaps(server) == count)
        assert server.total("scorer_worker_exits_total", cause="drained") == 4 * count
        assert server.total("scorer_worker_exits_total") == 4 * count
        seconds = [line["seconds"] for line in events(server, "swap done")]
    quiet, busy = (
        quantiles((took for sent, took in clients.times if (sent > began) == during), n=100)[98]
        for during in (False, True)
    )
    print(f"\n{count} swaps in {ended - began:.1f} s, {clients.answered} requests, {len(clients.failures)} failed")
    print(f"announced after admission: {min(seconds):.2f} to {max(seconds):.2f} s")
    print(f"p99 of six clients: {quiet * 1e3:.1f} ms quiet, {busy * 1e3:.1f} ms during swaps, {busy / quiet:.1f} times")


@pytest.mark.timeout(300)
def test_swaps_under_load_lose_nothing_and_mix_nothing(serving: Serving, models: Path) -> None:
    swap_under_load(serving, models, 5)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_fifty_swaps_under_load_lose_nothing_and_mix_nothing(serving: Serving, models: Path) -> None:
    swap_under_load(serving, models, 50)


# Who notices a version.


def test_a_new_version_in_the_folder_is_taken_up(serving: Serving, models: Path) -> None:
    with serving(models, poll=OFTEN) as server:
        add(models, 2)
        wait_for_event(server, "swap done")
        assert served(server) == {version(2).digest}
        assert states(server) == {"2": "READY"}
        assert server.total("scorer_model_swap_seconds") > 0
        add(models, 10)
        wait_for_event(server, "swap done", 2)
        assert served(server) == {version(10).digest}


def test_a_link_that_is_switched_is_followed(serving: Serving, tmp_path: Path) -> None:
    """Kubernetes mounts a ConfigMap as links into `..data`, itself a link that is renamed over."""
    mount = tmp_path / "mount"
    for number in (1, 2):
        folder = mount / f"..2026_{number}"
        folder.mkdir(parents=True)
        (folder / "model.ubj").write_bytes(version(number).data)
    (mount / "..data").symlink_to("..2026_1")
    (mount / "model.ubj").symlink_to("..data/model.ubj")
    with serving(mount / "model.ubj", poll=OFTEN) as server:
        assert served(server) == {version(1).digest}
        (mount / "..data_tmp").symlink_to("..2026_2")
        (mount / "..data_tmp").rename(mount / "..data")
        shutil.rmtree(mount / "..2026_1")
        wait_for_event(server, "swap done")
        assert served(server) == {version(2).digest}


def test_a_file_that_is_replaced_in_place_changes_nothing_before_it_is_admitted(
    serving: Serving, tmp_path: Path
) -> None:
    """Workers that start anew serve the bytes that were admitted, whatever lies in the file's place."""
    path = tmp_path / "model.ubj"
    path.write_bytes(version(1).data)
    with serving(path) as server:
        for garbage in (b"", b"{garbage", version(2).data):
            path.write_bytes(garbage)
            old = server.workers()
            for victim in old:
                os.kill(victim, signal.SIGKILL)
            wait_until(lambda: len(set(server.workers()) - set(old)) == 4)  # noqa: B023 - waited for before the next
            wait_until(lambda: server.total("scorer_workers", state="ready") == 4)
            assert served(server) == {version(1).digest}
        assert load(server).json() == {"name": "churn", "version": "1", "load": True}
        assert served(server) == {version(2).digest}


def test_a_file_that_is_being_copied_is_left_alone_until_it_is_whole(serving: Serving, models: Path) -> None:
    with serving(models, poll="1") as server:
        (models / "2").mkdir()
        data = version(2).data
        with (models / "2" / "model.ubj").open("wb", buffering=0) as file:
            for start in range(0, len(data), len(data) // 30):
                file.write(data[start : start + len(data) // 30])
                time.sleep(0.1)
        wait_for_event(server, "swap done")
        assert served(server) == {version(2).digest}
        assert swaps(server, "refused") == 0


def test_hup_takes_the_newest_version_in_new_workers(serving: Serving, models: Path) -> None:
    with serving(models) as server:
        add(models, 2)
        server.signal(signal.SIGHUP)
        wait_for_event(server, "swap done")
        assert served(server) == {version(2).digest}
        old = set(server.workers())
        server.signal(signal.SIGHUP)
        wait_for_event(server, "workers renewed")
        assert not old & set(server.workers())
        assert served(server) == {version(2).digest}
        assert swaps(server) == 1
        assert roll_back(server).json()["version"] == "1", "the version before is another one, not the same again"


def test_hup_with_a_model_that_cannot_be_served_changes_nothing(serving: Serving, models: Path) -> None:
    with serving(models) as server:
        old = server.workers()
        add(models, 2, Version(b"{garbage", "", b""))
        server.signal(signal.SIGHUP)
        wait_for_event(server, "model refused")
        assert server.workers() == old
        assert served(server) == {version(1).digest}
        assert states(server) == {"1": "READY", "2": "UNAVAILABLE"}


# What is refused.


def test_a_candidate_that_is_refused_is_shown_and_not_tried_again(serving: Serving, models: Path) -> None:
    with serving(models, poll=OFTEN) as server:
        path = add(models, 2, Version(version(2).data[:-100], "", b""))
        wait_for_event(server, "model refused")
        wait_until(lambda: swaps(server, "refused") == 1)
        assert server.total("scorer_model_refused") == 1
        ready, refused = index(server)
        assert (ready["version"], ready["state"]) == ("1", "READY")
        assert (refused["version"], refused["state"]) == ("2", "UNAVAILABLE")
        assert refused["reason"].startswith(f"{path}: not a document of UBJSON")
        assert served(server) == {version(1).digest}
        # Looked at again and again, also by the worker that is elected next.
        for victim in server.workers():
            os.kill(victim, signal.SIGKILL)
        server.wait_for_starts(8, ready=4)
        time.sleep(1)
        assert len(events(server, "model refused")) == 1
        path.write_bytes(version(2).data)
        wait_for_event(server, "swap done")
        assert served(server) == {version(2).digest}
        assert server.total("scorer_model_refused") == 0
        assert states(server) == {"2": "READY"}


def test_a_source_that_is_gone_is_shown_and_what_was_served_goes_on(serving: Serving, models: Path) -> None:
    """The next start would fail: somebody should know."""
    with serving(models, poll=OFTEN) as server:
        models.rename(models.with_name("away"))
        # The last that is done: the metric says so before the pointer is written.
        wait_for_event(server, "model refused")
        assert server.total("scorer_model_refused") == 1
        assert index(server)[1] == {
            "name": "churn",
            "version": "",
            "state": "UNAVAILABLE",
            "reason": f"{models}: no such file or folder",
        }
        assert served(server) == {version(1).digest}
        models.with_name("away").rename(models)
        wait_until(lambda: server.total("scorer_model_refused") == 0)
        assert states(server) == {"1": "READY"}


def test_a_pinned_digest_refuses_every_other_file(serving: Serving, tmp_path: Path) -> None:
    path = tmp_path / "model.ubj"
    path.write_bytes(version(1).data)
    with serving(path, SCORER_MODEL_SHA256=version(1).digest, poll=OFTEN) as server:
        path.write_bytes(version(2).data)
        wait_for_event(server, "model refused")
        assert f"the sha256 is {version(2).digest}" in index(server)[1]["reason"]
        assert served(server) == {version(1).digest}


def test_a_call_is_told_why_its_version_is_refused(serving: Serving, models: Path) -> None:
    with serving(models) as server:
        add(models, 2, Version(b"", "", b""))
        refused = load(server)
        assert refused.status == 422
        assert refused.json()["code"] == "model-refused"
        foreign = server.request("/v2/repository/index", b"", {"X-Forwarded-For": "10.0.0.1"})
        assert foreign.json()[1]["reason"] == "the log says why", "callers are not told of files"
        assert "the file is empty; version 1 goes on serving" in refused.json()["error"]
        assert load(server, "3").json() == {
            "error": "parameters.version: no such version in the folder of SCORER_MODEL",
            "code": "invalid-input",
        }
        assert load(server, "1").status == 200, "served already"
        assert swaps(server) == 0


# Back and forth.


def test_a_rollback_lasts_until_there_is_something_newer(serving: Serving, models: Path) -> None:
    with serving(models, poll=OFTEN) as server:
        assert roll_back(server).json()["code"] == "no-previous-version"
        add(models, 2)
        wait_for_event(server, "swap done")
        began = time.monotonic()
        assert roll_back(server).json() == {"name": "churn", "version": "1", "load": True}
        print(f"\nrolled back in {time.monotonic() - began:.2f} s")
        assert served(server) == {version(1).digest}
        time.sleep(1.5)
        assert served(server) == {version(1).digest}, "the version that was left is not taken up again"
        add(models, 3)
        wait_for_event(server, "swap done", 3)
        assert served(server) == {version(3).digest}
        assert roll_back(server).json()["version"] == "1"
        assert roll_back(server).json()["version"] == "3"


def test_a_version_that_is_named_stays(serving: Serving, models: Path) -> None:
    add(models, 2)
    add(models, 3)
    with serving(models, poll=OFTEN) as server:
        assert served(server) == {version(3).digest}
        assert load(server, "2").json()["version"] == "2"
        time.sleep(1)
        assert served(server) == {version(2).digest}
        assert load(server).json()["version"] == "3", "without a name it is the newest"


def test_a_rollback_needs_neither_the_file_nor_packing(serving: Serving, models: Path) -> None:
    with serving(models) as server:
        add(models, 2)
        assert load(server).status == 200
        shutil.rmtree(models)
        assert roll_back(server).status == 200
        assert served(server) == {version(1).digest}


# One at a time.


def test_a_second_swap_is_told_that_there_is_one(serving: Serving, models: Path) -> None:
    with serving(models) as server:
        add(models, 2)
        with (run_folder(models) / "swap.lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for answer in (load(server), roll_back(server)):
                assert (answer.status, answer.json()["code"]) == (409, "swap-under-way")
        assert load(server).status == 200


def test_of_many_swaps_at_once_those_that_are_told_so_have_won(serving: Serving, models: Path) -> None:
    """Seven calls at once: 200 or 409, never two at a time, and what the last of the winners asked for serves."""
    for number in range(2, 9):
        add(models, number)
    with serving(models) as server:
        assert served(server) == {version(8).digest}
        answers: list[Answer] = []
        calls = [
            threading.Thread(target=lambda n=number: answers.append(load(server, str(n)))) for number in range(1, 8)
        ]
        for call in calls:
            call.start()
        for call in calls:
            call.join()
        won = [answer.json()["version"] for answer in answers if answer.status == 200]
        assert {answer.status for answer in answers} <= {200, 409}
        assert won
        wait_until(lambda: swaps(server) == len(won))
        assert served(server) == {version(int(won[-1])).digest}


# Killed in the middle.


def packing_process(server: RunningServer) -> psutil.Process:
    """The throw-away process of a swap, once there is one."""
    found: list[psutil.Process] = []

    def look() -> bool:
        for child in psutil.Process(server.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if "service.packing" in child.cmdline():
                    found.append(child)
        return bool(found)

    wait_until(look, 60, every=0.005)
    return found[0]


def test_a_packing_process_that_is_killed_leaves_the_old_version(serving: Serving, models: Path) -> None:
    with serving(models) as server:
        add(models, 2, large(2))
        answers: list[Answer] = []
        call = threading.Thread(target=lambda: answers.append(load(server)))
        call.start()
        packing_process(server).kill()
        call.join()
        assert answers[0].status == 422
        assert "SIGKILL" in answers[0].json()["error"]
        assert served(server) == {version(1).digest}
        assert load(server).status == 200, "asked for again"
        assert served(server) == {large(2).digest}


def test_a_worker_that_is_killed_while_it_has_a_version_packed_is_succeeded(serving: Serving, models: Path) -> None:
    """The lock and the election end with it; the next worker that is elected sees the same file. Nothing is left over."""
    with serving(models, poll=OFTEN) as server:
        add(models, 3, large(3))
        packing = packing_process(server)
        elected = packing.ppid()
        assert elected in server.workers()
        os.kill(elected, signal.SIGKILL)
        wait_until(lambda: has_gone(packing))
        wait_for_event(server, "swap done")
        assert served(server) == {large(3).digest}
        assert server.total("scorer_workers", state="ready") == 4


def write_wanted(models: Path, data: bytes) -> None:
    """Version 2 as the author of a swap writes it down who then dies and wakes nobody."""
    run = run_folder(models)
    pointer = json.loads((run / "pointer.json").read_bytes())
    copy = run / "models" / f"{version(2).digest}.ubj"
    copy.write_bytes(data)
    number = pointer["wanted"]["number"] + 1
    wanted = {"number": number, "version": "2", "digest": version(2).digest, "copy": str(copy)}
    (run / "beside").write_text(json.dumps(pointer | {"wanted": pointer["wanted"] | wanted}))
    (run / "beside").rename(run / "pointer.json")


def test_a_swap_whose_author_died_right_after_writing_it_down_goes_ahead(serving: Serving, models: Path) -> None:
    """The master looks at the pointer by itself."""
    with serving(models) as server:
        write_wanted(models, version(2).data)
        wait_for_event(server, "swap done")
        assert served(server) == {version(2).digest}


def test_new_workers_that_are_killed_are_started_again(serving: Serving, models: Path) -> None:
    with serving(models) as server:
        old = set(server.workers())
        add(models, 2)
        answers: list[Answer] = []
        call = threading.Thread(target=lambda: answers.append(load(server)))
        call.start()
        wait_until(lambda: set(server.workers()) - old, 60, every=0.005)
        os.kill(min(set(server.workers()) - old), signal.SIGKILL)
        call.join()
        assert answers[0].status == 200
        assert served(server) == {version(2).digest}
        wait_until(lambda: server.total("scorer_workers", state="ready") == 4)


def test_new_workers_that_cannot_start_are_given_up(serving: Serving, models: Path) -> None:
    """A copy that is not what was admitted: they refuse it and die, and Gunicorn alone would stop the server for that.
    The old workers are not told to go before all new ones score: they go on as if nothing had happened.
    """
    judge = Judge(version(1), version(2))
    add(models, 2)
    with serving(models / "1" / "model.ubj") as server:
        old = set(server.workers())
        with Load(server, clients=2, path=PATH, body=BODY, verify=judge.verify) as clients:
            write_wanted(models / "1" / "model.ubj", b"{broken")
            wait_for_event(server, "model refused, its workers did not start")
            wait_until(lambda: swaps(server, "reverted") == 1)
        assert not clients.failures, clients.failures[:5]
        wait_until(lambda: set(server.workers()) == old)
        assert served(server) == {version(1).digest}
        assert server.total("scorer_model_refused") == 1
        assert states(server) == {"1": "READY", "2": "UNAVAILABLE"}
        assert 3 <= server.total("scorer_worker_exits_total") <= 8
        (models / "1" / "model.ubj").write_bytes(version(3).data)
        assert load(server).status == 200, "the next swap is not hindered"
        assert served(server) == {version(3).digest}
        wait_until(lambda: server.total("scorer_model_refused") == 0)


def test_kills_at_random_moments_of_swaps_end_in_one_version(serving: Serving, models: Path) -> None:
    """Workers and packing processes are killed all along. Answers are right whenever there is one."""
    known = [version(number) for number in range(1, 9)]
    judge = Judge(*known)
    random = np.random.default_rng(7)
    with serving(models, poll=OFTEN) as server:
        with Load(server, clients=4, path=PATH, body=BODY, verify=judge.verify) as clients:
            for number in range(2, 9):
                add(models, number)
                for _ in range(3):
                    time.sleep(float(random.uniform(0, 0.8)))
                    children = psutil.Process(server.pid).children(recursive=True)
                    with suppress(psutil.NoSuchProcess, IndexError):
                        children[int(random.integers(len(children)))].kill()
        wrong = [failure for failure in clients.failures if "version" in failure]
        assert not wrong, wrong[:5]
        # A version whose packing was killed is refused until it changes; so is one whose workers died three times.
        (models / "8" / "model.ubj").touch()
        wait_until(lambda: states(server) == {"8": "READY"}, 60)
        assert served(server) == {version(8).digest}
        wait_until(lambda: server.total("scorer_workers", state="ready") == 4)
        assert server.process.poll() is None


def test_what_a_killed_server_leaves_is_removed_by_the_next(serving: Serving, models: Path) -> None:
    with serving(models) as server:
        left = run_folder(models)
        assert left.stat().st_mode & 0o777 == 0o700
        workers = [psutil.Process(pid) for pid in server.workers()]
        os.kill(server.pid, signal.SIGKILL)
        psutil.wait_procs(workers, timeout=20)
    assert left.exists()
    os.utime(left, (time.time() - 100, time.time() - 100))
    with serving(models) as server:
        assert run_folder(models) != left
        assert served(server) == {version(1).digest}
    assert not list((models.parent / "tmp").iterdir()), "and of itself a server leaves nothing"


# A full disk.


def test_a_disk_that_is_full_leaves_the_old_version(serving: Serving, models: Path) -> None:
    """No file may be longer than 100 KiB: neither the packed trees nor the copy of a large candidate can be written."""
    command = ["bash", "-c", 'ulimit -f 100 && exec "$@"', "-", sys.executable, "-m", "service.cli", "serve"]
    with serving(models, command=command) as server:
        for number, found in ((2, large(2)), (3, large(4))):
            add(models, number, found)
            refused = load(server)
            assert refused.status == 422, refused.body
            assert served(server) == {version(1).digest}
        (copy,) = (run_folder(models) / "models").iterdir()
        assert copy.name.startswith(version(1).digest), "nothing of the others is left"
        add(models, 4)
        assert load(server).status == 200
        assert served(server) == {version(4).digest}


@pytest.mark.skipif(os.getuid() != 0 or not shutil.which("unshare"), reason="needs root to mount a small file system")
def test_a_run_folder_without_room_leaves_the_old_version(serving: Serving, models: Path) -> None:
    temporary = models.parent / "tmp"
    temporary.mkdir()
    mount = f'mount -t tmpfs -o size=200k none {temporary} && exec "$@"'
    probe = subprocess.run(["unshare", "-m", "bash", "-c", mount, "-", "true"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("mounting is not allowed here")
    command = ["unshare", "-m", "bash", "-c", mount, "-", sys.executable, "-m", "service.cli", "serve"]
    with serving(models, command=command, poll=OFTEN) as server:
        add(models, 2, large(2))
        wait_for_event(server, "model refused")
        assert events(server, "model refused")[0]["reason"].startswith("No space left on device")
        assert served(server) == {version(1).digest}
        wait_until(lambda: server.total("scorer_model_refused") == 1)
        add(models, 3)
        wait_for_event(server, "swap done")
        assert served(server) == {version(3).digest}


# Who may.


def test_only_this_machine_may_change_the_model(serving: Serving, models: Path) -> None:
    with serving(models, SCORER_HOST="0.0.0.0", WEB_CONCURRENCY="1") as server:
        add(models, 2)
        for header in ("X-Forwarded-For", "Forwarded", "X-Real-IP", "Via", "Origin"):
            assert load(server, **{header: "127.0.0.1"}).status == 403, header
        server.host = own_address()
        for call in ("load", "rollback", "unload"):
            refused = server.request(f"{REPOSITORY}/{call}", b"")
            assert (refused.status, refused.json()["code"]) == (403, "forbidden")
        assert served(server, 1) == {version(1).digest}
        server.host = "127.0.0.1"
        assert load(server).status == 200


def own_address() -> str:
    """An address of this machine that is not a loopback one."""
    for addresses in psutil.net_if_addrs().values():
        for address in addresses:
            if address.family == socket.AF_INET and not address.address.startswith("127."):
                return str(address.address)
    pytest.skip("this machine has no address but loopback")


def test_with_an_admin_port_the_model_is_changed_there(serving: Serving, models: Path) -> None:
    with serving(models, SCORER_ADMIN_PORT=str(free_port()), WEB_CONCURRENCY="1") as server:
        add(models, 2)
        for call in ("load", "rollback", "unload"):
            assert server.request(f"{REPOSITORY}/{call}", b"", port=server.port).status == 404
        unload = server.request(f"{REPOSITORY}/unload", b"")
        assert (unload.status, unload.json()["code"]) == (400, "unsupported")
        assert load(server, **{"X-Forwarded-For": "10.0.0.1"}).status == 200
        assert served(server, 4) == {version(2).digest}


def test_under_gunicorns_own_master_the_model_cannot_be_changed(serving: Serving, models: Path) -> None:
    command = [sys.executable, "-m", "gunicorn", "-c", str(ROOT / "gunicorn.conf.py")]
    with serving(models, command=command) as server:
        assert load(server).json()["code"] == "unsupported"
        assert index(server) == [{"name": "churn", "version": "1", "state": "READY", "reason": ""}]
