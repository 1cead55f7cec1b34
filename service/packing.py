"""Packs a model once, in a throw-away process, into a folder that all workers map.

The process admits the file (`admission.py`), packs it, compares the packed form with XGBoost on rows made for the
purpose, and writes down what it found, to the folder and to its standard output. A model that cannot be packed, or whose
packed form differs from XGBoost in a single bit, is served by XGBoost, and says so; it is never served wrong. A file that
kills XGBoost kills only the process.

    <cache>/<digest>-<format>/packed.json       admission record, golden rows, why it is XGBoost if it is, the checksum
                                                of the manifest, which has those of the arrays, and its own
    <cache>/<digest>-<format>/ensemble/*.npy    the packed trees

`packed.json` is written last, in one rename: a folder without it does not count, whatever is in it. Where this machine
stood in the way and not the model, as a compiler that failed, it says so, and the next start packs again; the workers of
this one do not. So does a start that finds something damaged.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from service.admission import Record, admit, bound_process
from service.artifact import ModelFile, read_model_file
from service.batch import Floats
from service.engine import Engine
from service.ensemble import (
    FORMAT,
    MANIFEST,
    OF,
    WIDTH,
    Ensemble,
    PackedModelError,
    hash_file,
    read_ensemble,
    write_ensemble,
    write_synced,
)
from service.ensemble.forest import UnsupportedModelError
from service.ensemble.layouts import pack
from service.errors import ModelFileError
from service.golden import Golden, digest_golden, read_golden_file
from service.machine import die_with, own_command
from service.machine_code import load_code
from service.predictor import BoosterPredictor, PackedPredictor

# Ours, of the folder: raise it when packed.json or the comparison changes.
LAYOUT = 4
FOUND, LOCK = "packed.json", ".lock"
PACK_SECONDS = 300
# Exit code for a file that is refused; standard output has the faults. 65 is EX_DATAERR of sysexits.h.
REFUSED = 65
# A throw-away process steps behind workers that score; at a start there are none, and a pod that is needed should not wait.
NICE = 5
# Rows compared: leaves of all of them at once (numbers of nodes cannot round), margins of a sample, each row alone.
LEAF_ROWS = 2048
MARGIN_ROWS = 128
# Of all values in them, 64 MB: models of 10,000 features and more are compared on fewer rows.
LEAF_VALUES, LEAST_ROWS = 1 << 24, 64
MOST_FLOAT = np.finfo(np.float32).max


@dataclass(frozen=True)
class Packed:
    """What the throw-away process found; XGBoost serves where there is a reason for it.

    `is_final` says that the reason is the model's, and that another try would find the same. `manifest` is the checksum of the manifest of the packed trees, `golden_digest` that of the golden file.
    """

    record: Record
    goldens: list[Golden]
    reason: str
    is_final: bool
    manifest: str
    golden_digest: str
    folder: Path

    @classmethod
    def from_document(cls, found: Mapping[str, Any], folder: Path) -> Packed:
        """Of packed.json."""
        return cls(
            record=Record.from_fields(found["record"]),
            goldens=[Golden(**golden) for golden in found["goldens"]],
            reason=found["reason"],
            is_final=found["is_final"],
            manifest=found["manifest"],
            golden_digest=found["golden_digest"],
            folder=folder,
        )

    @property
    def is_kept(self) -> bool:
        """Whether the next who asks finds it; else there is no cache, or no room in it."""
        return (self.folder / FOUND).exists()

    @property
    def is_whole(self) -> bool:
        """Whether the packed trees, if there are any, are there as they were written."""
        try:
            return bool(self.reason) or self._read_ensemble() is not None
        except (OSError, PackedModelError):
            return False

    def load(self) -> PackedPredictor:
        """The packed trees, mapped, and the kernels; raises whatever stands in the way of them."""
        ensemble = self._read_ensemble()
        return PackedPredictor(ensemble, self.record.contract, load_code(kernel_cache(self.folder.parent)))

    def _read_ensemble(self) -> Ensemble:
        if hash_file(self.folder / "ensemble" / MANIFEST) != self.manifest:
            raise PackedModelError(f"{self.folder}: the manifest is not the one that was admitted")
        return read_ensemble(self.folder / "ensemble")


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


def prepare(file: ModelFile, cache: Path, *, is_start: bool = False) -> Packed:
    """The packed form of this file, admitted and packed now if it was not before; raises `ModelFileError`.

    A start packs again what this machine stood in the way of, or has damaged since. Its workers do not: each would wait for it.
    """
    folder = packed_folder(file.digest, cache)
    try:
        verify_cache(cache)
    except OSError as error:
        return run_packing(file, None, str(error), is_start)
    golden_digest = digest_golden(read_golden_file(file.path))
    try:
        packed = read_packed(folder)
        if packed.golden_digest == golden_digest and (not is_start or (packed.is_final and packed.is_whole)):
            return packed
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or not whole: packed now
    return run_packing(file, folder, "", is_start)


def packed_folder(digest: str, cache: Path) -> Path:
    return cache / f"{digest[:40]}-{LAYOUT}.{FORMAT}"


def drop_packed(digest: str, cache: Path) -> None:
    """Make room; who has it mapped keeps its pages, and who wants it again packs it again."""
    shutil.rmtree(packed_folder(digest, cache), ignore_errors=True)


def verify_cache(cache: Path) -> None:
    """What lies there is mapped and run, so that nobody else may write to it: the temporary folder is everybody's."""
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = cache.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        # A volume itself always is one: an emptyDir is root's, with mode 0777, and fsGroup lets its group write.
        raise PermissionError(
            f"{cache}: expected a folder of user {os.getuid()} that nobody else can write to, got one of user {status.st_uid} "
            f"with mode {stat.S_IMODE(status.st_mode):04o}; set SCORER_CACHE_DIR to a folder in it, such as "
            f"{cache / 'xgboost-server'}, which the server makes for itself"
        )


