"""Applications in this process, complete but for the socket: for tests that need no workers and no signals."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xgboost
from flask.testing import FlaskClient

from service.app import create_app_around
from service.batch import Floats
from service.edge import ROUTE_LABELS, Edge
from service.logs import create_formatter
from service.metrics import READY, Block, Recorder, Snapshot
from service.models import LoadedModel, load_model
from service.settings import Settings, read_settings

EXAMPLES = Path(__file__).parents[1] / "examples"


@dataclass(frozen=True)
class Example:
    """A shipped model, as the server loads it and as XGBoost does, with its golden rows."""

    path: Path
    model: LoadedModel
    booster: Any
    rows: Floats
    scores: Floats
    margins: Floats

    @property
    def name(self) -> str:
        return self.model.identity.name

    @property
    def names(self) -> tuple[str, ...]:
        return self.model.predictor.contract.feature_names


def load_example(name: str) -> Example:
    path = EXAMPLES / name / "model.ubj"
    golden = json.loads((path.parent / "golden.json").read_text())
    model = load_model(read_settings({"SCORER_MODEL": str(path)}))
    if model.identity.digest != golden["model_sha256"]:
        raise AssertionError(f"{path} is not the model that wrote golden.json beside it")
    rows, scores, margins = (np.array(golden[key], np.float32) for key in ("rows", "scores", "margins"))
    return Example(path, model, xgboost.Booster({"nthread": 1}, model_file=path), rows, scores, margins)


class LineHandler(logging.Handler):
    """Keeps the lines of the log as the server would write them."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(create_formatter())
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


class World:
    """One application with its metrics and its log, and no trace outside.

    Without a model it is as it is while the model is being loaded.
    """

    def __init__(self, model: LoadedModel | None, **environ: str) -> None:
        self.settings: Settings = read_settings({"SCORER_MODEL": "-", **environ})
        self.handler = LineHandler()
        log = logging.Logger("scorer of one test")
        log.addHandler(self.handler)
        self.recorder = Recorder(Block(ROUTE_LABELS, slots=1), slot=0)
        self.edge = Edge(self.settings, self.recorder, log)
        if model is not None:
            self.edge.serve(model)
            self.recorder.write_state(READY)
        self.app = create_app_around(self.edge)

    @cached_property
    def client(self) -> FlaskClient:
        return self.app.test_client()

    @property
    def log_lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.handler.lines]

    @property
    def counts(self) -> Snapshot:
        return self.recorder.block.snapshot()
