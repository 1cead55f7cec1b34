"""Which file is served, and what is refused: one line that says why, and nothing is ever executed."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import zipfile
from pathlib import Path

import pytest

from service.artifact import natural_order, read_model_file, verify_unchanged
from service.errors import ModelFileError
from service.master import find_model_faults
from service.models import find_file, find_model, load_model
from service.settings import Settings, read_settings
from tests.apps import Example


def settings_for(place: Path, **environ: str) -> Settings:
    return read_settings({"SCORER_MODEL": str(place), **environ})


def refusal(place: Path, **environ: str) -> str:
    """Why this place cannot be served: one fault of one line, which names the place."""
    with pytest.raises(ModelFileError) as caught:
        load_model(settings_for(place, **environ))
    (fault,) = caught.value.faults
    assert "\n" not in fault
    assert fault.startswith(str(place))
    return fault.removeprefix(f"{place}: ")


def add_version(folder: Path, version: str, example: Example, name: str = "model.ubj") -> Path:
    path = folder / version / name
    path.parent.mkdir(parents=True)
    shutil.copy(example.path, path)
    return path


# Finding.


def test_a_file_is_version_1(iris: Example) -> None:
    """Versioned URLs work for a plain file as well."""
    assert find_model(iris.path) == ("1", iris.path)


def test_a_folder_with_a_model_in_it_is_that_model(iris: Example) -> None:
    assert find_model(iris.path.parent) == ("1", iris.path)


@pytest.mark.parametrize(
    ("versions", "newest"),
    [
        (["1", "2", "10"], "10"),
        (["9", "10", "8"], "10"),
        (["1.9", "1.10", "1.2"], "1.10"),
        (["v1", "v2", "v10"], "v10"),
        (["2024-12-31", "2025-01-01", "2024-06-30"], "2025-01-01"),
        (["7"], "7"),
    ],
)
def test_the_newest_version_is_served(tmp_path: Path, iris: Example, versions: list[str], newest: str) -> None:
    """Versions are ordered as people read them: 2 before 10, and 1.9 before 1.10."""
    for version in versions:
        add_version(tmp_path, version, iris)
    assert find_model(tmp_path) == (newest, tmp_path / newest / "model.ubj")


def test_natural_order_orders_any_two_versions() -> None:
    """Numbers and letters in one place do not end in a TypeError."""
    versions = ["1", "a", "1a", "a1", "1.a", "1.1", "10", "2", "v2", "1-rc1", "_", "1."]
    assert len(sorted(versions, key=natural_order)) == len(versions)
    assert sorted(["10", "9", "1"], key=natural_order) == ["1", "9", "10"]


def test_a_version_may_be_json(tmp_path: Path, iris: Example) -> None:
    folder = tmp_path / "2"
    folder.mkdir()
    (folder / "model.json").write_bytes(bytes(iris.booster.save_raw("json")))
    add_version(tmp_path, "1", iris)
    assert find_model(tmp_path) == ("2", folder / "model.json")
    assert load_model(settings_for(tmp_path)).identity.version == "2"


def test_a_model_may_have_the_name_that_kserve_gives_it(tmp_path: Path, iris: Example) -> None:
    """What is in the file decides how it is read."""
    (tmp_path / "model.bst").write_bytes(iris.path.read_bytes())
    version, file = find_file(read_settings({"SCORER_MODEL": str(tmp_path)}))
    assert (version, file.digest) == ("1", iris.model.identity.digest)


def test_what_is_no_version_is_left_alone(tmp_path: Path, iris: Example) -> None:
    """Files, empty folders and hidden folders beside the versions do no harm: object stores and editors leave them."""
    add_version(tmp_path, "1", iris)
    add_version(tmp_path, ".git", iris)
    add_version(tmp_path, "2 (copy)", iris)
    add_version(tmp_path, "3", iris, name="model.pkl")
    (tmp_path / "4").mkdir()
    (tmp_path / "5").write_text("not a folder")
    assert find_model(tmp_path)[0] == "1"


def test_a_version_may_be_a_link(tmp_path: Path, iris: Example) -> None:
    """Kubernetes mounts config maps and secrets as links to links."""
    add_version(tmp_path, "..data/1", iris)
    (tmp_path / "1").symlink_to(Path("..data") / "1")
    assert find_model(tmp_path) == ("1", tmp_path / "1" / "model.ubj")


def test_identity_is_name_version_and_digest(tmp_path: Path, iris: Example) -> None:
    """What a caller needs to reproduce a score."""
    add_version(tmp_path / "flowers", "3", iris)
    loaded = load_model(settings_for(tmp_path / "flowers"))
    digest = hashlib.sha256(iris.path.read_bytes()).hexdigest()
    identity = loaded.identity
    assert (identity.name, identity.version, identity.digest) == ("flowers", "3", digest)
    assert loaded.load_seconds > 0


def test_contract_is_what_the_file_says(iris: Example, cancer: Example) -> None:
    assert iris.model.predictor.contract.feature_names[0] == "sepal length (cm)"
    assert iris.model.predictor.contract.objective == "multi:softmax"
    assert (iris.model.predictor.contract.features, iris.model.predictor.contract.rounds) == (4, 20)
    assert cancer.model.predictor.contract.objective == "binary:logistic"
    assert (cancer.model.predictor.contract.features, cancer.model.predictor.contract.rounds) == (30, 100)


# Refusing.


def test_a_digest_that_matches_is_served(iris: Example) -> None:
    digest = iris.model.identity.digest
    assert find_file(settings_for(iris.path, SCORER_MODEL_SHA256=digest))[1].digest == digest


def test_a_digest_that_differs_is_refused(iris: Example) -> None:
    """Both digests are in the message: the reader sees which one to put right."""
    fault = refusal(iris.path, SCORER_MODEL_SHA256="0" * 64)
    assert fault == f"the sha256 is {iris.model.identity.digest}, SCORER_MODEL_SHA256 asks for {'0' * 64}"


def test_the_bytes_that_were_checked_are_the_bytes_that_are_loaded(tmp_path: Path, iris: Example) -> None:
    """A file that is replaced after the check does not get in."""
    path = tmp_path / "model.ubj"
    shutil.copy(iris.path, path)
    file = read_model_file(path, iris.model.identity.digest)
    path.write_bytes(b"something else")
    assert hashlib.sha256(file.data).hexdigest() == iris.model.identity.digest


class Malice:
    """Unpickling this makes a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", ["model.ubj", "model.json", "model.pkl", "model.bst"])
