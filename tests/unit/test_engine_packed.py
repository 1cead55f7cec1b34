"""What is packed, what is refused, and what is on disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xgboost

from service.documents import read_ubjson
from service.engine import Engine
from service.ensemble import MANIFEST, PackedModelError, read_ensemble, write_ensemble
from service.ensemble.forest import UnsupportedModelError
from service.ensemble.layouts import EXITS, pack, pack_document
from tests.unit.engine_models import KINDS, bits, compiled_code, make_rows, train


def document_of(name: str, seed: int = 4) -> Any:
    """A model's document with plain lists, to be changed."""
    return json.loads(train(KINDS[name], seed).booster.save_raw("json"))


def test_ubjson_is_read_as_json_is() -> None:
    booster = train(KINDS["partition"], seed=4).booster
    read = read_ubjson(bytes(booster.save_raw("ubj")))
    expected = json.loads(booster.save_raw("json"))
    assert read.keys() == expected.keys()
    for mine, theirs in zip(
        read["learner"]["gradient_booster"]["model"]["trees"],
        expected["learner"]["gradient_booster"]["model"]["trees"],
        strict=True,
    ):
        assert mine.keys() == theirs.keys()
        for name, values in theirs.items():
            if isinstance(values, list):
                assert np.array_equal(np.asarray(mine[name], np.float32), np.asarray(values, np.float32))
    assert read["learner"]["objective"] == expected["learner"]["objective"]


def test_json_and_ubjson_are_packed_alike() -> None:
    booster = train(KINDS["partition-dart"], seed=4).booster
    first = pack(booster.save_raw("ubj"))
    second = pack_document(json.loads(booster.save_raw("json")))
    assert first.meta == second.meta
    for name, array in first.arrays().items():
        assert array.tobytes() == second.arrays()[name].tobytes()


def test_segments_have_at_most_32_exits_and_every_leaf_has_one_slot() -> None:
    ensemble = train(KINDS["by-leaf"], seed=11).engine.ensemble
    sizes = np.diff([*ensemble.segments[:, 4], len(ensemble.slots)])
    assert sizes.max() <= EXITS
    assert len(ensemble.segments) > ensemble.meta.trees
    leaves = ensemble.slots[ensemble.slots >= 0]
    assert len(np.unique(leaves)) == len(leaves)
    entries = ensemble.segments[ensemble.segments[:, 5] >= 0, 5]
    assert sorted(entries) == list(np.flatnonzero(ensemble.slots < 0))


def test_linear_boosters_are_not_packed() -> None:
    matrix = xgboost.DMatrix(np.eye(3, dtype=np.float32), np.arange(3), nthread=1)
    booster = xgboost.train({"booster": "gblinear", "nthread": 1}, matrix, 2)
    with pytest.raises(UnsupportedModelError, match="gblinear"):
        pack(booster.save_raw("ubj"))


def forest_of(document: Any) -> Any:
    return document["learner"]["gradient_booster"]["model"]


def test_models_that_xgboost_itself_would_misread_are_not_packed() -> None:
    """Each is a valid model with one thing changed."""

    def no_trees(document: Any) -> None:
        forest_of(document).update(trees=[], tree_info=[], iteration_indptr=[0])

    def unknown_objective(document: Any) -> None:
        document["learner"]["objective"]["name"] = "reg:surprise"

    def wrong_feature(document: Any) -> None:
        forest_of(document)["trees"][0]["split_indices"][0] = 99

    def endless_threshold(document: Any) -> None:
        forest_of(document)["trees"][0]["split_conditions"][0] = float("-inf")

    def strangers(document: Any) -> None:
        forest_of(document)["trees"][0]["right_children"][0] += 1

    def circle(document: Any) -> None:
        tree = forest_of(document)["trees"][0]
        tree["left_children"][1], tree["right_children"][1] = 0, 1

    def outside(document: Any) -> None:
        tree = forest_of(document)["trees"][0]
        tree["left_children"][0], tree["right_children"][0] = 10**6, 10**6 + 1

    def wrong_group(document: Any) -> None:
        forest_of(document)["tree_info"][0] = 3

    def wrong_rounds(document: Any) -> None:
        forest_of(document)["iteration_indptr"][-1] += 1

    def wrong_base(document: Any) -> None:
        document["learner"]["learner_model_param"]["base_score"] = "[1E0,2E0,3E0]"

    def no_names(document: Any) -> None:
        del document["learner"]["learner_model_param"]

    for change in (
        no_trees,
        unknown_objective,
        wrong_feature,
        endless_threshold,
        strangers,
        circle,
        outside,
        wrong_group,
        wrong_rounds,
        wrong_base,
    ):
        document = document_of("squared")
        change(document)
        with pytest.raises(UnsupportedModelError):
            pack_document(document)
    document = document_of("squared")
    no_names(document)
    with pytest.raises(KeyError):
        pack_document(document)


