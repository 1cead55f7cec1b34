"""Admits a model file, or says everything that is wrong with it. Runs in a throw-away process, for which it may be fatal.

    bytes ─▶ documents: read strictly ─▶ structure: every rule ─▶ XGBoost loads it ─▶ structure again, of what XGBoost
    has in memory ─▶ first prediction, contract ─▶ golden rows

The second look is at `Booster.save_raw`: whatever XGBoost made of the bytes, and if it read them in another way than we
did, nothing is predicted before all children, features and outputs of that are known to be in range.
"""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from service import __version__
from service.artifact import ModelFile
from service.batch import Contract
from service.documents import DocumentError, read_document
from service.errors import ModelFileError, StartError
from service.golden import ATTRIBUTE, Golden, read_goldens, verify_golden
from service.predictor import BoosterPredictor
from service.structure import find_faults

# Of the record's form.
SCHEMA = 1
# Address space of the process: libraries and compiler, and what a good model needs.
MEMORY_BYTES = 4 << 30
MEMORY_PER_BYTE = 64
CPU_SECONDS = 300
OPEN_FILES = 256


@dataclass(frozen=True)
class Record:
    """What there is to know of an admitted model; the same file gives the same record wherever it is made."""

    digest: str
    bytes: int
    xgboost: str
    booster: str
    trees: int
    contract: Contract
    golden_rows: int

    def to_json(self) -> str:
        contract = asdict(self.contract)
        objective = contract.pop("objective")
        document = asdict(self) | {
            "schema": SCHEMA,
            "tool": f"xgboost-server {__version__}",
            "digest": f"sha256:{self.digest}",
            "objective": objective,
            "contract": contract,
        }
        return json.dumps(document, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Record:
        """Of what `dataclasses.asdict` made, read back from JSON."""
        contract = dict(fields["contract"])
        for name in ("feature_names", "feature_types"):
            contract[name] = tuple(contract[name])
        return cls(**{**fields, "contract": Contract(**contract)})


@dataclass(frozen=True)
class Admission:
    """An admitted model, loaded."""

    record: Record
    goldens: list[Golden]
    predictor: BoosterPredictor


def admit(file: ModelFile) -> Admission:
    """The model of these bytes, or `ModelFileError` with every fault found."""
    document = verify_structure(file.path, file.data)
    again = partial(verify_structure, file.path, reader="as XGBoost reads it: ")
    predictor = BoosterPredictor.from_model_file(file, verify_saved=again)
    learner = document["learner"]
    if predictor.contract.feature_names != tuple(learner.get("feature_names", ())):
        # It takes what JSON's escapes stand for, such as \u00f6, for the name itself.
        raise ModelFileError(
            f"{file.path}: feature_names: XGBoost reads other names than the file says; save it as .ubj"
        )
    goldens = read_goldens(file, learner["attributes"].get(ATTRIBUTE), predictor.contract)
    verify_golden(file.path, goldens, predictor)
    booster = learner["gradient_booster"]
    record = Record(
        digest=file.digest,
        bytes=len(file.data),
        xgboost=".".join(str(part) for part in document["version"]),
        booster=booster["name"],
        trees=len(booster.get("gbtree", booster)["model"].get("trees", ())),
        contract=predictor.contract,
        golden_rows=sum(len(golden.rows) for golden in goldens),
    )
    return Admission(record, goldens, predictor)


def verify_structure(path: Path, data: bytes | bytearray, reader: str = "") -> Any:
    """The document, or `ModelFileError`."""
    try:
        document = read_document(data)
    except DocumentError as error:
        raise ModelFileError(f"{path}: {reader}{error}") from None
    faults = find_faults(document)
    if faults:
        raise ModelFileError(*(f"{path}: {reader}{fault}" for fault in faults))
    return document


def bound_process(file_bytes: int) -> None:
    """XGBoost 3.2 reads past the end of a truncated file and may ask for all memory there is: 7 GB for 42 KB."""
    memory = MEMORY_BYTES + MEMORY_PER_BYTE * file_bytes
    bound(resource.RLIMIT_AS, memory)
    bound(resource.RLIMIT_CPU, CPU_SECONDS)
    bound(resource.RLIMIT_FSIZE, memory)
    bound(resource.RLIMIT_NOFILE, OPEN_FILES)
    bound(resource.RLIMIT_CORE, 0)


def bound(kind: int, limit: int) -> None:
    _, hard = resource.getrlimit(kind)
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(kind, (limit, limit))


def write_record(record: Record, path: Path) -> None:
    """Whole or not at all; raises `StartError`."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("x", encoding="utf-8") as file:
            file.write(record.to_json())
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise StartError([f"{path}: {error.strerror}"]) from None
    finally:
        with suppress(OSError):
            beside.unlink()
