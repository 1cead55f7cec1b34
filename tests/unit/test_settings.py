"""Settings are read once, all their faults are told at once, and the defaults can be deployed."""

from __future__ import annotations

import dataclasses
import re
from contextlib import suppress
from pathlib import Path

import pytest

from service.errors import StartError
from service.settings import SETTINGS, Settings, Uri, default_model_name, read_settings

MODEL = {"SCORER_MODEL": "models/churn.ubj"}


def faults_of(**environ: str) -> tuple[str, ...]:
    with pytest.raises(StartError) as caught:
        read_settings({**MODEL, **environ})
    return caught.value.faults


def test_defaults() -> None:
    """What a deployment gets that sets nothing but the model; a change here is a change for everybody."""
    assert dataclasses.asdict(read_settings(MODEL)) == {
        "model": Path("models/churn.ubj"),
        "model_name": "churn",
        "model_sha256": "",
        "model_poll_seconds": 5.0,
        "model_https_hosts": "",
        "model_max_bytes": 2**30,
        "fetch_timeout_seconds": 600.0,
        "cache_dir": "",
        "host": "127.0.0.1",
        "port": 8000,
        "admin_port": 0,
        "workers": 0,
        "max_body_bytes": 16 * 1024 * 1024,
        "max_rows_per_request": 100_000,
        "max_in_flight": 256,
        "read_timeout_seconds": 15.0,
        "keepalive_seconds": 75.0,
        "drain_seconds": 30.0,
        "slow_request_seconds": 1.0,
        "access_log_ratio": 0.0,
    }


def test_every_setting_is_read_from_its_variable() -> None:
    """No line of the table reads another's variable."""
    values = {
        "SCORER_MODEL": ("/m/a.json", Path("/m/a.json")),
        "SCORER_MODEL_NAME": ("Churn-2.1_b", "Churn-2.1_b"),
        "SCORER_MODEL_SHA256": ("0123456789abcdef" * 4, "0123456789abcdef" * 4),
        "SCORER_MODEL_POLL_SECONDS": ("0.5", 0.5),
        "SCORER_MODEL_HTTPS_HOSTS": ("Example.com, 10.0.0.0/8,", "example.com,10.0.0.0/8"),
        "SCORER_MODEL_MAX_BYTES": ("7000", 7000),
        "SCORER_FETCH_TIMEOUT_SECONDS": ("90", 90.0),
        "SCORER_CACHE_DIR": ("/var/cache/scorer", "/var/cache/scorer"),
        "SCORER_HOST": ("::1", "::1"),
        "SCORER_PORT": ("80", 80),
        "SCORER_ADMIN_PORT": ("9100", 9100),
        "WEB_CONCURRENCY": ("3", 3),
        "SCORER_MAX_BODY_BYTES": ("1000", 1000),
        "SCORER_MAX_ROWS_PER_REQUEST": ("10", 10),
        "SCORER_MAX_IN_FLIGHT": ("5", 5),
        "SCORER_READ_TIMEOUT_SECONDS": ("2.5", 2.5),
        "SCORER_KEEPALIVE_SECONDS": ("61", 61.0),
        "SCORER_DRAIN_SECONDS": ("45", 45.0),
        "SCORER_SLOW_REQUEST_SECONDS": ("0", 0.0),
        "SCORER_ACCESS_LOG_RATIO": ("0.25", 0.25),
    }
    assert list(values) == [setting.variable for setting in SETTINGS]
    settings = read_settings({name: text for name, (text, _) in values.items()})
    assert dataclasses.astuple(settings) == tuple(value for _, value in values.values())


def test_an_empty_variable_is_an_unset_one() -> None:
    """Charts render `value: ""` for what nobody set; white space around a value is a typing error nobody sees."""
    settings = read_settings({**MODEL, "SCORER_PORT": "", "SCORER_HOST": "  ", "SCORER_MAX_IN_FLIGHT": " 7 "})
    assert (settings.port, settings.host, settings.max_in_flight) == (8000, "127.0.0.1", 7)


def test_all_faults_are_told_at_once() -> None:
    """A deployment is mended in one go: every wrong value, unknown name and missing setting in one error."""
    with pytest.raises(StartError) as caught:
        read_settings(
            {
                "SCORER_PORT": "eighty",
                "SCORER_MODEL_NAME": "a/b",
                "SCORER_ACCESS_LOG_RATIO": "2",
                "SCORER_MAX_ROWS": "10",
                "WEB_CONCURRENCY": "-1",
            }
        )
    assert [fault.partition(":")[0] for fault in caught.value.faults] == [
        "SCORER_MAX_ROWS",
        "SCORER_MODEL",
        "SCORER_MODEL_NAME",
        "SCORER_PORT",
        "WEB_CONCURRENCY",
        "SCORER_ACCESS_LOG_RATIO",
    ]
    assert str(caught.value) == "; ".join(caught.value.faults)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("SCORER_MODLE", "SCORER_MODEL"),
        ("SCORER_MAX_ROW_PER_REQUESTS", "SCORER_MAX_ROWS_PER_REQUEST"),
        ("SCORER_KEEP_ALIVE_SECONDS", "SCORER_KEEPALIVE_SECONDS"),
        ("SCORER_MODEL_SHA", "SCORER_MODEL_SHA256"),
    ],
)
def test_an_unknown_name_comes_with_the_nearest_right_one(name: str, nearest: str) -> None:
    """A misspelt setting stops the start: it would be a setting that silently does nothing."""
    assert faults_of(**{name: "1"}) == (f"{name}: no such setting; did you mean {nearest}?",)


