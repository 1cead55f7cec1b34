"""Which model version each generation of workers serves, written down once, and where that is kept.

A generation is all the workers that serve one model. The master makes a run folder before the first fork; it holds

    pointer.json    the generation that is wanted, the one that served before, the one to roll back to
    models/         the bytes of those, so that a file that changes under the server changes nothing that is served
    poll.lock       whoever holds it polls for new versions
    swap.lock       whoever holds it may write here

The pointer is written in one rename, and only by a holder of `swap.lock`. What became of the generation that is wanted
is not in it but in shared memory (`Progress`), so that the end of a swap needs no room on any disk. The locks belong to
the kernel: they end with the process that holds them, however it ends. A folder does not outlive its server: what a
killed one has left is removed by the next.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from service.artifact import ModelFile
from service.batch import Progress
from service.errors import StartError

PREFIX = "xgboost-server-run-"
POLL, SWAP = "poll.lock", "swap.lock"
POINTER = "pointer.json"
# Where there is no temporary folder to write to, as on a read-only root.
MEMORY = Path("/dev/shm")  # noqa: S108 - the folder made in it is ours alone

# A folder this young may belong to a server that is about to lock it.
NEW_SECONDS = 60


@dataclass(frozen=True)
class Generation:
    """One model version for all workers of a generation.

    `path` is where it was found, `copy` its admitted bytes, `is_packed` whether they have been packed and compared.
    """

    number: int
    version: str
    digest: str
    path: str
    copy: str
    is_packed: bool
    admitted_at: float

    def is_same_model(self, other: Generation) -> bool:
        return (self.version, self.digest) == (other.version, other.digest)


@dataclass(frozen=True)
class Refusal:
    """A candidate that is not served, and why."""

    version: str
    reason: str


@dataclass(frozen=True)
class Pointer:
    """What is written down. `seen` is the stamp of the newest candidate that has been dealt with, whatever came of it."""

    wanted: Generation
    serving: Generation
    previous: Generation | None
    seen: str
    refused: Refusal | None

    def is_under_way(self, progress: Progress) -> bool:
        return self.wanted.number not in (progress.announced, progress.reverted)

    def settle(self, progress: Progress) -> Pointer:
        """The same once a swap is over: what was wanted is served, or is refused because its workers did not start."""
        wanted, serving = self.wanted, self.serving
        if wanted.number == progress.reverted:
            refused = Refusal(wanted.version, "its workers did not start; the log says why")
            return replace(self, wanted=serving, refused=refused)
        if wanted.number == progress.announced and wanted.number != serving.number:
            previous = self.previous if wanted.is_same_model(serving) else serving
            return replace(self, serving=wanted, previous=previous)
        return self

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Pointer:
        found: dict[str, Any] = json.loads(data)
        previous, refused = found["previous"], found["refused"]
        return cls(
            Generation(**found["wanted"]),
            Generation(**found["serving"]),
            Generation(**previous) if previous else None,
            found["seen"],
            Refusal(**refused) if refused else None,
        )


class RunFolder:
    """The folder that all processes of one server share; made by the master, inherited by the workers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._owner = os.getpid()
        # Held by every process of the server until the last is gone. On a machine that tidies its temporary folder,
        # systemd-tmpfiles leaves a folder alone that is locked like this.
        self._handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        fcntl.flock(self._handle, fcntl.LOCK_EX)
        (path / "models").mkdir(mode=0o700)
        # Now, as a full disk may have no room for them later.
        for name in (POLL, SWAP):
            (path / name).touch(mode=0o600)

    def read(self) -> Pointer:
        return Pointer.from_json((self.path / POINTER).read_bytes())

    def write(self, pointer: Pointer) -> None:
        """Whole or not at all; the holder of the lock is the only one who writes."""
        beside = self.path / f".{POINTER}"
        try:
            with beside.open("wb") as file:
                file.write(pointer.to_json())
                file.flush()
                os.fsync(file.fileno())
            os.rename(beside, self.path / POINTER)
        except OSError:
            beside.unlink(missing_ok=True)
            raise

    def keep(self, file: ModelFile, golden: bytes) -> Path:
        """A copy of the bytes that were read. Not a hard link: who writes into the file would write into that as well.

        Not synced: after a crash of the machine nobody looks at this folder again, and the digest is checked at loading.
        """
        folder = self.path / "models" / f"{file.digest}.{hashlib.sha256(golden).hexdigest()[:16]}"
        copy = folder / f"model{file.path.suffix}"
        if copy.exists():
            return copy
        beside = folder.with_name(f".{folder.name}")
        shutil.rmtree(beside, ignore_errors=True)
        try:
            beside.mkdir()
            (beside / copy.name).write_bytes(file.data)
            if golden:
                (beside / "golden.json").write_bytes(golden)
            os.rename(beside, folder)
        except OSError:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        return copy

    def prune(self, *kept: Generation | None) -> list[str]:
        """Remove the copies of all other generations; the digests of which there is no copy any more."""
        folders = {Path(generation.copy).parent for generation in kept if generation is not None}
        removed = [path for path in (self.path / "models").iterdir() if path not in folders]
        for path in removed:
            shutil.rmtree(path, ignore_errors=True)
        return sorted({digest_of(path) for path in removed} - {digest_of(path) for path in folders})

    @contextmanager
    def lock(self, name: str) -> Iterator[bool]:
        """Whether the lock is ours; it is until the end of the block."""
        handle = self.try_lock(name)
        try:
            yield handle is not None
        finally:
            if handle is not None:
                os.close(handle)

    def try_lock(self, name: str) -> int | None:
        """A descriptor that holds the lock until it is closed; None if another process has it."""
        handle = os.open(self.path / name, os.O_RDWR)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        return handle

    def remove(self) -> None:
        """By the process that made it: a worker that ends comes along the same way."""
        if os.getpid() == self._owner:
            shutil.rmtree(self.path, ignore_errors=True)


def digest_of(folder: Path) -> str:
    return folder.name.lstrip(".").partition(".")[0]


def find_parent() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:
        return MEMORY


@contextmanager
def create_run_folder(parent: Path) -> Iterator[RunFolder]:
    """A folder of this user's alone, which is gone at the end."""
    try:
        remove_leftovers(parent)
        run = RunFolder(Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent)))
    except OSError as error:
        raise StartError([f"{parent}: no folder can be made for this run: {error.strerror or error}"]) from None
    try:
        yield run
    finally:
        run.remove()


def remove_leftovers(parent: Path) -> None:
    """Folders of servers that were killed: no process holds their lock any more."""
    for path in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):
            found = path.lstat()
            is_new = time.time() - found.st_mtime < NEW_SECONDS
            if found.st_uid == os.getuid() and not is_new and not is_locked(path):
                shutil.rmtree(path, ignore_errors=True)


def is_locked(folder: Path) -> bool:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False
