"""Gunicorn's arbiter that changes the model: a new generation of workers is complete before the old one is told to go.

    trying      new workers start beside the old ones, which go on as before
    leaving     all new ones score: TERM to the old ones, which drain; or the new ones did not start: TERM to those
    over        the last of them has gone: this is announced

The master looks at the pointer whenever it wakes, so that a swap whose author was killed a moment after writing it goes
ahead all the same. Which generation a worker belongs to it learns from the master at the fork, not from the pointer: a
worker that is replaced in the middle of a swap serves what its generation serves.

Gunicorn 27's own reload tells the old workers to go at once, and stops the whole server if a new one cannot start.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer

from service.errors import ServiceError, SwapUnderWayError
from service.generations import Generation, RunFolder
from service.logs import create_log
from service.metrics import Block
from service.settings import read_settings
from service.swaps import Swaps

# New workers that have not all started after this time, or of which so many have died, are given up.
START_SECONDS = 120.0
MAX_DEATHS = 3
# How often the master looks around during a swap; else once a second, and whenever it gets a signal.
LOOK_SECONDS = 0.05

TRYING, DONE, REVERTED = "trying", "done", "reverted"


@dataclass
class Succession:
    """A swap under way: `comes` is tried, then either `goes` leaves or, if it was given up, `comes` does."""

    comes: Generation
    goes: Generation
    deadline: float
    outcome: str = TRYING
    deaths: int = 0

    @property
    def stays(self) -> Generation:
        """The generation of workers that are started now."""
        return self.goes if self.outcome == REVERTED else self.comes


class Master(Arbiter):  # type: ignore[misc]  # gunicorn 27 has no type hints
    """Gunicorn's arbiter that knows generations, and why a worker went."""

    scorer_block: Block

    def __init__(self, app: Any, run: RunFolder, first: Generation) -> None:
        super().__init__(app)
        self.run_folder = run
        self._serving = first
        self._succession: Succession | None = None
        self._is_renewal_due = False

    def start(self) -> None:
        super().start()
        block, log = self.scorer_block, create_log()
        block.announce(self._serving.number)
        self._swaps = Swaps(read_settings(os.environ), self.run_folder, block, log, block.count_swap)

    # Gunicorn's loop: signals, then `manage_workers`, at least once a second.

    def handle_hup(self) -> None:
        """The operator wants new workers, with the model found anew; not before the swap under way is over."""
        self._is_renewal_due = True

    def wait_for_signals(self, timeout: float = 1.0) -> list[int]:
        signals: list[int] = super().wait_for_signals(LOOK_SECONDS if self._succession is not None else timeout)
        return signals

    def manage_workers(self) -> None:
        if self._succession is not None:
            self._advance(self._succession)
        if self._succession is None:  # or not any more
            self._succession = self._find_succession()
            super().manage_workers() if self._succession is None else self._advance(self._succession)

    @property
    def generation(self) -> Generation:
        """What a worker that is started now serves."""
        return self._serving if self._succession is None else self._succession.stays

    def reap_workers(self) -> None:
        """Look at each dead worker's status before Gunicorn takes it away; a new one that cannot start stops only its
        generation.
        """
        for pid, worker in list(self.WORKERS.items()):
            try:
                status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                continue
            if status is not None:
                worker.scorer_exit = status
        known = dict(self.WORKERS)
        while True:
            try:
                super().reap_workers()
                break
            except HaltServer:
                if self._succession is None or self._succession.outcome == DONE:
                    raise
        for pid in known.keys() - self.WORKERS.keys():
            self._bury(known[pid])

    def _bury(self, worker: Any) -> None:
        succession = self._succession
        if succession is not None and succession.outcome == TRYING and worker.scorer_generation == succession.comes:
            succession.deaths += 1
        if not getattr(worker, "scorer_is_released", False):  # Gunicorn was about to stop the server
            worker.tmp.close()
            self.cfg.child_exit(self, worker)

    # A swap.

    def _find_succession(self) -> Succession | None:
        try:
            wanted: Generation | None = self._swaps.read().wanted
            if wanted is None or wanted.number <= self._serving.number:
                wanted = self._renew() if self._is_renewal_due else None
        except (OSError, ValueError) as error:  # somebody has tidied the run folder away: no swaps any more
            if self._is_renewal_due:
                create_log().error("workers cannot be renewed", extra={"reason": str(error)})
            self._is_renewal_due = False
            return None
        if wanted is None:
            return None
        create_log().info("swap begins", extra=describe(wanted))
        return Succession(wanted, self._serving, time.monotonic() + START_SECONDS)

    def _renew(self) -> Generation | None:
        """The newest version; None if it is refused, or if somebody else is at it: then again when that is over."""
        try:
            wanted = self._swaps.renew()
        except SwapUnderWayError:
            return None
        except ServiceError:
            self._is_renewal_due = False
            return None
        self._is_renewal_due = False
        self.log.info("Hang up: %s", self.master_name)
        self.app.reload()
        self.setup(self.app)
        self.log.reopen_files()
        return wanted

    def _advance(self, succession: Succession) -> None:
        staying = [worker for worker in self.WORKERS.values() if worker.scorer_generation == succession.stays]
        if succession.outcome == REVERTED or self._is_alive(succession):
            for _ in range(self.num_workers - len(staying)):
                self.spawn_worker()
        if succession.outcome != TRYING:
            if len(staying) == len(self.WORKERS):
                self._finish(succession)
        elif len(staying) >= self.num_workers and all(self._is_ready(worker) for worker in staying):
            self._decide(succession, DONE)
        elif not self._is_alive(succession):
            self._decide(succession, REVERTED)

    def _is_ready(self, worker: Any) -> bool:
        return worker.scorer_slot is None or self.scorer_block.is_ready(worker.scorer_slot)

    def _is_alive(self, succession: Succession) -> bool:
        is_late = succession.outcome == TRYING and time.monotonic() > succession.deadline
        return not is_late and succession.deaths < MAX_DEATHS

    def _decide(self, succession: Succession, outcome: str) -> None:
        """Tell the others to go."""
        succession.outcome = outcome
        self._serving = succession.stays
        if outcome == REVERTED:
            self.scorer_block.revert(succession.comes.number)
            self.scorer_block.is_refused = True
            self.scorer_block.count_swap(REVERTED)
            create_log().error("model refused, its workers did not start", extra=describe(succession.comes))
        for pid, worker in list(self.WORKERS.items()):
            if worker.scorer_generation != succession.stays:
                self.kill_worker(pid, signal.SIGTERM)

    def _finish(self, succession: Succession) -> None:
        """Announce it: all that is answered from now on is answered by the generation that stays."""
        self._succession = None
        if succession.outcome == REVERTED:
            return
        comes, goes = succession.comes, succession.goes
        seconds = time.time() - comes.admitted_at
        self.scorer_block.announce(comes.number)
        with suppress(OSError, ValueError):
            self.scorer_block.is_refused = self._swaps.read().refused is not None
        if comes.is_same_model(goes):
            create_log().info("workers renewed", extra=describe(comes))
            return
        self.scorer_block.head[Block.SWAP_SECONDS] = seconds
        self.scorer_block.count_swap(DONE)
        create_log().info("swap done", extra=describe(comes) | {"before": goes.version, "seconds": round(seconds, 3)})


def describe(generation: Generation) -> dict[str, Any]:
    return {
        "generation": generation.number,
        "version": generation.version,
        "digest": generation.digest,
        "path": generation.path,
    }