def test_an_unknown_name_that_resembles_nothing_points_to_the_list() -> None:
    """A wild guess would mislead more than none."""
    assert faults_of(SCORER_ZZZ="1") == ("SCORER_ZZZ: no such setting; `xgboost-server settings` lists all",)


def test_other_programs_variables_are_left_alone() -> None:
    """Only the prefix is ours: Kubernetes and shells fill the environment with names."""
    others = {"XGBOOST_SERVER_PORT": "tcp://10.0.0.1:80", "scorer_port": "x", "PORT": "x", "SCORER": "x"}
    assert read_settings({**MODEL, **others}) == read_settings(MODEL)


@pytest.mark.parametrize("text", ["0", "65536", "-1", "80.0", "1e3", "0x50", "8 0", "99999999999999999999", "true"])
def test_a_port_is_a_whole_number_in_range(text: str) -> None:
    """The fault says what would be right, and not what was given: a secret may have landed in the wrong variable."""
    assert faults_of(SCORER_PORT=text) == ("SCORER_PORT: expected a whole number from 1 to 65535",)


@pytest.mark.parametrize("text", ["-1", "1.5", "nan", "inf", ".5", "1e-3", "one half"])
def test_a_ratio_is_a_number_from_0_to_1(text: str) -> None:
    assert faults_of(SCORER_ACCESS_LOG_RATIO=text) == ("SCORER_ACCESS_LOG_RATIO: expected a number from 0 to 1",)


@pytest.mark.parametrize("text", ["A" * 64, "0" * 63, "0" * 65, "sha512:" + "0" * 64])
def test_a_digest_is_64_hexadecimal_digits(text: str) -> None:
    expected = "SCORER_MODEL_SHA256: expected 64 lower-case hexadecimal digits"
    assert faults_of(SCORER_MODEL_SHA256=text) == (expected,)


def test_a_digest_may_be_given_as_check_prints_it() -> None:
    assert read_settings({**MODEL, "SCORER_MODEL_SHA256": "sha256:" + "0f" * 32}).model_sha256 == "0f" * 32


@pytest.mark.parametrize("text", ["a/b", "a b", "-a", ".", "a:predict", "ä", "a" * 129, 'a"b', "a\nb"])
def test_a_model_name_fits_into_a_url_and_a_header(text: str) -> None:
    expected = "SCORER_MODEL_NAME: expected letters, digits, dots, dashes and underscores"
    assert faults_of(SCORER_MODEL_NAME=text) == (expected,)


def test_the_admin_port_is_another_one() -> None:
    """On the callers' port it would hide nothing."""
    assert faults_of(SCORER_ADMIN_PORT="8000") == ("SCORER_ADMIN_PORT: expected another port than SCORER_PORT",)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("model.ubj", "model.ubj"),
        ("/models/iris", "/models/iris"),
        ("file:///models/iris/model.ubj", "/models/iris/model.ubj"),
        ("file:///a%20folder/m%C3%BCll.json", "/a folder/müll.json"),
        ("FILE:///models/iris", "/models/iris"),
        ("/odd/name#1?.ubj", "/odd/name#1?.ubj"),
        ("a:b.ubj", "a:b.ubj"),
    ],
)
def test_a_model_is_a_path_or_a_file_uri(text: str, path: str) -> None:
    """`file://` stands for the path it holds, percent signs undone."""
    assert read_settings({"SCORER_MODEL": text}).model == Path(path)