@pytest.mark.parametrize("length", [0, 1, 10, 200, -1])
def test_a_document_that_is_cut_off_is_not_packed(length: int) -> None:
    data = bytes(train(KINDS["squared"], seed=4).booster.save_raw("ubj"))
    with pytest.raises(UnsupportedModelError, match="not the form"):
        pack(data[:length])


@pytest.mark.parametrize("name", ["logistic", "vector", "partition-softprob", "one-leaf"])
def test_what_is_written_is_read_and_scores_the_same(name: str, tmp_path: Path) -> None:
    sample = train(KINDS[name], seed=6)
    write_ensemble(sample.engine.ensemble, tmp_path / "packed")
    read = read_ensemble(tmp_path / "packed")
    assert read.meta == sample.engine.ensemble.meta
    assert not read.nodes.flags.writeable
    rows = make_rows(sample, 200, seed=1)
    assert (bits(Engine(read, compiled_code()).predict(rows)) == bits(sample.engine.predict(rows))).all()
    assert (bits(Engine(read, compiled_code()).predict(rows[:1])) == bits(sample.engine.predict(rows[:1]))).all()
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]


def test_an_older_folder_is_replaced_whole(tmp_path: Path) -> None:
    """Who has the old one mapped keeps it."""
    first, second = train(KINDS["squared"], seed=1), train(KINDS["squared"], seed=2)
    write_ensemble(first.engine.ensemble, tmp_path / "packed")
    mapped = read_ensemble(tmp_path / "packed")
    write_ensemble(second.engine.ensemble, tmp_path / "packed")
    assert read_ensemble(tmp_path / "packed").nodes.tobytes() == second.engine.ensemble.nodes.tobytes()
    assert mapped.nodes.tobytes() == first.engine.ensemble.nodes.tobytes()
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The older folder stays, whole."""
    sample = train(KINDS["squared"], seed=1)
    write_ensemble(sample.engine.ensemble, tmp_path / "packed")

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", fail)
    with pytest.raises(OSError, match="No space"):
        write_ensemble(sample.engine.ensemble, tmp_path / "packed")
    assert [path.name for path in tmp_path.iterdir()] == ["packed"]
    assert read_ensemble(tmp_path / "packed").meta == sample.engine.ensemble.meta


def test_a_folder_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    """A changed byte, a short file, a missing one, another format: packed again, never used."""
    sample = train(KINDS["logistic"], seed=1)

    def changed_byte(folder: Path) -> None:
        data = bytearray((folder / "tests.npy").read_bytes())
        data[-1] ^= 1
        (folder / "tests.npy").write_bytes(data)

    def short(folder: Path) -> None:
        data = (folder / "nodes.npy").read_bytes()
        (folder / "nodes.npy").write_bytes(data[:-16])

    def missing(folder: Path) -> None:
        (folder / "trees.npy").unlink()

    def other_format(folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        (folder / MANIFEST).write_text(json.dumps(manifest | {"format": 0}))

    def no_manifest(folder: Path) -> None:
        (folder / MANIFEST).unlink()

    def half_a_manifest(folder: Path) -> None:
        (folder / MANIFEST).write_bytes((folder / MANIFEST).read_bytes()[:100])

    for number, damage in enumerate((changed_byte, short, missing, other_format, no_manifest, half_a_manifest)):
        folder = tmp_path / str(number)
        write_ensemble(sample.engine.ensemble, folder)
        damage(folder)
        with pytest.raises(PackedModelError):
            read_ensemble(folder)
