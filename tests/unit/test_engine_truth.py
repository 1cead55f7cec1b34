"""The engine gives each row the bits that `Booster.predict` gives it alone, whatever batch it travels in.

Margins and leaf indices are equal to the last bit everywhere. Transformed scores are where XGBoost calls the same C
library (Linux); elsewhere they are one unit in the last place apart at most.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import xgboost
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.engine_models import (
    KINDS,
    Floats,
    Kind,
    Sample,
    binary,
    bits,
    make_matrix,
    make_rows,
    make_sample,
    predict_alone,
    real,
    train,
)


def verify_truth(sample: Sample, rows: Floats, checked: int) -> None:
    """All rows in one batch against the first `checked` of them alone, and leaves of all."""
    margins, scores = sample.engine.margins(rows), sample.engine.predict(rows)
    alone = predict_alone(sample, rows[:checked], output_margin=True)
    assert (bits(margins[:checked].reshape(alone.shape)) == bits(alone)).all()
    verify_scores(scores[:checked], predict_alone(sample, rows[:checked]))
    leaves = sample.booster.predict(make_matrix(sample, rows), pred_leaf=True)
    assert (sample.engine.leaves(rows) == leaves.reshape(len(rows), -1)).all()
    for count in (1, 2, 7, 8, 9):
        verify_batches(sample, rows[:checked], count, margins, scores)


def verify_scores(scores: Floats, alone: Floats) -> None:
    assert scores.shape == alone.shape
    if sys.platform == "linux":
        assert (bits(scores) == bits(alone)).all()
    else:
        assert (np.abs(scores - alone) <= np.spacing(np.abs(alone))).all()


def verify_batches(sample: Sample, rows: Floats, count: int, margins: Floats, scores: Floats) -> None:
    """Rows in batches of `count` have the bits of the large batch."""
    for start in range(0, len(rows), count):
        batch = slice(start, start + count)
        assert (bits(sample.engine.margins(rows[batch])) == bits(margins[: len(rows)][batch])).all()
        assert (bits(sample.engine.predict(rows[batch])) == bits(scores[: len(rows)][batch])).all()


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_model_scores_as_booster_predict(name: str) -> None:
    sample = train(KINDS[name], seed=len(name))
    verify_truth(sample, make_rows(sample, 2 * sample.engine.block + 30, seed=1), checked=60)


@settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None)
@given(name=st.sampled_from(sorted(KINDS)), seed=st.integers(0, 2**32 - 1))
def test_generated_models_score_as_booster_predict(name: str, seed: int) -> None:
    sample = train(KINDS[name], seed)
    verify_truth(sample, make_rows(sample, sample.engine.block + 40, seed), checked=20)


@pytest.mark.long
@pytest.mark.timeout(3600)
@settings(max_examples=240, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(name=st.sampled_from(sorted(KINDS)), seed=st.integers(0, 2**32 - 1))
def test_two_hundred_generated_models_with_a_thousand_rows_each(name: str, seed: int) -> None:
    sample = train(KINDS[name], seed)
    verify_truth(sample, make_rows(sample, 1000, seed), checked=1000)


@pytest.mark.parametrize("choice", ["rows", "few", "blocks", "both"])
@pytest.mark.parametrize("name", ["logistic", "partition", "vector", "forest-softprob", "by-leaf", "most-categories"])
def test_all_kernels_give_the_same_bits(name: str, choice: str) -> None:
    """Whichever kernel the number of rows chooses, and blocks that are full or not."""
    sample = train(KINDS[name], seed=5)
    rows = make_rows(sample, sample.engine.block + 50, seed=2)
    expected = sample.engine.predict(rows)
    block, few = (sample.engine.block, 1), (sample.engine.few, 1)
    choices = {"rows": (), "few": (few,), "blocks": (block,), "both": ((block[0], 100), few)}
    sample.engine.use_blocks(*choices[choice])
    for count in (
        1,
        3,
        15,
        16,
        17,
        50,
        sample.engine.block - 1,
        sample.engine.block,
        sample.engine.block + 1,
        len(rows),
    ):
        assert (bits(sample.engine.predict(rows[:count])) == bits(expected[:count])).all()


def test_an_accelerated_failure_time_is_exp_in_double() -> None:
    """XGBoost calls expf for the other objectives: 1 in 2,000 scores would differ in the last bit."""
    sample = train(KINDS["aft"], seed=1, max_depth=8, eta=0.3)
    rows = np.random.default_rng(2).normal(size=(30_000, sample.features)).astype(np.float32)
    matrix = make_matrix(sample, rows)
    same = bits(sample.booster.predict(matrix, output_margin=True)) == bits(sample.engine.margins(rows)[:, 0])
    assert len(np.unique(sample.engine.margins(rows)[same])) > 10_000
    assert (bits(sample.booster.predict(matrix)) == bits(sample.engine.predict(rows)))[same].all()


@pytest.mark.parametrize("name", ["squared", "forest-softprob", "dart-forest", "vector", "partition-softprob"])
def test_rounds_are_those_of_iteration_range(name: str) -> None:
    sample = train(Kind(KINDS[name].params, KINDS[name].label, KINDS[name].categories, (9, 9)), seed=3)
    rows = make_rows(sample, 40, seed=4)
    for rounds in [(0, 0), (0, 1), (0, 9), (3, 4), (2, 7), (8, 9), (5, 0)]:
        alone = predict_alone(sample, rows, output_margin=True, iteration_range=rounds)
        assert (bits(sample.engine.margins(rows, rounds).reshape(alone.shape)) == bits(alone)).all()
    leaves = sample.booster.predict(make_matrix(sample, rows), pred_leaf=True, iteration_range=(0, 4))
    assert (sample.engine.leaves(rows, (0, 4)) == leaves.reshape(len(rows), -1)).all()
    for wrong in [(0, 10), (-1, 2), (5, 4)]:
        with pytest.raises(ValueError, match="rounds"):
            sample.engine.margins(rows, wrong)
    with pytest.raises(ValueError, match="first round"):
        sample.engine.leaves(rows, (1, 2))


def test_an_early_stopped_model_uses_all_of_its_trees() -> None:
    """As `Booster.predict` does; the round that was best is there to ask for."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=(300, 4)).astype(np.float32)
    label = values[:, 0] + rng.normal(size=300)
    parts = [xgboost.DMatrix(values[part], label[part], nthread=1) for part in (slice(200), slice(200, 300))]
    params = {"nthread": 1, "max_depth": 6, "eta": 1.0}
    booster = xgboost.train(
        params, parts[0], 40, evals=[(parts[1], "test")], early_stopping_rounds=3, verbose_eval=False
    )
    sample = make_sample(booster, ["q"] * 4)
    best = sample.engine.ensemble.meta.best_iteration
    assert best == booster.best_iteration
    assert best is not None
    assert best + 1 < booster.num_boosted_rounds()
    assert (bits(sample.engine.predict(values[:50])) == bits(predict_alone(sample, values[:50]))).all()
    stopped = predict_alone(sample, values[:50], iteration_range=(0, best + 1))
    assert (bits(sample.engine.predict(values[:50], (0, best + 1))) == bits(stopped)).all()


