"""Every setting of the server: one line in `SETTINGS` declares name, type, default and meaning.

Settings come from the environment and are read once, at start. All faults are reported together,
so that a deployment is mended in one go.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from service.errors import StartError

PREFIX = "SCORER_"
BUCKET_SCHEMES = ("s3", "gs", "az")
# Of a folder with a version in it: 7, v7, 2026-11-30. Others have no order, so none would be the newest, and a folder of
# several models would be taken for one of several versions.
VERSION = re.compile(r"v?\d[A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True)
class Uri:
    """A model that has to be fetched. Printed without its query, which may be a signature."""

    text: str = field(repr=False)
    scheme: str
    # Bucket or container; for https the host, with its port where one is given.
    place: str
    # Key or path, without the leading slash and the query.
    path: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.place}/{self.path}{'?…' if '?' in self.text else ''}"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The values in force; one attribute a setting, named as in `SETTINGS`."""

    model: Path | Uri
    model_name: str
    model_sha256: str
    model_poll_seconds: float
    model_https_hosts: str
    model_max_bytes: int
    fetch_timeout_seconds: float
    cache_dir: str
    host: str
    port: int
    admin_port: int
    workers: int
    max_body_bytes: int
    max_rows_per_request: int
    max_in_flight: int
    read_timeout_seconds: float
    keepalive_seconds: float
    drain_seconds: float
    slow_request_seconds: float
    access_log_ratio: float


@dataclass(frozen=True)
class Setting:
    attribute: str
    variable: str
    read: Callable[[str], Any]
    default: str
    meaning: str


