"""Golden rows: who gives other scores than those stored with the model does not serve, and says which row differs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xgboost

from service.artifact import read_model_file
from service.engine import Engine
from service.ensemble.layouts import pack
from service.errors import ModelFileError
from service.golden import MOST_ROWS, find_golden_file, read_goldens, verify_golden
from service.models import LoadedModel, create_predictor, find_file, load_model
from service.packing import LEAF_VALUES, find_cache, kernel_cache, make_rows, prepare
from service.settings import read_settings
from tests.apps import Example


def load(path: Path, cache: Path) -> LoadedModel:
    return load_model(read_settings({"SCORER_MODEL": str(path), "SCORER_CACHE_DIR": str(cache)}))


def faults_of(path: Path, cache: Path) -> list[str]:
    with pytest.raises(ModelFileError) as caught:
        load(path, cache)
    return [fault.removeprefix(f"{path}: ") for fault in caught.value.faults]


def golden_of(example: Example) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((example.path.parent / "golden.json").read_text())
    return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory, cancer: Example) -> Path:
    """With the kernels that were compiled for the examples, and no models yet."""
    assert cancer.model.predictor.engine == "packed"
    folder = tmp_path_factory.mktemp("cache")
    shutil.copytree(kernel_cache(find_cache("")), kernel_cache(folder))
    return folder


@pytest.fixture
def model(tmp_path: Path, cancer: Example) -> Path:
    path = tmp_path / "model.ubj"
    shutil.copy(cancer.path, path)
    return path


def test_golden_rows_beside_the_model_are_reproduced(model: Path, cancer: Example, cache: Path) -> None:
    """Scores and margins, to the last bit, by the engine that serves."""
    (model.parent / "golden.json").write_text(json.dumps(golden_of(cancer)))
    assert load(model, cache).record.golden_rows == 12


@pytest.mark.parametrize("name", ["scores", "margins"])
def test_a_row_that_differs_in_one_bit_is_named(model: Path, cancer: Example, cache: Path, name: str) -> None:
    golden = golden_of(cancer)
    right = np.float32(golden[name][3])
    wrong = np.nextafter(right, np.float32(np.inf))
    golden[name][3] = float(str(wrong))
    (model.parent / "golden.json").write_text(json.dumps(golden))
    what = "a margin of " if name == "margins" else ""
    assert faults_of(model, cache) == [f"golden.json: golden row 3: expected {what}{wrong}, got {right}"]


def test_all_rows_that_differ_are_named(model: Path, cancer: Example, cache: Path) -> None:
    golden = golden_of(cancer)
    golden["scores"] = [2.0] * len(golden["rows"])
    del golden["margins"]
    (model.parent / "golden.json").write_text(json.dumps(golden))
    faults = faults_of(model, cache)
    assert [fault.split(":")[1] for fault in faults] == [f" golden row {at}" for at in range(12)]


def test_a_tolerance_that_is_written_down_is_granted(model: Path, cancer: Example, cache: Path) -> None:
    golden = golden_of(cancer)
    golden["scores"] = [score + 1e-4 for score in golden["scores"]]
    for tolerance, is_near in ((1e-3, True), (1e-5, False)):
        (model.parent / "golden.json").write_text(json.dumps(golden | {"tolerance": tolerance}))
        if is_near:
            assert load(model, cache).record.golden_rows == 12
        else:
            assert len(faults_of(model, cache)) == 12


def test_golden_rows_may_travel_in_the_model(tmp_path: Path, iris: Example, cache: Path) -> None:
    """As an attribute of the booster; the same rows for the packed form and for XGBoost."""
    golden = {"rows": [[6.8, None, 4.8, 1.4]], "scores": [0.0]}
    booster = iris.booster.copy()
    for score in (float(iris.model.predictor.predict(np.array(golden["rows"], np.float32))[0]), 7.0):
        booster.set_attr(scorer_golden=json.dumps(golden | {"scores": [score]}))
        booster.save_model(tmp_path / "flowers.ubj")
        if score == 7:
            (fault,) = faults_of(tmp_path / "flowers.ubj", cache)
            assert fault.startswith("attribute scorer_golden: golden row 0: expected 7.0, got ")
        else:
            assert load(tmp_path / "flowers.ubj", cache).record.golden_rows == 1


def test_a_golden_file_that_changes_is_tried_again(model: Path, cancer: Example, cache: Path) -> None:
    """The packed form is kept by the model's digest, which does not know of the rows beside it."""
    load(model, cache)
    golden = golden_of(cancer)
    golden["scores"][0] = 2.0
    (model.parent / "golden.json").write_text(json.dumps(golden))
    (fault,) = faults_of(model, cache)
    assert fault.startswith("golden.json: golden row 0: expected 2.0, got ")


