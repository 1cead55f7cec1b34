"""Every score is the one that `Booster.predict` gives for that row alone (design, section 1).

- A request of one row: to the last bit, on every wire.
- A batch: XGBoost may add the trees of a row in another order when rows travel together, which moves the margin by one
  unit in the last place of the largest number in that sum. With the margin m, that is `spacing(max(|m|, 1))`, as sums
  here pass through numbers of about 1. A probability moves by at most a quarter of it (the steepest slope of the
  sigmoid), and by its own last place, as exp is the C library's. A class does not move.
- A model that is not one of sums of trees (gblinear) is held to the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import orjson
import pytest
import xgboost
from numpy.typing import NDArray

from service.artifact import ModelFile
from service.batch import Floats
from service.predictor import BoosterPredictor
from tests.apps import Example, World

HEAD_LENGTH = "Inference-Header-Content-Length"


def predict_alone(booster: Any, rows: Floats, names: tuple[str, ...] | None = None, **options: Any) -> Floats:
    """The ground truth: one matrix and one prediction for each row."""
    alone = [xgboost.DMatrix(row[np.newaxis], feature_names=names, nthread=1) for row in rows]
    return np.concatenate([booster.predict(row, **options) for row in alone])


def bits(scores: Floats) -> NDArray[np.uint32]:
    assert scores.dtype == np.float32
    return np.ascontiguousarray(scores).view(np.uint32)


def margin_tolerance(margins: Floats) -> Floats:
    tolerance: Floats = np.spacing(np.maximum(np.abs(margins), np.float32(1)))
    return tolerance


def random_rows(example: Example, count: int) -> Floats:
    """Rows around the golden ones, some values missing."""
    rng = np.random.default_rng(7)
    rows: Floats = example.rows[rng.integers(0, len(example.rows) - 1, count)]
    rows = rows * rng.uniform(0.7, 1.3, rows.shape).astype(np.float32)
    rows[rng.random(rows.shape) < 0.1] = np.nan
    return rows


# The same rows through every wire.


def to_list(rows: Floats) -> Any:
    """Rows as a client of Python writes them: doubles, None for NaN."""
    return [[None if np.isnan(value) else float(value) for value in row] for row in rows]


def turned(items: list[Any]) -> list[Any]:
    """Another order, which, unlike the reverse, does not undo itself."""
    return items[1:] + items[:1]


def post(world: World, path: str, body: bytes, **headers: str) -> Any:
    response = world.client.post(
        path, data=body, headers={name.replace("_", "-"): text for name, text in headers.items()}
    )
    assert response.status_code == 200, response.data
    return response


def through_predict(world: World, example: Example, rows: Floats) -> Floats:
    return np.array(post(world, "/predict", orjson.dumps(to_list(rows))).json["prediction"], np.float32)


def through_predict_one_by_one(world: World, example: Example, rows: Floats) -> Floats:
    """Bare rows: one number for each request."""
    answers = [post(world, "/predict", orjson.dumps(row)).json["prediction"] for row in to_list(rows)]
    return np.array(answers, np.float32)


def through_score(world: World, example: Example, rows: Floats) -> Floats:
    """Rows by names, in another order."""
    named = [dict(turned(list(zip(example.names, row, strict=True)))) for row in to_list(rows)]
    return np.array(post(world, "/score", orjson.dumps({"X": named})).json["score"], np.float32)


def through_v1(world: World, example: Example, rows: Floats) -> Floats:
    path = f"/v1/models/{example.name}:predict"
    return np.array(post(world, path, orjson.dumps({"instances": to_list(rows)})).json["predictions"], np.float32)


def through_v1_nan(world: World, example: Example, rows: Floats) -> Floats:
    """The literal NaN, from Python's own json."""
    body = json.dumps({"instances": rows.astype(float).tolist()}).encode()
    path = f"/v1/models/{example.name}:predict"
    return np.array(post(world, path, body).json["predictions"], np.float32)


def through_v2(world: World, example: Example, rows: Floats) -> Floats:
    tensor = {"name": "input-0", "shape": rows.shape, "datatype": "FP32", "data": to_list(rows)}
    path = f"/v2/models/{example.name}/infer"
    return np.array(post(world, path, orjson.dumps({"inputs": [tensor]})).json["outputs"][0]["data"], np.float32)


def through_v2_columns(world: World, example: Example, rows: Floats) -> Floats:
    """One input per feature, in another order."""
    columns = zip(example.names, map(list, zip(*to_list(rows), strict=True)), strict=True)
    inputs = [{"name": name, "shape": [len(rows)], "datatype": "FP64", "data": data} for name, data in columns]
    path = f"/v2/models/{example.name}/infer"
    return np.array(post(world, path, orjson.dumps({"inputs": turned(inputs)})).json["outputs"][0]["data"], np.float32)


