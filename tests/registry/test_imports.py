"""A user's own code is identified by every file of hers that it imports, and pinned when a study begins."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from decaybench.errors import UsageError
from decaybench.registry import imports
from decaybench.registry.user_code import place_of
from helpers import REPOSITORY


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder; afterwards the path and the modules are as before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "modules", {**sys.modules})
    monkeypatch.setattr(imports, "_pinned", {})
    return tmp_path


def write(files: dict[str, str]) -> None:
    for name, content in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(content)


PROJECT = {
    "net.py": "import parts.layers\nfrom parts import blocks as b\ndef make(*a): return parts.layers.WIDTH\n",
    "parts/__init__.py": "",
    "parts/layers.py": "from .sizes import WIDTH\n",
    "parts/sizes.py": "WIDTH = 3\n",
    "parts/blocks.py": "def later():\n    import helper\n    return helper\n",
    "helper.py": "import importlib\nimportlib.import_module('dynamic')\n",
    "dynamic.py": "import json, numpy, random\n",
    "random.py": "raise SystemExit('a neighbour of the name of a standard module')\n",
    "unrelated.py": "x = 1\n",
}


@pytest.mark.parametrize("target", ["net.py:make", "net:make"])
def test_every_file_that_is_imported_counts_and_no_other(here: Path, target: str) -> None:
    write(PROJECT)
    names = {Path(file).relative_to(here).as_posix() for file in imports.source_files(target)}
    assert names == PROJECT.keys() - {"random.py", "unrelated.py"}
    before = imports.source_fingerprint(target)
    for name, content in PROJECT.items():
        Path(name).write_text(content + "# changed\n")
        assert (imports.source_fingerprint(target) != before) == (name in names), name
        Path(name).write_text(content)
    assert imports.source_fingerprint(target) == before


def test_a_file_that_imports_nothing_of_its_own_has_the_hash_of_its_content() -> None:
    import hashlib

    write({"alone.py": "import torch\n"})
    assert imports.source_fingerprint("alone.py:x") == hashlib.sha256(b"import torch\n").hexdigest()[:12]


def test_the_hash_does_not_depend_on_the_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        write(PROJECT)
        found.append(imports.source_fingerprint("net.py:make"))
    assert found[0] == found[1]


def test_imports_in_a_circle_and_files_that_do_not_parse() -> None:
    write({"one.py": "import two\n", "two.py": "import one, three\n", "three.py": "def (:\n"})
    assert len(imports.source_files("one.py:x")) == 3


def test_what_was_pinned_is_imported_whatever_the_files_hold_then(here: Path) -> None:
    write(PROJECT)
    files = imports.source_files("net.py:make")
    imports.pin(files)
    for name in PROJECT:
        Path(name).write_text("raise RuntimeError('edited')\n")
    assert imports.load("net.py:make")() == 3
    assert imports.load("net.py:b").later().__name__ == "helper"


def test_what_was_pinned_is_imported_where_the_files_are_not(here: Path) -> None:
    """On another machine of a cluster, say."""
    write(PROJECT)
    files = imports.source_files("net.py:make")
    for name in PROJECT:
        Path(name).unlink()
    imports.pin(files)
    assert imports.load("net.py:make")() == 3


def test_a_file_finds_its_neighbours_which_hide_nothing_of_the_standard_library(tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "elsewhere").mkdir()
    for name in ("net.py", "helper.py", "random.py"):
        content = {"net.py": "import helper, random\nvalue = random.random()\n", "helper.py": "x = 1\n"}
        (tmp_path / "project" / name).write_text(content.get(name, PROJECT["random.py"]))
    code = "from decaybench.registry import imports; import sys; print(imports.load(sys.argv[1]))"
    command = [sys.executable, "-P", "-c", code, f"{tmp_path}/project/net.py:value"]
    done = subprocess.run(
        command, cwd=tmp_path / "elsewhere", env={"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True
    )
    assert 0 <= float(done.stdout) < 1, done.stderr


def test_a_target_is_split_at_its_last_colon() -> None:
    assert imports.split_target(r"C:\x\f.py:make") == (r"C:\x\f.py", "make")


def test_a_missing_file_is_named() -> None:
    with pytest.raises(UsageError, match="no such file"):
        imports.source_files("nothing.py:x")


OTHER_WAYS = {
    "the package of a module": ({"pkg/__init__.py": "K = 1\n", "pkg/net.py": "from . import K\n"}, "pkg.net:x"),
    "what a package imports": (
        {"pkg/__init__.py": "import helper\n", "pkg/net.py": "x = 1\n", "helper.py": "K = 1\n"},
        "pkg.net:x",
    ),
    "the package above": (
        {"pkg/__init__.py": "K = 1\n", "pkg/a/__init__.py": "", "pkg/a/net.py": "from .. import K\n"},
        "pkg.a.net:x",
    ),
    "a relative module of a standard name": (
        {"pkg/__init__.py": "", "pkg/types.py": "K = 1\n", "pkg/net.py": "from .types import K\n"},
        "pkg.net:x",
    ),
    "a relative import by a call": (
        {
            "pkg/__init__.py": "",
            "pkg/helper.py": "K = 1\n",
            "pkg/net.py": "import importlib\nimportlib.import_module('.helper', __package__)\n",
        },
        "pkg.net:x",
    ),
    "by keyword and another name": (
        {
            "net.py": "from importlib import import_module as im\nim(name='helper')\n",
            "helper.py": "K = 1\n",
        },
        "net.py:x",
    ),
    "a star": (
        {"net.py": "from pkg import *\n", "pkg/__init__.py": "__all__ = ['helper']\n", "pkg/helper.py": "K = 1\n"},
        "net.py:x",
    ),
    "very deep": ({"net.py": "x = " + "-" * 200_000 + "1\nimport helper\n"}, "net.py:x"),
}


@pytest.mark.parametrize("way", OTHER_WAYS)
def test_whatever_runs_when_it_is_imported_counts(here: Path, way: str) -> None:
    files, target = OTHER_WAYS[way]
    write(files)
    before = imports.source_fingerprint(target)
    for name, content in files.items():
        Path(name).write_text(content.replace("K = 1", "K = 2") + "# changed\n")
        assert imports.source_fingerprint(target) != before, name
        Path(name).write_text(content)


def test_files_that_change_places_are_another_hash(here: Path) -> None:
    write({"sub/net.py": "import u, v\n", "u/__init__.py": "K = 1\n", "v/__init__.py": "K = 2\n"})
    before = imports.source_fingerprint("sub/net.py:x")
    write({"u/__init__.py": "K = 2\n", "v/__init__.py": "K = 1\n"})
    assert imports.source_fingerprint("sub/net.py:x") != before


def test_what_was_imported_before_does_not_change_a_hash(here: Path) -> None:
    write(
        {f"v{k}/{name}.py": content for k in (1, 2) for name, content in {"net": "import h\nx = 1\n", "h": ""}.items()}
    )
    before = imports.source_fingerprint("v2/net.py:x")
    imports.load("v1/net.py:x")
    assert imports.source_fingerprint("v2/net.py:x") == before


def test_two_modules_of_one_name_are_refused(here: Path) -> None:
    write({"v1/net.py": "import helper\n", "v1/helper.py": "", "v2/net.py": "import helper\n", "v2/helper.py": ""})
    imports.check_names(["v1/net.py:x"])
    with pytest.raises(UsageError, match=r"'helper'.* is both v1/helper.py .* and v2/helper.py"):
        imports.check_names(["v1/net.py:x", "v2/net.py:x"])
    write({"helper.py": ""})
    with pytest.raises(UsageError, match=r"is both v1/helper.py \(for v1/net.py:x\) and helper.py"):
        imports.check_names(["v1/net.py:x"])


def test_an_edit_between_two_studies_of_one_process_is_imported(here: Path) -> None:
    write({"net.py": "from helper import K\n", "helper.py": "K = 1\n"})
    for k in (1, 2):
        write({"helper.py": f"K = {k}\n"})
        imports.pin(imports.source_files("net.py:K"))
        assert imports.load("net.py:K") == k


def test_what_reading_does_not_show_is_known_after_the_import(here: Path) -> None:
    write({"net.py": "import importlib\nh = importlib.import_module('hel' + 'per')\n", "helper.py": ""})
    imports.pin(imports.source_files("net.py:h"))
    before = imports.unseen()
    imports.load("net.py:h")
    assert {Path(file).name for file in imports.unseen() - before} == {"helper.py"}


def test_a_fault_inside_a_compiled_library_is_not_called_own_code() -> None:
    """Their tracebacks name files that are not there: pandas/_libs/hashtable_class_helper.pxi."""
    with pytest.raises(KeyError) as raised:
        pd.DataFrame({"a": [1]})["b"]
    error = raised.value
    error.__traceback__ = error.__traceback__.tb_next if error.__traceback__ is not None else None  # without this file
    assert place_of(error) is None
