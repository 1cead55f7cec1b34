"""No tampered model file gets past its admission, and whatever does get past does no harm."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from service.admission import verify_structure
from service.artifact import read_model_file
from service.errors import ModelFileError
from tests.tampering import cases, ubjson

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
