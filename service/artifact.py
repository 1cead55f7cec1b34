"""Model files on disk: read whole, told apart by their first bytes, pinned by digest.

A file is read once and everything after works on those bytes: the digest that was checked is the digest of what is
loaded, whatever happens to the file meanwhile.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from service.errors import ModelFileError

# What a model is called in a folder of its own, or of its version.
# `.bst` is what KServe calls it; what is in it decides how it is read.
FILE_NAMES = ("model.ubj", "model.json", "model.bst")
# A file that is not in a folder of versions has this one, so that versioned URLs work for it as well.
ONLY_VERSION = "1"

# A model of 5,000 trees of depth 8 has 100 MB.
MOST_BYTES = 1 << 30
SAVE = "save the model with Booster.save_model('model.ubj')"
ITSELF = "expected the model file itself"
# First bytes of what people hand over by mistake. None of these is ever opened with its own library: unpickling
# runs code.
REFUSED = (
    (b"\x80", f"a pickle; {SAVE}"),
    (b"PK\x03\x04", f"a zip or joblib archive; {ITSELF}"),
    (b"PK\x05\x06", f"an empty zip archive; {ITSELF}"),
    (b"\x1f\x8b", f"a gzip file; {ITSELF}"),
    (b"x\x01", f"a zlib or joblib file; {ITSELF}"),
    (b"x\x5e", f"a zlib or joblib file; {ITSELF}"),
    (b"x\x9c", f"a zlib or joblib file; {ITSELF}"),
    (b"x\xda", f"a zlib or joblib file; {ITSELF}"),
    (b"BZh", f"a bzip2 file; {ITSELF}"),
    (b"\xfd7zXZ", f"an xz file; {ITSELF}"),
    (b"]\x00\x00", f"an lzma file; {ITSELF}"),
    (b"\x28\xb5\x2f\xfd", f"a zstd file; {ITSELF}"),
    (b"\x04\x22\x4d\x18", f"an lz4 file; {ITSELF}"),
    (b"7z\xbc\xaf", f"a 7z archive; {ITSELF}"),
    (b"version https://git-lfs", "a Git LFS pointer; fetch the file with `git lfs pull`"),
    (b"<", "a web page or XML, perhaps a failed download; expected an XGBoost model"),
    (b"binf", "XGBoost's old binary format, which 3.1 removed; load it with 3.0 and save it as .ubj"),
    (b"bs64", "XGBoost's old binary format in base64; load it with 3.0 and save it as .ubj"),
    # Its first field is the base score; 0.5 was the default.
    (b"\x00\x00\x00\x3f", "XGBoost's old binary format, which 3.1 removed; load it with 3.0 and save it as .ubj"),
    (b"CONFIG-offset:", f"a memory snapshot of a booster; {SAVE}"),
    (b"\x89HDF", "an HDF5 file; expected an XGBoost model"),
    (b"\x93NUMPY", "a numpy array; expected an XGBoost model"),
    (b"tree\n", "a LightGBM model; expected an XGBoost model"),
    (b"CBM1", "a CatBoost model; expected an XGBoost model"),
    (b"\x7fELF", "a program; expected an XGBoost model"),
    (b"#!", "a script; expected an XGBoost model"),
)
# Protocols 0 and 1 of pickle begin with whatever opcode comes first, and end with this one.
PICKLE_BEGINS, PICKLE_ENDS = b"(]})cFGIJKLMNSTUVX", b"."
TAR = (257, b"ustar")


@dataclass(frozen=True)
class ModelFile:
    """The bytes of a model file and their sha256 in hexadecimal."""

    path: Path
    data: bytes
    digest: str


def read_model_file(path: Path, sha256: str = "") -> ModelFile:
    """The file's bytes, or `ModelFileError` with the reason why this is not a model to serve."""
    data = read_file(path, MOST_BYTES)
    verify_format(path, data)
    digest = hashlib.sha256(data).hexdigest()
    if sha256 and digest != sha256:
        raise ModelFileError(f"{path}: the sha256 is {digest}, SCORER_MODEL_SHA256 asks for {sha256}")
    return ModelFile(path, data, digest)


def read_file(path: Path, most_bytes: int) -> bytes:
    """All bytes of a regular file that stays as it is meanwhile, or `ModelFileError`."""
    try:
        real = path.resolve(strict=True)
        # Kubernetes mounts config maps as links within the folder; one that leads out of it shows files of others.
        if not real.is_relative_to(path.parent.resolve()):
            raise ModelFileError(
                f"{path}: a link out of its folder; expected the file itself, or a link within the folder"
            )
        # A pipe would wait for a writer, a device may act on being opened.
        if not stat.S_ISREG(real.stat().st_mode):
            raise ModelFileError(f"{path}: not a regular file")
        handle = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(handle, "rb") as file:
            return read_unchanged(path, file.fileno(), most_bytes)
    except FileNotFoundError:
        raise ModelFileError(f"{path}: no such file or folder") from None
    except RuntimeError:  # what Python before 3.13 says of a link to itself
        raise ModelFileError(f"{path}: a link to itself") from None
    except OSError as error:
        raise ModelFileError(f"{path}: {error.strerror or error}") from None


def read_unchanged(path: Path, handle: int, most_bytes: int) -> bytes:
    before = os.fstat(handle)
    if not stat.S_ISREG(before.st_mode):
        raise ModelFileError(f"{path}: not a regular file")
    if before.st_size > most_bytes:
        raise ModelFileError(f"{path}: {before.st_size} bytes; expected at most {most_bytes}")
    with open(handle, "rb", closefd=False) as file:
        data = file.read(most_bytes + 1)
    verify_unchanged(path, before, os.fstat(handle), len(data))
    return data


def verify_unchanged(path: Path, before: os.stat_result, after: os.stat_result, size: int) -> None:
    """Between the two looks nobody wrote to the file, and what was read is all of it."""
    if size != before.st_size or (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
        raise ModelFileError(f"{path}: it changed while it was read; try again when it is whole")


def verify_format(path: Path, data: bytes) -> None:
    """Both formats of XGBoost, JSON and UBJSON, begin with an object."""
    if not data:
        raise ModelFileError(f"{path}: the file is empty")
    if data.startswith(b"{"):
        return
    for magic, what in REFUSED:
        if data.startswith(magic):
            raise ModelFileError(f"{path}: this is {what}")
    if data.lstrip()[:1] == b"<":
        raise ModelFileError(f"{path}: this is a web page or XML, perhaps a failed download; expected an XGBoost model")
    if data[TAR[0] :].startswith(TAR[1]):
        raise ModelFileError(f"{path}: this is a tar archive; {ITSELF}")
    if data[:1] in PICKLE_BEGINS and data.endswith(PICKLE_ENDS):
        raise ModelFileError(f"{path}: this is a pickle; {SAVE}")
    raise ModelFileError(f"{path}: neither JSON nor UBJSON; expected a file written by Booster.save_model")


def natural_order(version: str) -> list[tuple[int, int, str]]:
    """2 before 10, and 1.9 before 1.10."""
    parts = re.findall(r"\d+|\D+", version)
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in parts]
