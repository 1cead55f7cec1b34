"""The Flask application, complete: any WSGI server can run `service.app:create_app()`."""

from __future__ import annotations

import os

from flask import Flask

from service.edge import ROUTE_LABELS, Edge
from service.logs import create_log
from service.machine import ControlGroup
from service.metrics import READY, Block, Recorder
from service.models import LoadedModel, load_model
from service.settings import Settings, read_settings
from service.swaps import Repository
from service.web import add_routes


def create_app(settings: Settings | None = None, *, model: LoadedModel | None = None) -> Flask:
    """An application that serves the model of the settings, which are read from the environment if not given.

    Metrics are those of this process; under Gunicorn with `gunicorn.conf.py`, those of all workers.
    Raises `StartError` with every fault of the settings or the model.
    """
    settings = settings or read_settings(os.environ)
    recorder = Recorder(Block(ROUTE_LABELS, slots=1), slot=0)
    edge = Edge(settings, recorder, create_log())
    edge.serve(model or load_model(settings))
    recorder.write_state(READY)
    return create_app_around(edge)


def create_app_around(edge: Edge, repository: Repository | None = None) -> Flask:
    """The application over an edge that may get its model later; the edge is in `app.extensions["scorer"]`.

    Without a repository the model cannot be changed.
    """
    app = Flask("service", static_folder=None)
    app.extensions["scorer"] = edge
    add_routes(app, edge, ControlGroup(), repository)
    return app
