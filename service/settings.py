"""Every setting of the server: one line in `SETTINGS` declares name, type, default and meaning.

Settings come from the environment and are read once, at start. All faults are reported together,
so that a deployment is mended in one go.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from service.errors import StartError

PREFIX = "SCORER_"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The values in force; one attribute a setting, named as in `SETTINGS`."""

    model: Path
    model_name: str
    model_sha256: str
    model_poll_seconds: float
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


def model_place(text: str) -> Path:
    """A path, plain or as file:// URI."""
    if not text:
        raise ValueError("not set; expected a model file (.ubj or .json) or a folder of <version>/model.ubj")
    uri = urlsplit(text)
    if uri.scheme == "file":
        return Path(unquote(uri.path))
    if "://" in text:
        raise ValueError("only files can be served at present; expected a path or a file:// URI")
    return Path(text)


# The order is the order of the README's table and of `xgboost-server settings`.
SETTINGS = (
    Setting("model", "SCORER_MODEL", model_place, "", "model file, or folder of `<version>/model.ubj` or `.json`"),
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
        pattern(r"([0-9a-f]{64})?", "64 lower-case hexadecimal digits"),
        "",
        "refuse any model file but the one with this digest",
    ),
    Setting(
        "model_poll_seconds",
        "SCORER_MODEL_POLL_SECONDS",
        number(0, 86400),
        "5",
        "time between two looks for a new version, which is served once two looks find it the same; 0: never look",
    ),
    Setting(
        "cache_dir",
        "SCORER_CACHE_DIR",
        str,
        "",
        "folder for packed models and compiled kernels; empty: in the user's cache folder, or else in the temporary one",
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


def default_model_name(model: Path) -> str:
    """`iris/model.ubj` and `iris/3/model.ubj` are iris; `churn.ubj` is churn; a folder has its own name."""
    path = Path(os.path.abspath(model))  # no look at the disk: links and missing files are found out later
    name = path.stem if path.suffix in (".ubj", ".json") else path.name
    if name == "model":
        path = path.parent
        is_version = re.fullmatch(r"v?\d[A-Za-z0-9._-]*", path.name) is not None
        name = path.parent.name if is_version else path.name
    return re.sub(r"[^A-Za-z0-9._-]", "-", name).lstrip("-._")[:128] or "model"
