"""Changes of the model: a candidate is found, admitted, written down as wanted; the master makes a generation of it.

Who learns of a candidate: a call (`load`, `roll_back`), the worker that is elected to look for one (`look`), the
operator's HUP (`renew`, in the master). Whoever it is holds `swap.lock` from the look at the candidate until the pointer
is written, so that of two only one wins. The candidate is read once; a throw-away process loads and packs those bytes
(`packing.prepare`), a copy of them is kept, the pointer is written, the master is woken. What is refused on the way is
remembered by its stamp and not tried again until that changes.

The call that asked is answered when the swap is over. It waits in a worker of the old generation, so that its own
connection is the last one there: `Announcement`.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from service.artifact import ModelFile, read_model_file
from service.errors import (
    FetchError,
    InvalidInputError,
    ModelFileError,
    ModelRefusedError,
    NoPreviousVersionError,
    NotReadyError,
    StartError,
    SwapUnderWayError,
)
from service.generations import POLL, SWAP, Generation, Pointer, Refusal, RunFolder
from service.golden import digest_golden, find_golden_file, read_golden_file
from service.metrics import READY, Block, Recorder
from service.models import admit_file, find_file, find_model, find_versions, ignore, verify_within
from service.packing import drop_packed, find_cache, prepare
from service.settings import Settings, Uri
from service.sources import ProgressLog, Report, find_newest

# After a failure that is not the candidate's, such as a full disk.
RETRY_SECONDS = 60.0
# A store is asked no more often: a listing costs money, and a process of 0.2 s.
STORE_SECONDS = 60.0
WAIT_SECONDS = 0.02


@dataclass(frozen=True)
class Candidate:
    """What there is to serve. The stamp changes whenever the file may have; `fault` says why there is nothing.

    `place` is a file, or the URI that a store was asked for.
    """

    version: str
    place: Path | Uri
    stamp: str
    fault: str = ""


def find_candidate(settings: Settings, version: str = "") -> Candidate:
    """The newest version there is, or the one that is named; cheap, as it is done every few seconds."""
    if isinstance(settings.model, Uri):
        return ask_store(settings, settings.model, version)
    try:
        found, path = find_named(settings.model, version) if version else find_model(settings.model)
        return Candidate(found, path, stamp(found, path))
    except (ModelFileError, OSError) as error:
        fault = explain(error)
        return Candidate(version, settings.model, f"nothing: {fault}", fault)


def ask_store(settings: Settings, uri: Uri, version: str) -> Candidate:
    if version:
        raise InvalidInputError("parameters.version", "what a URI names is its newest version; expected none here")
    try:
        newest = find_newest(settings)
    except StartError as error:
        return Candidate("", uri, f"nothing: {explain(error)}", explain(error))
    return Candidate(newest.version, uri, newest.identity)


def read_candidate(candidate: Candidate, settings: Settings, report: Report, since: float = math.inf) -> ModelFile:
    """Its bytes, if they are those of one moment; raises `StartError`."""
    if candidate.fault:
        raise ModelFileError(candidate.fault)
    if isinstance(candidate.place, Uri):
        version, file = find_file(settings, report, since)
        if version != candidate.version:
            raise FetchError(f"{candidate.place}: a newer version has come meanwhile", is_temporary=True)
        return file
    file = read_model_file(candidate.place, settings.model_sha256)
    if stamp(candidate.version, candidate.place) != candidate.stamp:
        raise ModelFileError(f"{candidate.place}: the file changed while it was read")
    return file


def find_named(place: Path, version: str) -> tuple[str, Path]:
    versions = find_versions(place) if place.is_dir() else dict([find_model(place)])
    if version not in versions:
        raise InvalidInputError("parameters.version", "no such version in the folder of SCORER_MODEL")
    return version, verify_within(place, versions[version])


def stamp(version: str, path: Path) -> str:
    """Of the model and its golden rows, and of what links lead to in the end: Kubernetes changes a mounted file by
    changing a link to its folder.
    """
    found = [file.stat() for file in (path, find_golden_file(path)) if file is not None]
    return " ".join([version, *(f"{f.st_dev}.{f.st_ino}.{f.st_size}.{f.st_mtime_ns}.{f.st_ctime_ns}" for f in found)])


def explain(error: Exception) -> str:
    if isinstance(error, StartError):
        return "; ".join(error.faults)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)


def create_first(settings: Settings, run: RunFolder, since: float = math.inf) -> Generation:
    """The generation that a server starts with; raises `StartError`. A store is not asked again since this Unix time."""
    if isinstance(settings.model, Uri):
        version, file = find_file(settings, ignore, since)
        candidate = Candidate(version, settings.model, "")
    else:
        candidate = find_candidate(settings)
        file = read_candidate(candidate, settings, ignore)
    try:
        first = admit(candidate, file, settings, run, number=1)
        run.write(Pointer(first, first, None, candidate.stamp, None))
    except OSError as error:
        raise StartError([explain(error)]) from None
    return first


def admit(
    candidate: Candidate, file: ModelFile, settings: Settings, run: RunFolder, number: int, *, must_pack: bool = False
) -> Generation:
    """A generation of these bytes, which a throw-away process has loaded and packed; `ModelFileError` or `OSError`.

    Where nothing can be packed, for want of a cache, XGBoost serves. What is served packed is not exchanged for that.
    """
    packed = admit_file(file, settings)
    if must_pack and not packed.is_kept:
        raise OSError(packed.reason)
    golden = read_golden_file(file.path)
    if digest_golden(golden) != packed.golden_digest:
        raise ModelFileError(
            f"{file.path}: its golden rows changed while they were scored; try again when they are whole"
        )
    return Generation(
        number=number,
        version=candidate.version,
        digest=file.digest,
        path=str(candidate.place),
        copy=str(run.keep(file, golden)),
        is_packed=packed.is_kept,
        admitted_at=time.time(),
    )


class Announcement:
    """Lets a call wait until the swap that it asked for is over.

    The worker it waits in belongs to the old generation and goes with it. So for the caller the swap is over when all other
    old workers have gone and this one has no connection left but the caller's; the answer is the last thing it does. Its
    loop writes `is_quiet` and `leave_at`, the threads that wait read them.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.waiting = 0
        self.is_quiet = False
        self.leave_at = math.inf

    @property
    def is_leaving(self) -> bool:
        return self.leave_at < math.inf

    def wait(self, generation: Generation, served_version: str) -> None:
        """Raises `ModelRefusedError` if the new workers did not start, `NotReadyError` if this worker cannot wait."""
        self.waiting += 1
        try:
            while not self._is_over(generation.number, served_version):
                time.sleep(WAIT_SECONDS)
        finally:
            self.waiting -= 1

    def _is_over(self, number: int, served_version: str) -> bool:
        block = self._recorder.block
        progress = block.progress
        if progress.reverted >= number:
            raise ModelRefusedError("the workers of this version did not start; the log says why", served_version)
        if self.is_quiet and self._recorder.is_last_before(number):
            block.announce(number)  # the master will, once this worker has gone; who asked may go on before that
        if block.progress.announced >= number:
            return True
        if self.is_leaving and not len(block.rows_in(READY)):
            raise NotReadyError("the server is stopping")
        if time.perf_counter() > self.leave_at:
            raise NotReadyError("the new version serves, and workers of the old one are still finishing their requests")
        return False


