"""Treelite's own interpreter, GTIL."""

import sys
from pathlib import Path
from typing import Any

import treelite
from treelite import gtil

from benchmarks.engines.drill import Floats, drill

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    model = treelite.frontend.load_xgboost_model(folder / "model.ubj", format_choice="ubjson")

    def predict(rows: Floats) -> Any:
        return gtil.predict(model, rows, nthread=1)

    drill(predict, folder, f"treelite {treelite.__version__}")
