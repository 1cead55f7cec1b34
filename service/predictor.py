"""One loaded model. The only room that imports xgboost, and only when a model is loaded.

XGBoost must not be imported in Gunicorn's master: libgomp is not fork-safe (dmlc/xgboost#8040), so a worker that was
forked after it hangs at its first prediction.
"""

from __future__ import annotations

import json
import re
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from service.artifact import ModelFile
from service.batch import Contract, Floats
from service.errors import ModelFileError

if TYPE_CHECKING:
    import xgboost

# The first predictions of a booster take up to a hundred times as long as later ones (dmlc/xgboost#10148).
WARM_UP_CALLS = 8
# A call that would hold an event loop for longer goes to a thread.
LOOP_SECONDS = 0.002


class Predictor:
    """Rows in, scores out, on the calling thread.

    Safe in threads: a booster of trees is since XGBoost 1.4, any other is called under a lock.
    """

    def __init__(self, booster: xgboost.Booster) -> None:
        self._booster = booster
        config = json.loads(booster.save_config())["learner"]
        # XGBoost 3.2 has no in-place prediction for gblinear; dart's gives other bits than Booster.predict, the truth.
        self._needs_matrix = config["gradient_booster"]["name"] != "gbtree"
        self._lock = threading.Lock()
        booster.set_param({"nthread": 1})
        self.contract = self._read_contract(config["objective"]["name"])
        self.loop_rows = self._measure_loop_rows()

    @classmethod
    def from_model_file(cls, file: ModelFile) -> Predictor:
        """The predictor of these bytes, or `ModelFileError` with XGBoost's reason."""
        import xgboost

        try:
            booster = xgboost.Booster()
            booster.load_model(bytearray(file.data))
            return cls(booster)
        except (xgboost.core.XGBoostError, ValueError, KeyError, TypeError) as error:
            raise ModelFileError(f"{file.path}: XGBoost {xgboost.__version__}: {first_line(error)}") from None

    def predict(self, values: Floats) -> Floats:
        """Scores of float32 rows, NaN for missing: shape (rows,), or (rows, outputs) for several values a row."""
        if self._needs_matrix:
            return self._predict_matrix(values)
        scores: Floats = self._booster.inplace_predict(values, validate_features=False)
        return scores

    def _predict_matrix(self, values: Floats) -> Floats:
        import xgboost

        with self._lock:
            matrix = xgboost.DMatrix(values, nthread=1)
            scores: Floats = self._booster.predict(matrix, validate_features=False)
        return scores

    def _read_contract(self, objective: str) -> Contract:
        booster = self._booster
        features = int(booster.num_features())
        if features < 1:
            raise ValueError("the model has no features")
        scores = self.predict(np.full((1, features), np.nan, np.float32))
        return Contract(
            features=features,
            feature_names=tuple(booster.feature_names or ()),
            feature_types=tuple(booster.feature_types or ()),
            objective=objective,
            outputs=1 if scores.ndim == 1 else int(scores.shape[1]),
            rounds=int(booster.num_boosted_rounds()),
        )

    def _measure_loop_rows(self) -> int:
        """Rows that can be scored within `LOOP_SECONDS`; also warms the booster up."""
        if self._needs_matrix:
            return 0
        one, many = (np.zeros((rows, self.contract.features), np.float32) for rows in (1, 65))
        base = min(self._time(one) for _ in range(WARM_UP_CALLS))
        per_row = max((min(self._time(many) for _ in range(3)) - base) / 64, 1e-7)
        return max(1, int((LOOP_SECONDS - base) / per_row)) if base < LOOP_SECONDS else 0

    def _time(self, rows: Floats) -> float:
        began = time.perf_counter()
        self.predict(rows)
        return time.perf_counter() - began


def first_line(error: Any) -> str:
    """What XGBoost says, without the time, the source line and the stack of C++ frames."""
    text = re.sub(r"^\[\d\d:\d\d:\d\d\] \S+:\d+: ", "", str(error)).strip()
    return text.partition("\n")[0].strip() or type(error).__name__
