"""The import rule: what may name what. Every import counts, those inside functions too."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from nni_bertnas.launch.trial_server import _MODULES

ROOT = Path(__file__).parents[1]
# From the top floor down: a room imports its own modules and lower floors. Whoever likes imports search_space, a leaf.
FLOORS = (
    ("trials",),
    ("cli",),
    ("launch", "report"),
    ("stages",),
    ("study_files",),
    ("evaluator",),
    ("search", "augment", "deploy"),
    ("training",),
    ("store", "student"),
    ("data",),
    ("runtime",),
    ("tracking",),
    ("artifacts",),
    ("ranks",),
    ("config", "machine", "profiles", "yaml_files"),
    ("errors",),
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
NNI = ("nni_bertnas.search.", "nni_bertnas.launch.", "search_space.spaces")
SHIPPED = tuple(f"search_space.{name}" for name in ("student", "cells", "embeddings", "heads", "operations"))


def read(path: Path) -> tuple[str, set[str]]:
    """Dotted name of a module, and what it imports: modules, and `module:name` for names out of them."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = name if path.stem == "__init__" else name.rpartition(".")[0]
            module = f"{package}.{node.module}" if node.level else str(node.module)
            found |= {f"{module}:{alias.name}" for alias in node.names}
    return name, found


IMPORTS = dict(
    read(path) for folder in ("nni_bertnas", "search_space", "trials") for path in sorted((ROOT / folder).rglob("*.py"))
)


def targets(name: str) -> set[str]:
    """The modules that a module imports."""
    found = set()
    for one in IMPORTS[name]:
        module, _, attribute = one.partition(":")
        found.add(f"{module}.{attribute}" if f"{module}.{attribute}" in IMPORTS else module)
    return found


def room(module: str) -> str:
    return module.split(".")[1] if module.startswith("nni_bertnas.") else module.split(".")[0]


@pytest.mark.parametrize("name", [name for name in IMPORTS if name != "nni_bertnas"])
def test_imports_point_downwards(name: str) -> None:
    own = {module for module in targets(name) if module.split(".")[0] in ("nni_bertnas", "trials")}
    if name.startswith("search_space"):
        assert not own
        return
    for module in own - {"nni_bertnas"}:  # whose version and one function are free for all
        same = room(module) == room(name)
        assert same or FLOOR[room(module)] > FLOOR[room(name)], f"{name} imports {module}"


@pytest.mark.parametrize("name", IMPORTS)
def test_nni_is_imported_where_searches_and_experiments_are(name: str) -> None:
    if any(module.split(".")[0] == "nni" for module in targets(name)):
        assert name.startswith(NNI)


@pytest.mark.parametrize("name", [name for name in IMPORTS if room(name) in FLOOR])
def test_below_the_stages_nobody_knows_a_study(name: str) -> None:
    if FLOOR[room(name)] > FLOOR["study_files"]:
        assert not {"nni_bertnas.config:Study", "nni_bertnas.stages.run:Run"} & IMPORTS[name]


def test_what_a_saved_student_ships_needs_torch_and_transformers_alone() -> None:
    for name in SHIPPED:
        outside = {module.split(".")[0] for module in targets(name)} - {"search_space"}
        libraries = {"collections", "contextlib", "dataclasses", "functools", "importlib", "typing"}
        assert outside <= {"torch", "transformers"} | libraries
        assert {module for module in targets(name) if module.startswith("search_space")} <= set(SHIPPED)


def test_what_an_exported_model_ships_needs_three_packages_alone() -> None:
    engines = {"numpy", "onnxruntime", "tokenizers", "openvino", "torch"}
    service = {"fastapi", "prometheus_client", "pydantic", "uvicorn"}
    for name in (name for name in IMPORTS if name.startswith("nni_bertnas.runtime")):
        outside = {module.split(".")[0] for module in targets(name)} - {"nni_bertnas"} - set(sys.stdlib_module_names)
        assert outside <= (engines | service if name.endswith(".server") else engines)
        own = {module for module in targets(name) if module.startswith("nni_bertnas")}
        assert all(room(module) == "runtime" or name == "nni_bertnas.runtime.errors" for module in own)


def test_there_are_no_circles() -> None:
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path, name))
        if name not in done:
            for module in sorted(targets(name) & set(IMPORTS)):
                if module != name:
                    visit(module, (*path, name))
            done.add(name)

    for name in IMPORTS:
        visit(name, ())


def test_what_trials_are_forked_from_has_not_loaded_nni() -> None:
    """NNI reads a trial's environment when it is loaded."""
    seen: set[str] = set()
    waiting = [name for name in _MODULES if name in IMPORTS]
    assert len(waiting) == 3
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            assert not any(module.split(".")[0] == "nni" for module in targets(name)), name
            waiting += targets(name) & set(IMPORTS)
    assert len(seen) > 20


@pytest.mark.parametrize(
    ("own", "expected"), [({}, "1000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "")]
)
def test_threads_do_not_wait_at_others_expense(own: dict[str, str], expected: str) -> None:
    clean = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    script = (
        "import os, nni_bertnas, sys; assert 'torch' not in sys.modules; print(os.environ.get('GOMP_SPINCOUNT', ''))"
    )
    done = subprocess.run([sys.executable, "-c", script], env=clean | own, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == expected
