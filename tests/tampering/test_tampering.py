"""No tampered model file gets past its admission, and whatever does get past does no harm."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from service.admission import verify_structure
from service.artifact import read_model_file
from service.errors import ModelFileError
from tests.tampering import cases, ubjson
from tests.tampering.mutations import make_mutation

ROOT = Path(__file__).parents[2]

CASES = {name: (data, reason) for name, data, reason in cases.make_cases()}


def test_there_are_enough_tampered_files() -> None:
    assert len(CASES) >= 60


@pytest.mark.parametrize("name", CASES)
def test_a_tampered_file_is_refused_with_its_reason_before_xgboost_sees_it(tmp_path: Path, name: str) -> None:
    data, reason = CASES[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ModelFileError) as caught:
        verify_structure(path, read_model_file(path).data)
    faults = [fault.removeprefix(f"{path}: ") for fault in caught.value.faults]
    assert any(re.search(reason, fault) for fault in faults), faults
    assert all(fault.isprintable() and len(fault) < 200 for fault in faults)
    assert len(faults) <= 20


@pytest.mark.parametrize("base", [*cases.BASES, "linear"])
def test_the_files_they_are_made_from_are_admitted(base: str, tmp_path: Path) -> None:
    """Otherwise every refusal above would say nothing; this also tries the writer of UBJSON."""
    document = cases.document_of(base)
    for data in (json.dumps(document).encode(), ubjson.write(document)):
        assert verify_structure(tmp_path / "model", data)


def fuzz(count: int, first: int, kept: Path) -> dict[str, int]:
    """How many mutations came to which end, in processes that have one thread when they fork."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.tampering.fuzz", str(count), str(first), str(kept)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, int] = json.loads(done.stdout)
    print(found)
    return found


@pytest.mark.parametrize(
    ("count", "first"),
    [
        pytest.param(200, 0, marks=pytest.mark.timeout(300)),
        pytest.param(10_000, 1_000_000, marks=[pytest.mark.long, pytest.mark.timeout(3600)]),
    ],
)
def test_every_mutation_is_refused_or_harmless(tmp_path: Path, count: int, first: int) -> None:
    """Harmless: it loads, it predicts, and the packed form gives the same bits as XGBoost. None kills its process."""
    found = fuzz(count, first, tmp_path)
    harmless = ("refused by its structure", "refused by XGBoost", "packed", "XGBoost serves")
    assert sum(found.values()) == count
    assert set(found) <= set(harmless), sorted(path.name for path in tmp_path.iterdir())
    assert all(found.get(end, 0) > count // 100 for end in ("refused by its structure", "packed")), found


def test_the_same_seed_gives_the_same_file() -> None:
    """What a run reports can be made again."""
    assert all(make_mutation(seed) == make_mutation(seed) for seed in range(20))
