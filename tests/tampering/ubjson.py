"""Writes UBJSON as XGBoost does: typed arrays for the columns of a tree, plain ones elsewhere."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

TYPED = {
    "base_weights": ("d", ">f4"),
    "leaf_weights": ("d", ">f4"),
    "loss_changes": ("d", ">f4"),
    "split_conditions": ("d", ">f4"),
    "sum_hessian": ("d", ">f4"),
    "weights": ("d", ">f4"),
    "left_children": ("l", ">i4"),
    "right_children": ("l", ">i4"),
    "parents": ("l", ">i4"),
    "split_indices": ("l", ">i4"),
    "categories": ("l", ">i4"),
    "categories_nodes": ("l", ">i4"),
    "categories_segments": ("L", ">i8"),
    "categories_sizes": ("L", ">i8"),
    "default_left": ("U", ">u1"),
    "split_type": ("U", ">u1"),
}


@np.errstate(over="ignore")
def write(value: Any, name: str = "") -> bytes:
    """Numbers beyond float32 become infinite, as with XGBoost. A value that a typed array cannot hold makes it a plain array."""
    if isinstance(value, dict):
        members = (text(key) + write(member, key) for key, member in value.items())
        return b"{" + b"".join(members) + b"}"
    if isinstance(value, list):
        return write_list(value, name)
    if isinstance(value, str):
        return b"S" + text(value)
    if value is None or isinstance(value, bool):
        return {None: b"Z", True: b"T", False: b"F"}[value]
    if isinstance(value, float):
        return b"d" + np.array(value, ">f8").astype(">f4").tobytes()
    if not -(2**63) <= value < 2**63:
        return b"H" + text(str(value))
    return b"L" + struct.pack(">q", value)


def write_list(values: list[Any], name: str) -> bytes:
    if name in TYPED:
        kind, dtype = TYPED[name]
        try:
            array = np.array(values, dtype)
        except (ValueError, TypeError, OverflowError):
            pass
        else:
            return b"[$" + kind.encode() + b"#" + length(len(values)) + array.tobytes()
    return b"[#" + length(len(values)) + b"".join(write(value) for value in values)


def text(value: str) -> bytes:
    data = value.encode()
    return length(len(data)) + data


def length(count: int) -> bytes:
    return b"L" + struct.pack(">q", count)
