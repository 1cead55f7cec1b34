"""What a store says of a model, and the two questions that every store answers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from service.artifact import FILE_NAMES
from service.errors import FetchError

# Beside the model, brought along where it is there: rows with the scores that they must give.
GOLDEN = "golden.json"
GOLDEN_MAX_BYTES = 16 * 2**20
# Beside what was fetched: where it came from.
RECORD = ".source.json"


@dataclass(frozen=True)
class Remote:
    """One version of a model as it lies in its store at this moment; keys as its store has them."""

    version: str
    # Of the version, in a folder of versions; empty for a file, and for a folder that holds a single model.
    folder: str
    key: str
    size: int | None
    # What the store would change with the bytes: ETag, or date and size; empty if it tells nothing of the kind.
    mark: str
    golden_key: str = ""
    golden_mark: str = ""

    @property
    def identity(self) -> str:
        """Equal for the same files; empty if the store gives nothing to tell by."""
        if not self.mark:
            return ""
        parts = (self.version, self.key, self.mark, self.golden_mark)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Fetched:
    """A model file in its place."""

    path: str
    uri: str
    version: str
    identity: str
    digest: str
    size: int
    # When the store last said that this is the newest: Unix time.
    seen_at: float
    is_new: bool = False


@dataclass(frozen=True)
class Opened:
    """A file being read: from which byte on, and how long it is as a whole."""

    start: int
    size: int | None
    mark: str
    # Whether the mark can be given to `open` to go on in the middle of the same file.
    can_resume: bool
    chunks: Iterator[bytes]
    close: Callable[[], None]


class Store(Protocol):
    """Both raise `FetchError` only, in the operator's words."""

    def find_newest(self) -> Remote: ...

    def open(self, key: str, start: int, mark: str) -> Opened:
        """The bytes from `start` on if the file is still the one with this mark, else `ChangedError`."""


class ChangedError(FetchError):
    """The file was replaced while it was read: begin anew."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what}: replaced in the store while it was read", is_temporary=True)


def file_name(key: str) -> str:
    return "model.json" if key.endswith(".json") else "model.ubj"


def golden_names(name: str) -> list[str]:
    """What golden rows beside a model of this name are called in the store; here they are `golden.json`."""
    stem = name.rpartition(".")[0] or name
    return [f"{stem}.{GOLDEN}", *([GOLDEN] if name in FILE_NAMES else [])]


def megabytes(count: float) -> str:
    return f"{count / 1e6:,.1f}"


def listed(words: Sequence[str]) -> str:
    return ", ".join(words) or "none"
