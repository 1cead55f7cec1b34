"""The command line: `xgboost-server serve | check MODEL | settings`."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import click

from service import __version__
from service.errors import StartError
from service.settings import SETTINGS, read_settings


class FaultReporting(click.Group):
    """One line on standard error that lists every fault, and exit code 1."""

    def invoke(self, context: click.Context) -> object:
        try:
            return super().invoke(context)
        except StartError as error:
            click.echo(f"xgboost-server: {error}", err=True)
            sys.exit(1)


@click.group(cls=FaultReporting, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="xgboost-server")
def main() -> None:
    """Serve an XGBoost model file. Settings come from the environment: see `xgboost-server settings`."""


@main.command()
def serve() -> None:
    """Serve the model of SCORER_MODEL until told to stop."""
    from service.master import run_server

    run_server()


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
def check(model: Path) -> None:
    """Say whether MODEL, a file or a folder of versions, can be served, and what it expects."""
    from service.models import load_model

    cache = {name: value for name, value in os.environ.items() if name == "SCORER_CACHE_DIR"}
    loaded = load_model(read_settings({"SCORER_MODEL": str(model), **cache}))
    contract = loaded.predictor.contract
    rows = [
        ("digest", f"sha256:{loaded.identity.digest}"),
        ("objective", contract.objective),
        ("rounds", str(contract.rounds)),
        ("features", str(contract.features)),
        ("names", ", ".join(contract.feature_names) or "none: rows are lists in the model's order"),
        ("outputs", str(contract.outputs)),
        ("engine", f"{loaded.predictor.engine} {loaded.predictor.reason}".strip()),
    ]
    click.echo(definition_list(f"{model} can be served", rows))


@main.command()
def settings() -> None:
    """List every setting: its value here, its default and its meaning."""
    values = asdict(read_settings({"SCORER_MODEL": "-", **os.environ}))
    rows = []
    for setting in SETTINGS:
        value = values[setting.attribute] if setting.variable in os.environ else setting.default
        rows.append((f"{setting.variable}={value}", f"{setting.meaning} (default: {setting.default or 'none'})"))
    click.echo(definition_list("Settings", rows))


def definition_list(title: str, rows: list[tuple[str, str]]) -> str:
    formatter = click.HelpFormatter(width=min(shutil.get_terminal_size().columns, 120))
    with formatter.section(title):
        formatter.write_dl(rows)
    return formatter.getvalue().rstrip()


if __name__ == "__main__":
    main()
