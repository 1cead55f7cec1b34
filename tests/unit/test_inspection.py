"""`inspect` says what XGBoost itself says of a model, for every kind that is served."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import xgboost
from click.testing import CliRunner, Result

from service.cli import main
from service.inspection import Inspection, describe, format_bytes, format_seconds, inspect_model
from service.settings import SETTINGS, read_settings
from tests.apps import Example
from tests.unit.engine_models import KINDS, train


def inspect(path: Path, **environ: str) -> Inspection:
    return inspect_model(read_settings({"SCORER_MODEL": str(path), **environ}))


def run(*arguments: str) -> Result:
    unset = {setting.variable: None for setting in SETTINGS}
    return CliRunner().invoke(main, ["inspect", *arguments], env={**unset, "COLUMNS": "100"})


def count_leaves(node: dict[str, Any]) -> int:
    return sum(map(count_leaves, node["children"])) if "children" in node else 1


def measure_depth(node: dict[str, Any]) -> int:
    return 1 + max(map(measure_depth, node["children"])) if "children" in node else 0


@pytest.mark.parametrize("kind", ["squared", "softprob", "dart-forest", "partition", "by-leaf", "one-leaf", "forest"])
def test_trees_are_counted_as_xgboost_dumps_them(kind: str, tmp_path: Path) -> None:
    booster = train(KINDS[kind], seed=3).booster
    booster.save_model(tmp_path / "model.ubj")
    dumped = [json.loads(tree) for tree in booster.get_dump(dump_format="json")]
    found = inspect(tmp_path / "model.ubj")
    assert (found.trees, found.rounds) == (len(dumped), booster.num_boosted_rounds())
    assert found.leaves == sum(map(count_leaves, dumped))
    assert found.depth == max(map(measure_depth, dumped))
    assert found.engine == "packed"


def test_trees_with_several_values_in_a_leaf_are_counted_as_well(tmp_path: Path) -> None:
    """XGBoost 3.2 cannot dump these."""
    booster = train(KINDS["vector"], seed=3).booster
    booster.save_model(tmp_path / "model.ubj")
    found = inspect(tmp_path / "model.ubj")
    document = json.loads(booster.save_raw("json"))
    trees = document["learner"]["gradient_booster"]["model"]["trees"]
    assert found.leaves == sum(tree["left_children"].count(-1) for tree in trees)
    assert (found.trees, found.outputs, found.classes) == (len(trees), 3, None)


def test_ubjson_and_json_are_the_same_model(iris: Example, tmp_path: Path) -> None:
    """All but the file itself, and what is measured."""
    iris.booster.save_model(tmp_path / "model.json")
    measured = {"path", "file_bytes", "digest", "worker_bytes", "call_seconds"}
    one, other = (vars(inspect(path)) for path in (iris.path, tmp_path / "model.json"))
    assert {key: one[key] for key in one.keys() - measured} == {key: other[key] for key in one.keys() - measured}
    assert one["written_by"] == xgboost.__version__


def test_the_version_is_that_of_who_wrote_the_file(iris: Example, tmp_path: Path) -> None:
    """Loading and saving would put the version of this XGBoost in its place; names may say "version" as well."""
    document = json.loads(iris.booster.save_raw("json"))
    document["version"] = [2, 1, 4]
    document["learner"]["feature_names"][0] = '"version":[9,9,9]'
    for indent in (None, 1):
        (tmp_path / "model.json").write_text(json.dumps(document, indent=indent))
        assert inspect(tmp_path / "model.json").written_by == "2.1.4"


def test_a_model_without_trees_is_inspected_as_well(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    matrix = xgboost.DMatrix(rng.normal(size=(50, 3)), rng.normal(size=50), nthread=1)
    xgboost.train({"booster": "gblinear", "nthread": 1}, matrix, 3).save_model(tmp_path / "model.ubj")
    found = inspect(tmp_path / "model.ubj")
    assert (found.booster, found.engine, found.trees, found.leaves) == ("gblinear", "xgboost", None, None)
    assert "gblinear" in found.reason
    assert (found.packed_bytes, found.shared_bytes) == (0, 0)
    said = run(str(tmp_path / "model.ubj")).stdout
    assert "XGBoost, as there is no packed form: " in said
    assert "trees  " not in said
    assert "without names: rows are in the model's order" in " ".join(said.split())


def test_a_model_of_trees_that_xgboost_serves_says_why(iris: Example, tmp_path: Path) -> None:
    """A cache that others can write to is not used."""
    tmp_path.chmod(0o777)
    found = inspect(iris.path, SCORER_CACHE_DIR=str(tmp_path))
    assert (found.engine, found.trees) == ("xgboost", 60)
    assert "nobody else can write to" in found.reason


def test_early_stopping_is_told_with_what_scores_use(tmp_path: Path) -> None:
    """The server gives the scores of all rounds, as Booster.predict does."""
    rng = np.random.default_rng(1)
    matrix = xgboost.DMatrix(rng.normal(size=(50, 3)), rng.normal(size=50), feature_names=["a", "b", "c"], nthread=1)
    booster = xgboost.train({"nthread": 1}, matrix, 9)
    booster.set_attr(best_iteration="4")
    booster.save_model(tmp_path / "model.ubj")
    assert inspect(tmp_path / "model.ubj").best_iteration == 4
    assert "9; best_iteration is 4, scores use all" in run(str(tmp_path / "model.ubj")).stdout


def test_inspect_shows_what_a_model_is_and_takes(cancer: Example) -> None:
    """Long lists of names are cut."""
    result = run(str(cancer.path))
    assert (result.exit_code, result.stderr) == (0, "")
    said = " ".join(result.stdout.split())
    for expected in (
        f"{cancer.path}, 107 kB",
        f"sha256 {cancer.model.identity.digest}",
        "objective binary:logistic",
        "features 30: mean radius, mean texture",
        "and 22 more",
        "outputs 1 (2 classes)",
        "trees 100, with 630 leaves, at most 4 deep",
        "engine packed trees, ",
        "once for all workers, and ",
    ):
        assert expected in said
    for rows in ("1 row", "100 rows", "1,000 rows"):
        assert re.search(rf"{rows} [\d.,]+ [µm]s", said)


def test_json_has_all_of_it(cancer: Example) -> None:
    document = orjson.loads(run(str(cancer.path), "--json").stdout)
    assert list(document) == list(Inspection.__dataclass_fields__)
    assert document["feature_names"] == list(cancer.names)
    assert list(document["call_seconds"]) == ["1", "100", "1000"]
    assert all(0 < seconds < 60 for seconds in document["call_seconds"].values())


def test_categories_are_counted_by_type(tmp_path: Path) -> None:
    train(KINDS["one-hot"], seed=5).booster.save_model(tmp_path / "model.ubj")
    (_, model), _ = describe(inspect(tmp_path / "model.ubj"))
    assert re.match(r"\d+ \(\d+ of type c, \d+ of type q\), without names", dict(model)["features"])


def test_inspect_says_why_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.ubj").write_bytes(b"junk")
    result = run(str(tmp_path / "model.ubj"))
    assert (result.exit_code, result.stdout) == (1, "")
    assert "neither JSON nor UBJSON" in result.stderr


def test_sizes_and_times_are_short() -> None:
    sizes = (0, 999, 1000, 37_332, 999_499, 999_500, 10**10)
    assert [format_bytes(count) for count in sizes] == [
        "0 bytes",
        "999 bytes",
        "1 kB",
        "37.3 kB",
        "999 kB",
        "1 MB",
        "10 GB",
    ]
    assert [format_seconds(seconds) for seconds in (2.05e-6, 9.99e-4, 1e-3, 1.2345)] == [
        "2.05 µs",
        "999 µs",
        "1 ms",
        "1,234 ms",
    ]
