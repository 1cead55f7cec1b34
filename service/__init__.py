"""An XGBoost model file becomes a scoring endpoint."""

import os

# Before numpy is imported: OpenBLAS starts a thread for each core when it is loaded, also in Gunicorn's master, which
# must have one thread when it forks. Scoring multiplies no matrices.
os.putenv("OPENBLAS_NUM_THREADS", "1")

__version__ = "0.1.0"
