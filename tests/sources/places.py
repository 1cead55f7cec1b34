"""Fetches in this process with limits that suit a test, and remembers what was said meanwhile."""

from __future__ import annotations

import math
import os
import random
from dataclasses import dataclass, field
from pathlib import Path

from service.settings import Uri, read_settings
from service.sources.__main__ import create_store
from service.sources.fetching import Limits, Place, fetch
from service.sources.remote import Fetched

MEGABYTE = 1_000_000


@dataclass
class Listener:
    notes: list[str] = field(default_factory=list)
    states: list[tuple[str, int, int | None]] = field(default_factory=list)

    def observe(self, state: str, received: int, total: int | None) -> None:
        self.states.append((state, received, total))

    def note(self, text: str) -> None:
        self.notes.append(text)


def limits(**values: float) -> Limits:
    given: dict[str, float] = {"max_bytes": 100 * MEGABYTE, "seconds": 60.0, "stall_seconds": 5.0, "attempts": 3}
    return Limits(**{**given, "first_pause_seconds": 0.01, **values})  # type: ignore[arg-type]  # whole numbers among them


def bring(
    uri: str,
    folder: Path,
    *,
    within: Limits | None = None,
    sha256: str = "",
    hosts: str = "",
    listener: Listener | None = None,
    is_cache: bool = False,
    since: float = math.inf,
) -> Fetched:
    """What `xgboost-server fetch` does, in this process."""
    settings = read_settings({"SCORER_MODEL": uri, "SCORER_MODEL_HTTPS_HOSTS": hosts})
    assert isinstance(settings.model, Uri)
    within = within or limits()
    store = create_store(settings.model, settings, within)
    place = Place(folder, settings.model, sha256, is_cache)
    return fetch(store, place, within, listener or Listener(), since=since)


def make_model(size: int, seed: int = 0) -> bytes:
    """Bytes that begin as a model does; what is in them is no concern of a fetch."""
    return b"{" + random.Random(seed).randbytes(size - 1)


def files_in(folder: Path) -> list[str]:
    """All but the lock and the record."""
    found = (os.path.relpath(path, folder) for path in folder.rglob("*") if path.is_file())
    return sorted(name for name in found if Path(name).name not in (".lock", ".source.json"))
