"""What becomes a candidate, what is refused, and what is not tried again; the master's part is done by hand."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.edge import ROUTE_LABELS
from service.errors import (
    InvalidInputError,
    ModelRefusedError,
    NoPreviousVersionError,
    NotReadyError,
    StartError,
    SwapUnderWayError,
)
from service.generations import SWAP, Generation, RunFolder, create_run_folder
from service.metrics import READY, Block, Recorder
from service.packing import find_cache, packed_folder
from service.settings import Settings, read_settings
from service.swaps import Announcement, Repository, Swaps, create_first, find_candidate
from tests.apps import Example


class Place:
    """A folder of versions, and the parts of a server that change them; no workers, no master."""

    def __init__(self, folder: Path, run: RunFolder, iris: Example, cancer: Example) -> None:
        self.folder = folder
        self.run = run
        self.files = {"iris": iris.path, "cancer": cancer.path}
        self.add("1", "iris")
        self.settings: Settings = read_settings({"SCORER_MODEL": str(folder)})
        self.block = Block(ROUTE_LABELS, slots=4)
        self.block.announce(create_first(self.settings, run).number)
        self.counts: list[str] = []
        self.log = logging.Logger("of one test")
        self.swaps = self.create_swaps()

    def create_swaps(self) -> Swaps:
        """As another worker has them."""
        return Swaps(self.settings, self.run, self.block, self.log, self.counts.append)

    def add(self, version: str, model: str) -> Path:
        path = self.folder / version / "model.ubj"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(self.files[model], path)
        return path

    def announce(self, generation: Generation | None) -> None:
        assert generation is not None
        self.block.announce(generation.number)

    def is_refused(self) -> bool:
        return self.block.is_refused

    @property
    def serving(self) -> str:
        return self.swaps.read().serving.version

    @property
    def wanted(self) -> str:
        return self.swaps.read().wanted.version


@pytest.fixture
def place(tmp_path: Path, iris: Example, cancer: Example) -> Iterator[Place]:
    with create_run_folder(tmp_path) as run:
        place = Place(tmp_path / "models", run, iris, cancer)
        yield place
        place.swaps.resign()


def test_a_version_is_wanted_until_its_workers_serve_it(place: Place) -> None:
    place.add("2", "cancer")
    generation = place.swaps.load()
    assert (place.serving, place.wanted, place.swaps.is_under_way) == ("1", "2", True)
    place.announce(generation)
    assert (place.serving, place.swaps.is_under_way) == ("2", False)


def test_what_is_served_already_is_not_swapped(place: Place) -> None:
    assert place.swaps.load() is None
    assert place.swaps.load("1") is None


def test_new_workers_of_the_same_model_can_be_had(place: Place) -> None:
    generation = place.swaps.renew()
    assert generation is not None
    assert (generation.number, generation.version) == (2, "1")


def test_while_one_is_under_way_every_other_is_told_so(place: Place) -> None:
    place.add("2", "cancer")
    place.swaps.load()
    other = place.create_swaps()
    for act in (other.load, other.renew, other.roll_back):
        with pytest.raises(SwapUnderWayError):
            act()


def test_while_another_has_the_lock_nothing_is_done(place: Place) -> None:
    place.add("2", "cancer")
    with place.run.lock(SWAP):
        with pytest.raises(SwapUnderWayError):
            place.swaps.load()
        place.swaps.look()
        place.swaps.look()
    assert place.wanted == "1"
    place.swaps.look()
    assert place.wanted == "2"


def test_the_copy_is_what_is_served(place: Place) -> None:
    """Its bytes are those that were admitted, in the folder that goes with the server."""
    path = place.add("2", "cancer")
    data = path.read_bytes()
    generation = place.swaps.load()
    path.write_bytes(b"")
    assert generation is not None
    assert Path(generation.copy).read_bytes() == data
    assert generation.path == str(path)


def let_time_pass(path: Path) -> None:
    """Until a file that is written now has other times than this one: most kernels' clock for that ticks every 4 ms."""
    probe = path.parents[2] / "probe"
    while True:
        probe.write_bytes(b"")
        if probe.stat().st_ctime_ns > path.stat().st_ctime_ns:
            return
        time.sleep(0.001)


# Looking.


def test_a_file_is_taken_when_two_looks_have_found_it_the_same(place: Place) -> None:
    path = place.add("2", "cancer")
    place.swaps.look()
    with path.open("ab") as file:
        file.write(b" ")
    place.swaps.look()
    assert place.wanted == "1", "it was still being written"
    shutil.copy(place.files["cancer"], path)
    place.swaps.look()
    place.swaps.look()
    assert place.wanted == "2"


