"""Random options, study files, records and own code: "a fault of decaybench" is said only where it is one.

A longer run: ``pytest tests/faults/test_fuzz.py --hypothesis-profile=long``.
"""

import contextlib
import json
import operator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from decaybench.cli import app
from decaybench.registry import FAMILIES
from decaybench.results.record import dumps
from decaybench.results.store import StudyFolder
from decaybench.study.study import Study
from made_records import made

LAX = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
NAMES = sorted({name for family in FAMILIES.values() for name in family})
OPTIONS = sorted({o for f in FAMILIES.values() for e in f.values() for o in e.options.model_fields})
WORDS = st.sampled_from([*NAMES, *OPTIONS, "own.py:f", "os:system", "", "nan", "-1", "1e400", "none", "true", "=", ","])
TEXTS = WORDS | st.text(max_size=12) | st.integers().map(str) | st.floats().map(str)
SPECS = st.builds(
    lambda n, o: ",".join([n, *(f"{k}={v}" for k, v in o)]), TEXTS, st.lists(st.tuples(WORDS, TEXTS), max_size=3)
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=6,
)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> None:
    """Runs the command line: its errors are sentences, and none of them is our fault."""
    done = CliRunner().invoke(app, list(arguments))
    said = f"{arguments}: {done.stderr[-2000:]}"
    assert "fault of decaybench" not in done.stderr, said
    assert "Traceback" not in done.output, said
    assert done.exit_code in (0, 1, 2), said
    assert done.exit_code == 0 or done.stderr.strip(), said


@LAX
@given(
    st.lists(
        st.tuples(st.sampled_from([k.replace("_", "-") for k in Study.model_fields if k != "description"]), SPECS),
        max_size=4,
    )
)
def test_options_of_run(here: Path, options: list[tuple[str, str]]) -> None:
    run("run", "smoke", "--dry-run", *(f"--{key}={value}" for key, value in options))


@LAX
@given(st.dictionaries(st.sampled_from([*Study.model_fields, "nothing"]), VALUES, max_size=4))
def test_study_files(here: Path, fields: dict[str, Any]) -> None:
    import tomli_w

    try:
        content = tomli_w.dumps({k: v for k, v in fields.items() if v is not None})
    except (TypeError, ValueError):  # what TOML cannot hold
        content = repr(fields)
    with contextlib.suppress(UnicodeEncodeError):
        Path("s.toml").write_text(content, encoding="utf-8")
        run("run", "s.toml", "--dry-run")


@LAX
@given(st.text(max_size=200) | st.binary(max_size=200))
def test_files_that_are_no_studies(here: Path, content: str | bytes) -> None:
    raw = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    Path("s.toml").write_bytes(raw)
    run("run", "s.toml", "--dry-run")
    run("audit", "torchvision:nothing", "--check", "s.toml")


def changed(body: Any, path: list[Any], value: Any) -> Any:
    """A copy with one thing deep inside replaced."""
    if not path or not isinstance(body, dict | list) or not body:
        return value
    keys = list(body) if isinstance(body, dict) else list(range(len(body)))
    key = keys[path[0] % len(keys)]
    copy = dict(body) if isinstance(body, dict) else list(body)
    copy[key] = changed(body[key], path[1:], value)  # type: ignore[index]
    return copy


@LAX
@given(st.lists(st.integers(0, 50), min_size=1, max_size=5), VALUES)
def test_records(here: Path, path: list[int], value: Any) -> None:
    record = made(0.5)
    body = json.loads(dumps(record))
    for key in ("digest", "schema"):
        del body[key]
    folder = StudyFolder(here / "results" / "k")
    folder.runs.mkdir(parents=True, exist_ok=True)
    try:
        text = json.dumps(changed(body, path, value))
    except ValueError:
        return
    (folder.runs / f"{record.run_id}.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    folder.write(made(0.6, "exclude-alpha"))
    run("report", "results/k", "--format", "json")
    run("status", "results/k")


# Each of these takes a quarter of a second.
SHORT = LAX if settings.get_current_profile_name() == "long" else settings(LAX, max_examples=20)

BODIES = st.sampled_from(
    [
        "return None",
        "return 3",
        "raise ValueError('x')",
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "return nn.PReLU()",
        "return [nn.PReLU()]",
        "return nn.Linear(3, 3)",
        "1/0",
        "raise BaseException('x')",
        "def f(: pass",
        "return torch.optim.SGD(a[0].parameters(), lr=0.1)",
        "return iter([])",
        "return lambda *x: x",
        "yield 1",
        "import nothing",
        "raise Exception",
        "raise UnicodeDecodeError('utf-8', b'x', 0, 1, 'y')",
        "raise StopIteration",
        "raise GeneratorExit",
    ]
)


@pytest.mark.slow
@SHORT
@given(BODIES, st.sampled_from(["audit", "optimizer", "network", "activation", "dataset", "strategy"]))
def test_own_factories(here: Path, body: str, where: str) -> None:
    own = here / f"own{abs(hash((body, where)))}.py"
    own.write_text(
        f"import torch\nfrom torch import nn\ndef net():\n    return nn.PReLU()\ndef f(*a, **k):\n    {body}\n"
    )
    target = f"{own.name}:f"
    if where == "audit":
        run("audit", target, "--input", "2,3")
    elif where == "optimizer":
        run("audit", f"{own.name}:net", "--optimizer", target)
    else:
        run("run", "smoke", f"--{where}", target, "--seeds", "1", "--executor", "inline", "--fresh", "--yes")
    own.unlink()


def test_the_fuzzer_would_notice_a_fault(monkeypatch: pytest.MonkeyPatch, here: Path) -> None:
    monkeypatch.setattr("decaybench.cli.compute.read_study", operator.truediv)
    with pytest.raises(AssertionError, match="fault of decaybench"):
        run("run", "smoke", "--dry-run")
