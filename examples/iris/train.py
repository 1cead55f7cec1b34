"""Train the iris example: which of three species is this flower?

python examples/iris/train.py
"""

import sys
from pathlib import Path

from sklearn.datasets import load_iris  # type: ignore[import-untyped]  # ships no types

FOLDER = Path(__file__).parent
sys.path.append(str(FOLDER.parent))  # Python looks beside a script only, and training.py is one folder up.

from training import build_example

# The request that KServe's XGBoost tutorial sends; its answer there, and here, is [1.0, 1.0].
TUTORIAL_ROWS = [[6.8, 2.8, 4.8, 1.4], [6.0, 3.4, 4.5, 1.6]]

if __name__ == "__main__":
    build_example(
        FOLDER,
        load_iris(),
        {"objective": "multi:softmax", "num_class": 3, "max_depth": 3, "eta": 0.3},
        rounds=20,
        first_rows=TUTORIAL_ROWS,
    )
