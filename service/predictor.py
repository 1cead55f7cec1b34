"""One loaded model, packed or XGBoost's own. The only room that imports xgboost, and only when a booster is loaded.

XGBoost must not be imported in Gunicorn's master: libgomp is not fork-safe (dmlc/xgboost#8040), so a worker that was
forked after it hangs at its first prediction.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from service.artifact import ModelFile
from service.batch import Contract, Floats
from service.engine import Engine
from service.ensemble import Ensemble, Ints
from service.errors import ModelFileError
from service.machine_code import MachineCode

if TYPE_CHECKING:
    import xgboost

# The first predictions of a booster take up to a hundred times as long as later ones (dmlc/xgboost#10148).
WARM_UP_CALLS = 8
# A call that would hold an event loop for longer goes to a thread.
LOOP_SECONDS = 0.002


class Predictor(Protocol):
    """Rows in, scores out, on the calling thread; safe in any number of threads.

    `loop_rows` is how many rows can be scored within `LOOP_SECONDS`; `engine` says who scores, `reason` why it is not
    the packed form.
    """

    contract: Contract
    loop_rows: int
    engine: str
    reason: str

    def predict(self, values: Floats) -> Floats:
        """Scores of float32 rows, NaN for missing: shape (rows,), or (rows, outputs) for several values a row."""

    def margins(self, values: Floats) -> Floats:
        """Sums before the objective's transformation, in the same shapes."""


class PackedPredictor:
    """Our own kernels on the packed trees."""

    engine = "packed"
    reason = ""

    def __init__(self, ensemble: Ensemble, contract: Contract, code: MachineCode) -> None:
        engine = Engine(ensemble, code)
        engine.measure()
        self.code = code
        self.contract = contract
        self._predict = engine.predict
        self._margins = engine.margins
        self.loop_rows = measure_loop_rows(self)

    def predict(self, values: Floats) -> Floats:
        """As `Predictor.predict`."""
        return self._predict(values)

    def margins(self, values: Floats) -> Floats:
        """As `Predictor.margins`."""
        sums = self._margins(values)
        return sums.reshape(-1) if sums.shape[1] == 1 else sums


class BoosterPredictor:
    """XGBoost. A booster of trees is thread-safe since 1.4; any other is called under a lock."""

    engine = "xgboost"

    def __init__(self, booster: xgboost.Booster, reason: str = "") -> None:
        self.reason = reason
        self._booster = booster
        config = json.loads(booster.save_config())["learner"]
        # XGBoost 3.2 has no in-place prediction for gblinear; dart's gives other bits than Booster.predict, the truth.
        self._needs_matrix = config["gradient_booster"]["name"] != "gbtree"
        self._lock = threading.Lock()
        booster.set_param({"nthread": 1})
        self.contract = self._read_contract(config["objective"]["name"])
        # Nobody knows beforehand how long a call takes, so that none holds up the loop.
        self.loop_rows = 0

    @classmethod
    def from_model_file(
        cls, file: ModelFile, reason: str = "", verify_saved: Callable[[bytearray], object] | None = None
    ) -> BoosterPredictor:
        """The predictor of these bytes, or `ModelFileError` with XGBoost's reason.

        `verify_saved` is asked, before the first prediction, about what XGBoost has in memory, saved again as UBJSON.
        """
        import xgboost

        try:
            booster = xgboost.Booster()
            booster.load_model(bytearray(file.data))
            if verify_saved is not None:
                verify_saved(booster.save_raw("ubj"))
            predictor = cls(booster, reason)
            predictor.warm_up()
        except (xgboost.core.XGBoostError, ValueError, KeyError, TypeError) as error:
            raise ModelFileError(f"{file.path}: XGBoost {xgboost.__version__}: {first_line(error)}") from None
        return predictor

    def predict(self, values: Floats) -> Floats:
        """As `Predictor.predict`."""
        if self._needs_matrix:
            return self._predict_matrix(values)
        scores: Floats = self._booster.inplace_predict(values, validate_features=False)
        return scores

    def margins(self, values: Floats) -> Floats:
        """As `Predictor.margins`, by `Booster.predict`."""
        return self._predict_matrix(values, output_margin=True)

    def leaves(self, values: Floats) -> Ints:
        """Index of the leaf that each row ends in, (rows, trees)."""
        return self._predict_matrix(values, pred_leaf=True).astype(np.int32).reshape(len(values), -1)

    def to_ubjson(self) -> bytearray:
        raw: bytearray = self._booster.save_raw("ubj")
        return raw

    def _predict_matrix(self, values: Floats, **options: bool) -> Floats:
        import xgboost

        types = list(self.contract.feature_types) or None if hasattr(self, "contract") else None
        with self._lock:
            matrix = xgboost.DMatrix(values, nthread=1, feature_types=types, enable_categorical=types is not None)
            scores: Floats = self._booster.predict(matrix, validate_features=False, **options)
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

    def warm_up(self) -> None:
        row = np.zeros((1, self.contract.features), np.float32)
        for _ in range(WARM_UP_CALLS):
            self.predict(row)


def measure_loop_rows(predictor: Predictor) -> int:
    """Rows that can be scored within `LOOP_SECONDS`; also warms the predictor up."""
    one, many = (np.zeros((rows, predictor.contract.features), np.float32) for rows in (1, 257))
    base = min(measure(predictor, one) for _ in range(WARM_UP_CALLS))
    per_row = max((min(measure(predictor, many) for _ in range(3)) - base) / 256, 1e-8)
    return max(1, int((LOOP_SECONDS - base) / per_row)) if base < LOOP_SECONDS else 0


def measure(predictor: Predictor, rows: Floats) -> float:
    began = time.perf_counter()
    predictor.predict(rows)
    return time.perf_counter() - began


def first_line(error: Any) -> str:
    """What XGBoost says, without the time, the source line, the stack of C++ frames, and what it quotes of the file."""
    text = re.sub(r"^\[\d\d:\d\d:\d\d\] \S+:\d+: ", "", str(error)).strip().partition("\n")[0]
    return re.sub(r"(['\"`]).*?(\1|$)", "…", text).strip() or type(error).__name__
