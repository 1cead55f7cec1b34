"""What numba compiles: scores of an `Ensemble`, to the last bit what XGBoost gives a row that comes alone; numbers as JSON
writes them; requests that came before.

XGBoost starts a row at the base margin and adds one tree after the other, in float32 (`PredValueByOneTree` in its
cpu_predictor.cc, 3.2). The kernels for few rows (`rows`) and for many (`blocks`) both add in that order, so a row's bits do not depend on its company.

Nothing may reorder or fuse the sums: no fastmath, hence no contraction to FMA. exp is the C library's expf, as in
XGBoost, and known only by an address, so that no vector library takes its place.

Only the process that compiles imports this room (see `compiler`). What it exports takes int64s, most of them addresses,
gives an int64 back, and needs nothing around it: no Python, no numba, no allocation, no error. Whoever calls it sees
to it that the addresses are right.

Tables are read flat and with unsigned indices: numba otherwise asks of each index whether it is negative, which makes
the rows kernel five times slower.
"""
