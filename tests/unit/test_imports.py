"""The floor plan holds: imports point down, frameworks stay on their floors, and the master stays light."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "service"

# From the ways in down to the values that travel, as in docs/architecture.md. A package is one room.
FLOORS: dict[int, tuple[str, ...]] = {
    8: ("cli",),
    7: ("worker", "app", "master"),
    6: ("http1", "door", "turn", "stream", "web", "wsgi", "files"),
    5: ("edge", "succession"),
    4: ("scoring", "swaps", "inspection"),
    3: ("models", "packing", "admission", "compiler"),
    2: ("predictor", "drift", "scrape", "generations", "sources", "engine", "kernels"),
    1: (
        "artifact",
        "structure",
        "golden",
        "metrics",
        "logs",
        "head",
        "recurring",
        "wire",
        "ensemble",
        "auth",
        "machine_code",
        "elf",
    ),
    0: ("errors", "settings", "batch", "machine", "documents"),
}
FLOOR_OF = {room: floor for floor, rooms in FLOORS.items() for room in rooms}
# Rooms on one floor do not know each other, but for these; each with its reason.
NEIGHBOURS = {
    ("models", "packing"): "a model is packed before it is loaded",
    ("packing", "admission"): "a model is admitted before it is packed",
    ("models", "admission"): "the record of the model that is loaded",
    ("recurring", "head"): "which headers anything reads",
    ("recurring", "machine_code"): "what recognizes is machine code, and reads its tables",
    ("golden", "artifact"): "golden rows lie in a file beside the model",
    ("machine_code", "ensemble"): "how files are written that outlive a crash",
    ("predictor", "engine"): "whoever scores by the packed form needs it, and nobody else",
    ("settings", "errors"): "faults in the settings are errors",
    ("worker", "app"): "the worker serves the application",
    ("master", "app"): "so do Gunicorn's own workers, which have it loaded for them",
    ("door", "turn"): "what connections share has the turn that their requests are answered in",
    ("http1", "door"): "a connection is one of those that share it",
    ("http1", "wsgi"): "what the fast door does not answer goes through the Flask door",
    ("wsgi", "web"): "the name under which views leave what there is to count",
}
FLASK = {"flask", "werkzeug", "jinja2"}
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def room_of(module: Path) -> str:
    """`wire/simple.py` is in the room `wire`; `__init__.py` of the package is in none."""
    return module.parts[0].removesuffix(".py")


def imports_of(tree: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    """Dotted names of all that is imported, at any depth, and the statement that does it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module is not None
            # `from service import edge` imports service.edge, if there is one.
            for alias in node.names:
                yield f"{node.module}.{alias.name}" if node.module == "service" else node.module, node


def parse(module: Path) -> ast.Module:
    return ast.parse((PACKAGE / module).read_text(encoding="utf-8"))


def rooms_used_by(module: Path) -> set[str]:
    names = (name.split(".") for name, _ in imports_of(parse(module)) if name.startswith("service."))
    return {parts[1] for parts in names if parts[1] in FLOOR_OF or (PACKAGE / f"{parts[1]}.py").exists()}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_every_module_has_a_place_in_the_house(module: Path) -> None:
    """A new module is put on a floor first."""
    assert room_of(module) in FLOOR_OF or module.name == "__init__.py"


@pytest.mark.parametrize("module", [module for module in MODULES if room_of(module) in FLOOR_OF], ids=str)
def test_imports_point_down(module: Path) -> None:
    """Whoever reads a room has only to know the floors below it."""
    room = room_of(module)
    for used in rooms_used_by(module) - {room}:
        is_below = FLOOR_OF[used] < FLOOR_OF[room]
        assert is_below or (room, used) in NEIGHBOURS, (
            f"{room} (floor {FLOOR_OF[room]}) imports {used} ({FLOOR_OF[used]})"
        )


def test_neighbours_are_neighbours_and_know_each_other() -> None:
    """An exception that nothing needs any more is taken away."""
    for room, used in NEIGHBOURS:
        assert FLOOR_OF[room] == FLOOR_OF[used]
        assert (used, room) not in NEIGHBOURS
        module = Path(f"{room}.py")
        assert module not in MODULES or used in rooms_used_by(module), f"{room} does not import {used}"


@pytest.mark.parametrize("module", [module for module in MODULES if FLOOR_OF.get(room_of(module), 0) <= 5], ids=str)
def test_nothing_below_the_doors_knows_flask(module: Path) -> None:
    """Protocols, scoring and the edge can be read, tested and fuzzed without a framework."""
    assert not {name.partition(".")[0] for name, _ in imports_of(parse(module))} & FLASK


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_xgboost_is_imported_in_one_room_and_only_when_it_is_needed(module: Path) -> None:
    """libgomp is not fork-safe (dmlc/xgboost#8040): whoever imports XGBoost at import time takes it into the master."""
    tree = parse(module)
    everywhere = [node for name, node in imports_of(tree) if name.partition(".")[0] == "xgboost"]
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for_types = {id(node) for block in tree.body if is_for_types(block) for node in ast.walk(block)}
    assert not everywhere or module == Path("predictor.py")
    assert all(id(node) in inside | for_types for node in everywhere)


def is_for_types(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def test_predictor_does_import_xgboost() -> None:
    """The test above would pass if it saw no import at all."""
    names = {name for name, _ in imports_of(parse(Path("predictor.py")))}
    assert "xgboost" in names


FRESH = """
import json, os, sys
import {module}
heavy = [name for name in ("xgboost", "scipy", "pandas", "sklearn", "obstore", "urllib3") if name in sys.modules]
print(json.dumps([heavy, len(os.listdir("/proc/self/task"))]))
"""


@pytest.mark.parametrize("module", [name for name in ("master", "worker", "cli") if Path(f"{name}.py") in MODULES])
def test_what_the_master_imports_is_light(module: str) -> None:
    """In a fresh interpreter: no XGBoost, no obstore, which brings threads of its own, and exactly one thread, as it forks. A thread that holds a lock at the fork
    holds it in the child for ever; OpenBLAS starts its own with numpy unless it is told not to."""
    if not Path("/proc/self/task").exists():
        pytest.skip("no /proc on this system")
    environ = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", FRESH.format(module=f"service.{module}")],
        cwd=ROOT,
        env=environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    heavy, threads = json.loads(done.stdout)
    assert heavy == []
    assert threads == 1


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_nothing_reads_the_environment_at_import(module: Path) -> None:
    """A test can build two applications side by side; settings are read in one place, once."""
    for node in parse(module).body:
        if isinstance(node, ast.Assign | ast.AnnAssign | ast.Expr):
            for part in ast.walk(node):
                assert not (isinstance(part, ast.Attribute) and part.attr in ("environ", "getenv")), module