def test_a_worker_tries_them_on_the_predictor_that_it_serves_with(
    model: Path, cancer: Example, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was right when the model was packed may be wrong in this process. Here the kernels add 1 to every score."""
    (model.parent / "golden.json").write_text(json.dumps(golden_of(cancer)))
    load(model, cache)
    right = Engine.predict
    monkeypatch.setattr(Engine, "predict", lambda self, values: right(self, values) + 1)
    assert len(faults_of(model, cache)) == 12


def test_where_there_is_no_cache_golden_rows_are_tried_all_the_same(
    model: Path, cancer: Example, tmp_path: Path
) -> None:
    golden = golden_of(cancer)
    golden["scores"][0] = 2.0
    (model.parent / "golden.json").write_text(json.dumps(golden))
    (tmp_path / "cache").write_text("not a folder")
    assert faults_of(model, tmp_path / "cache")[0].startswith("golden.json: golden row 0: expected 2.0, got ")


@pytest.mark.parametrize(
    ("golden", "reason"),
    [
        ("{", "not JSON"),
        ("[]", "expected an object with no other keys than feature_names, margins, model_sha256, rows, scores, "),
        ({"tolerence": 1}, "expected an object with no other keys than"),
        ({"rows": []}, f"rows: expected a list of 1 to {MOST_ROWS} rows"),
        ({"rows": [[1.0]] * (MOST_ROWS + 1)}, f"rows: expected a list of 1 to {MOST_ROWS} rows"),
        ({"rows": [[1.0]], "scores": [1]}, "rows[0]: expected a list of 30 values"),
        ({"rows": [["1"] * 30], "scores": [1]}, "rows[0]: expected numbers within float32, or null"),
        ({"rows": [[1e39] * 30], "scores": [1]}, "rows[0]: expected numbers within float32, or null"),
        ({"rows": [[True] * 30], "scores": [1]}, "rows[0]: expected numbers within float32, or null"),
        ({"rows": [[1] * 30]}, "expected scores, margins or both"),
        ({"rows": [[1] * 30], "scores": []}, "scores: expected a list with one entry for each of 1 rows"),
        ({"rows": [[1] * 30], "scores": [None]}, "scores[0]: expected finite numbers"),
        ({"rows": [[1] * 30], "scores": [[1, 2]]}, "golden row 0: 2 numbers are given, the model gives 1"),
        ({"rows": [[1] * 30], "scores": [1], "tolerance": -1}, "tolerance: expected a number from 0 on"),
        ({"rows": [[1] * 30], "scores": [1], "model_sha256": "0" * 64}, "model_sha256 is not that of the model, "),
        ({"rows": [[1] * 30], "scores": [1], "feature_names": ["a"]}, "feature_names: expected those of the model"),
    ],
)
def test_golden_rows_that_cannot_be_read_are_a_fault(model: Path, cancer: Example, golden: Any, reason: str) -> None:
    """Passing over them would look as if all were well."""
    text = golden if isinstance(golden, str) else json.dumps(golden)
    (model.parent / "golden.json").write_text(text)
    predictor = cancer.model.predictor
    with pytest.raises(ModelFileError) as caught:
        verify_golden(model, read_goldens(read_model_file(model), None, predictor.contract), predictor)
    (fault,) = caught.value.faults
    assert fault.startswith(f"{model}: golden.json: {reason}")


def test_golden_rows_have_the_name_of_their_model(tmp_path: Path) -> None:
    """`golden.json` is for `model.ubj` alone: a folder may hold many models."""
    assert find_golden_file(tmp_path / "model.ubj") is None
    (tmp_path / "golden.json").touch()
    (tmp_path / "churn.golden.json").touch()
    assert find_golden_file(tmp_path / "model.ubj") == tmp_path / "golden.json"
    assert find_golden_file(tmp_path / "model.json") == tmp_path / "golden.json"
    assert find_golden_file(tmp_path / "churn.ubj") == tmp_path / "churn.golden.json"
    assert find_golden_file(tmp_path / "fraud.ubj") is None


def folder_of(model: Path, cache: Path) -> Path:
    """Of the packed form."""
    found: Path = prepare(read_model_file(model), cache).folder
    return found


def test_a_packed_form_whose_manifest_is_another_is_not_mapped(model: Path, cache: Path) -> None:
    """The kernels do not check what they walk: only the arrays that were compared with XGBoost get to them."""
    first = load(model, cache)
    assert first.predictor.engine == "packed"
    manifest = folder_of(model, cache) / "ensemble" / "manifest.json"
    manifest.write_text(manifest.read_text() + " ")
    file = read_model_file(model)
    second = create_predictor(file, prepare(file, cache))
    assert second.engine == "xgboost"
    assert "not the one that was admitted" in second.reason
    assert load(model, cache).predictor.engine == "packed", "a start packs again"


@pytest.mark.parametrize("place", ["objective", "binary:", "mean radius", "manifest", "sha256"])
def test_a_bit_that_is_flipped_in_what_was_found_is_noticed(model: Path, cache: Path, place: str) -> None:
    """It would be a model with a feature of another name, or one whose golden rows are not reproduced."""
    first = load(model, cache)
    path = folder_of(model, cache) / "packed.json"
    whole = path.read_bytes()
    at = whole.index(place.encode())
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    assert prepare(read_model_file(model), cache).record == first.record
    assert path.read_bytes() == whole


def test_a_wide_model_is_compared_on_fewer_rows(tmp_path: Path, cache: Path) -> None:
    """2,048 rows of 50,000 features would take 400 MB, and five times that while they are made."""
    random = np.random.default_rng(0)
    rows = random.normal(size=(60, 50_000)).astype(np.float32)
    booster = xgboost.train({"nthread": 1, "max_depth": 2}, xgboost.DMatrix(rows, rows[:, 40_000], nthread=1), 2)
    assert make_rows(pack(booster.save_raw("ubj"))).nbytes <= 4 * LEAF_VALUES
    booster.save_model(tmp_path / "model.ubj")
    assert load(tmp_path / "model.ubj", cache).predictor.engine == "packed"


def test_a_threshold_at_the_largest_number_is_packed(tmp_path: Path, cache: Path) -> None:
    """The number stands for missing in some data."""
    random = np.random.default_rng(0)
    rows = random.normal(size=(500, 3)).astype(np.float32)
    rows[::2, 0] = np.finfo(np.float32).max
    booster = xgboost.train({"nthread": 1, "max_depth": 4}, xgboost.DMatrix(rows, rows[:, 0] > 1e37, nthread=1), 4)
    booster.save_model(tmp_path / "model.ubj")
    _, thresholds = pack(booster.save_raw("ubj")).thresholds()
    assert thresholds.max() == np.finfo(np.float32).max
    assert load(tmp_path / "model.ubj", cache).predictor.engine == "packed"


def test_names_that_xgboost_reads_otherwise_are_refused(tmp_path: Path, cache: Path) -> None:
    """It does not know JSON's escapes for letters; callers would have to send what they never named a feature."""
    rows = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    matrix = xgboost.DMatrix(rows, rows[:, 0], feature_names=["größe", "b"], nthread=1)
    booster = xgboost.train({"nthread": 1}, matrix, 2)
    path = tmp_path / "model.json"
    raw = bytes(booster.save_raw("json"))
    path.write_bytes(raw)
    assert load(path, cache).predictor.contract.feature_names == ("größe", "b")
    path.write_text(json.dumps(json.loads(raw)))
    with pytest.raises(ModelFileError, match="feature_names: XGBoost reads other names"):
        load(path, cache)


def test_golden_rows_that_are_no_text_are_a_fault(tmp_path: Path, cache: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    booster = xgboost.train({"nthread": 1}, xgboost.DMatrix(rows, rows[:, 0], nthread=1), 2)
    document = json.loads(booster.save_raw("json"))
    document["learner"]["attributes"]["scorer_golden"] = "\ud800"
    path = tmp_path / "model.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ModelFileError, match="attribute scorer_golden: not JSON"):
        load(path, cache)


def test_what_was_admitted_is_remembered(model: Path, cache: Path) -> None:
    """A second start reads the record and does not admit again."""
    shutil.rmtree(folder_of(model, cache), ignore_errors=True)
    settings = read_settings({"SCORER_MODEL": str(model), "SCORER_CACHE_DIR": str(cache)})
    first = load_model(settings)
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("packed.json")}
    assert prepare(find_file(settings)[1], cache).record == first.record
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("packed.json")} == before