def read_packed(folder: Path) -> Packed:
    document = json.loads((folder / FOUND).read_bytes())
    if document.pop("sha256") != digest_of(document):
        raise ValueError(f"{folder / FOUND}: the checksum is another one")
    return Packed.from_document(document, folder)


def digest_of(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True).encode()).hexdigest()


def run_packing(file: ModelFile, folder: Path | None, reason: str, is_start: bool) -> Packed:
    """In a process of its own, for which XGBoost may be fatal. Without a folder, for the reason given, only admitted."""
    nice = "0" if is_start else str(NICE)
    command = own_command("service.packing", str(file.path), file.digest, str(folder or ""), reason, nice)
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PACK_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise ModelFileError(f"{file.path}: loading it takes longer than {PACK_SECONDS} seconds") from None
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        if done.returncode == -signal.SIGKILL:
            raise ModelFileError(
                f"{file.path}: the process that loaded it was killed ({name}), perhaps for want of memory"
            )
        raise ModelFileError(f"{file.path}: loading it kills XGBoost ({name})")
    if done.returncode not in (0, REFUSED):
        raise ModelFileError(f"{file.path}: {(done.stderr.strip().splitlines() or ['packing failed'])[-1]}")
    # XGBoost writes its warnings to standard output, too.
    found = json.loads(done.stdout.splitlines()[-1])
    if done.returncode == REFUSED:
        raise ModelFileError(*found["faults"])
    return Packed.from_document(found, folder or file.path.parent)


# In the throw-away process.


def main(path: str, digest: str, folder: str, reason: str, nice: str = "0") -> None:
    try:
        die_with(os.getppid())
        os.nice(int(nice))
        bound_process(Path(path).stat().st_size)
        file = read_model_file(Path(path), digest)
        golden_digest = digest_golden(read_golden_file(file.path))
        admission = admit(file)
    except ModelFileError as error:
        refuse(error.faults)
    except MemoryError:
        refuse([f"{path}: loading it takes more memory than a model of its size may"])
    document = {
        "record": asdict(admission.record),
        "goldens": [asdict(golden) for golden in admission.goldens],
        "golden_digest": golden_digest,
        "reason": reason,
        "is_final": not reason,
        "manifest": "",
    }
    if folder:
        document |= pack_into(Path(folder), admission.predictor, document)
    print(json.dumps(document))


def refuse(faults: Sequence[str]) -> NoReturn:
    print(json.dumps({"faults": faults}))
    sys.exit(REFUSED)