class Swaps:
    """Finds, admits and writes down. Every worker has one, and the master; `count` takes one of `SWAP_RESULTS`."""

    def __init__(
        self,
        settings: Settings,
        run: RunFolder,
        block: Block,
        log: logging.Logger,
        count: Callable[[str], None],
        report: Report | None = None,
    ) -> None:
        self._settings = settings
        self._run = run
        self._block = block
        self._log = log
        self._count = count
        self._report = report or ProgressLog(log)
        self._ask_at = time.monotonic() + STORE_SECONDS  # it has just been asked
        self._unasked = ""
        self._election: int | None = None
        self._looked_at = ""
        # The stamp of what failed last, and when to try it again: where the disk is full the pointer cannot tell.
        self._failed, self._retry_at = "", 0.0

    def read(self) -> Pointer:
        return self._run.read().settle(self._block.progress)

    @property
    def is_under_way(self) -> bool:
        return self._run.read().is_under_way(self._block.progress)

    # Who learns of a candidate.

    def load(self, version: str = "") -> Generation | None:
        """The generation that will serve this version, or the newest; None if it is served already.

        Raises `SwapUnderWayError`, `ModelRefusedError`, `InvalidInputError`.
        """
        with self._turn() as pointer:
            return self._take(find_candidate(self._settings, version), pointer, is_named=bool(version))

    def renew(self) -> Generation | None:
        """A generation of the newest version even if it is served: what HUP asks for. Raises as `load` does."""
        with self._turn() as pointer:
            return self._take(find_candidate(self._settings), pointer, is_renewal=True)

    def roll_back(self) -> Generation:
        """A generation of the version before, which is still packed. The one that is left is not taken up again by
        itself: its stamp has been seen. Raises `SwapUnderWayError`, `NoPreviousVersionError`, `ModelRefusedError`.
        """
        with self._turn() as pointer:
            if pointer.previous is None:
                raise NoPreviousVersionError
            copy = Path(pointer.previous.copy)
            previous = Candidate(pointer.previous.version, copy, "")
            try:
                prepare(read_model_file(copy, pointer.previous.digest), find_cache(self._settings.cache_dir))
                wanted = replace(pointer.previous, number=self._next_number(pointer), admitted_at=time.time())
                self._write_wanted(replace(pointer, wanted=wanted))
            except (StartError, OSError) as error:
                raise self._refuse(previous, pointer, explain(error), is_final=False) from None
            return wanted

    def look(self) -> None:
        """By the elected worker alone, every few seconds: takes what two looks in turn have found to be the same."""
        if self._election is None:
            self._election = self._run.try_lock(POLL)
        if self._election is None:
            return
        candidate = self._look_in_store() if isinstance(self._settings.model, Uri) else self._look_at_files()
        if candidate is None or self._has_seen(candidate, self._run.read()):
            return
        with suppress(SwapUnderWayError, ModelRefusedError), self._turn() as pointer:  # under way: at the next look
            if not self._has_seen(candidate, pointer):
                self._take(candidate, pointer)

    def _look_at_files(self) -> Candidate | None:
        candidate = find_candidate(self._settings)
        is_stable, self._looked_at = candidate.stamp == self._looked_at, candidate.stamp
        return candidate if is_stable else None

    def _look_in_store(self) -> Candidate | None:
        """Once a minute. A store that does not answer, a signature that has run out: what is served goes on, and nothing
        is refused. One that does not tell its files apart is asked by `load` and HUP alone."""
        if time.monotonic() < self._ask_at:
            return None
        self._ask_at = time.monotonic() + STORE_SECONDS
        candidate = find_candidate(self._settings)
        if candidate.fault != self._unasked:
            self._unasked = candidate.fault
            if candidate.fault:
                self._log.warning("the store cannot be asked for a newer version", extra={"reason": candidate.fault})
        return candidate if candidate.stamp and not candidate.fault else None

    def resign(self) -> None:
        """Let another worker be elected."""
        if self._election is not None:
            os.close(self._election)
            self._election = None

    # One at a time.

    @contextmanager
    def _turn(self) -> Iterator[Pointer]:
        """The pointer, which nobody else may change meanwhile."""
        with self._run.lock(SWAP) as is_ours:
            if not is_ours or self.is_under_way:
                raise SwapUnderWayError
            yield self.read()

    def _has_seen(self, candidate: Candidate, pointer: Pointer) -> bool:
        has_failed = candidate.stamp == self._failed and time.monotonic() < self._retry_at
        return has_failed or candidate.stamp == pointer.seen

    def _take(
        self, candidate: Candidate, pointer: Pointer, *, is_named: bool = False, is_renewal: bool = False
    ) -> Generation | None:
        """Admit it and write it down as wanted."""
        self._failed = ""
        # Who names a version does not want the newest, which would otherwise be taken up at the next look.
        seen = find_candidate(self._settings).stamp if is_named else candidate.stamp
        refused = pointer.refused
        if not is_named or (refused is not None and refused.version == candidate.version):
            refused = None
        noted = replace(pointer, seen=seen, refused=refused)
        try:
            file = read_candidate(candidate, self._settings, self._report)
            if not is_renewal and (candidate.version, file.digest) == (pointer.serving.version, pointer.serving.digest):
                self._run.write(noted)
                self._block.is_refused = refused is not None
                return None
            for digest in set(self._run.prune(pointer.serving, pointer.previous)) - {file.digest}:
                drop_packed(digest, find_cache(self._settings.cache_dir))
            number, must_pack = self._next_number(pointer), pointer.serving.is_packed
            wanted = admit(candidate, file, self._settings, self._run, number, must_pack=must_pack)
            self._write_wanted(replace(noted, wanted=wanted))
        except StartError as error:
            is_temporary = isinstance(error, FetchError) and error.is_temporary
            is_final = not is_named and not is_temporary and has_stamp(candidate)
            raise self._refuse(candidate, pointer, explain(error), is_final=is_final) from None
        except OSError as error:
            raise self._refuse(candidate, pointer, explain(error), is_final=False) from None
        return wanted

    def _next_number(self, pointer: Pointer) -> int:
        return max(pointer.wanted.number, self._block.progress.reverted) + 1

    def _write_wanted(self, pointer: Pointer) -> None:
        """The master looks at the pointer whenever it wakes. SIGCHLD wakes it and means nothing else; HUP would not do,
        as it is the operator's word for finding the model anew, and might come when the swap has begun already.
        """
        self._run.write(pointer)
        with suppress(ProcessLookupError):
            os.kill(int(self._block.head[Block.MASTER_PID]), signal.SIGCHLD)

    def _refuse(self, candidate: Candidate, pointer: Pointer, reason: str, *, is_final: bool) -> ModelRefusedError:
        """Say it, count it, remember it; the error for who asked."""
        served = pointer.serving.version
        self._count("refused")
        self._block.is_refused = True
        self._failed, self._retry_at = candidate.stamp, math.inf if is_final else time.monotonic() + RETRY_SECONDS
        with suppress(OSError):  # a full disk, perhaps the reason itself
            seen = candidate.stamp if is_final else pointer.seen
            self._run.write(replace(pointer, seen=seen, refused=Refusal(candidate.version, reason)))
        self._log.error("model refused", extra={"version": candidate.version, "reason": reason, "serving": served})
        return ModelRefusedError(reason, served)


