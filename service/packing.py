"""Packs a model once, in a throw-away process, into a folder that all workers map.

The process loads the file with XGBoost, packs it, compares the two on rows made for the purpose, and writes down what it
found. A model that cannot be packed, or whose packed form differs from XGBoost in a single bit, is served by XGBoost, and
says so; it is never served wrong. A file that kills XGBoost kills only the process.

    <cache>/<digest>-<format>/packed.json       contract, engine, and why it is XGBoost if it is
    <cache>/<digest>-<format>/ensemble/*.npy    the packed trees

`packed.json` is written last, in one rename: a folder without it does not count, whatever is in it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from service.artifact import ModelFile, read_model_file
from service.batch import Contract, Floats
from service.engine import Engine
from service.ensemble import (
    FORMAT,
    OF,
    WIDTH,
    Ensemble,
    PackedModelError,
    UnsupportedModelError,
    read_ensemble,
    write_ensemble,
    write_synced,
)
from service.errors import ModelFileError
from service.machine_code import load_code
from service.predictor import BoosterPredictor, PackedPredictor

# Ours, of the folder: raise it when packed.json or the comparison changes.
LAYOUT = 1
PACK_SECONDS = 300
# Exit code for a full disk or a folder that cannot be written: XGBoost serves. 75 is EX_TEMPFAIL of sysexits.h.
CANNOT_WRITE = 75
# Address space of the process: libraries and compiler, and what a good model needs.
MEMORY_BYTES = 4 * 2**30
MEMORY_PER_BYTE = 64
# Rows compared: leaves of all of them at once (numbers of nodes cannot round), margins of a sample, each row alone.
LEAF_ROWS = 2048
MARGIN_ROWS = 128


@dataclass(frozen=True)
class Packed:
    """What the throw-away process found; XGBoost serves where there is a reason for it."""

    contract: Contract | None
    reason: str
    folder: Path

    def load(self) -> PackedPredictor:
        """The packed trees, mapped, and the kernels; raises whatever stands in the way of them."""
        if self.contract is None:
            raise PackedModelError(self.reason)
        code = load_code(kernel_cache(self.folder.parent))
        return PackedPredictor(read_ensemble(self.folder / "ensemble"), self.contract, code)


def kernel_cache(cache: Path) -> Path:
    return cache / "kernels"


def find_cache(named: str) -> Path:
    """The folder of the settings, or the first one that we can write to: a container may have no home."""
    if named:
        return Path(named)
    home = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME", "") or "~/.cache"))
    if home.is_absolute() and os.access(home if home.exists() else home.parent, os.W_OK):
        return home / "xgboost-server"
    return Path(tempfile.gettempdir()) / f"xgboost-server-{os.getuid()}"


def prepare(file: ModelFile, cache: Path) -> Packed:
    """The packed form of this file, packed now if it was not before; raises `ModelFileError`."""
    folder = cache / f"{file.digest[:40]}-{LAYOUT}.{FORMAT}"
    try:
        verify_cache(cache)
        return read_packed(folder)
    except PermissionError as error:
        return Packed(None, str(error), folder)
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or not whole: packed now
    try:
        run_packing(file, folder)
        return read_packed(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Packed(None, f"no packed form in {folder}: {error}", folder)


def verify_cache(cache: Path) -> None:
    """What lies there is mapped and run, so that nobody else may write to it: the temporary folder is everybody's."""
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = cache.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(f"{cache}: expected a folder that is ours and that nobody else can write to")


def read_packed(folder: Path) -> Packed:
    found = json.loads((folder / "packed.json").read_bytes())
    contract = found["contract"]
    for name in ("feature_names", "feature_types"):
        contract[name] = tuple(contract[name])
    return Packed(Contract(**contract), found["reason"], folder)


def run_packing(file: ModelFile, folder: Path) -> None:
    """In a process of its own, for which XGBoost may be fatal."""
    command = [sys.executable, "-m", "service.packing", str(file.path), file.digest, str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PACK_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ModelFileError(f"{file.path}: loading it takes longer than {PACK_SECONDS} seconds") from None
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise ModelFileError(f"{file.path}: loading it kills XGBoost ({name})")
    if done.returncode == CANNOT_WRITE:
        raise OSError(done.stderr.strip())
    if done.returncode > 0:
        raise ModelFileError((done.stderr.strip().splitlines() or [f"{file.path}: packing failed"])[-1])


# In the throw-away process.


def main(path: str, digest: str, folder: str) -> None:
    try:
        bound_memory(Path(path).stat().st_size)
        pack_model(read_model_file(Path(path), digest), Path(folder))
    except ModelFileError as error:
        sys.exit(str(error))
    except OSError as error:
        print(error, file=sys.stderr)
        sys.exit(CANNOT_WRITE)


def bound_memory(file_bytes: int) -> None:
    """XGBoost 3.2 reads past the end of a truncated file and may ask for all memory there is: 7 GB for 42 KB."""
    limit = MEMORY_BYTES + MEMORY_PER_BYTE * file_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard < 0 else min(limit, hard), hard))