def pack_into(folder: Path, predictor: BoosterPredictor, document: Mapping[str, Any]) -> dict[str, Any]:
    """What is to be changed in the document, once the folder has the packed form and the document."""
    try:
        with locked(folder):
            found = pack_model(predictor, folder)
            return found | write_packed(folder, {**document, **found})
    except OSError as error:
        return {"reason": describe(error, folder), "is_final": False}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """The folder for one process at a time, without what one before left that was killed; raises `OSError`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in folder.glob(".*.*"):
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield


def pack_model(predictor: BoosterPredictor, folder: Path) -> dict[str, Any]:
    """Pack, compare, write: why XGBoost is to serve, whether that is final, and the checksum of the manifest."""
    try:
        ensemble = pack(predictor.to_ubjson())
    except UnsupportedModelError as error:
        return {"reason": error.reason}
    try:
        write_ensemble(ensemble, folder / "ensemble")
        reason = next(find_differences(ensemble, predictor, folder), "")
        return {"reason": reason, "manifest": hash_file(folder / "ensemble" / MANIFEST)}
    except Exception as error:  # a full disk, whatever the compiler says: XGBoost can serve
        return {"reason": describe(error, folder), "is_final": False}


def describe(error: Exception, folder: Path) -> str:
    if isinstance(error, OSError):
        return f"no packed form in {folder}: {error}"
    if isinstance(error, PackedModelError):
        return str(error)
    return f"the kernels cannot run here: {type(error).__name__}: {error}".splitlines()[0]


def write_packed(folder: Path, document: Mapping[str, Any]) -> dict[str, Any]:
    """The reason for XGBoost if that cannot be written."""
    try:
        handle, beside = tempfile.mkstemp(prefix=".packed.", dir=folder)
        os.close(handle)
        os.unlink(beside)
        write_synced(Path(beside), json.dumps({**document, "sha256": digest_of(document)}).encode())
        os.rename(beside, folder / FOUND)
    except OSError as error:
        return {"reason": describe(error, folder), "is_final": False}
    return {}


def find_differences(ensemble: Ensemble, predictor: BoosterPredictor, folder: Path) -> Iterator[str]:
    """Every way in which the packed form differs from XGBoost; none if all is well."""
    engine = Engine(read_ensemble(folder / "ensemble"), load_code(kernel_cache(folder.parent)))
    rows = make_rows(ensemble)
    yield from compare_leaves(engine, predictor, rows)
    yield from compare_margins(engine, predictor, rows)


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
    count = max(LEAST_ROWS, min(LEAF_ROWS, LEAF_VALUES // features))
    rows = np.zeros((count, features), np.float32)  # as no split asks for them, most columns of a wide model stay so
    for feature, thresholds in group_thresholds(ensemble):
        rows[:, feature] = make_column(random, thresholds, count)
    for feature, width in ensemble.codes[:, [OF, WIDTH]]:
        rows[:, feature] = random.integers(0, width + 3, count)  # some that no split knows
    for row in rows:
        row[random.random(features, np.float32) < 0.1] = np.nan
    rows[0] = np.nan
    rows[1], rows[2] = MOST_FLOAT, -MOST_FLOAT
    return rows


def group_thresholds(ensemble: Ensemble) -> Iterator[tuple[int, Floats]]:
    """Each feature that a numeric split asks for, and its thresholds."""
    features, thresholds = ensemble.thresholds()
    if not len(features):
        return
    order = np.argsort(features, kind="stable")
    used, begins = np.unique(features[order], return_index=True)
    yield from zip(used.tolist(), np.split(thresholds[order], begins[1:]), strict=True)


def make_column(random: np.random.Generator, thresholds: Floats, count: int) -> Floats:
    """Numbers on, below, above and between the thresholds; XGBoost takes no infinity, and one may be the largest float32."""
    on = random.choice(thresholds, count).astype(np.float32)
    below, above = np.nextafter(on, np.float32(-np.inf)), np.nextafter(on, np.float32(np.inf))
    low, high = float(thresholds.min()) - 1, float(thresholds.max()) + 1
    between = low + (high - low) * random.random(count)
    column: Floats = np.choose(random.integers(0, 4, count), [on, below, above, between.astype(np.float32)])
    return column.clip(-MOST_FLOAT, MOST_FLOAT)


if __name__ == "__main__":
    main(*sys.argv[1:])
