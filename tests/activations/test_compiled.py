"""The compiled library: made once, kept, and missed by nobody who has no compiler."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from test_activations import COMPILED

from helpers import REPOSITORY

pytestmark = pytest.mark.slow


def python(code: str, tmp_path: Path, **environment: str) -> str:
    environment = {**os.environ, "DECAYBENCH_CACHE": str(tmp_path), "PYTHONPATH": str(REPOSITORY), **environment}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


CALL = (
    "import torch; from decaybench.activations import KAF; torch.manual_seed(0); m = KAF(4)\n"
    "s = torch.randn(SIZE, 4, requires_grad=True); m(s).sum().backward()\n"
    "print(float(m(s).sum()), float(m.alpha.grad.sum()))"
)


def test_what_is_compiled_is_kept_and_small_calls_compile_nothing(tmp_path: Path) -> None:
    python(CALL.replace("SIZE", "100"), tmp_path)
    assert list(tmp_path.iterdir()) == []
    first = python(CALL.replace("SIZE", "2000"), tmp_path)
    if not COMPILED:
        assert list(tmp_path.iterdir()) == []
        return
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    assert sorted(Path(name).suffix for name in before) == [".sha256", ".so"]
    assert python(CALL.replace("SIZE", "2000"), tmp_path) == first
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("environment", [{"CC": "/bin/false"}, {"DECAYBENCH_NATIVE": "0"}, {"CC": "/nowhere"}])
def test_without_a_compiler_it_works_all_the_same(tmp_path: Path, environment: dict[str, str]) -> None:
    wanted = [float(x) for x in python(CALL.replace("SIZE", "2000"), tmp_path / "a").split()]
    got = [float(x) for x in python(CALL.replace("SIZE", "2000"), tmp_path / "b", **environment).split()]
    assert got == pytest.approx(wanted, rel=1e-5)
    assert not list((tmp_path / "b").glob("*.so"))
