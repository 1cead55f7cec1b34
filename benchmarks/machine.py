"""What a reader must know of the machine to judge a figure."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

VECTORS = {"avx512f": "AVX-512", "avx2": "AVX2"}
# Run by the interpreter in question.
ASK_VERSIONS = """
import platform, sys
from importlib import metadata
here = {distribution.name.lower(): distribution.version for distribution in metadata.distributions()}
named = [f"{name} {here[name]}" for name in sys.argv[1:] if name in here]
print(", ".join([f"Python {platform.python_version()}", *named]))
"""


def describe_machine() -> str:
    memory = f"{psutil.virtual_memory().total / 2**30:.0f} GiB"
    return f"{cpu_model()}, {os.cpu_count()} cores, {memory}, {platform.system()} {platform.release()}"


def cpu_model() -> str:
    """ARM kernels give no model name."""
    named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return named.group(1) if named else platform.machine()


def widest_vectors() -> str:
    """What machine code for this CPU may use; another architecture is called by its name."""
    flags = re.search(r"^flags\s*:(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    known = set(flags.group(1).split()) if flags else set()
    return next((name for flag, name in VECTORS.items() if flag in known), platform.machine())


def describe_versions(packages: Sequence[str], python: str = sys.executable) -> str:
    """Of the interpreter and of what is installed for it; what is not is left out."""
    asked = subprocess.run([python, "-c", ASK_VERSIONS, *packages], capture_output=True, text=True, check=True)
    return asked.stdout.strip()
