"""Which model is served: the file, the newest version in a folder of versions, or what is fetched from a URI."""

from __future__ import annotations

import math
import stat
import time
from dataclasses import dataclass
from pathlib import Path

from service.admission import Record
from service.artifact import FILE_NAMES, ONLY_VERSION, ModelFile, natural_order, read_model_file
from service.batch import ModelIdentity
from service.errors import ModelFileError
from service.generations import Generation
from service.golden import verify_golden
from service.machine_code import MachineCode
from service.packing import Packed, find_cache, prepare, verify_cache
from service.predictor import BoosterPredictor, PackedPredictor, Predictor
from service.settings import VERSION, Settings, Uri
from service.sources import Progress, Report, cache_folder, fetch, forget

SHOWN_FOLDERS = 5


@dataclass(frozen=True)
class LoadedModel:
    """`code` is there where the kernels run: what reads requests was compiled with them."""

    identity: ModelIdentity
    predictor: Predictor
    load_seconds: float
    record: Record
    code: MachineCode | None = None


def find_model(place: Path) -> tuple[str, Path]:
    """Version and file to serve."""
    try:
        is_folder = stat.S_ISDIR(place.stat().st_mode)
        return find_version(place) if is_folder else (ONLY_VERSION, place)
    except FileNotFoundError:
        raise ModelFileError(f"{place}: no such file or folder") from None
    except OSError as error:
        raise ModelFileError(f"{place}: {error.strerror or error}") from None


def find_version(place: Path) -> tuple[str, Path]:
    """The newest version in a folder, or the model that lies in it."""
    versions = find_versions(place)
    if not versions:
        raise ModelFileError(f"{place}: {explain_no_version(place)}")
    version, path = max(versions.items(), key=lambda version: (natural_order(version[0]), version[0]))
    return version, verify_within(place, path)


def explain_no_version(place: Path) -> str:
    """What to say of a folder that holds no version, and perhaps several models."""
    models = sorted({path.parent.name for name in FILE_NAMES for path in place.glob(f"*/{name}") if path.is_file()})
    if not models:
        return "expected <version>/model.ubj or <version>/model.json in this folder"
    some = ", ".join(models[:SHOWN_FOLDERS]) + (", …" if len(models) > SHOWN_FOLDERS else "")
    return f"expected folders of versions, such as 7, v7 or 2026-11-30, got {some}; a server serves one model"


def verify_within(place: Path, path: Path) -> Path:
    """The path, unless it leads out of the place."""
    if path.resolve().is_relative_to(place.resolve()):
        return path
    raise ModelFileError(f"{path}: a link out of {place}; expected the files themselves, or links within the folder")


def find_versions(place: Path) -> dict[str, Path]:
    """File of every version in a folder, or of the only one if a model lies in it."""
    for name in FILE_NAMES:
        if (place / name).is_file():
            return {ONLY_VERSION: place / name}
    return {
        folder.name: folder / name
        for folder in place.iterdir()
        for name in reversed(FILE_NAMES)
        if VERSION.fullmatch(folder.name) and (folder / name).is_file()
    }


def create_predictor(file: ModelFile, packed: Packed) -> Predictor:
    """The packed form, or XGBoost where there is none or it cannot run here; either reproduces the golden rows."""
    predictor = choose_predictor(file, packed)
    verify_golden(file.path, packed.goldens, predictor)
    return predictor


def choose_predictor(file: ModelFile, packed: Packed) -> Predictor:
    reason = packed.reason
    if not reason:
        try:
            return packed.load()
        except Exception as error:  # a broken cache, a compiler that fails: XGBoost serves all the same
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return BoosterPredictor.from_model_file(file, reason)


def ignore(progress: Progress) -> None:
    """For those who do not want to know how far it is."""


def find_file(settings: Settings, report: Report = ignore, since: float = math.inf) -> tuple[str, ModelFile]:
    """Version and bytes of the model; from a URI it is fetched, unless the store was asked since this Unix time."""
    if isinstance(settings.model, Uri):
        version, path = bring(settings, settings.model, report, since)
    else:
        version, path = find_model(settings.model)
    return version, read_model_file(path, settings.model_sha256)


def bring(settings: Settings, uri: Uri, report: Report, since: float) -> tuple[str, Path]:
    """What the URI names, in the cache."""
    cache = find_cache(settings.cache_dir)
    try:
        verify_cache(cache)
    except OSError as error:
        raise ModelFileError(f"{cache}: nowhere to put what is fetched: {error.strerror or error}") from None
    found = fetch(settings, cache_folder(cache, uri), report, is_cache=True, since=since)
    return found.version, Path(found.path)


def admit_file(file: ModelFile, settings: Settings, *, is_start: bool = False) -> Packed:
    """Admitted and packed, or `ModelFileError`: then what was fetched does not stay in the cache."""
    try:
        return prepare(file, find_cache(settings.cache_dir), is_start=is_start)
    except ModelFileError:
        if isinstance(settings.model, Uri):
            forget(file.path)
        raise


def load_model(settings: Settings, report: Report = ignore, since: float = math.inf) -> LoadedModel:
    """The model that the settings name, ready to predict, or `StartError`."""
    began = time.perf_counter()
    version, file = find_file(settings, report, since)
    return load_file(settings, version, file, began, is_start=True)


def load_generation(settings: Settings, generation: Generation) -> LoadedModel:
    """The model of this generation: the bytes that were admitted, whatever has become of the file since."""
    began = time.perf_counter()
    file = read_model_file(Path(generation.copy), generation.digest)
    return load_file(settings, generation.version, file, began)


def load_file(
    settings: Settings, version: str, file: ModelFile, began: float, *, is_start: bool = False
) -> LoadedModel:
    packed = admit_file(file, settings, is_start=is_start)
    predictor = create_predictor(file, packed)
    identity = ModelIdentity(settings.model_name, version, file.digest)
    code = predictor.code if isinstance(predictor, PackedPredictor) else None
    return LoadedModel(identity, predictor, time.perf_counter() - began, packed.record, code)
