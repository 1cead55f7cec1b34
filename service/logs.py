"""Logs: one JSON object a line, on standard error, from the master and from every worker alike.

A line never holds a value from a request. Fields are `time`, `level`, `event` and what the event brings along.
"""

from __future__ import annotations

import logging
import logging.config
from typing import Any

from gunicorn.glogging import Logger
from pythonjsonlogger.orjson import OrjsonFormatter

NAME = "scorer"


def create_formatter() -> logging.Formatter:
    return OrjsonFormatter(
        "%(asctime)s %(levelname)s %(process)d %(message)s",
        rename_fields={"asctime": "time", "levelname": "level", "message": "event", "process": "pid"},
        datefmt="%Y-%m-%dT%H:%M:%S%z",
    )


def create_log() -> logging.Logger:
    """The server's log; calling it again changes nothing."""
    log = logging.getLogger(NAME)
    if not log.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(create_formatter())
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
    return log


class GunicornLog(Logger):  # type: ignore[misc]  # gunicorn 27 has no type hints
    """Gunicorn's own lines in the same form; its access log is off, the edge writes ours."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        for handler in self.error_log.handlers:
            handler.setFormatter(create_formatter())