def test_only_the_worker_that_is_elected_looks(place: Place) -> None:
    place.swaps.look()
    place.add("2", "cancer")
    other = place.create_swaps()
    for _ in range(3):
        other.look()
    assert place.wanted == "1"
    place.swaps.resign()
    other.look()
    other.look()
    assert place.wanted == "2"
    other.resign()


def test_a_refused_file_is_tried_once_until_it_changes(place: Place) -> None:
    path = place.add("2", "iris")
    path.write_bytes(b"{garbage")
    for _ in range(4):
        place.swaps.look()
    assert place.counts == ["refused"]
    assert place.is_refused()
    pointer = place.swaps.read()
    assert pointer.refused is not None
    assert pointer.refused.version == "2"
    place.swaps.resign()
    successor = place.create_swaps()
    for _ in range(3):
        successor.look()
    assert place.counts == ["refused"], "the worker that is elected next knows it"
    path.write_bytes(b"{other garbage")
    for _ in range(3):
        successor.look()
    assert place.counts == ["refused"] * 2
    successor.resign()


def test_golden_rows_that_are_mended_let_their_model_in(place: Place) -> None:
    """They are part of what is admitted: the stamp is theirs as well."""
    path = place.add("2", "iris")
    golden = path.with_name("golden.json")
    golden.write_text('{"rows": [[6.8, 2.8, 4.8, 1.4]], "scores": [2.0]}')
    for _ in range(3):
        place.swaps.look()
    assert place.counts == ["refused"]
    golden.write_text('{"rows": [[6.8, 2.8, 4.8, 1.4]], "scores": [1.0]}')
    for _ in range(2):
        place.swaps.look()
    assert place.wanted == "2"


def test_a_refusal_is_forgotten_when_the_reason_is_gone(place: Place) -> None:
    path = place.add("2", "iris")
    for _ in range(2):  # twice: the second time it is refused for the same reason as the first
        away = place.folder.rename(place.folder.with_name("away"))
        place.swaps.look()
        place.swaps.look()
        assert place.is_refused()
        away.rename(place.folder)
        path.unlink(missing_ok=True)
        place.swaps.look()
        place.swaps.look()
        assert not place.is_refused()
        assert place.swaps.read().refused is None
    assert place.counts == ["refused"] * 2


def test_a_file_that_is_rewritten_with_the_same_bytes_makes_no_swap(place: Place) -> None:
    let_time_pass(place.folder / "1" / "model.ubj")
    place.add("1", "iris")
    before = place.swaps.read()
    place.swaps.look()
    place.swaps.look()
    after = place.swaps.read()
    assert after.seen != before.seen
    assert (after.wanted, after.serving) == (before.wanted, before.serving)


def test_the_stamp_tells_a_file_that_is_replaced_by_one_of_the_same_size_and_time(place: Place) -> None:
    path = place.folder / "1" / "model.ubj"
    before = find_candidate(place.settings).stamp
    found = path.stat()
    let_time_pass(path)
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert find_candidate(place.settings).stamp != before


# Back.


def test_a_rollback_is_not_undone_by_looking(place: Place) -> None:
    place.add("2", "cancer")
    place.announce(place.swaps.load())
    place.announce(place.swaps.roll_back())
    assert place.serving == "1"
    for _ in range(3):
        place.swaps.look()
    assert place.wanted == "1"
    place.announce(place.swaps.roll_back())
    assert place.serving == "2"


def test_without_a_version_before_there_is_no_rollback(place: Place) -> None:
    with pytest.raises(NoPreviousVersionError):
        place.swaps.roll_back()


def test_a_rollback_whose_copy_is_gone_is_refused(place: Place) -> None:
    place.add("2", "cancer")
    place.announce(place.swaps.load())
    shutil.rmtree(place.run.path / "models")
    with pytest.raises(ModelRefusedError, match="version 2 goes on serving"):
        place.swaps.roll_back()


def test_the_number_of_a_generation_that_was_given_up_is_not_used_again(place: Place) -> None:
    place.add("2", "cancer")
    given_up = place.swaps.load()
    assert given_up is not None
    place.block.revert(given_up.number)
    again = place.swaps.load()
    assert again is not None
    assert (given_up.number, again.number) == (2, 3)
    place.announce(again)
    assert place.serving == "2"


def test_what_is_two_versions_back_makes_room(place: Place, iris: Example) -> None:
    for version, model in (("2", "cancer"), ("3", "iris"), ("4", "cancer")):
        place.add(version, model)
        place.announce(place.swaps.load())
    copies = {path.stem for path in (place.run.path / "models").iterdir()}
    pointer = place.swaps.read()
    assert pointer.previous is not None
    assert copies == {pointer.serving.digest, pointer.previous.digest}
    assert packed_folder(iris.model.identity.digest, find_cache("")).exists()


# Naming.


