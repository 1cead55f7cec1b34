"""Treelite's model as C, written by TL2cgen and compiled by gcc as its documentation does. Compiling takes minutes."""

import sys
import time
from pathlib import Path
from typing import Any

import tl2cgen
import treelite

from benchmarks.engines.drill import Floats, drill

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    model = treelite.frontend.load_xgboost_model(folder / "model.ubj", format_choice="ubjson")
    library = folder / "predictor.so"
    began = time.monotonic()
    tl2cgen.export_lib(model, toolchain="gcc", libpath=library, params={"parallel_comp": 32})
    took = time.monotonic() - began
    predictor = tl2cgen.Predictor(library, nthread=1)

    def predict(rows: Floats) -> Any:
        return predictor.predict(tl2cgen.DMatrix(rows))

    drill(predict, folder, f"tl2cgen {tl2cgen.__version__}", f"{took:.0f} s to compile")
