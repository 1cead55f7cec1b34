"""Offers mutated model files to admission, XGBoost and the packed engine, each in a process of its own.

    python -m tests.tampering.fuzz COUNT [FIRST] [FOLDER]

The parent has everything imported and compiled and no thread started, so that a fork of it can do what the throw-away
process does, within the same limits, in a few milliseconds. Prints what came of the files as JSON; those that killed
their process, or that the packed form scores otherwise than XGBoost, are left in FOLDER.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

from service import packing
from service.admission import admit, bound_process, verify_structure
from service.artifact import read_model_file
from service.errors import ModelFileError
from service.machine_code import load_code
from tests.tampering.cases import BASES, document_of
from tests.tampering.mutations import make_mutation

REFUSED = "refused by its structure"
OUTCOMES = ("packed", "XGBoost serves", "refused by XGBoost", "packed form differs", "Python failed")
PACKED, FALLS_BACK, REFUSED_LATE, DIFFERS, FAILED = range(5)
JOBS = 2


def try_file(path: Path, folder: Path) -> int:
    """What the throw-away process does, and how it ends."""
    bound_process(path.stat().st_size)
    try:
        predictor = admit(read_model_file(path)).predictor
    except ModelFileError as error:
        print(path.name, error.faults[0].removeprefix(f"{path}: "), file=sys.stderr)
        return REFUSED_LATE
    reason = packing.pack_model(predictor, folder)["reason"]
    if "than XGBoost" in reason or "cannot run" in reason:
        print(path.name, reason, file=sys.stderr)
        return DIFFERS
    return FALLS_BACK if reason else PACKED


def is_refused(path: Path) -> bool:
    """Before XGBoost sees it: without a fork, as this is Python alone."""
    try:
        verify_structure(path, read_model_file(path).data)
    except ModelFileError:
        return True
    return False


def run_child(path: Path, folder: Path) -> None:
    """Never returns: a fork of the parent, whose other life must not go on here."""
    status = FAILED
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        status = try_file(path, folder)
    except BaseException as error:  # also MemoryError
        print(path.name, "python:", type(error).__name__, error, file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(status)


def fuzz(count: int, first: int, scratch: Path, kept: Path) -> Counter[str]:
    """How many files came to which end."""
    found: Counter[str] = Counter()
    running: dict[int, Path] = {}

    def reap() -> None:
        pid, status = os.wait()
        path = running.pop(pid)
        if os.WIFSIGNALED(status):
            outcome = f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
        else:
            outcome = OUTCOMES[os.WEXITSTATUS(status)]
        found[outcome] += 1
        if outcome not in OUTCOMES[:DIFFERS]:
            shutil.copy(path, kept)
            print(path.name, outcome, file=sys.stderr, flush=True)
        path.unlink()
        shutil.rmtree(scratch / f"packed-{path.name}", ignore_errors=True)

    for seed in range(first, first + count):
        name, data = make_mutation(seed)
        path = scratch / name
        path.write_bytes(data)
        if is_refused(path):
            found[REFUSED] += 1
            path.unlink()
            continue
        pid = os.fork()
        if pid == 0:
            run_child(path, scratch / f"packed-{name}")
        running[pid] = path
        if len(running) >= JOBS:
            reap()
    while running:
        reap()
    return found


def main(count: int, first: int, kept: Path) -> None:
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # files that live for milliseconds need no disk
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        scratch = Path(folder)
        for base in [*BASES, "linear"]:
            document_of(base)
        load_code(packing.kernel_cache(scratch))
        threads = len(os.listdir("/proc/self/task"))
        if threads != 1:
            raise SystemExit(f"{threads} threads: a fork of them is no fresh process; set OMP_NUM_THREADS=1")
        print(json.dumps(fuzz(count, first, scratch, kept)))


if __name__ == "__main__":
    main(
        int(sys.argv[1]),
        int(sys.argv[2]) if len(sys.argv) > 2 else 0,
        Path(sys.argv[3] if len(sys.argv) > 3 else tempfile.mkdtemp()),
    )