def test_a_pickle_is_never_opened(tmp_path: Path, protocol: int, name: str) -> None:
    """Unpickling runs code: a pickle of any protocol under any name is refused by its first bytes."""
    trace = tmp_path / "executed"
    path = tmp_path / name
    path.write_bytes(pickle.dumps(Malice(trace), protocol))
    refusal(path)
    assert not trace.exists()
    pickle.loads(path.read_bytes())
    assert trace.exists(), "the pickle of this test is harmless, so the test says nothing"


def test_a_pickle_is_called_a_pickle(tmp_path: Path) -> None:
    """And the message says what to do instead."""
    path = tmp_path / "model.ubj"
    path.write_bytes(pickle.dumps({"model": 1}))
    assert refusal(path) == "this is a pickle; save the model with Booster.save_model('model.ubj')"


def zipped(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model.ubj", data)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (gzip.compress(b"{}"), "this is a gzip file; expected the model file itself"),
        (zipped(b"{}"), "this is a zip or joblib archive; expected the model file itself"),
        (b"<!DOCTYPE html><html>Sign in</html>", "this is a web page or XML"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "this is a web page or XML"),
        (b"binf\x00\x00", "this is XGBoost's old binary format, which 3.1 removed"),
        (b"CONFIG-offset:123", "this is a memory snapshot of a booster"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "this is a Git LFS pointer; fetch the file with `git lfs pull`",
        ),
        (b"\x00" * 100, "neither JSON nor UBJSON"),
        (b"[1, 2, 3]", "neither JSON nor UBJSON"),
        (b"\xef\xbb\xbf{}", "neither JSON nor UBJSON"),
    ],
)
def test_what_is_no_model_is_named(tmp_path: Path, data: bytes, reason: str) -> None:
    """What people hand over by mistake is told by its first bytes."""
    path = tmp_path / "model.ubj"
    path.write_bytes(data)
    assert refusal(path).startswith(reason)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"{}", "the document: no learner"),
        (b'{"version": [3, 2, 0]}', "the document: no learner"),
        (b'{"a": ', "not a document of JSON: character 6: Expecting value"),
        (b"{not json", "not a document of UBJSON: byte 1: expected a length, an int64"),
    ],
)
def test_what_begins_as_a_model_and_is_none_is_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "model.json"
    path.write_bytes(data)
    assert refusal(path).startswith(reason)


def test_all_faults_are_listed_at_once(tmp_path: Path) -> None:
    """Whoever mends the file mends it once."""
    path = tmp_path / "model.json"
    path.write_bytes(b'{"learner": {}}')
    with pytest.raises(ModelFileError) as caught:
        load_model(settings_for(path))
    faults = [fault.removeprefix(f"{path}: ") for fault in caught.value.faults]
    assert faults == [
        "the document: no version",
        "learner: no learner_model_param",
        "learner: no objective",
        "learner: no attributes",
    ]


def test_what_xgboost_refuses_is_told_in_its_words_without_those_of_the_file(tmp_path: Path, iris: Example) -> None:
    """One line: XGBoost's own sentence and version, without its stack of C++ frames and without what it quotes."""
    document = json.loads(iris.booster.save_raw("json"))
    document["learner"]["learner_model_param"]["boost_from_average"] = "secret"
    path = tmp_path / "model.json"
    path.write_text(json.dumps(document))
    fault = refusal(path)
    assert re.match(r"XGBoost \d+\.\d+\.\d+: Invalid Parameter format", fault)
    assert "[bt]" not in fault
    assert "secret" not in fault


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path / "model.ubj") == "no such file or folder"