class Repository:
    """What the calls of the model repository do, in the threads of a worker."""

    def __init__(self, swaps: Swaps, announcement: Announcement) -> None:
        self._swaps = swaps
        self._announcement = announcement

    def load(self, version: str) -> str:
        """The version that serves once this returns: the one that is named, or the newest."""
        return self._finish(detach(lambda: self._swaps.load(version)))

    def roll_back(self) -> str:
        """The version before, which serves once this returns."""
        return self._finish(detach(self._swaps.roll_back))

    def _finish(self, admission: Future[Generation | None]) -> str:
        serving = self._swaps.read().serving
        while not admission.done():
            if self._announcement.is_leaving:
                raise NotReadyError("this worker is about to go; ask again")
            with suppress(TimeoutError):
                admission.exception(WAIT_SECONDS)
        wanted = admission.result()
        if wanted is None:
            return serving.version
        self._announcement.wait(wanted, serving.version)
        return wanted.version

    def entries(self) -> list[dict[str, str]]:
        """Versions and their states, in Triton's words."""
        pointer = self._swaps.read()
        entries = [{"version": pointer.serving.version, "state": "READY", "reason": ""}]
        if not pointer.wanted.is_same_model(pointer.serving):
            entries.append({"version": pointer.wanted.version, "state": "LOADING", "reason": ""})
        if pointer.refused is not None:
            refused = pointer.refused
            entries.append({"version": refused.version, "state": "UNAVAILABLE", "reason": refused.reason})
        return entries


def has_stamp(candidate: Candidate) -> bool:
    """Whether the file is still the one that the candidate was found as."""
    if candidate.fault or isinstance(candidate.place, Uri):
        return True
    with suppress(OSError):
        return stamp(candidate.version, candidate.place) == candidate.stamp
    return False


def detach(act: Callable[[], Generation | None]) -> Future[Generation | None]:
    """Run this in a thread that a worker does not wait for when it goes: packing may take minutes."""
    future: Future[Generation | None] = Future()

    def run() -> None:
        try:
            future.set_result(act())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="swap", daemon=True).start()
    return future
