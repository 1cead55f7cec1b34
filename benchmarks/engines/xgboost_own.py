"""`Booster.inplace_predict`, the shortest way into XGBoost."""

import sys
from pathlib import Path
from typing import Any

import xgboost as xgb

from benchmarks.engines.drill import Floats, drill

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    booster = xgb.Booster({"nthread": 1}, model_file=folder / "model.ubj")

    def predict(rows: Floats) -> Any:
        return booster.inplace_predict(rows, validate_features=False)

    drill(predict, folder, f"xgboost {xgb.__version__}")
