"""The rules of the house: imports point one way, heavy things load late, the catalog says what the code does."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import decaybench
from decaybench.registry import catalog
from decaybench.registry import imports as targets
from helpers import REPOSITORY

PACKAGE = REPOSITORY / "decaybench"
# Lower floors never import higher ones.
FLOORS = [
    {"errors", "options", "digest"},
    {"catalog", "targets", "statistics", "streams", "vision", "records", "probe", "known"},
    {"spec", "results", "activations", "networks", "datasets", "behaviour"},
    {"config", "construct", "role", "cells"},
    {"grid", "strategies", "optimizers", "alphas", "data", "device", "summary", "groups", "tuning", "precision"},
    {"model", "frame", "recipes", "foreign", "plan", "sequential"},
    {"replicas"},
    {"score"},
    {"train", "audit", "verify"},
    {"checkpoint"},
    {"executors"},
    {"study", "snapshot", "report"},
    {"machine", "progress", "bench"},
    {"cli"},
    {"__main__"},
]
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{a.name}" for a in node.names} if node.module == "decaybench" else {node.module}
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path: Path) -> None:
    floor = {name: level for level, names in enumerate(FLOORS) for name in names}
    here = room(path)
    if here == "__init__":
        return
    for name in imports(path):
        if name.startswith("decaybench."):
            there = name.split(".")[1]
            if there == here or there.startswith("__version"):
                continue
            assert floor[there] < floor[here], f"{here} imports {there}"
        if name.split(".")[0] == "rich":
            assert here in ("report", "cli")
        if name.split(".")[0] == "typer":
            assert here == "cli"
        if name.split(".")[0] == "torchvision":
            assert here == "vision"


@pytest.mark.parametrize("path", [*PACKAGE.rglob("*.c"), *PACKAGE.rglob("*.h")], ids=lambda p: p.name)
def test_files_in_c_fit(path: Path) -> None:
    assert path.read_text("utf-8").count("\n") <= 300


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_fit(path: Path) -> None:
    text = path.read_text("utf-8")
    assert text.count("\n") <= 300
    for node in ast.walk(ast.parse(text)):
        # The command's options are its signature; what counts is what has to be followed.
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.body[0].lineno < 40, node.name


@pytest.mark.parametrize(
    "statement",
    [
        "import decaybench",
        "from decaybench.cli import app",
        "from decaybench.study.study import read_study; read_study(None, {}).runs()",
        "from decaybench import load",
        "import decaybench.report, decaybench.analysis.comparison",
    ],
)
def test_what_needs_no_torch_does_not_import_it(statement: str) -> None:
    code = f"{statement}\nimport sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY).returncode == 0


@pytest.mark.parametrize(
    ("family", "name"), [(f, n) for f, entries in catalog.FAMILIES.items() for n in entries if f != "schedule"]
)
def test_catalog_and_signature_agree(family: str, name: str) -> None:
    entry = catalog.FAMILIES[family][name]
    signature = inspect.signature(targets.load(entry.target)).parameters
    for option, default in entry.options().model_dump().items():
        assert option in signature
        if signature[option].default is not inspect.Parameter.empty:
            assert signature[option].default == default, option


def test_public_names_are_not_hidden_by_modules_of_the_same_name() -> None:
    modules = {room(path) for path in FILES}
    assert not modules & set(decaybench.__all__)
    for name in decaybench.__all__:
        assert getattr(decaybench, name) is not None
    with pytest.raises(AttributeError, match="nothing_here"):
        decaybench.nothing_here  # noqa: B018


def test_every_name_is_used_once() -> None:
    names = [n for entries in catalog.FAMILIES.values() for n in entries]
    assert len(names) == len(set(names))
