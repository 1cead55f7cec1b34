"""Train the breast-cancer example: how likely is it that this tumour is benign?

python examples/breast-cancer/train.py
"""

import sys
from pathlib import Path

from sklearn.datasets import load_breast_cancer  # type: ignore[import-untyped]  # ships no types

FOLDER = Path(__file__).parent
sys.path.append(str(FOLDER.parent))  # Python looks beside a script only, and training.py is one folder up.

from training import build_example

if __name__ == "__main__":
    build_example(
        FOLDER,
        load_breast_cancer(),
        {"objective": "binary:logistic", "max_depth": 4, "eta": 0.1},
        rounds=100,
        missing_share=0.05,
    )
