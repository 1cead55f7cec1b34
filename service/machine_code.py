"""The compiled kernels as the serving processes have them: a file of machine code, copied into memory and called.

Only the process that compiles needs numba and LLVM (see `compiler`); where code is loaded they are never imported. The
code needs nothing around it and runs at any address (see `elf`), so that loading it is: read, compare the checksum,
make it executable.

    <folder>/<key>.code    sha256 of the rest, functions, machine code

The key says for which processor and from which sources: a cache that moves to another machine is compiled anew there. A
file that is cut off or changed is compiled anew as well, and never run.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.metadata
import json
import mmap
import os
import platform
import struct
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from service.ensemble import write_synced
from service.machine import own_command

# What the code is made from, by numba and by its constants; a change of any of these makes other code.
PACKAGE = Path(__file__).parent
SOURCES = (
    *sorted(PACKAGE.glob("kernels/*.py")),
    *(
        PACKAGE / name
        for name in ("ensemble/__init__.py", "recurring.py", "head.py", "batch.py", "compiler.py", "elf.py")
    ),
)
COMPILERS = ("numba", "llvmlite")
COMPILE_SECONDS = 120
# Lines of /proc/cpuinfo that say what a processor can do, on x86 and on ARM.
CPU_LINES = {"vendor_id", "cpu family", "model", "model name", "stepping", "flags"}
CPU_LINES |= {"CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features"}
DIGEST_BYTES = 32

Function = Callable[..., int]


class MachineCodeError(Exception):
    """There is no machine code for this processor, or it cannot run here."""


@dataclass(frozen=True)
class Image:
    """Code that runs at any address; where each function begins, and how many int64s it takes."""

    code: bytes
    functions: Mapping[str, tuple[int, int]]


def write_image(path: Path, image: Image) -> None:
    """Whole or not at all: whoever reads meanwhile has the older file or none."""
    body = json.dumps(image.functions).encode() + b"\n" + image.code
    handle, beside = tempfile.mkstemp(prefix=".code.", dir=path.parent)
    os.close(handle)
    os.unlink(beside)
    try:
        write_synced(Path(beside), hashlib.sha256(body).digest() + body)
        os.rename(beside, path)
    finally:
        Path(beside).unlink(missing_ok=True)


def read_image(path: Path) -> Image:
    """What was written, or `MachineCodeError`."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise MachineCodeError(f"{path}: {error.strerror}") from None
    body = data[DIGEST_BYTES:]
    if hashlib.sha256(body).digest() != data[:DIGEST_BYTES]:
        raise MachineCodeError(f"{path}: the checksum is not that of the code")
    functions, _, code = body.partition(b"\n")
    return Image(code, {name: (at, arguments) for name, (at, arguments) in json.loads(functions).items()})


def code_path(folder: Path) -> Path:
    """Where the code for this processor and these sources is kept."""
    parts = [platform.system(), platform.machine(), describe_processor(), object.__basicsize__]
    parts += [importlib.metadata.version(name) for name in COMPILERS]
    # numba can be told to compile for another processor than this one.
    parts += sorted((name, value) for name, value in os.environ.items() if name.startswith("NUMBA_"))
    digest = hashlib.sha256(repr(parts).encode())
    for path in SOURCES:
        digest.update(path.read_bytes())
    return folder / f"{digest.hexdigest()[:40]}.code"


def describe_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """What the first processor says that it is and can do."""
    try:
        first = cpuinfo.read_text().split("\n\n")[0]
    except OSError:
        return platform.processor()
    return "\n".join(line for line in first.splitlines() if line.partition(":")[0].strip() in CPU_LINES)


def load_code(folder: Path) -> MachineCode:
    """The kernels, compiled now if the folder has none for this processor that are whole; else `MachineCodeError`."""
    path = code_path(folder)
    try:
        image = read_image(path)
    except MachineCodeError:
        run_compiler(folder)
        image = read_image(path)
    return MachineCode(image)


def run_compiler(folder: Path) -> None:
    """In a process of its own: numba and LLVM take 100 MB, and what they may do to a process goes with it."""
    command = own_command("service.compiler", str(folder))
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise MachineCodeError(f"compiling takes longer than {COMPILE_SECONDS} seconds") from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise MachineCodeError(f"the kernels cannot be compiled: {reason}")


class MachineCode:
    """Functions in this process's memory. Forked processes have them too."""

    def __init__(self, image: Image) -> None:
        self._functions = image.functions
        # Not mapped from the file: that is forbidden where the cache is on a file system without execution, as is the
        # /tmp of many containers.
        self._memory = mmap.mmap(-1, len(image.code), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._memory.write(image.code)
        self._start = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        # Where processors keep code in caches of its own (ARM), Linux empties them when pages become executable.
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        if protect(ctypes.c_void_p(self._start), ctypes.c_size_t(len(image.code)), mmap.PROT_READ | mmap.PROT_EXEC):
            raise MachineCodeError(f"memory cannot be made executable: {os.strerror(ctypes.get_errno())}")

    def function(self, name: str, keeps_lock: bool = False) -> Function:
        """The function of this name, from int64s to an int64.

        It lets other threads run meanwhile. One that `keeps_lock` does not, for calls that take microseconds: an event
        loop that lets go of the interpreter's lock may get it back only 5 ms later.
        """
        call, pack = self._find(name, ctypes.PYFUNCTYPE if keeps_lock else ctypes.CFUNCTYPE)
        return lambda *given: call(pack(*given))

    def bind(self, name: str, *given: int) -> Callable[[], int]:
        """The function with these arguments for good, which keeps the interpreter's lock: a call takes 0.11 µs."""
        call, pack = self._find(name, ctypes.PYFUNCTYPE)
        return partial(call, pack(*given))

    def _find(self, name: str, kind: Any) -> tuple[Function, Callable[..., bytes]]:
        """A way to call a function, and to lay out its arguments.

        ctypes takes 0.1 µs for every argument (Python 3.11), so the code is handed all of them at one address: a call with
        five takes 0.26 µs instead of 0.6.
        """
        at, arguments = self._functions[name]
        call = kind(ctypes.c_int64, ctypes.c_char_p)(self._start + at)
        call.memory = self._memory  # stays for as long as anybody can call into it
        return call, struct.Struct(f"={arguments}q").pack