def through_v2_binary(world: World, example: Example, rows: Floats) -> Floats:
    """Binary both ways. The head's length is odd, so that the numbers do not lie where a processor likes them."""
    size = {"binary_data_size": rows.nbytes}
    tensor = {"name": "input-0", "shape": rows.shape, "datatype": "FP32", "parameters": size}
    head = orjson.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
    head += b" " * (1 - len(head) % 2)
    path = f"/v2/models/{example.name}/infer"
    response = post(world, path, head + rows.astype("<f4").tobytes(), Inference_Header_Content_Length=str(len(head)))
    return np.frombuffer(response.data[int(response.headers[HEAD_LENGTH]) :], "<f4")


WIRES = [
    through_predict,
    through_predict_one_by_one,
    through_score,
    through_v1,
    through_v1_nan,
    through_v2,
    through_v2_columns,
    through_v2_binary,
]
Through = Callable[[World, Example, Floats], Floats]


@pytest.fixture(params=["iris", "cancer"])
def example(request: pytest.FixtureRequest) -> Example:
    found: Example = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("through", WIRES)
def test_a_row_alone_scores_as_booster_predict_to_the_last_bit(through: Through, example: Example) -> None:
    """A request of one row gets the bits of `Booster.predict`, whatever the wire and whatever is missing."""
    world = World(example.model)
    rows = np.concatenate([example.rows, random_rows(example, 20)])
    scores = np.concatenate([through(world, example, row[np.newaxis]) for row in rows])
    assert (bits(scores) == bits(predict_alone(example.booster, rows, example.names))).all()


@pytest.mark.parametrize("through", WIRES)
def test_a_batch_scores_as_its_rows_alone(through: Through, example: Example) -> None:
    """A request of 200 rows gets the scores of its rows alone within the tolerance of the module's docstring."""
    rows = random_rows(example, 200)
    scores = through(World(example.model), example, rows)
    alone = predict_alone(example.booster, rows, example.names)
    if example.name == "iris":
        assert (bits(scores) == bits(alone)).all()
    else:
        margins = predict_alone(example.booster, rows, example.names, output_margin=True)
        tolerance = margin_tolerance(margins) / 4 + np.spacing(alone)
        assert (np.abs(scores - alone) <= tolerance).all()


def test_shipped_golden_scores_are_those_of_the_shipped_model(example: Example) -> None:
    """golden.json holds what XGBoost gives here: margins to the last bit, scores to one unit in the last place."""
    scores = predict_alone(example.booster, example.rows, example.names)
    margins = predict_alone(example.booster, example.rows, example.names, output_margin=True)
    assert (bits(margins) == bits(example.margins)).all()
    assert (np.abs(scores - example.scores) <= np.spacing(example.scores)).all()


def test_rows_with_no_values_at_all_are_scored(example: Example) -> None:
    """A row of missing values has a score like any other; it is the last golden row."""
    assert np.isnan(example.rows[-1]).all()
    score = through_v1(World(example.model), example, example.rows[-1:])
    assert abs(score[0] - example.scores[-1]) <= np.spacing(example.scores[-1])


# Other models than the examples.

FEATURES = 6


def training_rows(count: int = 300, seed: int = 3) -> Floats:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(count, FEATURES)).astype(np.float32)
    rows[rng.random(rows.shape) < 0.1] = np.nan
    return rows


def train(label: Floats, params: dict[str, Any], rounds: int = 20) -> Any:
    matrix = xgboost.DMatrix(training_rows(len(label)), label, nthread=1)
    return xgboost.train({"seed": 1, "nthread": 1, **params}, matrix, rounds)


REAL = np.nan_to_num(training_rows()[:, 0]) + np.nan_to_num(training_rows()[:, 1]) ** 2
CLASSES = (np.abs(REAL) * 2).astype(int) % 4
TARGETS = np.stack([REAL, -2 * REAL, REAL**2], axis=1)
BOOSTERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "reg:squarederror": (REAL, {}),
    "reg:quantileerror": (REAL, {"objective": "reg:quantileerror", "quantile_alpha": [0.1, 0.5, 0.9]}),
    "count:poisson": (np.abs(REAL).round(), {"objective": "count:poisson"}),
    "binary:logistic": (REAL > 1, {"objective": "binary:logistic"}),
    "multi:softprob": (CLASSES, {"objective": "multi:softprob", "num_class": 4}),
    "multi:softmax": (CLASSES, {"objective": "multi:softmax", "num_class": 4}),
    "multi-target": (TARGETS, {}),
    "multi-target-one-tree": (TARGETS, {"multi_strategy": "multi_output_tree", "tree_method": "hist"}),
    "num_parallel_tree": (REAL, {"num_parallel_tree": 4, "subsample": 0.5, "colsample_bynode": 0.5}),
    "dart": (REAL, {"booster": "dart", "rate_drop": 0.3}),
    "dart-logistic": (REAL > 1, {"booster": "dart", "rate_drop": 0.3, "objective": "binary:logistic"}),
    "gblinear": (REAL, {"booster": "gblinear"}),
    "gblinear-softprob": (CLASSES, {"booster": "gblinear", "objective": "multi:softprob", "num_class": 4}),
}


