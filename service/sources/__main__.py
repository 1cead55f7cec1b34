"""The throw-away process that speaks to the stores: what it has to say is one JSON object a line.

    python -m service.sources newest [URI]          {"version": …, "identity": …, "size": …}
    python -m service.sources fetch FOLDER [URI]    {"progress": {…}} and {"note": …}, then {"fetched": {…}}

Either may end with {"error": …, "is_temporary": …} and exit code 75 (EX_TEMPFAIL of sysexits.h: a later attempt may succeed)
or 1. The URI is that of SCORER_MODEL unless given; a signed one belongs into the environment, as arguments can be seen by all.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from service.errors import FetchError, StartError
from service.settings import Settings, Uri, read_settings
from service.sources import VARIABLES
from service.sources.fetching import Limits, Place, fetch, out_of_time
from service.sources.hosts import AllowList
from service.sources.remote import Store

BEAT_SECONDS = 0.5
# The loops look at the clock by themselves; this is for a server that holds them up before the first byte.
GRACE_SECONDS = 2.0
# Who polls asks again soon.
NEWEST_SECONDS = 60.0


class Voice:
    """Says how far it is twice a second, whatever the main thread waits for, and ends the process when time is up or when
    nobody listens any more."""

    def __init__(self, uri: Uri, seconds: float, *, is_quiet: bool = False) -> None:
        self._uri = uri
        self._seconds = seconds
        self._is_quiet = is_quiet
        self._lock = threading.Lock()
        self._progress: tuple[str, int, int | None] = ("looking", 0, None)
        self._is_done = threading.Event()

    def observe(self, state: str, received: int, total: int | None) -> None:
        self._progress = (state, received, total)

    def note(self, text: str) -> None:
        self.say(note=text)

    def say(self, **words: Any) -> None:
        with self._lock:
            try:
                print(json.dumps(words), flush=True)
            except OSError:
                os._exit(1)  # whoever started this is gone

    @contextmanager
    def speaking(self) -> Iterator[None]:
        thread = threading.Thread(target=self._speak, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._is_done.set()
            thread.join()

    def _speak(self) -> None:
        began = time.monotonic()
        while not self._is_done.wait(BEAT_SECONDS):
            state, received, total = self._progress
            if state == "waiting":  # for another process, which has its own clock
                began = time.monotonic()
            if time.monotonic() - began > self._seconds + GRACE_SECONDS:
                self.say(error=out_of_time(self._uri, self._seconds).reason, is_temporary=True)
                os._exit(os.EX_TEMPFAIL)
            if not self._is_quiet:
                self.say(progress={"state": state, "received": received, "total": total})


def create_store(uri: Uri, settings: Settings, limits: Limits) -> Store:
    """Only now the library that the URI needs: https needs no obstore, which brings threads and 15 MB."""
    if uri.scheme == "https":
        from service.sources.https import HttpsStore

        return HttpsStore(uri, AllowList.from_text(settings.model_https_hosts), limits.stall_seconds)
    from service.sources.buckets import BucketStore

    return BucketStore.from_uri(uri, stall_seconds=limits.stall_seconds, timeout_seconds=limits.seconds)


def read_own_settings(environ: Mapping[str, str], uri: str) -> Settings:
    """Those that concern a fetch; whatever else is in the environment is for others to judge."""
    own = {name: value for name, value in environ.items() if name in VARIABLES}
    return read_settings(own | {"SCORER_MODEL": uri} if uri else own)


def find_newest(uri: Uri, settings: Settings, limits: Limits) -> dict[str, Any]:
    with Voice(uri, min(limits.seconds, NEWEST_SECONDS), is_quiet=True).speaking():
        remote = create_store(uri, settings, limits).find_newest()
    return {"version": remote.version, "identity": remote.identity, "size": remote.size}


def fetch_model(uri: Uri, settings: Settings, limits: Limits, arguments: argparse.Namespace) -> dict[str, Any]:
    voice = Voice(uri, limits.seconds)
    place = Place(Path(arguments.folder), uri, settings.model_sha256, arguments.cache)
    with voice.speaking():
        store = create_store(uri, settings, limits)
        return {"fetched": asdict(fetch(store, place, limits, voice, since=arguments.since))}


def answer(arguments: argparse.Namespace) -> dict[str, Any]:
    settings = read_own_settings(os.environ, arguments.uri)
    uri = settings.model
    if not isinstance(uri, Uri):
        raise FetchError(f"{uri}: a path; expected the URI of a model")
    limits = Limits.from_settings(settings)
    if arguments.verb == "newest":
        return find_newest(uri, settings, limits)
    return fetch_model(uri, settings, limits, arguments)


def run(arguments: argparse.Namespace) -> int:
    try:
        said, code = answer(arguments), 0
    except FetchError as error:
        said = {"error": error.reason, "is_temporary": error.is_temporary}
        code = os.EX_TEMPFAIL if error.is_temporary else 1
    except StartError as error:
        said, code = {"error": str(error), "is_temporary": False}, 1
    except Exception as error:  # its text may hold a signed URL: only where it happened is told
        traceback.print_tb(error.__traceback__)
        said, code = {"error": f"a fault of ours: {type(error).__name__}", "is_temporary": False}, 1
    print(json.dumps(said), flush=True)
    return code


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m service.sources")
    verbs = parser.add_subparsers(dest="verb", required=True)
    newest = verbs.add_parser("newest")
    fetch_parser = verbs.add_parser("fetch")
    fetch_parser.add_argument("folder")
    fetch_parser.add_argument("--cache", action="store_true")
    fetch_parser.add_argument("--since", type=float, default=float("inf"))
    for verb in (newest, fetch_parser):
        verb.add_argument("uri", nargs="?", default="")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # of a terminal: whoever started this says that it was stopped
    sys.exit(run(parse(sys.argv[1:])))
