"""Models from a bucket, of moto's S3 server: the newest version, whole or not at all, and errors that say what to mend."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from service.errors import FetchError
from service.sources.remote import Fetched
from tests.sources.places import MEGABYTE, Listener, bring, files_in, limits, make_model
from tests.sources.servers import BUCKET, Moto, Proxy, is_listening, running_proxy

MODEL = make_model(20 * MEGABYTE)
SMALL = make_model(5000)


def refusal(uri: str, folder: Path, **options: Any) -> FetchError:
    with pytest.raises(FetchError) as caught:
        bring(uri, folder, **options)
    assert files_in(folder) == []
    assert "\n" not in caught.value.reason
    return caught.value


@pytest.fixture
def proxy(moto: Moto, monkeypatch: pytest.MonkeyPatch) -> Any:
    """moto, seen through a proxy that may misbehave."""
    with running_proxy(moto.port) as between:
        monkeypatch.setenv("AWS_ENDPOINT_URL", between.url)
        yield between


# Finding.


def test_a_file_is_fetched_into_the_folder(moto: Moto, tmp_path: Path) -> None:
    moto.put("churn/model.ubj", SMALL)
    found = bring(f"s3://{BUCKET}/churn/model.ubj", tmp_path)
    assert (found.version, found.digest) == ("1", hashlib.sha256(SMALL).hexdigest())
    assert (tmp_path / "model.ubj").read_bytes() == SMALL
    assert files_in(tmp_path) == ["model.ubj"]


def test_a_file_may_have_any_name(moto: Moto, tmp_path: Path) -> None:
    moto.put("churn-2024.json", b"{}")
    bring(f"s3://{BUCKET}/churn-2024.json", tmp_path)
    assert files_in(tmp_path) == ["model.json"]


@pytest.mark.parametrize("slash", ["", "/"])
def test_the_newest_version_in_a_folder_is_taken(moto: Moto, tmp_path: Path, slash: str) -> None:
    """2 before 10, as on a disk; a folder without a model in it, as one that is being written, is passed over."""
    for version in ("2", "9", "10"):
        moto.put(f"churn/{version}/model.ubj", SMALL + version.encode())
    moto.put("churn/11/notes.txt", b"not yet")
    moto.put("churn/2 (copy)/model.ubj", SMALL)
    found = bring(f"s3://{BUCKET}/churn{slash}", tmp_path)
    assert found.version == "10"
    assert (tmp_path / "10" / "model.ubj").read_bytes() == SMALL + b"10"


def test_a_version_called_1_is_a_version(moto: Moto, tmp_path: Path) -> None:
    moto.put("churn/1/model.ubj", SMALL)
    bring(f"s3://{BUCKET}/churn", tmp_path)
    assert files_in(tmp_path) == ["1/model.ubj"]


def test_a_model_that_lies_in_the_folder_itself_is_taken(moto: Moto, tmp_path: Path) -> None:
    moto.put("churn/model.json", b"{}")
    bring(f"s3://{BUCKET}/churn", tmp_path)
    assert files_in(tmp_path) == ["model.json"]


def test_versions_may_lie_at_the_root_of_the_bucket(moto: Moto, tmp_path: Path) -> None:
    moto.put("7/model.ubj", SMALL)
    assert bring(f"s3://{BUCKET}", tmp_path).version == "7"


def test_golden_rows_beside_the_model_come_along_and_go(moto: Moto, tmp_path: Path) -> None:
    moto.put("churn/model.ubj", SMALL)
    moto.put("churn/golden.json", b'{"rows": []}')
    bring(f"s3://{BUCKET}/churn/model.ubj", tmp_path)
    assert files_in(tmp_path) == ["golden.json", "model.ubj"]
    moto.delete("churn/golden.json")
    assert bring(f"s3://{BUCKET}/churn/model.ubj", tmp_path).is_new
    assert files_in(tmp_path) == ["model.ubj"]


@pytest.mark.parametrize(
    ("key", "golden"),
    [
        ("churn/model.ubj", "churn/golden.json"),
        ("churn/model.json", "churn/model.golden.json"),
        ("models/churn.ubj", "models/churn.golden.json"),
    ],
)
def test_golden_rows_are_those_of_the_file(moto: Moto, tmp_path: Path, key: str, golden: str) -> None:
    moto.put(key, b"{}")
    moto.put(golden, b'{"rows": []}')
    bring(f"s3://{BUCKET}/{key}", tmp_path)
    assert (tmp_path / "golden.json").read_bytes() == b'{"rows": []}'


def test_golden_rows_of_another_file_stay_where_they_are(moto: Moto, tmp_path: Path) -> None:
    moto.put("models/churn.ubj", SMALL)
    moto.put("models/golden.json", b'{"rows": []}')
    bring(f"s3://{BUCKET}/models/churn.ubj", tmp_path)
    assert files_in(tmp_path) == ["model.ubj"]


def test_golden_rows_beyond_the_limit_are_refused(moto: Moto, tmp_path: Path) -> None:
    moto.put("churn/model.ubj", SMALL)
    moto.put("churn/golden.json", b" " * (16 * 2**20 + 1))
    assert "at most 16,777,216 are taken (golden.json)" in refusal(f"s3://{BUCKET}/churn/model.ubj", tmp_path).reason


# Digests, and what is there already.


def test_another_digest_is_refused_with_both(moto: Moto, tmp_path: Path) -> None:
    moto.put("model.ubj", SMALL)
    digest = hashlib.sha256(SMALL).hexdigest()
    error = refusal(f"s3://{BUCKET}/model.ubj", tmp_path, sha256="0" * 64)
    assert error.reason.endswith(f"the sha256 is {digest[:12]}…, expected 000000000000…")
    assert not error.is_temporary


def test_a_refused_file_leaves_the_one_before_in_its_place(moto: Moto, tmp_path: Path) -> None:
    moto.put("model.ubj", SMALL)
    digest = bring(f"s3://{BUCKET}/model.ubj", tmp_path).digest
    moto.put("model.ubj", SMALL + b"!")
    (tmp_path / ".source.json").unlink()  # as if it had been put there by hand
    assert not bring(f"s3://{BUCKET}/model.ubj", tmp_path, sha256=digest).is_new
    with pytest.raises(FetchError):
        bring(f"s3://{BUCKET}/model.ubj", tmp_path, sha256="0" * 64)
    assert (tmp_path / "model.ubj").read_bytes() == SMALL


def test_what_is_pinned_and_there_needs_no_store(moto: Moto, proxy: Proxy, tmp_path: Path) -> None:
    moto.put("churn/3/model.ubj", SMALL)
    digest = bring(f"s3://{BUCKET}/churn", tmp_path).digest
    proxy.requests.clear()
    found = bring(f"s3://{BUCKET}/churn", tmp_path, sha256=digest)
    assert (found.version, found.is_new) == ("3", False)
    assert proxy.requests == []


def test_what_is_there_is_fetched_again_only_if_it_changed(moto: Moto, proxy: Proxy, tmp_path: Path) -> None:
    moto.put("churn/3/model.ubj", SMALL)
    assert [bring(f"s3://{BUCKET}/churn", tmp_path).is_new for _ in range(3)] == [True, False, False]
    assert proxy.count("GET", "churn/3/model.ubj") == 1
    moto.put("churn/3/model.ubj", SMALL + b"!")
    assert bring(f"s3://{BUCKET}/churn", tmp_path).is_new
    assert (tmp_path / "3" / "model.ubj").read_bytes() == SMALL + b"!"


def test_a_file_that_was_damaged_on_the_disk_is_fetched_again(moto: Moto, tmp_path: Path) -> None:
    moto.put("model.ubj", SMALL)
    bring(f"s3://{BUCKET}/model.ubj", tmp_path)
    (tmp_path / "model.ubj").write_bytes(SMALL[:100])
    assert bring(f"s3://{BUCKET}/model.ubj", tmp_path).is_new
    assert (tmp_path / "model.ubj").read_bytes() == SMALL


def test_the_version_before_is_kept_and_no_other(moto: Moto, tmp_path: Path) -> None:
    for version in range(1, 5):
        moto.put(f"churn/{version}/model.ubj", SMALL + bytes([version]))
        bring(f"s3://{BUCKET}/churn", tmp_path)
    assert files_in(tmp_path) == ["3/model.ubj", "4/model.ubj"]


def test_a_version_that_was_withdrawn_is_withdrawn_here(moto: Moto, tmp_path: Path) -> None:
    """Who reads the folder takes the newest by its name: the withdrawn one would be served for ever."""
    for version in (6, 7):
        moto.put(f"churn/{version}/model.ubj", SMALL + bytes([version]))
        bring(f"s3://{BUCKET}/churn", tmp_path)
    moto.delete("churn/7/model.ubj")
    assert bring(f"s3://{BUCKET}/churn", tmp_path).version == "6"
    assert files_in(tmp_path) == ["6/model.ubj"]


def test_another_uri_in_the_same_folder_takes_the_place_of_the_first(moto: Moto, tmp_path: Path) -> None:
    """A file in the folder itself would be served before any version, and a version of another model is none of this one."""
    moto.put("other/model.ubj", SMALL)
    moto.put("churn/2/model.ubj", SMALL)
    moto.put("risk/7/model.ubj", SMALL)
    bring(f"s3://{BUCKET}/other/model.ubj", tmp_path)
    bring(f"s3://{BUCKET}/risk", tmp_path)
    assert files_in(tmp_path) == ["7/model.ubj"]
    bring(f"s3://{BUCKET}/churn", tmp_path)
    assert files_in(tmp_path) == ["2/model.ubj"]


def test_what_others_put_into_the_folder_is_left_alone(moto: Moto, tmp_path: Path) -> None:
    (tmp_path / "9").mkdir()
    (tmp_path / "9" / "model.ubj").write_bytes(SMALL)
    for version in (1, 2, 3):
        moto.put(f"churn/{version}/model.ubj", SMALL + bytes([version]))
        bring(f"s3://{BUCKET}/churn", tmp_path)
    assert "9/model.ubj" in files_in(tmp_path)


# Faults on the way.


def test_a_break_in_the_middle_goes_on_where_it_was(moto: Moto, proxy: Proxy, tmp_path: Path) -> None:
    """20 MB with three breaks: the ranges say that nothing was read twice."""
    moto.put("model.ubj", MODEL)
    proxy.break_after, proxy.breaks = 6 * MEGABYTE, 3
    listener = Listener()
    found = bring(f"s3://{BUCKET}/model.ubj", tmp_path, listener=listener)
    assert found.digest == hashlib.sha256(MODEL).hexdigest()
    heads = proxy.heads("GET", "model.ubj")
    assert len(heads) == 4
    assert all("\r\nif-match:" in head.lower() and "\r\nrange: bytes=" in head.lower() for head in heads[1:])
    assert len(listener.notes) == 3
    received = [received for state, received, _ in listener.states if state == "fetching"]
    assert received == sorted(received)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_200_megabytes_with_a_break_in_the_middle_arrive_whole(moto: Moto, proxy: Proxy, tmp_path: Path) -> None:
    model = make_model(200 * MEGABYTE)
    moto.put("model.ubj", model)
    proxy.break_after, proxy.breaks = 100 * MEGABYTE, 1
    found = bring(f"s3://{BUCKET}/model.ubj", tmp_path, within=limits(max_bytes=2**30))
    assert found.digest == hashlib.sha256(model).hexdigest()
    assert len(proxy.heads("GET", "model.ubj")) == 2


def test_a_store_that_always_breaks_is_given_up(moto: Moto, proxy: Proxy, tmp_path: Path) -> None:
    moto.put("model.ubj", MODEL)
    proxy.break_after, proxy.breaks = 2000, 1000
    error = refusal(f"s3://{BUCKET}/model.ubj", tmp_path)
    assert "the connection broke" in error.reason
    assert error.reason.endswith("3 attempts")
    assert error.is_temporary


def test_breaks_are_forgiven_as_long_as_bytes_come(moto: Moto, proxy: Proxy, tmp_path: Path) -> None:
    """Nine breaks with three attempts allowed: each time a megabyte had come."""
    moto.put("model.ubj", MODEL)
    proxy.break_after, proxy.breaks = 2 * MEGABYTE, 9
    assert bring(f"s3://{BUCKET}/model.ubj", tmp_path).size == len(MODEL)


def test_a_file_that_is_replaced_between_two_attempts_is_not_a_mixture(
    moto: Moto, proxy: Proxy, tmp_path: Path
) -> None:
    """The range is asked for with If-Match: the store says 412, and it begins anew."""
    moto.put("model.ubj", MODEL)
    new = make_model(3 * MEGABYTE, seed=1)

    class Replacing(Listener):
        def note(self, text: str) -> None:
            if not self.notes:
                moto.put("model.ubj", new)
            super().note(text)

    proxy.break_after, proxy.breaks = 6 * MEGABYTE, 1
    listener = Replacing()
    found = bring(f"s3://{BUCKET}/model.ubj", tmp_path, listener=listener)
    assert found.digest == hashlib.sha256(new).hexdigest()
    assert "replaced in the store" in listener.notes[1]
    assert not bring(f"s3://{BUCKET}/model.ubj", tmp_path).is_new


BUSY = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


def test_a_store_that_is_busy_is_asked_again(moto: Moto, proxy: Proxy, tmp_path: Path) -> None:
    moto.put("model.ubj", SMALL)
    proxy.instead += [BUSY, BUSY]
    listener = Listener()
    assert bring(f"s3://{BUCKET}/model.ubj", tmp_path, listener=listener).size == len(SMALL)
    assert [": 503 " in note for note in listener.notes] == [True, True]


def test_a_store_that_hangs_up_is_asked_again(moto: Moto, proxy: Proxy, tmp_path: Path) -> None:
    moto.put("model.ubj", SMALL)
    proxy.instead += [b"", b"HTTP/1.1 200"]
    assert bring(f"s3://{BUCKET}/model.ubj", tmp_path).size == len(SMALL)


def test_silence_is_given_up(moto: Moto, proxy: Proxy, tmp_path: Path) -> None:
    moto.put("model.ubj", MODEL)
    proxy.hold_after = MEGABYTE // 2
    error = refusal(f"s3://{BUCKET}/model.ubj", tmp_path, within=limits(stall_seconds=0.3, attempts=2))
    assert "silent for too long" in error.reason
    assert error.is_temporary


def test_a_file_beyond_the_limit_is_refused_before_it_is_read(moto: Moto, proxy: Proxy, tmp_path: Path) -> None:
    moto.put("model.ubj", SMALL)
    error = refusal(f"s3://{BUCKET}/model.ubj", tmp_path, within=limits(max_bytes=4999))
    assert "5,000 bytes or more; at most 4,999 are taken" in error.reason
    assert proxy.count("GET", "model.ubj") == 0


def test_what_an_earlier_process_left_half_done_is_not_used(moto: Moto, tmp_path: Path) -> None:
    moto.put("model.ubj", SMALL)
    (tmp_path / ".fetching").mkdir()
    (tmp_path / ".fetching" / "model.ubj").write_bytes(b"{half")
    (tmp_path / ".fetching" / "golden.json").write_bytes(b"{half")
    bring(f"s3://{BUCKET}/model.ubj", tmp_path)
    assert files_in(tmp_path) == ["model.ubj"]
    assert (tmp_path / "model.ubj").read_bytes() == SMALL


def test_many_at_once_share_one_download(moto: Moto, proxy: Proxy, tmp_path: Path) -> None:
    """As the workers of a server do; those who wait see how far it is."""
    moto.put("model.ubj", MODEL)
    proxy.hold_after = 5 * MEGABYTE
    listeners = [Listener() for _ in range(4)]
    found: list[Fetched] = []

    def run(listener: Listener) -> None:
        found.append(bring(f"s3://{BUCKET}/model.ubj", tmp_path, listener=listener, is_cache=True, since=1.0))

    threads = [threading.Thread(target=run, args=(listener,)) for listener in listeners]
    for thread in threads:
        thread.start()
    proxy.holding.wait(30)
    while sum(any(state == "waiting" and total for state, _, total in one.states) for one in listeners) < 3:
        threading.Event().wait(0.01)
    proxy.release.set()
    for thread in threads:
        thread.join()
    assert proxy.count("GET", "model.ubj") == 1
    assert proxy.count("HEAD", "model.ubj") == 1
    assert sorted(one.is_new for one in found) == [False, False, False, True]
    waited = [total for one in listeners for state, _, total in one.states if state == "waiting" and total]
    assert set(waited) == {len(MODEL)}


def test_in_the_cache_a_new_file_never_replaces_one_that_is_read(moto: Moto, tmp_path: Path) -> None:
    moto.put("model.ubj", SMALL)
    first = bring(f"s3://{BUCKET}/model.ubj", tmp_path, is_cache=True)
    moto.put("model.ubj", SMALL + b"!")
    second = bring(f"s3://{BUCKET}/model.ubj", tmp_path, is_cache=True)
    assert first.path != second.path
    assert Path(first.path).read_bytes() == SMALL
    moto.put("model.ubj", SMALL + b"!!")
    bring(f"s3://{BUCKET}/model.ubj", tmp_path, is_cache=True)
    assert not Path(first.path).exists()
    assert Path(second.path).exists()


# What is wrong, and what would be right.


def test_a_missing_bucket_is_named_with_region_and_endpoint(moto: Moto, tmp_path: Path) -> None:
    error = refusal("s3://no-such-bucket/churn", tmp_path)
    assert error.reason == (
        f"s3://no-such-bucket/churn: no such bucket (AWS_REGION=us-east-1, AWS_ENDPOINT_URL={moto.url})"
    )
    assert not error.is_temporary


def test_a_missing_key_is_named(moto: Moto, tmp_path: Path) -> None:
    assert f"s3://{BUCKET}/gone.ubj: no such key" in refusal(f"s3://{BUCKET}/gone.ubj", tmp_path).reason


def test_a_folder_without_a_version_says_what_was_expected(moto: Moto, tmp_path: Path) -> None:
    moto.put("churn/readme.txt", b"soon")
    error = refusal(f"s3://{BUCKET}/churn", tmp_path)
    assert "expected <version>/model.ubj or <version>/model.json under this key" in error.reason


def test_folders_that_are_no_versions_are_named(moto: Moto, tmp_path: Path) -> None:
    """A folder of models, one level too high, must not be served as one model whose versions they are."""
    for model in ("churn", "fraud"):
        moto.put(f"models/{model}/model.ubj", SMALL)
    reason = refusal(f"s3://{BUCKET}/models", tmp_path).reason
    assert reason.endswith("expected <version>/model.ubj or <version>/model.json under this key, got churn, fraud")


def test_a_denial_says_as_whom_it_was_asked(proxy: Proxy, tmp_path: Path) -> None:
    """The store's own words hold the key's id and what was signed: they are not repeated."""
    body = b"<Error><Code>AccessDenied</Code><AWSAccessKeyId>AKIAOFTHISTEST</AWSAccessKeyId></Error>"
    proxy.instead.append(b"HTTP/1.1 403 Forbidden\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    error = refusal(f"s3://{BUCKET}/churn", tmp_path)
    assert "access denied (403 AccessDenied) to the access key in AWS_ACCESS_KEY_ID" in error.reason
    assert "expected the right to list it (AWS_REGION=us-east-1" in error.reason
    assert "AKIAOFTHISTEST" not in error.reason
    assert not error.is_temporary


def test_another_region_is_named(proxy: Proxy, tmp_path: Path) -> None:
    proxy.instead.append(b"HTTP/1.1 301 Moved Permanently\r\nContent-Length: 0\r\n\r\n")
    assert "in another region" in refusal(f"s3://{BUCKET}/model.ubj", tmp_path).reason


def test_a_store_that_is_not_there_is_temporary(moto: Moto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert not is_listening(1)
    error = refusal(f"s3://{BUCKET}/model.ubj", tmp_path)
    assert "connection refused" in error.reason
    assert error.is_temporary


def test_a_folder_that_cannot_be_written_is_named(moto: Moto, tmp_path: Path) -> None:
    moto.put("model.ubj", SMALL)
    (tmp_path / "file").touch()
    with pytest.raises(FetchError, match=r"file/models: Not a directory"):
        bring(f"s3://{BUCKET}/model.ubj", tmp_path / "file" / "models")


def test_the_record_survives_a_move_of_the_folder(moto: Moto, proxy: Proxy, tmp_path: Path) -> None:
    """An init container mounts the volume elsewhere than the server does."""
    moto.put("churn/3/model.ubj", SMALL)
    bring(f"s3://{BUCKET}/churn", tmp_path / "there")
    os.rename(tmp_path / "there", tmp_path / "here")
    found = bring(f"s3://{BUCKET}/churn", tmp_path / "here")
    assert (found.path, found.is_new) == (str(tmp_path / "here" / "3" / "model.ubj"), False)
    assert str(tmp_path) not in json.dumps(json.loads((tmp_path / "here" / "3" / ".source.json").read_text()))
