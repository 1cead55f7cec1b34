"""What the examples share: train on four fifths of a data set, write the model and its golden scores.

The golden scores are read back from the written file, one row at a time: XGBoost's own sums change in the
last bit with the number of rows it predicts together, so a row alone is the only stable reference.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xgboost
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split  # type: ignore[import-untyped]  # ships no types

SEED = 42
GOLDEN_ROWS = 12

Floats = NDArray[np.float32]


def build_example(
    folder: Path,
    dataset: Any,
    params: Mapping[str, Any],
    *,
    rounds: int,
    missing_share: float = 0.0,
    first_rows: Sequence[Sequence[float]] = (),
) -> None:
    """Write `model.ubj` and `golden.json` into the folder and print what they are.

    `dataset` is what scikit-learn's loaders return. `missing_share` of the training values are removed, so
    that the trees learn where missing values go. `first_rows` open the golden rows.
    """
    names = [str(name) for name in dataset.feature_names]
    rng = np.random.default_rng(SEED)
    train_rows, test_rows, train_labels, test_labels = train_test_split(
        dataset.data.astype(np.float32),
        dataset.target,
        test_size=0.2,
        stratify=dataset.target,
        random_state=SEED,
    )
    train_rows[rng.random(train_rows.shape) < missing_share] = np.nan

    booster = xgboost.train(
        # One thread: the file must not depend on how many cores trained it.
        {**params, "seed": SEED, "nthread": 1},
        xgboost.DMatrix(train_rows, train_labels, feature_names=names, nthread=1),
        num_boost_round=rounds,
    )
    model = folder / "model.ubj"
    booster.save_model(model)

    rows = choose_golden_rows(test_rows, first_rows, rng)
    golden = {
        "model_sha256": hashlib.sha256(model.read_bytes()).hexdigest(),
        "xgboost": xgboost.__version__,
        "feature_names": names,
        "rows": to_json(rows),
        **score_rows_alone(model, rows),
    }
    (folder / "golden.json").write_text(format_golden(golden), encoding="utf-8")

    # A class and a probability of class 1 round to a label alike.
    predicted = np.rint(booster.predict(xgboost.DMatrix(test_rows, feature_names=names, nthread=1)))
    print(f"rows      {len(train_rows)} for training, {len(test_rows)} held out, {len(rows)} golden")
    print(f"accuracy  {np.mean(predicted == test_labels):.3f} held out")
    print(f"model     {model.stat().st_size} bytes, sha256 {golden['model_sha256']}")


def choose_golden_rows(held_out: Floats, first_rows: Sequence[Sequence[float]], rng: np.random.Generator) -> Floats:
    """The given first rows, then held-out ones: every other with holes, the last with no value at all."""
    chosen = held_out[: GOLDEN_ROWS - len(first_rows)].copy()
    width = chosen.shape[1]
    for row in chosen[1::2]:
        row[rng.choice(width, size=max(1, width // 5), replace=False)] = np.nan
    chosen[-1] = np.nan
    return np.concatenate([np.array(first_rows, np.float32).reshape(-1, width), chosen])


def score_rows_alone(model: Path, rows: Floats) -> dict[str, list[Any]]:
    """Scores and margins of the written model, each row predicted by itself."""
    booster = xgboost.Booster(model_file=model)
    alone = [xgboost.DMatrix(row[np.newaxis], feature_names=booster.feature_names, nthread=1) for row in rows]
    return {
        "scores": [to_json(booster.predict(row)[0]) for row in alone],
        "margins": [to_json(booster.predict(row, output_margin=True)[0]) for row in alone],
    }


def to_json(value: Any) -> Any:
    """Float32 numbers as the shortest decimals that parse back to the same bits; missing ones as null."""
    if isinstance(value, np.ndarray):
        return [to_json(item) for item in value]
    if np.isnan(value):
        return None
    # float(value) would carry the float64 digits: 0.20000000298023224 where float32 needs only 0.2.
    return float(str(value))


def format_golden(golden: Mapping[str, Any]) -> str:
    """JSON with a line for each row and number, so that a diff shows which of them moved."""
    members = [f"  {json.dumps(key)}: {format_member(value)}" for key, value in golden.items()]
    return "{\n" + ",\n".join(members) + "\n}\n"


def format_member(value: str | Iterable[Any]) -> str:
    if isinstance(value, str):
        return json.dumps(value)
    return "[\n" + ",\n".join(f"    {json.dumps(item)}" for item in value) + "\n  ]"
