"""Model files on disk: read whole, told apart by their first bytes, pinned by digest.

A file is read once and everything after works on those bytes: the digest that was checked is the digest of what is
loaded, whatever happens to the file meanwhile.
"""

from __future__ import annotations

import hashlib
import stat
from dataclasses import dataclass
from pathlib import Path

from service.errors import ModelFileError

# First bytes of what people hand over by mistake. None of these is ever opened with its own library: unpickling
# runs code.
REFUSED = (
    (b"\x80", "a pickle; save the model with Booster.save_model('model.ubj')"),
    (b"PK\x03\x04", "a zip or joblib archive; expected the model file itself"),
    (b"\x1f\x8b", "a gzip file; expected the model file itself"),
    (b"<", "a web page or XML, perhaps a failed download; expected an XGBoost model"),
    (b"binf", "XGBoost's old binary format, which 3.1 removed; load it with 3.0 and save it as .ubj"),
    (b"CONFIG-offset:", "a memory snapshot of a booster; save the model with Booster.save_model('model.ubj')"),
)


@dataclass(frozen=True)
class ModelFile:
    """The bytes of a model file and their sha256 in hexadecimal."""

    path: Path
    data: bytes
    digest: str


def read_model_file(path: Path, sha256: str = "") -> ModelFile:
    """The file's bytes, or `ModelFileError` with the reason why this is not a model to serve."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise ModelFileError(f"{path}: not a regular file")
        data = path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path}: {error.strerror or error}") from None
    verify_format(path, data)
    digest = hashlib.sha256(data).hexdigest()
    if sha256 and digest != sha256:
        raise ModelFileError(f"{path}: the sha256 is {digest}, SCORER_MODEL_SHA256 asks for {sha256}")
    return ModelFile(path, data, digest)


def verify_format(path: Path, data: bytes) -> None:
    """Both formats of XGBoost, JSON and UBJSON, begin with an object."""
    if not data:
        raise ModelFileError(f"{path}: the file is empty")
    for magic, what in REFUSED:
        if data.startswith(magic):
            raise ModelFileError(f"{path}: this is {what}")
    if not data.startswith(b"{"):
        raise ModelFileError(f"{path}: neither JSON nor UBJSON; expected a file written by Booster.save_model")