def test_a_folder_without_versions_is_refused(tmp_path: Path) -> None:
    """The message says what a folder should hold."""
    assert refusal(tmp_path) == "expected <version>/model.ubj or <version>/model.json in this folder"


def test_a_folder_of_several_models_is_not_one_of_versions(tmp_path: Path, iris: Example) -> None:
    """Else the model whose name is the last in the alphabet would be served, and a swap would change to another one."""
    for model in ("iris", "breast-cancer"):
        add_version(tmp_path, model, iris)
    assert refusal(tmp_path) == (
        "expected folders of versions, such as 7, v7 or 2026-11-30, got breast-cancer, iris; a server serves one model"
    )
    add_version(tmp_path, "7", iris)
    assert find_model(tmp_path)[0] == "7"


def test_a_folder_in_the_place_of_the_model_is_no_version(tmp_path: Path) -> None:
    (tmp_path / "1" / "model.ubj").mkdir(parents=True)
    assert refusal(tmp_path).startswith("expected <version>/model.ubj")


@pytest.mark.timeout(10)
def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    """Reading it would wait for a writer for ever."""
    path = tmp_path / "model.ubj"
    os.mkfifo(path)
    assert refusal(path) == "not a regular file"


def test_a_device_is_refused() -> None:
    assert refusal(Path("/dev/null")) == "not a regular file"


def test_a_link_to_nowhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.ubj"
    path.symlink_to(tmp_path / "gone.ubj")
    assert refusal(path) == "no such file or folder"


def test_a_link_to_itself_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.ubj"
    path.symlink_to(path)
    assert refusal(path)


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    """What the kernel says about a path is a fault like any other."""
    assert refusal(tmp_path / ("a" * 300)) == "File name too long"


def test_a_truncated_model_is_a_fault(tmp_path: Path, cancer: Example) -> None:
    """A download that broke off, here within an array of numbers, is told before the start, in one line."""
    path = tmp_path / "model.ubj"
    data = cancer.path.read_bytes()
    path.write_bytes(data[: data.index(b"[$d#L", len(data) // 2) + 17])
    (fault,) = find_model_faults(settings_for(path))
    assert fault.startswith(f"{path}: not a document of UBJSON: ")
    assert "\n" not in fault


def test_a_file_that_would_kill_xgboost_does_not_reach_it(tmp_path: Path) -> None:
    """A million brackets end XGBoost 3.2.0 with a segmentation fault."""
    path = tmp_path / "model.json"
    path.write_bytes(b'{"learner": ' + b"[" * 1_000_000)
    (fault,) = find_model_faults(settings_for(path))
    assert fault == f"{path}: not a document of JSON: byte 43: nested deeper than 32"


def test_a_link_within_the_folder_is_followed(tmp_path: Path, iris: Example) -> None:
    """As Kubernetes mounts a config map: the name, a link to ..data, a link to the folder of one revision."""
    add_version(tmp_path, "..2026_11_21", iris)
    (tmp_path / "..data").symlink_to("..2026_11_21")
    (tmp_path / "model.ubj").symlink_to(Path("..data") / "model.ubj")
    assert read_model_file(tmp_path / "model.ubj").digest == iris.model.identity.digest


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, iris: Example) -> None:
    """A model must not show files of others."""
    outside = tmp_path / "outside" / "model.ubj"
    outside.parent.mkdir()
    shutil.copy(iris.path, outside)
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "model.ubj"
    path.symlink_to(outside)
    assert refusal(path).startswith("a link out of its folder")
    (tmp_path / "models" / "1").symlink_to(outside.parent)
    path.unlink()
    with pytest.raises(ModelFileError, match="a link out of"):
        find_model(tmp_path / "models")


def test_a_folder_that_is_named_itself_may_be_a_link(tmp_path: Path, iris: Example) -> None:
    """`current` as a link to the release is how many deploy."""
    add_version(tmp_path / "release-7", "1", iris)
    (tmp_path / "current").symlink_to("release-7")
    version, path = find_model(tmp_path / "current")
    assert (version, read_model_file(path).digest) == ("1", iris.model.identity.digest)


def test_a_file_that_grows_while_it_is_read_is_refused(tmp_path: Path) -> None:
    """A copy that is under way. The file is written to between two looks at it, here by whoever asks for its size."""
    path = tmp_path / "model.ubj"
    path.write_bytes(b"{" * 100)
    with path.open("rb") as file:
        size = os.fstat(file.fileno())
        path.write_bytes(b"{" * 200)
        with pytest.raises(ModelFileError, match="changed while it was read"):
            verify_unchanged(path, size, os.fstat(file.fileno()), 100)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    """Sparse: 2 GiB that take no place on the disk."""
    path = tmp_path / "model.ubj"
    with path.open("wb") as file:
        file.truncate(2 << 30)
    assert refusal(path) == f"{2 << 30} bytes; expected at most {1 << 30}"


def test_a_good_model_has_no_faults(iris: Example) -> None:
    """The check before the start passes what can be served."""
    assert list(find_model_faults(settings_for(iris.path))) == []
