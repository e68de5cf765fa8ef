"""The rules of the house: heavy things load late, the registry says what the code does."""

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import decaybench
from decaybench import registry
from decaybench.registry import imports
from helpers import REPOSITORY

PACKAGE = REPOSITORY / "decaybench"
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


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
    ("family", "name"), [(f, n) for f, entries in registry.FAMILIES.items() for n in entries if f != "schedule"]
)
def test_registry_and_signature_agree(family: str, name: str) -> None:
    entry = registry.FAMILIES[family][name]
    signature = inspect.signature(imports.load(entry.target)).parameters
    for option, field in entry.options.model_fields.items():
        default = field.default
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
    names = [n for entries in registry.FAMILIES.values() for n in entries]
    assert len(names) == len(set(names))
