"""Fetches the newest version of a model into a folder, whole or not at all.

    <folder>/.lock                 held by whoever fetches; its text is the size that is awaited
    <folder>/.fetching/            what has come so far; never used, emptied at the next start
    <folder>/<place>/model.ubj     complete: written, synced, moved here
    <folder>/<place>/golden.json   if the store has one beside the model
    <folder>/<place>/.source.json  written last: where it came from, with its digest

In the server's cache a place is `<version>@<identity>`, so that a new file never replaces one that is being read. In a folder
that somebody named (`xgboost-server fetch`) it is `<version>`, or the folder itself for the URI of a file.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Protocol

from service.artifact import FILE_NAMES, ONLY_VERSION, natural_order, verify_format
from service.errors import FetchError, ModelFileError
from service.settings import Settings, Uri
from service.sources.remote import (
    GOLDEN,
    GOLDEN_MAX_BYTES,
    RECORD,
    ChangedError,
    Fetched,
    Opened,
    Remote,
    Store,
    file_name,
    megabytes,
)

LOCK = ".lock"
STAGING = ".fetching"
LOCK_LOOK_SECONDS = 0.1
# After so many bytes attempts are counted anew.
PROGRESS_BYTES = 1 << 20
LONGEST_PAUSE_SECONDS = 15.0


@dataclass(frozen=True)
class Limits:
    """How much, how long, and how slowly."""

    max_bytes: int
    seconds: float
    # A connection that brings fewer bytes in this time is given up.
    stall_seconds: float = 10.0
    stall_bytes: int = 10_000
    attempts: int = 5
    first_pause_seconds: float = 1.0

    @classmethod
    def from_settings(cls, settings: Settings) -> Limits:
        return cls(settings.model_max_bytes, settings.fetch_timeout_seconds)


class Reporter(Protocol):
    """Hears how far it is; `note` is a sentence for the log."""

    def observe(self, state: str, received: int, total: int | None) -> None: ...

    def note(self, text: str) -> None: ...


class Fetch:
    """One fetch: the clock, the attempts and the pace that all of its files share."""

    def __init__(self, store: Store, uri: Uri, limits: Limits, reporter: Reporter) -> None:
        self._store = store
        self._uri = uri
        self._limits = limits
        self._reporter = reporter
        self._deadline = time.monotonic() + limits.seconds
        self._attempts = 0
        self._failed = ""  # why the last attempt did not succeed
        self._random = random.SystemRandom()

    def find_newest(self) -> Remote:
        while True:
            try:
                return self._store.find_newest()
            except FetchError as error:
                self._pause(error)

    def download(self, key: str, path: Path, max_bytes: int) -> Partial:
        """The whole file, synced; with as many attempts as it takes and as the limits allow."""
        with path.open("wb") as file:
            partial = Partial(file)
            while True:
                try:
                    self._read(key, partial, max_bytes)
                    break
                except ChangedError as error:
                    partial.restart()
                    self._pause(error)
                except FetchError as error:
                    self._pause(error)
            file.flush()
            os.fsync(file.fileno())
        return partial

    def _read(self, key: str, partial: Partial, max_bytes: int) -> None:
        """One attempt, from where the last one ended if the file is still the same."""
        if not partial.can_resume:
            partial.restart()
        opened = self._store.open(key, partial.received, partial.mark)
        try:
            partial.begin(opened)
            self._verify_size(opened.size, max_bytes)
            self._receive(opened, partial, max_bytes)
        finally:
            opened.close()
        if opened.size is not None and partial.received != opened.size:
            raise FetchError(
                f"{self._uri}: the connection ended after {partial.received:,} of {opened.size:,} bytes",
                is_temporary=True,
            )

    def _receive(self, opened: Opened, partial: Partial, max_bytes: int) -> None:
        pace = Pace(self._uri, self._limits)
        began_at = partial.received
        for chunk in opened.chunks:
            self._verify_size(partial.received + len(chunk), max_bytes)
            partial.write(chunk)
            self._reporter.observe("fetching", partial.received, opened.size)
            if partial.received - began_at >= PROGRESS_BYTES:
                self._attempts = 0
            pace.observe(len(chunk))
            self._verify_time()

    def _pause(self, error: FetchError) -> None:
        """Wait before the next attempt, longer each time and never in step with others; or give up."""
        self._attempts += 1
        self._failed = error.reason
        if not error.is_temporary:
            raise error
        if self._attempts >= self._limits.attempts:
            raise FetchError(f"{error.reason}; {self._limits.attempts} attempts", is_temporary=True)
        self._verify_time()
        longest = min(LONGEST_PAUSE_SECONDS, self._limits.first_pause_seconds * 2 ** (self._attempts - 1))
        pause = min(self._random.uniform(longest / 2, longest), max(0.0, self._deadline - time.monotonic()))
        self._reporter.note(f"{error.reason}; again in {pause:.1f} s")
        time.sleep(pause)

    def verify_model_size(self, size: int | None) -> None:
        self._verify_size(size, self._limits.max_bytes)

    def _verify_size(self, size: int | None, max_bytes: int) -> None:
        if size is not None and size > max_bytes:
            whose = "SCORER_MODEL_MAX_BYTES" if max_bytes == self._limits.max_bytes else GOLDEN
            raise FetchError(f"{self._uri}: {size:,} bytes or more; at most {max_bytes:,} are taken ({whose})")

    def _verify_time(self) -> None:
        if time.monotonic() > self._deadline:
            raise out_of_time(self._uri, self._limits.seconds, self._failed)


class Partial:
    """A file on its way: what has come, and the digest of it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.can_resume = False
        self.restart()

    def restart(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._hash = hashlib.sha256()
        self.received = 0
        self.mark = ""

    def begin(self, opened: Opened) -> None:
        """A server that does not do ranges sends from the beginning."""
        if opened.start != self.received or (self.mark and opened.mark != self.mark):
            self.restart()
            if opened.start:
                raise ChangedError("the file")
        self.mark = opened.mark
        self.can_resume = opened.can_resume

    def write(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self._hash.update(chunk)
        self.received += len(chunk)

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()


class Pace:
    """Notices a connection that brings next to nothing."""

    def __init__(self, uri: Uri, limits: Limits) -> None:
        self._uri = uri
        self._limits = limits
        self._since = time.monotonic()
        self._bytes = 0

    def observe(self, count: int) -> None:
        self._bytes += count
        if self._bytes >= self._limits.stall_bytes:
            self._since, self._bytes = time.monotonic(), 0
        elif time.monotonic() - self._since > self._limits.stall_seconds:
            raise FetchError(
                f"{self._uri}: too slow: {self._bytes:,} bytes in {self._limits.stall_seconds:g} seconds, "
                f"expected at least {self._limits.stall_bytes:,}",
                is_temporary=True,
            )


def out_of_time(uri: Uri, seconds: float, failed: str = "") -> FetchError:
    reason = f"{uri}: not fetched within {seconds:g} seconds (SCORER_FETCH_TIMEOUT_SECONDS)"
    last = f"; the last attempt: {failed.removeprefix(f'{uri}: ')}" if failed else ""
    return FetchError(reason + last, is_temporary=True)


# Into a folder.


def fetch(store: Store, place: Place, limits: Limits, reporter: Reporter, *, since: float) -> Fetched:
    """The newest version in its place; what the store was asked for since that time is taken without asking again."""
    folder = place.folder
    try:
        folder.mkdir(mode=0o700 if place.is_cache else 0o777, parents=True, exist_ok=True)
        with locked(folder, reporter) as lock:
            found = place.find(since)
            if found is None:
                delivery = Delivery(place, Fetch(store, place.uri, limits, reporter), reporter, lock)
                found = delivery.deliver(limits.max_bytes)
            place.prune(found)
            return found
    except OSError as error:
        raise FetchError(f"{error.filename or folder}: {error.strerror or error}") from None


@contextmanager
def locked(folder: Path, reporter: Reporter) -> Iterator[IO[str]]:
    """The folder's lock; the kernel releases it when its holder dies."""
    with (folder / LOCK).open("a+") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                reporter.observe("waiting", *staged(folder))
                time.sleep(LOCK_LOOK_SECONDS)
        yield lock


def staged(folder: Path) -> tuple[int, int | None]:
    """How far the holder of the lock is, as its files show."""
    try:
        received = sum(file.stat().st_size for file in (folder / STAGING).iterdir())
        total = (folder / LOCK).read_text()
    except OSError:
        return 0, None
    return received, int(total) if total.isdigit() else None


@dataclass(frozen=True)
class Place:
    """Where the files of one URI lie, and what is there already."""

    folder: Path
    uri: Uri
    sha256: str
    is_cache: bool

    def of(self, remote: Remote) -> Path:
        if self.is_cache:
            return self.folder / f"{remote.version}@{remote.identity or 'unmarked'}"
        return self.folder / remote.folder

    def find(self, since: float) -> Fetched | None:
        """What need not be asked for: seen since then, or pinned by its digest."""
        records = self.records()
        seen = [record for record in records if record.seen_at >= since and self._is_wanted(record)]
        if seen:
            return max(seen, key=lambda record: record.seen_at)
        if not self.sha256:
            return None
        return next((record for record in (*records, *self._unrecorded()) if self._is_wanted(record)), None)

    def find_same(self, remote: Remote) -> Fetched | None:
        for record in self.records():
            if remote.identity and record.identity == remote.identity and self._is_wanted(record):
                return record
        return None

    def _is_wanted(self, record: Fetched) -> bool:
        """Whether the file is there, whole, and the one that is pinned, if one is."""
        return self.sha256 in ("", record.digest) and digest_of(Path(record.path)) == record.digest

    def records(self) -> list[Fetched]:
        """All that was fetched from this URI."""
        return [record for record in self._all_records() if record.uri == hash_uri(self.uri)]

    def _all_records(self) -> list[Fetched]:
        found = (read_record(path) for path in (self.folder / RECORD, *sorted(self.folder.glob(f"*/{RECORD}"))))
        return [record for record in found if record is not None]

    def _unrecorded(self) -> Iterator[Fetched]:
        """Model files that were put here by other means."""
        for path in (path for name in FILE_NAMES for path in (self.folder / name, *self.folder.glob(f"*/{name}"))):
            version = ONLY_VERSION if path.parent == self.folder else path.parent.name
            if path.is_file():
                yield Fetched(str(path), hash_uri(self.uri), version, "", self.sha256, path.stat().st_size, 0.0)

    def prune(self, found: Fetched) -> None:
        """Keep this one and the one before; and, where the newest is found by name, none that would pass for newer."""
        others = [record for record in self.records() if record.path != found.path]
        if not self.is_cache:
            others = [o for o in others if natural_order(o.version) < natural_order(found.version)]
        kept = {found.path, *(record.path for record in sorted(others, key=lambda record: record.seen_at)[-1:])}
        for record in self._all_records():
            if record.path not in kept:
                self._remove(Path(record.path).parent)

    def _remove(self, place: Path) -> None:
        """What was fetched into this place; a folder that somebody named is theirs."""
        if place != self.folder:
            shutil.rmtree(place, ignore_errors=True)
            return
        for name in (RECORD, *FILE_NAMES, GOLDEN):
            (place / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class Delivery:
    """Brings the files of the newest version, and puts them where they belong."""

    place: Place
    fetch: Fetch
    reporter: Reporter
    lock: IO[str]

    def deliver(self, max_bytes: int) -> Fetched:
        self.reporter.observe("looking", 0, None)
        remote = self.fetch.find_newest()
        same = self.place.find_same(remote)
        if same is not None:
            found = replace(same, seen_at=time.time())
            write_record(Path(found.path).parent, found)
            return found
        self.fetch.verify_model_size(remote.size)
        staging = self.place.folder / STAGING
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            verify_space(staging, remote)
            return self._bring(remote, staging, max_bytes)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _bring(self, remote: Remote, staging: Path, max_bytes: int) -> Fetched:
        self.lock.truncate(0)
        self.lock.write(str(remote.size or ""))
        self.lock.flush()
        if remote.golden_key:
            self.fetch.download(remote.golden_key, staging / GOLDEN, GOLDEN_MAX_BYTES)
        name = file_name(remote.key)
        model = self.fetch.download(remote.key, staging / name, max_bytes)
        verify_digest(self.place.uri, model.digest, self.place.sha256)
        verify_start(self.place.uri, staging / name)
        # What was read, not what was listed: the file may have been replaced in between.
        identity = replace(remote, mark=model.mark).identity
        place = self.place.of(replace(remote, mark=model.mark))
        found = Fetched(
            path=str(place / name),
            uri=hash_uri(self.place.uri),
            version=remote.version,
            identity=identity,
            digest=model.digest,
            size=model.received,
            seen_at=time.time(),
            is_new=True,
        )
        write_record(staging, found)
        install(staging, place)
        return found


def install(staging: Path, place: Path) -> None:
    """All at once; or, where something lies there, the record last: without it nothing counts."""
    if not place.exists():
        os.rename(staging, place)
        sync(place.parent)
        return
    (place / RECORD).unlink(missing_ok=True)
    for name in (GOLDEN, *FILE_NAMES, RECORD):
        if (staging / name).exists():
            os.rename(staging / name, place / name)
        else:
            (place / name).unlink(missing_ok=True)
    sync(place)


def sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def verify_space(folder: Path, remote: Remote) -> None:
    free = shutil.disk_usage(folder).free
    if remote.size is not None and remote.size > free:
        raise FetchError(f"{folder.parent}: {megabytes(free)} MB are free, the model has {megabytes(remote.size)} MB")


def verify_digest(uri: Uri, digest: str, sha256: str) -> None:
    if sha256 and digest != sha256:
        raise FetchError(f"{uri}: the sha256 is {digest[:12]}…, expected {sha256[:12]}…")


def verify_start(uri: Uri, path: Path) -> None:
    """A page that asks to sign in is told from a model by its first bytes."""
    with path.open("rb") as file:
        start = file.read(32)
    try:
        verify_format(path, start)
    except ModelFileError as error:
        raise FetchError(f"{uri}{str(error).removeprefix(str(path))}") from None


def digest_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def hash_uri(uri: Uri) -> str:
    """Tells URIs apart, and holds no signature."""
    return f"{uri}#{hashlib.sha256(uri.text.encode()).hexdigest()[:16]}"


def read_record(path: Path) -> Fetched | None:
    try:
        document = json.loads(path.read_bytes())
        return Fetched(path=str(path.parent / document.pop("name")), **document)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there, or not one of ours


def write_record(place: Path, found: Fetched) -> None:
    """Atomically; the file is named relative to its place, as volumes are mounted elsewhere."""
    document = {**asdict(found), "name": Path(found.path).name}
    del document["path"], document["is_new"]
    beside = place / f"{RECORD}.new"
    with beside.open("w") as file:
        json.dump(document, file)
        file.flush()
        os.fsync(file.fileno())
    os.rename(beside, place / RECORD)
    sync(place)
