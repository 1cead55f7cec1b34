"""The model that every server gets, and the rows it has to score.

Made-up data, seeded: 30 features, 300 trees of depth 6. Values have four decimals, as measurements in
JSON do; the 17 digits of a random double would make a benchmark of number parsing.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray

Floats = NDArray[np.float32]

MODEL_NAME = "bench"
FEATURES = 30
TREES = 300
DEPTH = 6
TRAINING_ROWS = 20_000
SEED = 7


def create_rows(count: int, seed: int = SEED) -> Floats:
    """Seeded rows, shape (count, FEATURES), of different magnitudes from feature to feature."""
    random = np.random.default_rng(seed)
    magnitudes = 10.0 ** random.integers(-1, 4, FEATURES)
    return np.round(random.standard_normal((count, FEATURES)) * magnitudes, 4).astype(np.float32)


def read_model() -> Path:
    """The model file, trained at the first run and kept in the temporary folder."""
    name = f"xgboost-server-bench-{xgb.__version__}-{TREES}x{DEPTH}x{FEATURES}-{SEED}"
    path = Path(tempfile.gettempdir()) / name / MODEL_NAME / "model.ubj"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name("unfinished.ubj")
        train().save_model(unfinished)
        unfinished.replace(path)
    return path


def train() -> xgb.Booster:
    """Labels depend on every feature, with noise, so that the trees grow to their full depth."""
    rows = create_rows(TRAINING_ROWS, seed=SEED + 1)
    random = np.random.default_rng(SEED)
    standard = rows / rows.std(axis=0)
    margin = standard @ random.standard_normal(FEATURES) + standard[:, 0] * standard[:, 1]
    labels = margin + random.standard_normal(TRAINING_ROWS) > 0
    settings = {
        "objective": "binary:logistic",
        "max_depth": DEPTH,
        "eta": 0.1,
        "tree_method": "hist",
        "seed": SEED,
    }
    return xgb.train(settings, xgb.DMatrix(rows, labels), num_boost_round=TREES)


def predict(model: Path, rows: Floats) -> Floats:
    """What XGBoost itself says: the measure of every server's answers."""
    scores: Floats = xgb.Booster(model_file=model).predict(xgb.DMatrix(rows))
    return scores
