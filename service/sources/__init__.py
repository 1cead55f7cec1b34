"""Models that lie elsewhere: `s3://`, `gs://`, `az://` and `https://`, fetched by a throw-away process.

obstore starts threads, so that it must never run in Gunicorn's master, which forks, and holds memory, so that it should not run
in a worker either. This file is what a server knows of it: how to start the process and how to read what it says. The process
is `__main__.py`; `fetching.py` writes files, `buckets.py` and `https.py` speak to stores.

For those who poll, `find_newest` is cheap: a listing and two HEADs, in a process of 0.2 s. When the identity differs from that
of the `Fetched` in use, `fetch` brings the new version. On a command line:

    python -m service.sources newest [URI]          {"version": "7", "identity": "5b1c…", "size": 1234567}
    python -m service.sources fetch FOLDER [URI]
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.errors import FetchError
from service.machine import own_command
from service.settings import SETTINGS, Settings, Uri
from service.sources.hosts import AllowList, split_host
from service.sources.remote import RECORD, Fetched, megabytes

# What the process is told, by its environment: a signed URL does not belong into arguments, which all can see.
VARIABLES = (
    "SCORER_MODEL",
    "SCORER_MODEL_SHA256",
    "SCORER_MODEL_HTTPS_HOSTS",
    "SCORER_MODEL_MAX_BYTES",
    "SCORER_FETCH_TIMEOUT_SECONDS",
)
LOG_SECONDS = 5.0


@dataclass(frozen=True)
class Progress:
    """How far a fetch is; `note` is a sentence for the log, such as why it begins again."""

    state: str = "looking"
    received: int = 0
    total: int | None = None
    note: str = ""

    def __str__(self) -> str:
        if self.state == "fetched":
            return "loading the model"
        if self.state == "looking":
            return "fetching the model: looking for the newest"
        who = ", another worker has it under way" if self.state == "waiting" else ""
        if not self.total:
            return f"fetching the model: {megabytes(self.received)} MB{who}"
        share = f"{100 * self.received / self.total:.0f} %"
        return f"fetching the model: {megabytes(self.received)} of {megabytes(self.total)} MB ({share}){who}"


Report = Callable[[Progress], None]


@dataclass(frozen=True)
class Newest:
    """What the store has now; the identity is equal for equal files, and empty if the store does not let one tell."""

    version: str
    identity: str
    size: int | None


def find_newest(settings: Settings) -> Newest:
    """The newest version in the store, without its bytes; or `FetchError`."""
    return Newest(**ask(["newest"], settings, lambda progress: None))


def fetch(settings: Settings, folder: Path, report: Report, *, is_cache: bool, since: float = math.inf) -> Fetched:
    """The newest version in this folder, or `FetchError`.

    Processes that call it at once share one download. What a store has said since the given Unix time is not asked again, so
    that the workers of one server take the same version, and one that is replaced later needs no store.
    """
    options = ["--since", repr(since), *(["--cache"] if is_cache else [])]
    found = Fetched(**ask(["fetch", *options, str(folder)], settings, report)["fetched"])
    report(Progress("fetched", found.size, found.size))
    return found


def cache_folder(cache: Path, uri: Uri) -> Path:
    """One for each URI: two servers on a machine do not prune each other's files. A URL that is signed anew is the same."""
    return cache / "sources" / hashlib.sha256(f"{uri.scheme}://{uri.place}/{uri.path}".encode()).hexdigest()[:16]


def forget(model: Path) -> None:
    """This file was fetched into the cache and cannot be served: nobody shall take it for the newest."""
    (model.parent / RECORD).unlink(missing_ok=True)
    shutil.rmtree(model.parent, ignore_errors=True)


def find_faults(settings: Settings) -> Iterator[str]:
    """What can be told without the network."""
    uri = settings.model
    if isinstance(uri, Uri) and uri.scheme == "https":
        try:
            AllowList.from_text(settings.model_https_hosts).verify_host(*split_host(uri.place))
        except FetchError as error:
            yield f"{uri}: {error.reason}"


# The process.


def ask(arguments: list[str], settings: Settings, report: Report) -> dict[str, Any]:
    """What the process says in the end; kills it if `report` raises."""
    command = own_command("service.sources", *arguments)
    environ = {**os.environ, **to_environ(settings)}
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environ, text=True) as process:
        try:
            said = follow(process.stdout or (), report)
        except BaseException:
            process.kill()
            raise
    if said is None:
        code = process.returncode
        how = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"
        raise FetchError(f"{settings.model}: the process that fetches it {how}", is_temporary=True)
    if "error" in said:
        raise FetchError(said["error"], is_temporary=said["is_temporary"])
    return said


def follow(lines: Iterable[str], report: Report) -> dict[str, Any] | None:
    """The last word; what comes before it is reported."""
    progress, said = Progress(), None
    for line in lines:
        words = json.loads(line)
        if "progress" in words:
            progress = Progress(**words["progress"])
            report(progress)
        elif "note" in words:
            report(Progress(progress.state, progress.received, progress.total, words["note"]))
        else:
            said = words
    return said


def to_environ(settings: Settings) -> dict[str, str]:
    """The settings as the process reads them again."""
    values = {s.variable: getattr(settings, s.attribute) for s in SETTINGS if s.variable in VARIABLES}
    return {name: value.text if isinstance(value, Uri) else str(value) for name, value in values.items()}


class ProgressLog:
    """A line in the log every few seconds, and one for each note."""

    def __init__(self, log: logging.Logger, every_seconds: float = LOG_SECONDS) -> None:
        self._log = log
        self._every_seconds = every_seconds
        self._next = time.monotonic() + every_seconds

    def __call__(self, progress: Progress) -> None:
        if progress.note:
            self._log.warning("fetching the model", extra={"reason": progress.note})
        elif progress.state == "fetching" and time.monotonic() >= self._next:
            self._next = time.monotonic() + self._every_seconds
            self._log.info(
                "fetching the model", extra={"received_bytes": progress.received, "total_bytes": progress.total}
            )
