"""Libraries that score trees, each a process in the environment it is installed in.

    python -m benchmarks.engines.NAME FOLDER

The folder holds model.ubj, rows.npy and wanted.npy, XGBoost's own score of each row alone. drill.py says what is spoken.
They import numpy and their library, and nothing else of the benchmarks: no environment has more.
"""
