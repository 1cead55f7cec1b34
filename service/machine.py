"""What the machine says and does: CPU quota, memory, throttling, network, and the processes of one server.

Control groups are read in both versions: EKS nodes run v2, older ones and many CI machines v1. Whatever is not
there is None and never an error: a metric that is missing must not take the scrape with it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

# v1 writes this (2^63 rounded down to a page) or more for "no limit".
V1_NO_LIMIT = 1 << 60
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class CpuThrottling:
    """CPU accounting of the control group since it was made; seconds."""

    periods: int
    throttled_periods: int
    throttled_seconds: float


@dataclass(frozen=True)
class GroupMemory:
    """Bytes; `working_set_bytes` is what the kubelet evicts on: usage without inactive file pages."""

    working_set_bytes: int
    limit_bytes: int | None


@dataclass(frozen=True)
class ProcessFamily:
    """Sums over the master and its workers: seconds and bytes.

    PSS counts a shared page once over all processes, USS only private ones, RSS every page in every process.
    """

    cpu_user_seconds: float
    cpu_system_seconds: float
    rss_bytes: int
    pss_bytes: int
    uss_bytes: int
    open_files: int
    processes: int


class ControlGroup:
    """The control group of this process, v1 or v2."""

    def __init__(self, root: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self/cgroup")) -> None:
        paths = dict(read_membership(process))
        self.is_v2 = (root / "cgroup.controllers").exists()
        if self.is_v2:
            self._cpu = self._memory = existing(root, paths.get("", "/"))
        else:
            self._cpu = existing(root / "cpu", paths.get("cpu", "/"))
            self._memory = existing(root / "memory", paths.get("memory", "/"))
        self._root = root

    def cpu_quota(self) -> float | None:
        """CPUs granted, the least of this group and its parents; None where there is no limit."""
        quotas = []
        for folder in (self._cpu, *self._cpu.parents):
            if not folder.is_relative_to(self._root) or folder == self._root.parent:
                break
            quota = self._quota_of(folder)
            if quota is not None:
                quotas.append(quota)
        return min(quotas, default=None)

    def _quota_of(self, folder: Path) -> float | None:
        if self.is_v2:
            quota, _, period = read_text(folder / "cpu.max").partition(" ")
        else:
            quota, period = read_text(folder / "cpu.cfs_quota_us"), read_text(folder / "cpu.cfs_period_us")
        if not quota.isdigit() or not period.isdigit() or int(period) == 0:
            return None
        return int(quota) / int(period)

    def throttling(self) -> CpuThrottling | None:
        values = read_pairs(self._cpu / "cpu.stat")
        if "nr_periods" not in values:
            return None
        # v1 counts nanoseconds in throttled_time, v2 microseconds in throttled_usec.
        seconds = values.get("throttled_usec", 0) / 1e6 + values.get("throttled_time", 0) / 1e9
        return CpuThrottling(values["nr_periods"], values.get("nr_throttled", 0), seconds)

    def memory(self) -> GroupMemory | None:
        usage = read_text(self._memory / ("memory.current" if self.is_v2 else "memory.usage_in_bytes"))
        if not usage.isdigit():
            return None
        inactive = "inactive_file" if self.is_v2 else "total_inactive_file"
        working_set = int(usage) - read_pairs(self._memory / "memory.stat").get(inactive, 0)
        limit = read_text(self._memory / ("memory.max" if self.is_v2 else "memory.limit_in_bytes"))
        bounded = limit.isdigit() and int(limit) < V1_NO_LIMIT
        return GroupMemory(max(working_set, 0), int(limit) if bounded else None)

    def oom_kills(self) -> int:
        """Processes of this group that the kernel killed for want of memory."""
        name = "memory.events" if self.is_v2 else "memory.oom_control"
        return read_pairs(self._memory / name).get("oom_kill", 0)


def read_membership(process: Path) -> Iterator[tuple[str, str]]:
    """Controller (empty for v2) and path of every line of /proc/<pid>/cgroup."""
    for line in read_text(process).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            yield controller, path


def existing(root: Path, path: str) -> Path:
    """In a container without a namespace of its own the path is the host's (or leads above), and the root is the group."""
    inside = root / path.lstrip("/")
    return inside if inside.is_dir() and ".." not in path else root


def read_text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def read_pairs(path: Path) -> dict[str, int]:
    """`name number` lines."""
    pairs = (line.split() for line in read_text(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def default_workers(group: ControlGroup) -> int:
    """One scoring worker for each whole CPU that is granted, at least one."""
    quota = group.cpu_quota()
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cpus, int(quota)) if quota is not None else cpus)


def network_bytes() -> dict[str, tuple[int, int]]:
    """Bytes received and sent per device of this network namespace, loopback left out."""
    counters = psutil.net_io_counters(pernic=True, nowrap=False)
    return {device: (c.bytes_recv, c.bytes_sent) for device, c in sorted(counters.items()) if device != "lo"}


def read_family(master_pid: int) -> ProcessFamily:
    """The server's processes. CPU includes workers that are gone: the kernel adds them to their parent's account.

    The parent is read before its children, so that one that dies in between is missed once rather than counted
    twice; the caller keeps the figure from falling.
    """
    master = psutil.Process(master_pid)
    times = master.cpu_times()
    user, system = times.user + times.children_user, times.system + times.children_system
    rss = pss = uss = files = processes = 0
    for process in [master, *master.children(recursive=True)]:
        try:
            if process.pid != master_pid:
                times = process.cpu_times()
                user += times.user + times.children_user
                system += times.system + times.children_system
            memory = process.memory_full_info()
            files += process.num_fds()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        rss, pss, uss = rss + memory.rss, pss + memory.pss, uss + memory.uss
        processes += 1
    return ProcessFamily(user, system, rss, pss, uss, files, processes)


def own_command(module: str, *arguments: str) -> list[str]:
    """What starts a throw-away process of ours.

    -P: Python would look for modules in the current folder first, and whoever checks a file among downloads would run what
    lies beside it under the name of a module.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def die_with(parent: int) -> None:
    """Have this process killed when the one that started it goes (prctl(2)): nobody is left who wants what it makes.

    A worker that is killed would otherwise leave one packing while its successor has the same model packed again.
    """
    with suppress(OSError, AttributeError):  # Linux alone has it
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it went before we could ask
        os.kill(os.getpid(), signal.SIGKILL)