def test_a_version_that_is_not_there_is_the_callers_mistake(place: Place) -> None:
    with pytest.raises(InvalidInputError, match=r"parameters\.version"):
        place.swaps.load("9")
    assert place.counts == []
    assert not place.is_refused()


@pytest.mark.parametrize("name", ["..", "../1", "/etc", ".", "1/../1", "\0"])
def test_a_name_that_is_a_path_leads_nowhere(place: Place, name: str) -> None:
    with pytest.raises(InvalidInputError):
        place.swaps.load(name)


def test_who_names_an_old_version_keeps_it(place: Place) -> None:
    place.add("2", "cancer")
    place.announce(place.swaps.load())
    place.add("3", "iris")
    place.announce(place.swaps.load("1"))
    for _ in range(3):
        place.swaps.look()
    assert place.wanted == "1"


def test_a_name_that_is_a_link_out_of_the_folder_is_refused(place: Place) -> None:
    """As it is for the newest version."""
    away = place.folder.with_name("away")
    place.add("2", "cancer").parent.rename(away)
    (place.folder / "2").symlink_to(away)
    for wanted in ("2", ""):
        with pytest.raises(ModelRefusedError, match="a link out of"):
            place.swaps.load(wanted)


# Failing without the candidate's fault.


def test_where_nothing_can_be_written_the_old_version_goes_on(place: Place) -> None:
    """A folder in the place of the file that the pointer is written to first."""
    place.add("2", "cancer")
    (place.run.path / ".pointer.json").mkdir()
    with pytest.raises(ModelRefusedError, match="Is a directory"):
        place.swaps.load()
    assert (place.serving, place.wanted) == ("1", "1")
    for _ in range(3):
        place.swaps.look()
    assert place.counts == ["refused"], "not again at every look"
    (place.run.path / ".pointer.json").rmdir()
    assert place.swaps.load() is not None


def test_a_first_model_that_cannot_be_copied_is_a_fault_of_the_start(place: Place) -> None:
    shutil.rmtree(place.run.path / "models")
    with pytest.raises(StartError, match="No such file or directory"):
        create_first(place.settings, place.run)


# Waiting for the end.


def worker(block: Block, age: int, generation: int) -> Recorder:
    recorder = Recorder(block, block.claim(age, generation))
    recorder.write_state(READY)
    return recorder


def test_a_call_ends_when_its_own_worker_is_the_last_of_the_old_ones(place: Place) -> None:
    """It announces the swap itself: who asked may go on before the master has seen this worker go."""
    mine = worker(place.block, 1, 1)
    worker(place.block, 3, 2)
    announcement = Announcement(mine)
    place.add("2", "cancer")
    generation = place.swaps.load()
    assert generation is not None
    announcement.is_quiet = True
    announcement.wait(generation, "1")
    assert place.block.progress.announced == generation.number


@pytest.mark.parametrize("is_left", ["another", "mine"])
def test_a_call_does_not_end_while_an_old_worker_may_answer(place: Place, is_left: str) -> None:
    mine = worker(place.block, 1, 1)
    worker(place.block, 3, 2)
    if is_left == "another":
        worker(place.block, 2, 1)
    announcement = Announcement(mine)
    announcement.is_quiet = is_left == "another"
    announcement.leave_at = 0.0
    generation = Generation(2, "2", "", "", "", True, 0.0)
    with pytest.raises(NotReadyError, match="still finishing"):
        announcement.wait(generation, "1")
    assert place.block.progress.announced == 1


def test_a_call_whose_workers_did_not_start_is_told_so(place: Place) -> None:
    announcement = Announcement(worker(place.block, 1, 1))
    place.block.revert(2)
    with pytest.raises(ModelRefusedError, match="did not start"):
        announcement.wait(Generation(2, "2", "", "", "", True, 0.0), "1")


def test_a_call_in_a_server_that_stops_is_told_so(place: Place) -> None:
    announcement = Announcement(Recorder(place.block, place.block.claim(1, 1)))
    announcement.leave_at = 1e9
    with pytest.raises(NotReadyError, match="stopping"):
        announcement.wait(Generation(2, "2", "", "", "", True, 0.0), "1")


def test_the_index_says_what_is_taken_up_and_what_is_refused(place: Place) -> None:
    repository = Repository(place.swaps, Announcement(worker(place.block, 1, 1)))
    ready = {"version": "1", "state": "READY", "reason": ""}
    assert repository.entries() == [ready]
    path = place.add("2", "iris")
    path.write_bytes(b"")
    with pytest.raises(ModelRefusedError):
        repository.load("")
    refused = {"version": "2", "state": "UNAVAILABLE", "reason": f"{path}: the file is empty"}
    assert repository.entries() == [ready, refused]
    place.add("2", "cancer")
    place.swaps.load()
    assert repository.entries() == [ready, {"version": "2", "state": "LOADING", "reason": ""}]