def grow(features: int, rounds: int, params: dict[str, Any], rows: int = 3000, label: Any = real) -> Sample:
    """A large model of noise: as many leaves as the parameters allow."""
    rng = np.random.default_rng(9)
    values = rng.normal(size=(rows, features)).astype(np.float32)
    values[rng.random(values.shape) < 0.05] = np.nan
    target = label(rng, rng.normal(size=rows))
    params = {"nthread": 2, "seed": 1, "min_child_weight": 0, "tree_method": "hist", **params}
    return make_sample(xgboost.train(params, xgboost.DMatrix(values, target), rounds), ["q"] * features)


LARGE: dict[str, tuple[int, int, dict[str, Any], int]] = {
    "depth-14": (8, 3, {"max_depth": 14, "max_bin": 2000}, 20000),
    "2000-trees": (10, 2000, {"max_depth": 3, "eta": 0.02, "objective": "binary:logistic"}, 500),
    "500-features": (500, 30, {"max_depth": 6, "colsample_bytree": 0.2}, 1000),
    "depth-60": (3, 3, {"max_depth": 60, "grow_policy": "lossguide", "max_leaves": 700, "max_bin": 3000}, 6000),
}


@pytest.mark.parametrize("name", LARGE)
def test_large_models_score_as_booster_predict(name: str) -> None:
    """Trees of more than 32 exits are cut into segments; beyond 640 tests they are walked."""
    features, rounds, params, rows = LARGE[name]
    label = binary if "objective" in params else real
    sample = grow(features, rounds, params, rows, label)
    verify_truth(sample, make_rows(sample, sample.engine.block + 20, seed=6), checked=30)


def test_rows_may_be_read_only_unaligned_or_strided() -> None:
    """Rows may be a view on a request's bytes, wherever they begin; they are not written to."""
    sample = train(KINDS["logistic"], seed=8)
    rows = make_rows(sample, 2 * sample.engine.block, seed=3)
    expected = bits(sample.engine.predict(rows))
    shifted = np.frombuffer(b"x" + rows.tobytes(), np.uint8)[1:].view(np.float32).reshape(rows.shape)
    assert not shifted.flags.aligned
    assert not shifted.flags.writeable
    assert (bits(sample.engine.predict(shifted)) == expected).all()
    assert (bits(sample.engine.predict(shifted[:1])) == expected[:1]).all()
    assert (bits(sample.engine.predict(np.asfortranarray(rows))) == expected).all()
    assert (bits(sample.engine.predict(np.repeat(rows, 2, axis=0)[::2])) == expected).all()


@pytest.mark.parametrize("name", ["logistic", "softprob", "softmax"])
def test_no_rows_have_no_scores(name: str) -> None:
    sample = train(KINDS[name], seed=8)
    shape = sample.engine.predict(make_rows(sample, 1, seed=1)).shape
    empty = sample.engine.predict(np.zeros((0, sample.features), np.float32))
    assert empty.shape == (0, *shape[1:])


def test_rows_of_another_width_or_type_are_refused() -> None:
    """The kernels would read past the end."""
    sample = train(KINDS["squared"], seed=8)
    wrong_rows: tuple[Any, ...] = (
        np.zeros((2, sample.features + 1), np.float32),
        np.zeros((2, sample.features)),
        np.zeros(sample.features, np.float32),
    )
    for wrong in wrong_rows:
        with pytest.raises(ValueError, match="expected float32 rows"):
            sample.engine.predict(wrong)
