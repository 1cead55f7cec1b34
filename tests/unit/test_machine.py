"""What the machine says, read from files that were copied from machines of both kinds: `cgroup/<case>/proc` stands for
/proc/self/cgroup, `cgroup/<case>/sys` for /sys/fs/cgroup."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from service.machine import (
    ControlGroup,
    CpuThrottling,
    GroupMemory,
    default_workers,
    network_bytes,
    read_family,
)

CASES = Path(__file__).parent / "cgroup"


def group(case: str) -> ControlGroup:
    folder = CASES / case
    return ControlGroup(folder / "sys", folder / "proc")


@pytest.mark.parametrize(
    ("case", "quota"),
    [
        ("v2", 1.5),
        ("v2-no-limits", None),
        ("v2-node", 2.0),
        ("v2-parent-grants-less", 0.5),
        ("v2-above", 3.0),
        ("v1", 2.5),
        ("v1-node", 1.0),
        ("nonsense", None),
        ("period-zero", None),
        ("not there", None),
    ],
)
def test_cpu_quota_is_the_least_of_the_group_and_its_parents(case: str, quota: float | None) -> None:
    """A pod's limit stands at the pod's group, a container's at its own; where none is set, or readable, it is None."""
    assert group(case).cpu_quota() == quota


@pytest.mark.parametrize(
    ("case", "memory"),
    [
        ("v2", GroupMemory(working_set_bytes=380_000_000, limit_bytes=1_073_741_824)),
        ("v2-no-limits", GroupMemory(working_set_bytes=0, limit_bytes=None)),
        ("v2-node", GroupMemory(working_set_bytes=280_000_000, limit_bytes=None)),
        ("v2-above", GroupMemory(working_set_bytes=380_000_000, limit_bytes=1_073_741_824)),
        ("v1", GroupMemory(working_set_bytes=450_000_000, limit_bytes=2_147_483_648)),
        ("v1-node", GroupMemory(working_set_bytes=0, limit_bytes=None)),
        ("v2-parent-grants-less", None),
        ("nonsense", None),
        ("not there", None),
    ],
)
def test_memory_is_what_the_kubelet_looks_at(case: str, memory: GroupMemory | None) -> None:
    """The working set is usage without inactive file pages, never below zero; v1's 2^63 is no limit."""
    assert group(case).memory() == memory


@pytest.mark.parametrize(
    ("case", "throttling"),
    [
        ("v2", CpuThrottling(periods=1000, throttled_periods=40, throttled_seconds=2.5)),
        ("v1", CpuThrottling(periods=2000, throttled_periods=30, throttled_seconds=1.5)),
        ("v1-node", CpuThrottling(periods=2000, throttled_periods=30, throttled_seconds=1.5)),
        ("v2-no-limits", None),
        ("nonsense", None),
        ("not there", None),
    ],
)
def test_throttling_is_in_seconds(case: str, throttling: CpuThrottling | None) -> None:
    """v2 counts microseconds and v1 nanoseconds; without a quota there is nothing to count."""
    assert group(case).throttling() == throttling


@pytest.mark.parametrize(
    ("case", "kills"), [("v2", 2), ("v1", 4), ("v2-no-limits", 0), ("nonsense", 0), ("not there", 0)]
)
def test_oom_kills_are_counted_in_both_versions(case: str, kills: int) -> None:
    """`oom_kill` and not `oom`, which counts tries."""
    assert group(case).oom_kills() == kills


@pytest.mark.parametrize(
    ("case", "workers"),
    [("v2", 1), ("v2-node", 2), ("v2-parent-grants-less", 1), ("v1", 2), ("v2-no-limits", 8), ("not there", 8)],
)
def test_workers_are_whole_cpus_that_are_granted(case: str, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a CPU more is no worker more; without a limit it is the CPUs this process may run on."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    assert default_workers(group(case)) == workers


def test_workers_are_no_more_than_the_cpus_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A generous quota does not add CPUs."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3}, raising=False)
    assert default_workers(group("v1")) == 1


def test_this_machine_can_be_read() -> None:
    """Whatever runs the tests: no error, and figures that can be true."""
    here = ControlGroup()
    quota, memory, throttling = here.cpu_quota(), here.memory(), here.throttling()
    assert quota is None or quota > 0
    assert memory is None or memory.working_set_bytes >= 0
    assert throttling is None or throttling.throttled_periods <= throttling.periods
    assert default_workers(here) >= 1


def test_network_is_without_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loopback is what workers and probes say to each other: not the pod's traffic."""
    counters = {
        "lo": SimpleNamespace(bytes_recv=1, bytes_sent=1),
        "eth1": SimpleNamespace(bytes_recv=5, bytes_sent=7),
        "eth0": SimpleNamespace(bytes_recv=10, bytes_sent=20),
        "lo0p": SimpleNamespace(bytes_recv=3, bytes_sent=4),
    }
    monkeypatch.setattr(psutil, "net_io_counters", lambda **options: counters)
    assert list(network_bytes().items()) == [("eth0", (10, 20)), ("eth1", (5, 7)), ("lo0p", (3, 4))]


def test_network_of_this_machine_has_no_loopback() -> None:
    assert "lo" not in network_bytes()


def start_child(work: str) -> subprocess.Popen[bytes]:
    """A Python that has done this work and waits for a line before it goes."""
    command = [sys.executable, "-c", f"{work}; print('done', flush=True); input()"]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    return child


def test_family_is_a_process_and_its_children() -> None:
    """A child more is a process more; no page is counted twice in PSS."""
    before = read_family(os.getpid())
    with start_child("pass") as child:
        during = read_family(os.getpid())
        child.communicate(b"\n")
    assert before.processes >= 1
    assert during.processes == before.processes + 1
    assert during.rss_bytes > before.rss_bytes
    assert 0 < during.uss_bytes <= during.pss_bytes <= during.rss_bytes
    assert during.open_files > before.open_files
    assert read_family(os.getpid()).processes == before.processes


def test_cpu_time_of_a_dead_child_is_kept() -> None:
    """The kernel adds it to the parent's account: the figure does not fall when a worker goes."""
    before = read_family(os.getpid())
    with start_child("sum(range(3_000_000))") as child:
        during = read_family(os.getpid())
        child.communicate(b"\n")
    after = read_family(os.getpid())
    spent = [family.cpu_user_seconds + family.cpu_system_seconds for family in (before, during, after)]
    assert spent[1] > spent[0]
    # The kernel counts ticks of 10 ms and rounds user and system time each by itself.
    assert spent[2] > spent[1] - 0.025