def integer(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        value = int(text) if re.fullmatch(r"\d{1,18}", text) else -1
        if not low <= value <= high:
            raise ValueError(f"expected a whole number from {low} to {high}")
        return value

    return read


def number(low: float, high: float) -> Callable[[str], float]:
    def read(text: str) -> float:
        value = float(text) if re.fullmatch(r"\d+(\.\d+)?", text) else -1.0
        if not low <= value <= high:
            raise ValueError(f"expected a number from {low:g} to {high:g}")
        return value

    return read


def pattern(regex: str, expected: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if not re.fullmatch(regex, text):
            raise ValueError(f"expected {expected}")
        return text

    return read


def digest(text: str) -> str:
    """A sha256, also as this server and container registries write it, with its name in front."""
    return pattern(r"([0-9a-f]{64})?", "64 lower-case hexadecimal digits")(text.removeprefix("sha256:"))


def model_place(text: str) -> Path | Uri:
    """A path, plain or as file:// URI; or the URI of what has to be fetched."""
    if not text:
        raise ValueError("not set; expected a model file (.ubj or .json) or a folder of <version>/model.ubj")
    if "://" not in text and not text.lower().startswith("file:"):
        return Path(text)
    try:
        uri = urlsplit(text)
    except ValueError:
        raise ValueError("expected a URI; its host cannot be read") from None
    if uri.scheme == "file":
        return Path(unquote(uri.path))
    if "@" in uri.netloc:
        raise ValueError("expected a URI without user and password")
    if uri.scheme in BUCKET_SCHEMES:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{1,221}", uri.netloc) or "?" in text or "#" in text:
            raise ValueError(f"expected {uri.scheme}://<bucket>/<key of a model file, or of a folder of versions>")
        return Uri(text, uri.scheme, uri.netloc, uri.path.lstrip("/"))
    if uri.scheme == "https":
        return https_place(text)
    raise ValueError("expected a path, or a URI that begins with s3://, gs://, az://, https:// or file://")


def https_place(text: str) -> Uri:
    uri = urlsplit(text)
    has_host = re.fullmatch(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?", uri.netloc)
    if not has_host or not text.isascii() or not text.isprintable() or " " in text or uri.fragment:
        raise ValueError("expected https://<host>/<path>, percent-encoded")
    if uri.path.strip("/") == "" or uri.path.endswith("/"):
        raise ValueError("a folder cannot be listed over https; expected the URI of a model file")
    return Uri(text, "https", uri.netloc.lower(), uri.path.removeprefix("/"))


def host_list(text: str) -> str:
    """Hosts, addresses and networks, separated by commas."""
    entries = [entry.strip().lower() for entry in text.split(",") if entry.strip()]
    for entry in entries:
        if not re.fullmatch(r"([a-z0-9._-]+|\[[0-9a-f:.]+\])(:\d{1,5})?", entry) and not is_network(entry):
            raise ValueError("expected host names, with or without :port, addresses or networks, separated by commas")
    return ",".join(entries)


def is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


MODEL_MEANING = (
    "model file, or folder of `<version>/model.ubj` or `.json`; a path or a URI: `s3://`, `gs://`, `az://`, `https://`, "
    "`file://`"
)

# The order is the order of the README's table and of `xgboost-server settings`.
SETTINGS = (
    Setting("model", "SCORER_MODEL", model_place, "", MODEL_MEANING),
    Setting(
        "model_name",
        "SCORER_MODEL_NAME",
        pattern(r"([A-Za-z0-9][A-Za-z0-9._-]{0,127})?", "letters, digits, dots, dashes and underscores"),
        "",
        "name in URLs and metrics; empty: the name of the file's folder, or of the file itself",
    ),
    Setting(
        "model_sha256",
        "SCORER_MODEL_SHA256",
        digest,
        "",
        "refuse any model file but the one with this digest",
    ),
    Setting(
        "model_poll_seconds",
        "SCORER_MODEL_POLL_SECONDS",
        number(0, 86400),
        "5",
        "time between two looks for a new version, which is served once two looks find it the same; 0: never look; a URI is asked once a minute at most",
    ),
    Setting(
        "model_https_hosts",
        "SCORER_MODEL_HTTPS_HOSTS",
        host_list,
        "",
        "hosts that a model may come from over https, separated by commas; addresses that are not public have to be in it too",
    ),
    Setting(
        "model_max_bytes",
        "SCORER_MODEL_MAX_BYTES",
        integer(1, 2**40),
        str(2**30),
        "largest model file to fetch",
    ),
    Setting(
        "fetch_timeout_seconds",
        "SCORER_FETCH_TIMEOUT_SECONDS",
        number(0.1, 86400),
        "600",
        "longest time to fetch a model, with all attempts",
    ),
    Setting(
        "cache_dir",
        "SCORER_CACHE_DIR",
        str,
        "",
        "folder for fetched and packed models and for compiled kernels, which nobody else may write to: one within a volume, not the "
        "volume itself; empty: in the user's cache folder, or else in the temporary one",
    ),
    Setting("host", "SCORER_HOST", pattern(r"[0-9A-Za-z.:_-]+", "a host name or an address"), "127.0.0.1", "address"),
    Setting("port", "SCORER_PORT", integer(1, 65535), "8000", "port for callers"),
    Setting(
        "admin_port",
        "SCORER_ADMIN_PORT",
        integer(0, 65535),
        "0",
        "port for `/metrics` and whatever is not for callers; 0: the same port as for callers",
    ),
    Setting(
        "workers",
        "WEB_CONCURRENCY",
        integer(0, 512),
        "0",
        "worker processes; 0: as many as the control group (v1 or v2) grants CPUs",
    ),
    Setting(
        "max_body_bytes",
        "SCORER_MAX_BODY_BYTES",
        integer(1, 2**31),
        str(16 * 2**20),
        "largest request body, before and after inflation",
    ),
    Setting("max_rows_per_request", "SCORER_MAX_ROWS_PER_REQUEST", integer(1, 10**8), "100000", "most rows a request"),
    Setting(
        "max_in_flight",
        "SCORER_MAX_IN_FLIGHT",
        integer(1, 10**6),
        "256",
        "requests one worker holds at once; more are answered 503 with Retry-After",
    ),
    Setting(
        "read_timeout_seconds",
        "SCORER_READ_TIMEOUT_SECONDS",
        number(0.1, 3600),
        "15",
        "longest wait for a request's head, and again for its body",
    ),
    Setting(
        "keepalive_seconds",
        "SCORER_KEEPALIVE_SECONDS",
        number(0.1, 3600),
        "75",
        "longest idle time of a connection; keep it above the 60 s of NGINX",
    ),
    Setting(
        "drain_seconds",
        "SCORER_DRAIN_SECONDS",
        number(1, 3600),
        "30",
        "longest wait for requests under way when a worker stops",
    ),
    Setting(
        "slow_request_seconds",
        "SCORER_SLOW_REQUEST_SECONDS",
        number(0, 3600),
        "1",
        "log every request that takes longer",
    ),
    Setting(
        "access_log_ratio",
        "SCORER_ACCESS_LOG_RATIO",
        number(0, 1),
        "0",
        "share of requests that get a line in the log: 0 none, 1 all",
    ),
)

if [field.name for field in fields(Settings)] != [setting.attribute for setting in SETTINGS]:
    raise AssertionError("Settings and SETTINGS differ")


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Settings of this environment, or `StartError` with every fault in it."""
    values: dict[str, Any] = {}
    faults = list(unknown_names(environ))
    for setting in SETTINGS:
        text = environ.get(setting.variable, "").strip() or setting.default
        try:
            values[setting.attribute] = setting.read(text)
        except ValueError as error:
            faults.append(f"{setting.variable}: {error}")
    if values.get("admin_port") and values["admin_port"] == values.get("port"):
        faults.append("SCORER_ADMIN_PORT: expected another port than SCORER_PORT")
    if faults:
        raise StartError(faults)
    if not values["model_name"]:
        values["model_name"] = default_model_name(values["model"])
    return Settings(**values)


def unknown_names(environ: Mapping[str, str]) -> Iterable[str]:
    known = [setting.variable for setting in SETTINGS if setting.variable.startswith(PREFIX)]
    for name in sorted(environ):
        if name.startswith(PREFIX) and name not in known:
            # Without the prefix that all share: with it, everything resembles something.
            nearest = difflib.get_close_matches(name.removeprefix(PREFIX), [k.removeprefix(PREFIX) for k in known], n=1)
            hint = f"; did you mean {PREFIX}{nearest[0]}?" if nearest else "; `xgboost-server settings` lists all"
            yield f"{name}: no such setting{hint}"


def default_model_name(model: Path | Uri) -> str:
    """`iris/model.ubj` and `iris/3/model.ubj` are iris; `churn.ubj` is churn; a folder has its own name."""
    place = model if isinstance(model, Path) else Path("/", model.place, model.path)
    path = Path(os.path.abspath(place))  # no look at the disk: links and missing files are found out later
    name = path.stem if path.suffix in (".ubj", ".json", ".bst") else path.name
    if name == "model":
        path = path.parent
        name = path.parent.name if VERSION.fullmatch(path.name) else path.name
    return re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip("-._")[:128] or "model"