@pytest.mark.parametrize(
    ("text", "place", "path"),
    [
        ("s3://models/churn/model.ubj", "models", "churn/model.ubj"),
        ("s3://models", "models", ""),
        ("gs://models/churn/", "models", "churn/"),
        ("az://container/a%20b.ubj", "container", "a%20b.ubj"),
        ("S3://Models/Churn", "Models", "Churn"),
        ("https://example.com/churn/model.ubj", "example.com", "churn/model.ubj"),
        ("https://Example.com:8443/m?X-Amz-Signature=1", "example.com:8443", "m"),
        ("https://[::1]:8443/m.ubj", "[::1]:8443", "m.ubj"),
    ],
)
def test_a_model_may_have_a_uri(text: str, place: str, path: str) -> None:
    """Keys are taken as they are written, as the stores' own tools do."""
    uri = read_settings({"SCORER_MODEL": text}).model
    assert isinstance(uri, Uri)
    assert (uri.text, uri.scheme, uri.place, uri.path) == (text, text.partition(":")[0].lower(), place, path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ftp://example.com/m.ubj", "expected a path, or a URI that begins with s3://"),
        ("http://example.com/m.ubj", "expected a path, or a URI that begins with s3://"),
        ("s3:///churn", "expected s3://<bucket>/"),
        ("s3://b ucket/churn", "expected s3://<bucket>/"),
        ("s3://bucket/churn?versionId=1", "expected s3://<bucket>/"),
        ("https:///m.ubj", "expected https://<host>/<path>"),
        ("https://example.com:port/m.ubj", "expected https://<host>/<path>"),
        ("https://example.com/a b.ubj", "expected https://<host>/<path>"),
        ("https://example.com/m.ubj\r\nHost: x", "expected https://<host>/<path>"),
        ("https://example.com/größe.ubj", "expected https://<host>/<path>"),
        ("https://example.com", "a folder cannot be listed over https"),
        ("https://example.com/models/", "a folder cannot be listed over https"),
        ("https://someone:s3cr3t@example.com/m.ubj", "expected a URI without user and password"),
        ("s3://AKIACANARY:s3cr3t@bucket/m.ubj", "expected a URI without user and password"),
        ("https://[::1/m.ubj", "expected a URI"),
    ],
)
def test_a_uri_that_names_no_model_is_refused_with_what_would_be_right(text: str, expected: str) -> None:
    (fault,) = faults_of(SCORER_MODEL=text)
    assert fault.startswith(f"SCORER_MODEL: {expected}")
    assert "s3cr3t" not in fault


def test_the_query_of_a_uri_is_never_printed() -> None:
    """It may be a signature, and what is printed ends in a log."""
    settings = read_settings({"SCORER_MODEL": "https://example.com/churn/m.ubj?X-Amz-Signature=c0ffee"})
    assert "c0ffee" not in f"{settings} {settings.model} {settings.model!r} {settings.model_name}"
    assert str(settings.model) == "https://example.com/churn/m.ubj?…"


@pytest.mark.parametrize("text", ["https://example.com", "example.com/path", "*.example.com", "a b", "10.0.0.0/33"])
def test_hosts_are_names_addresses_or_networks(text: str) -> None:
    (fault,) = faults_of(SCORER_MODEL_HTTPS_HOSTS=f"fine.example.com,{text}")
    assert fault.startswith(
        "SCORER_MODEL_HTTPS_HOSTS: expected host names, with or without :port, addresses or networks"
    )


def test_a_model_is_needed() -> None:
    """The one setting without a default."""
    (fault,) = faults_of(SCORER_MODEL="")
    assert fault.startswith("SCORER_MODEL: not set; expected a model file")


@pytest.mark.parametrize("text", ["https://[", "file://[", "a" * 5000])
def test_no_text_in_the_environment_is_more_than_a_fault(text: str) -> None:
    """Whatever SCORER_MODEL holds, reading settings ends in settings or in faults."""
    with suppress(StartError):
        read_settings({"SCORER_MODEL": text})


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("churn.ubj", "churn"),
        ("models/churn.json", "churn"),
        ("models/iris/model.ubj", "iris"),
        ("models/iris/3/model.ubj", "iris"),
        ("models/iris/2024-05-01/model.json", "iris"),
        ("models/iris", "iris"),
        ("models/iris.v2/model.ubj", "iris.v2"),
        ("models/größe 1.ubj", "gr--e-1"),
        ("models/--.ubj", "model"),
        ("s3://models/churn", "churn"),
        ("s3://models/teams/risk/churn/", "churn"),
        ("s3://models/churn/3/model.ubj", "churn"),
        ("s3://churn", "churn"),
        ("https://example.com/churn/model.ubj?signature=1", "churn"),
    ],
)
def test_default_model_name(place: str, name: str) -> None:
    """The folder's name or the file's: a folder of versions and its newest file have the same name in URLs."""
    assert read_settings({"SCORER_MODEL": place}).model_name == name


def test_a_default_model_name_would_be_accepted_as_a_setting() -> None:
    """A long file name does not give a name that SCORER_MODEL_NAME would refuse."""
    name = default_model_name(Path("a" * 200 + ".ubj"))
    assert read_settings({**MODEL, "SCORER_MODEL_NAME": name}).model_name == name


def test_settings_and_table_name_the_same_things() -> None:
    """One attribute, one line in the table, one variable: none twice."""
    assert [field.name for field in dataclasses.fields(Settings)] == [setting.attribute for setting in SETTINGS]
    variables = [setting.variable for setting in SETTINGS]
    assert len(set(variables)) == len(variables)
    assert all(re.fullmatch(r"SCORER_[A-Z0-9_]+|WEB_CONCURRENCY", variable) for variable in variables)


def test_settings_do_not_change() -> None:
    """What was checked at the start is what is in force."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        read_settings(MODEL).port = 1  # type: ignore[misc]  # the point of the test
