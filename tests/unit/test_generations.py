"""The pointer and the run folder: whole or not at all, one writer at a time, gone with the server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from service.artifact import ModelFile
from service.batch import Progress
from service.errors import StartError
from service.generations import (
    POINTER,
    PREFIX,
    SWAP,
    Generation,
    Pointer,
    Refusal,
    RunFolder,
    create_run_folder,
    remove_leftovers,
)
from service.golden import read_golden_file


def generation(number: int, version: str) -> Generation:
    return Generation(number, version, f"digest of {version}", f"/m/{version}/model.ubj", f"/r/{version}", True, 1.5)


FIRST, SECOND = generation(1, "1"), generation(2, "2")
START = Pointer(FIRST, FIRST, None, "stamp", None)
UNDER_WAY = replace(START, wanted=SECOND)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    with create_run_folder(tmp_path) as folder:
        yield folder


# The pointer.


def test_a_swap_is_under_way_until_it_is_announced_or_given_up() -> None:
    assert not START.is_under_way(Progress(1, 0))
    assert UNDER_WAY.is_under_way(Progress(1, 0))
    assert not UNDER_WAY.is_under_way(Progress(2, 0))
    assert not UNDER_WAY.is_under_way(Progress(1, 2))


def test_what_was_wanted_and_announced_is_served_and_the_one_before_is_kept() -> None:
    settled = UNDER_WAY.settle(Progress(2, 0))
    assert (settled.serving, settled.previous) == (SECOND, FIRST)
    assert settled.settle(Progress(2, 0)) == settled


def test_what_was_given_up_is_refused_and_the_one_before_goes_on() -> None:
    """Nobody has to write that down: the disk may be full."""
    settled = UNDER_WAY.settle(Progress(1, 2))
    assert (settled.wanted, settled.serving, settled.previous) == (FIRST, FIRST, None)
    assert settled.refused is not None
    assert settled.refused.version == "2"
    assert not settled.is_under_way(Progress(1, 2))


def test_new_workers_of_the_same_model_do_not_become_the_version_to_go_back_to() -> None:
    renewed = replace(SECOND, number=3)
    pointer = Pointer(renewed, SECOND, FIRST, "stamp", None)
    assert pointer.settle(Progress(3, 0)).previous == FIRST


def test_a_swap_under_way_is_left_as_it_is() -> None:
    assert UNDER_WAY.settle(Progress(1, 0)) == UNDER_WAY


@pytest.mark.parametrize("pointer", [START, UNDER_WAY, replace(START, previous=SECOND, refused=Refusal("3", "why"))])
def test_a_pointer_is_read_as_it_was_written(run: RunFolder, pointer: Pointer) -> None:
    run.write(pointer)
    assert run.read() == pointer


# The run folder.


def test_the_folder_is_ours_alone_and_gone_at_the_end(tmp_path: Path) -> None:
    with create_run_folder(tmp_path) as run:
        assert run.path.stat().st_mode & 0o777 == 0o700
        assert run.path.name.startswith(PREFIX)
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_was_forked_from_the_owner_removes_nothing(tmp_path: Path) -> None:
    """Workers leave through the same block as the master."""
    script = """
import os, sys
from pathlib import Path
from service.generations import create_run_folder
with create_run_folder(Path(sys.argv[1])) as run:
    child = os.fork()
    if child == 0:
        sys.exit(0)
    os.waitpid(child, 0)
    print(run.path.exists())
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_fault_of_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="no folder can be made for this run"), create_run_folder(tmp_path / "none"):
        pass


def test_leftovers_are_removed_unless_they_are_young_or_in_use(tmp_path: Path, run: RunFolder) -> None:
    old, young, other = (tmp_path / name for name in (f"{PREFIX}old", f"{PREFIX}young", "other"))
    for folder in (old, young, other):
        folder.mkdir()
    for folder in (old, other, run.path):
        os.utime(folder, (1, 1))
    remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {young.name, other.name, run.path.name}


def test_of_two_only_one_has_the_lock(run: RunFolder) -> None:
    with run.lock(SWAP) as is_ours, run.lock(SWAP) as is_ours_too:
        assert is_ours
        assert not is_ours_too
    with run.lock(SWAP) as is_ours:
        assert is_ours


def test_a_lock_ends_with_its_holder(run: RunFolder) -> None:
    script = "import fcntl, os, signal, sys; fcntl.flock(open(sys.argv[1], 'r+'), 2); os.kill(os.getpid(), 9)"
    done = subprocess.run([sys.executable, "-c", script, str(run.path / SWAP)], check=False)
    assert done.returncode == -9, "it had the lock"
    with run.lock(SWAP) as is_ours:
        assert is_ours


def test_a_pointer_that_cannot_be_written_leaves_the_old_one(run: RunFolder) -> None:
    """A folder in the place of the new file: it cannot be opened."""
    run.write(START)
    (run.path / f".{POINTER}").mkdir()
    with pytest.raises(OSError, match="Is a directory"):
        run.write(UNDER_WAY)
    assert run.read() == START


def test_a_copy_is_no_link_to_the_file(tmp_path: Path, run: RunFolder) -> None:
    """Who writes into the file must not write into what is served."""
    path = tmp_path / "model.ubj"
    path.write_bytes(b"{admitted")
    copy = run.keep(ModelFile(path, path.read_bytes(), "d" * 64), b"rows")
    path.write_bytes(b"{replaced")
    assert copy.read_bytes() == b"{admitted"
    assert copy.name == "model.ubj"
    assert read_golden_file(copy) == b"rows"


def test_the_same_model_with_other_golden_rows_is_kept_beside_the_first(tmp_path: Path, run: RunFolder) -> None:
    file = ModelFile(tmp_path / "m.ubj", b"{", "a" * 64)
    first, second = run.keep(file, b"rows"), run.keep(file, b"others")
    assert first != second
    assert run.prune(replace(FIRST, copy=str(second))) == []
    assert (first.exists(), second.exists()) == (False, True)


def test_only_the_copies_that_are_kept_stay(tmp_path: Path, run: RunFolder) -> None:
    copies = [run.keep(ModelFile(tmp_path / "m.ubj", b"{", digit * 64), b"") for digit in "abc"]
    kept = replace(FIRST, copy=str(copies[1]))
    assert sorted(run.prune(kept, None)) == ["a" * 64, "c" * 64]
    assert [path for path in copies if path.exists()] == [copies[1]]


def test_the_pointer_is_plain_json(run: RunFolder) -> None:
    """For who looks at three in the morning."""
    run.write(UNDER_WAY)
    found = json.loads((run.path / POINTER).read_text())
    assert (found["wanted"]["version"], found["serving"]["version"]) == ("2", "1")
