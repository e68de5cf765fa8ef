"""What `report` writes into files: by their suffix, with the columns and the detail that were asked for."""

import io
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

import decaybench
from decaybench.cli import app
from decaybench.report.formats import FORMATS, SUFFIXES

TINY = ["--dataset", "synthetic,samples=200", "--network", "mlp,width=16", "--activation", "prelu", "--epochs", "3"]
TINY += ["--strategy", "decay-all", "--strategy", "exclude-alpha", "--weight-decay", "0.1", "--executor", "inline"]


def call(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, list(arguments))
    assert "Traceback" not in done.stderr
    return done.exit_code, done.stdout, done.stderr


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> str:
    place = tmp_path_factory.mktemp("study")
    assert call("run", *TINY, "--seeds", "2", "--results", str(place), "--name", "t")[0] == 0
    return str(place / "t")


STARTS = {
    **{".txt": b"synthetic", ".md": b"| dataset", ".csv": b"dataset,", ".json": b"[", ".tex": b"% needs"},
    **{".html": b"<!doctype html>", ".htm": b"<!doctype html>", ".png": b"\x89PNG", ".svg": b"<svg", ".pdf": b"%PDF"},
}


@pytest.mark.parametrize("suffix", [*SUFFIXES, ".HTML"])
def test_the_suffix_says_the_format(study: str, tmp_path: Path, suffix: str) -> None:
    code, out, errors = call("report", study, "--output", str(tmp_path / f"r{suffix}"))
    assert code == 0, errors
    assert out == ""
    assert (tmp_path / f"r{suffix}").read_bytes().startswith(STARTS[suffix.lower()])
    assert f"Written to {tmp_path / f'r{suffix}'}." in errors


def test_every_format_has_a_suffix() -> None:
    assert set(SUFFIXES.values()) == set(FORMATS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "r.xyz"], "r.xyz: its suffix says no format; give one of .txt, .md"),
        (["--output", "r"], "its suffix says no format"),
        (["--output", "r.html", "--format", "csv"], "is called as html is, but --format says csv"),
        (["--format", "png"], "--format png writes a file: add --output"),
        (["--format", "latex", "--column", "acuracy"], "Unknown column 'acuracy'"),
        (["--format", "csv", "--column", "strategy"], "--column is for --format latex; it does nothing for csv"),
        (["--epochs", "--format", "html", "--output", "r.html"], "--epochs writes CSV, not html"),
        (["--figure", "decay"], "--figure is for --format png, svg, pdf; it does nothing for table"),
        (["--figure-width", "3"], "--figure-width is for --format png, svg, pdf"),
        (["--wide", "--format", "csv"], "--wide is for --format table"),
        (["--epochs", "--output", "e.txt"], "--epochs writes CSV: give a file that ends in .csv, not e.txt"),
        (["--epochs", "--baseline", "nope"], "--baseline has no meaning for it"),
        (["--format", "csv", "--output", "-"], "--output - is no file"),
        (["--output", "f.png", "--figure-width", "1", "--font-size", "40"], "inches wide with a font of 40 points"),
        (["--output", "no/such/folder/r.csv"], "there is no folder no/such/folder"),
    ],
)
def test_what_cannot_be_written_is_said(study: str, arguments: list[str], message: str) -> None:
    code, out, errors = call("report", study, *arguments)
    assert code in (1, 2)
    assert message in errors
    assert out == ""


def test_a_latex_table_has_the_columns_that_were_chosen_and_constants_in_its_caption(study: str) -> None:
    _, out, _ = call("report", study, "--format", "latex", "--column", "strategy", "--column", "test_loss")
    assert r"\begin{tabular}{lr}" in out
    assert r"strategy & loss \\" in out
    assert out.count(r" \\") == 3
    assert r"\caption{synthetic,samples=200" in out
    assert r"$\lambda$ 0.1" in out
    assert r"2 seeds $\times$" in out
    assert {r"\toprule", r"\midrule", r"\bottomrule"} <= set(out.splitlines())


def test_every_epoch_of_every_run_is_there(study: str) -> None:
    _, out, _ = call("report", study, "--epochs")
    frame = pd.read_csv(io.StringIO(out))
    assert len(frame) == 2 * 2 * 4  # strategies × seeds × (before training and three epochs)
    loaded = decaybench.load(study, epochs=True)
    assert list(loaded.columns) == list(frame.columns)
    runs = decaybench.load(study).set_index("run_id")
    last = loaded[loaded["epoch"] == 3].set_index("run_id")
    assert (last["test_loss"] == runs.loc[last.index, "test_loss"]).all()
    assert loaded[loaded["epoch"] == 0]["train_loss"].isna().all()
    (slopes,) = [name for name in loaded if name.startswith("alpha_") and name.endswith("q50")][:1]
    assert (loaded[loaded["epoch"] == 0][slopes] == 0.25).all()  # a PReLU starts there
    assert call("pack", study)[0] == 0
    pd.testing.assert_frame_equal(
        decaybench.load(study, epochs=True).sort_values(["run_id", "epoch"], ignore_index=True),
        loaded.sort_values(["run_id", "epoch"], ignore_index=True),
        check_dtype=False,
    )