def pack_model(file: ModelFile, folder: Path) -> None:
    """Load, pack, compare, write."""
    predictor = BoosterPredictor.from_model_file(file)
    folder.mkdir(parents=True, exist_ok=True)
    reason = ""
    try:
        ensemble = Ensemble.from_ubjson(predictor.to_ubjson())
        write_ensemble(ensemble, folder / "ensemble")
        reason = next(find_differences(ensemble, predictor, folder), "")
    except UnsupportedModelError as error:
        reason = error.reason
    write_packed(folder, predictor.contract, reason)


def write_packed(folder: Path, contract: Contract, reason: str) -> None:
    document = {"contract": asdict(contract), "reason": reason}
    handle, beside = tempfile.mkstemp(prefix=".packed.", dir=folder)
    os.close(handle)
    os.unlink(beside)
    write_synced(Path(beside), json.dumps(document).encode())
    os.rename(beside, folder / "packed.json")


def find_differences(ensemble: Ensemble, predictor: BoosterPredictor, folder: Path) -> Iterator[str]:
    """Every way in which the packed form differs from XGBoost; none if all is well."""
    try:
        engine = Engine(read_ensemble(folder / "ensemble"), load_code(kernel_cache(folder.parent)))
        rows = make_rows(ensemble)
        yield from compare_leaves(engine, predictor, rows)
        yield from compare_margins(engine, predictor, rows)
    except PackedModelError as error:
        yield str(error)
    except Exception as error:  # whatever the compiler says, XGBoost can serve
        yield f"the kernels cannot run here: {type(error).__name__}: {error}".splitlines()[0]


def compare_leaves(engine: Engine, predictor: BoosterPredictor, rows: Floats) -> Iterator[str]:
    wanted = predictor.leaves(rows)
    found = engine.leaves(rows).reshape(wanted.shape)
    wrong = np.argwhere(wanted != found)
    if len(wrong):
        yield f"the packed form ends in another leaf than XGBoost at {len(wrong)} of {wanted.size} places"


def compare_margins(engine: Engine, predictor: BoosterPredictor, rows: Floats) -> Iterator[str]:
    """To the last bit, each row alone: that is the truth."""
    sample = rows[:: max(1, len(rows) // MARGIN_ROWS)]
    together = engine.margins(sample)
    for i in range(len(sample)):
        wanted = predictor.margins(sample[i : i + 1]).reshape(-1)
        alone = engine.margins(sample[i : i + 1]).reshape(-1)
        for found in (alone, together[i].reshape(-1)):
            if found.tobytes() != wanted.tobytes():
                yield "the packed form gives another margin than XGBoost"
                return


def make_rows(ensemble: Ensemble) -> Floats:
    """Rows where errors would show: on and beside thresholds of all features at once, missing, extreme, categories."""
    random = np.random.default_rng(0)
    features = ensemble.meta.features
    rows = np.empty((LEAF_ROWS, features), np.float32)
    split_features, thresholds = ensemble.thresholds()
    categories = {int(feature): int(width) for feature, width in ensemble.codes[:, [OF, WIDTH]]}
    for feature in range(features):
        own = thresholds[split_features == feature]
        rows[:, feature] = make_column(random, own if len(own) else np.zeros(1, np.float32), categories.get(feature))
    rows[random.random(rows.shape) < 0.1] = np.nan
    rows[0] = np.nan
    rows[1], rows[2] = np.finfo(np.float32).max, np.finfo(np.float32).min
    return rows


def make_column(random: np.random.Generator, thresholds: Floats, categories: int | None) -> Floats:
    """Categories, with some that no split knows; or numbers on, below, above and between the thresholds."""
    if categories is not None:
        return random.integers(0, categories + 3, LEAF_ROWS).astype(np.float32)
    on = random.choice(thresholds, LEAF_ROWS).astype(np.float32)
    below, above = np.nextafter(on, np.float32(-np.inf)), np.nextafter(on, np.float32(np.inf))
    low, high = float(thresholds.min()) - 1, float(thresholds.max()) + 1
    between = random.uniform(low, high, LEAF_ROWS).astype(np.float32)
    column: Floats = np.choose(random.integers(0, 4, LEAF_ROWS), [on, below, above, between])
    return column


if __name__ == "__main__":
    main(*sys.argv[1:])
