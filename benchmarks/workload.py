"""The models that servers get, and the rows they have to score.

Made-up data, seeded: 30 features, 300 trees of depth 6 where nothing else is asked for. Values have four decimals, as
measurements in JSON do; the 17 digits of a random double would make a benchmark of number parsing.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray

Floats = NDArray[np.float32]

MODEL_NAME = "bench"
TRAINING_ROWS = 20_000
SEED = 7


@dataclass(frozen=True)
class Shape:
    """How large a model is."""

    trees: int = 300
    depth: int = 6
    features: int = 30
    # With binary:logistic later trees have fewer nodes, as there is less left to learn; with squared errors all are full.
    objective: str = "binary:logistic"

    def __str__(self) -> str:
        return f"{self.trees:,} trees of depth {self.depth}, {self.features} features"


USUAL = Shape()


def create_rows(count: int, seed: int = SEED, features: int = USUAL.features) -> Floats:
    """Seeded rows, shape (count, features), of different magnitudes from feature to feature."""
    random = np.random.default_rng(seed)
    magnitudes = 10.0 ** random.integers(-1, 4, features)
    return np.round(random.standard_normal((count, features)) * magnitudes, 4).astype(np.float32)


def read_model(shape: Shape = USUAL) -> Path:
    """The model file, trained at the first run and kept in the temporary folder."""
    size = f"{shape.trees}x{shape.depth}x{shape.features}"
    name = f"xgboost-server-bench-{xgb.__version__}-{size}-{SEED}-{shape.objective.partition(':')[2]}"
    path = Path(tempfile.gettempdir()) / name / MODEL_NAME / "model.ubj"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name("unfinished.ubj")
        train(shape).save_model(unfinished)
        unfinished.replace(path)
    return path


def train(shape: Shape) -> xgb.Booster:
    """Labels depend on every feature, with noise, so that the trees grow to their full depth."""
    rows = create_rows(TRAINING_ROWS, SEED + 1, shape.features)
    random = np.random.default_rng(SEED)
    standard = rows / rows.std(axis=0)
    margin = standard @ random.standard_normal(shape.features) + standard[:, 0] * standard[:, 1]
    labels = margin + random.standard_normal(TRAINING_ROWS)
    if shape.objective == "binary:logistic":
        labels = labels > 0
    settings = {
        "objective": shape.objective,
        "max_depth": shape.depth,
        "eta": 0.1,
        "tree_method": "hist",
        "seed": SEED,
    }
    return xgb.train(settings, xgb.DMatrix(rows, labels), num_boost_round=shape.trees)


def predict(model: Path, rows: Floats) -> Floats:
    """What XGBoost itself says: the measure of every server's answers."""
    scores: Floats = xgb.Booster(model_file=model).predict(xgb.DMatrix(rows))
    return scores
