"""What a reader must know of the machine to judge a figure."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import psutil


def describe_machine() -> str:
    memory = f"{psutil.virtual_memory().total / 2**30:.0f} GiB"
    return f"{cpu_model()}, {os.cpu_count()} cores, {memory}, {platform.system()} {platform.release()}"


def cpu_model() -> str:
    """ARM kernels give no model name."""
    named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return named.group(1) if named else platform.machine()


def describe_versions(packages: Sequence[str]) -> str:
    versions = [f"Python {platform.python_version()}"]
    versions += [f"{package} {version}" for package in packages if (version := installed_version(package))]
    return ", ".join(versions)


def installed_version(package: str) -> str:
    """Empty when the package is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
