"""oneDAL through daal4py's model builders, of scikit-learn-intelex."""

import sys
from importlib import metadata
from pathlib import Path

import daal4py
import xgboost as xgb

from benchmarks.engines.drill import drill

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    daal4py.daalinit(nthreads=1)
    model = daal4py.mb.convert_model(xgb.Booster(model_file=folder / "model.ubj"))
    drill(model.predict, folder, f"scikit-learn-intelex {metadata.version('scikit-learn-intelex')}")
