"""From margins to scores, in place."""

from __future__ import annotations

import numpy as np

from service.ensemble import ARGMAX, EXP, SIGMOID, SOFTMAX, STEP, WIDE_EXP, Floats
from service.kernels.intrinsics import U, call_exp, call_expf, jit

ONE, ZERO = np.float32(1), np.float32(0)
# `common::Sigmoid`: beyond this exp is infinite.
STEEPEST = np.float32(88.7)


@jit
def transform_row(row: Floats, transform: int, exp: int) -> None:
    """`ObjFunction::PredTransform` of XGBoost 3.2 in place; of argmax the class, at the first place.

    `exp` is the address of expf, of exp for `WIDE_EXP`.
    """
    if transform == SIGMOID:
        for k in range(len(row)):
            steep = -row[U(k)]
            # XGBoost adds 1e-16 as well, which changes nothing beside the one.
            row[U(k)] = ONE / (call_expf(exp, STEEPEST if steep > STEEPEST else steep) + ONE)
    elif transform == SOFTMAX:
        apply_softmax(row, exp)
    elif transform == EXP:
        for k in range(len(row)):
            row[U(k)] = call_expf(exp, row[U(k)])
    elif transform == WIDE_EXP:
        for k in range(len(row)):
            row[U(k)] = np.float32(call_exp(exp, np.float64(row[U(k)])))
    elif transform == STEP:
        for k in range(len(row)):
            row[U(k)] = ONE if row[U(k)] > ZERO else ZERO
    elif transform == ARGMAX:
        row[0] = np.float32(find_largest(row))


@jit
def apply_softmax(row: Floats, expf: int) -> None:
    """`common::Softmax`: the sum is a double, all else float."""
    largest = row[0]
    for k in range(1, len(row)):
        largest = max(largest, row[U(k)])
    total = 0.0
    for k in range(len(row)):
        row[U(k)] = call_expf(expf, row[U(k)] - largest)
        total += np.float64(row[U(k)])
    divisor = np.float32(total)
    for k in range(len(row)):
        row[U(k)] /= divisor


@jit
def find_largest(row: Floats) -> int:
    """The first of the largest."""
    best = 0
    for k in range(1, len(row)):
        if row[U(k)] > row[U(best)]:
            best = k
    return best