def test_what_this_machine_stood_in_the_way_of_is_tried_again_at_the_next_start(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By whoever starts, and not by the workers, which find what was found for them."""
    shutil.rmtree(folder_of(model, cache))
    file = read_model_file(model)
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")
    failed = prepare(file, cache, is_start=True)
    assert failed.reason.startswith("the kernels cannot run here: MachineCodeError: the kernels cannot be compiled: ")
    assert load(model, cache).predictor.engine == "xgboost"
    monkeypatch.delenv("NUMBA_DISABLE_JIT")
    assert prepare(file, cache) == failed
    assert prepare(file, cache, is_start=True).reason == ""
    assert load(model, cache).predictor.engine == "packed"


def test_what_is_the_models_own_reason_is_not_tried_again(tmp_path: Path, cache: Path) -> None:
    matrix = xgboost.DMatrix(np.zeros((4, 2), np.float32), [0, 1, 0, 1])
    xgboost.train({"booster": "gblinear", "nthread": 1}, matrix, 3).save_model(tmp_path / "model.ubj")
    file = read_model_file(tmp_path / "model.ubj")
    first = prepare(file, cache, is_start=True)
    written = (first.folder / "packed.json").stat().st_mtime_ns
    assert "gblinear" in first.reason
    assert prepare(file, cache, is_start=True) == first
    assert (first.folder / "packed.json").stat().st_mtime_ns == written
