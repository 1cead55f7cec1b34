"""ONNX Runtime, with the model as onnxmltools converts it."""

import sys
from pathlib import Path
from typing import Any

import onnxmltools
import onnxruntime
import xgboost as xgb
from onnxmltools.convert.common.data_types import FloatTensorType

from benchmarks.engines.drill import Floats, drill

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    booster = xgb.Booster(model_file=folder / "model.ubj")
    types = [("rows", FloatTensorType([None, booster.num_features()]))]
    model = onnxmltools.convert_xgboost(booster, initial_types=types)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def predict(rows: Floats) -> Any:
        return session.run(None, {"rows": rows})[0]

    drill(predict, folder, f"onnxruntime {onnxruntime.__version__}", f"onnxmltools {onnxmltools.__version__}")