@pytest.fixture(scope="module")
def boosters() -> dict[str, Any]:
    """A tiny booster of every kind, trained once."""
    return {name: train(label, params) for name, (label, params) in BOOSTERS.items()}


@pytest.mark.parametrize("kind", BOOSTERS)
def test_predictor_gives_a_row_alone_the_bits_of_booster_predict(kind: str, boosters: dict[str, Any]) -> None:
    """Whatever the booster and the objective, one row through `BoosterPredictor` has the bits of `Booster.predict`."""
    booster = boosters[kind]
    predictor = BoosterPredictor(booster)
    rows = training_rows(100, seed=11)
    scores = np.concatenate([predictor.predict(row[np.newaxis]) for row in rows])
    alone = predict_alone(booster, rows)
    assert scores.shape == alone.shape
    assert (bits(scores) == bits(alone)).all()


@pytest.mark.parametrize("kind", BOOSTERS)
def test_predictor_gives_a_batch_the_scores_of_its_rows_alone(kind: str, boosters: dict[str, Any]) -> None:
    """A batch through `BoosterPredictor` is within one unit in the last place of the margin sum, and of the score."""
    booster = boosters[kind]
    rows = training_rows(300, seed=12)
    scores = BoosterPredictor(booster).predict(rows)
    alone = predict_alone(booster, rows)
    assert scores.shape == alone.shape
    margins, scores, alone = (
        values.reshape(len(rows), -1) for values in (predict_alone(booster, rows, output_margin=True), scores, alone)
    )
    # A row's slope: exp's is the score itself, those of sigmoid and softmax are below one.
    slope = np.maximum(np.abs(alone).max(axis=1), 1)
    tolerance = margin_tolerance(margins).max(axis=1) * slope + np.spacing(np.abs(alone)).max(axis=1)
    assert (np.abs(scores - alone).max(axis=1) <= tolerance).all()


@pytest.mark.parametrize("kind", BOOSTERS)
def test_contract_says_how_many_values_a_row_gets(kind: str, boosters: dict[str, Any]) -> None:
    """`outputs` of the contract is the width of the scores; features and rounds are the booster's."""
    predictor = BoosterPredictor(boosters[kind])
    scores = predictor.predict(training_rows(5))
    assert predictor.contract.outputs == (1 if scores.ndim == 1 else scores.shape[1])
    assert predictor.contract.features == FEATURES
    assert predictor.contract.rounds == boosters[kind].num_boosted_rounds()


@pytest.mark.parametrize("file_format", ["ubj", "json"])
def test_both_file_formats_give_the_same_bits(file_format: str, cancer: Example) -> None:
    """A model saved as JSON scores like the same model saved as UBJSON."""
    data = bytes(cancer.booster.save_raw(file_format))
    predictor = BoosterPredictor.from_model_file(ModelFile(cancer.path.with_suffix(f".{file_format}"), data, "0" * 64))
    scores = np.concatenate([predictor.predict(row[np.newaxis]) for row in cancer.rows])
    assert (bits(scores) == bits(predict_alone(cancer.booster, cancer.rows, cancer.names))).all()


def test_predictions_do_not_change_the_rows(cancer: Example) -> None:
    """Rows may be a view on the request's bytes: nobody writes there."""
    rows = cancer.rows.copy()
    rows.setflags(write=False)
    cancer.model.predictor.predict(rows)
    assert (bits(rows) == bits(cancer.rows)).all()


def test_an_early_stopped_model_uses_all_of_its_trees() -> None:
    """`Booster.predict` does, and so do we: `best_iteration` is for the caller to ask for."""
    rows, label = training_rows(), REAL
    matrix = xgboost.DMatrix(rows[:200], label[:200], nthread=1)
    held_out = xgboost.DMatrix(rows[200:], label[200:], nthread=1)
    params = {"nthread": 1, "max_depth": 6, "eta": 1.0}
    watch = [(held_out, "test")]
    booster = xgboost.train(params, matrix, 50, evals=watch, early_stopping_rounds=3, verbose_eval=False)
    assert booster.best_iteration + 1 < booster.num_boosted_rounds()
    scores = np.concatenate([BoosterPredictor(booster).predict(row[np.newaxis]) for row in rows[:20]])
    best = predict_alone(booster, rows[:20], iteration_range=(0, booster.best_iteration + 1))
    assert (bits(scores) == bits(predict_alone(booster, rows[:20]))).all()
    assert (bits(scores) != bits(best)).any()


@pytest.mark.parametrize("kind", ["multi:softprob", "gblinear"])
def test_predictors_are_safe_in_threads(kind: str, boosters: dict[str, Any]) -> None:
    """Four threads that share a predictor get what one thread gets."""
    predictor = BoosterPredictor(boosters[kind])
    batches = [training_rows(1 + seed % 70, seed) for seed in range(64)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(predictor.predict, batches))
    assert all(
        (bits(predictor.predict(batch)) == bits(scores)).all() for batch, scores in zip(batches, together, strict=True)
    )
