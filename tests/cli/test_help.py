"""Help, names typed wrong, and how little is imported to answer."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from decaybench.cli import app

COMMANDS = importlib.import_module("decaybench.cli.app").COMMANDS


def run(*arguments: str, columns: int = 80) -> tuple[int, str]:
    done = CliRunner(env={"COLUMNS": str(columns), "TERMINAL_WIDTH": str(columns)}).invoke(app, list(arguments))
    return done.exit_code, done.output


@pytest.mark.parametrize(
    "arguments", [["--help"], ["list"], ["run", "--help"], ["report", "--help"], ["audit", "--help"]]
)
def test_help_imports_nothing_that_takes_long(arguments: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['decaybench', *{arguments!r}]\n"
        "from decaybench.__main__ import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'pandas', 'scipy', 'altair', 'pyarrow') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip().endswith("[]"), done.stderr


def test_each_command_is_listed_with_the_first_line_of_its_docstring() -> None:
    for name, (target, line) in COMMANDS.items():
        module, _, attribute = target.partition(":")
        found = getattr(importlib.import_module(module), attribute)
        said = found.info.help if isinstance(found, typer.Typer) else found.__doc__.split("\n")[0]
        assert line == said, name
    _, text = run("--help", columns=120)
    assert all(f"│ {name} " in text for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_that_fits_and_an_example(name: str) -> None:
    command = [sys.executable, "-m", "decaybench", name, "--help"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"})
    assert done.returncode == 0
    text = done.stdout
    assert max(map(len, text.splitlines())) <= 80
    assert "Example: decaybench" in " ".join(text.split()) or name == "bench"


def test_run_has_its_options_in_groups_with_the_values_of_the_default_study() -> None:
    _, text = run("run", "--help", columns=120)
    for group in (
        "What is compared",
        "How it is trained",
        "Your own script instead",
        "Where it runs",
        "Study and files",
    ):
        assert f"─ {group} ─" in text
    words = " ".join(text.replace("│", " ").split())
    assert "(digits: 0.002, 0.1)" in words
    assert "(digits: prelu, kaf)" in words
    assert "(digits: 20)" in words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rnu"], "Did you mean 'run'"),
        (["run", "--wieght-decay", "0.1"], "--weight-decay"),
        (["run", "--activation", "prelu", "kaf"], "repeat it: --activation prelu --activation kaf"),
        (["run", "--activation", "prelu", "kaf", "swish"], "Repeat it for each value: --activation swish"),
        (["run", "smoke", "digits"], "unexpected extra argument"),
        (["run", "smoke", "--gpus-per-run", "2"], "--gpus-per-run is for --script; it does nothing"),
        (["run", "smoke", "--time-limit", "5"], "--time-limit is for --script; it does nothing"),
        (["run", "smoke", "--ray-gpus", "1"], "--ray-gpus is for --executor ray; it does nothing for auto"),
        (["run", "--weight-decay", "x"], "--weight-decay 'x': input should be a valid number"),
        (["run", "--batch-size", "1.5"], "--batch-size '1.5': input should be a valid integer"),
        (["run", "--strategy", "two-optimizers", "--alpha-lr", "-1"], "--alpha-lr '-1': input should be greater"),
    ],
)
def test_a_usage_error_uses_the_words_that_were_typed(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, text = run(*arguments, columns=200)
    assert code == 2
    assert message in text.replace("│", " ")


def test_names_are_completed_in_the_shell() -> None:
    environment = {
        "_DECAYBENCH_COMPLETE": "complete_bash",
        "COMP_WORDS": "decaybench run --strategy exclude-",
        "COMP_CWORD": "3",
    }
    done = CliRunner(env=environment).invoke(app, [], prog_name="decaybench")
    assert {"exclude-alpha", "exclude-1d"} <= set(done.output.split())
