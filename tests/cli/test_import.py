"""Runs from elsewhere become a study: what is read, and what is said of a table that cannot be."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from typer.testing import CliRunner

from decaybench.cli import app


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def call(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, list(arguments))
    assert "Traceback" not in done.stderr
    return done.exit_code, done.stdout, done.stderr


def table(rows: list[str], heading: str = "strategy,seed,weight_decay,val/loss,score") -> str:
    Path("runs.csv").write_text("\n".join([heading, *rows]) + "\n", "utf-8")
    return "runs.csv"


def two_arms(n: int = 6) -> tuple[list[str], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    theirs, change = rng.normal(2, 0.1, n), rng.normal(-0.3, 0.05, n)
    rows = [f"all,{s},0.1,{x},{s}" for s, x in enumerate(theirs)]
    return (
        rows + [f"none,{s},0.1,{x + d},{s % 3}" for s, (x, d) in enumerate(zip(theirs, change, strict=True))],
        theirs,
        change,
    )


def test_differences_and_intervals_are_those_of_a_paired_t_test() -> None:
    rows, theirs, change = two_arms()
    assert call("import", table(rows), "--metric", "val/loss", "--baseline", "all")[0] == 0
    code, out, _ = call("report", "results/runs", "--format", "json")
    assert code == 0
    found = {row["strategy"]: row for row in json.loads(out)}["none"]
    interval = stats.ttest_rel(theirs + change, theirs).confidence_interval(0.95)
    keys = ("difference", "difference_low", "difference_high", "p_holm")
    p = stats.ttest_rel(theirs + change, theirs).pvalue
    assert [found[f"val/loss_{key}"] for key in keys] == pytest.approx([change.mean(), *interval, p])
    assert found["val/loss_verdict"] == "better"  # less of a loss
    assert found["val/loss_improvement"] == 1.0
    assert found["val/loss_speaks_about"] == "these test examples"


@pytest.mark.slow
def test_the_page_and_every_format_serve_it() -> None:
    rows, *_ = two_arms()
    code, out, errors = call(
        "import", table(rows), "--metric", "val/loss", "--metric", "score:max", "--baseline", "all"
    )
    assert code == 0, errors
    assert "Better than all in val/loss; no verdict on score" in out
    assert "nothing shows that its runs are paired" in out
    for kind in ("csv", "markdown", "latex", "table"):
        assert call("report", "results/runs", "--format", kind)[0] == 0
    assert call("report", "results/runs", "--format", "html", "--output", "page.html")[0] == 0
    assert call("report", "results/runs", "--format", "svg", "--output", "d.svg")[0] == 0
    page = Path("page.html").read_text()
    assert "val/loss" in page
    assert "Imported from runs.csv" in page
    assert "none: the runs come from runs.csv" in page  # no command that would be refused
    assert "decaybench run" not in page
    assert call("pack", "results/runs")[0] == 0
    assert json.loads(call("report", "results/runs", "--format", "json")[1])[0]["score"] is not None


def test_columns_of_an_export_are_found_by_their_usual_names() -> None:
    rows = [f'"r{s}","{m}",{s},0.1,S,{1 + s / 10 + d}' for s in range(3) for m, d in (("a", 0), ("b", -0.5))]
    rows += ['"x","a",9,0.1,S,', '"y","b",4,0.1,M,2.0', '"z","a",4,0.1,M,nan']
    path = table(rows, '\ufeff"Name","config.method","config/seed","WD","size","loss"')
    code, out, errors = call("import", path, "--metric", "loss", "--by", "size", "--baseline", "a", "--name", "w")
    assert code == 0, errors
    assert "runs.csv · size=S" in out
    assert "1 lines hold no result and are left out (line 8 is the first)" in errors
    assert "these columns are not used: Name" in errors
    assert "1 of 1 runs diverged" in out
    again, *_ = call("import", path, "--metric", "loss", "--by", "size", "--baseline", "a", "--name", "w")
    assert again == 0  # the same table again


@pytest.mark.parametrize(
    ("rows", "arguments", "said"),
    [
        ([], [], "holds no line below its heading"),
        (["a,0,0.1,1,1", "a,0,0.1,2,1"], [], "runs.csv:3 is the same run as line 2"),
        (["a,0,0.1,high,1"], [], "runs.csv:2: val/loss = 'high' is no number"),
        (["a,x,0.1,1,1"], [], "runs.csv:2: seed = 'x' is no number"),
        (["a,0.5,0.1,1,1"], [], "seed = '0.5' is no whole number"),
        (["a,0,-1,1,1"], [], "weight_decay"),
        (["a,0,0.1,1,1"], ["--metric", "score"], "nothing says whether less or more of it is better"),
        (
            ["a,0,0.1,1,1"],
            ["--metric", "val/los:min"],
            "Unknown column of runs.csv 'val/los': did you mean 'val/loss'?",
        ),
        (["a,0,0.1,1,1"], ["--by", "size"], "Unknown column of runs.csv 'size'"),
        (["a,0,0.1,1,1"], ["--baseline", "b"], "runs.csv has no such strategy; it has a"),
        (["a,0,0.1,1,1"], ["--column", "strategy=arm"], "Unknown column of runs.csv 'arm'"),
        (["a,0,0.1,1,1"], ["--column", "lr=x"], "Unknown field of --column 'lr'"),
        (["a,0,0.1,1,1"], ["--name", "../x"], "a name becomes a folder"),
        (['a,0,0.1,"1,1'], [], "is no CSV"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_line(rows: list[str], arguments: list[str], said: str) -> None:
    code, _, errors = call("import", table(rows), "--metric", "val/loss", "--baseline", "a", *arguments)
    assert code == 2, errors
    assert said in errors


def test_percentages_missing_columns_and_files_are_said() -> None:
    path = table(["a,0,93.2"], "strategy,seed,test_accuracy")
    assert "percentages are written as fractions" in call("import", path, "--metric", "test_accuracy")[2]
    path = table(["a,0.9"], "strategy,loss")
    assert (
        "has no column seed (it has strategy, loss); name it: --column seed=NAME"
        in call("import", path, "--metric", "loss")[2]
    )
    assert "cannot be read: No such file" in call("import", "nothing.csv", "--metric", "loss")[2]
    Path("bytes.csv").write_bytes(b"strategy,seed\n\xff\xfe")
    assert "is not UTF-8" in call("import", "bytes.csv", "--metric", "loss")[2]


def test_a_line_that_lacks_one_metric_and_quoted_thousands() -> None:
    path = table(["a,0,0.1,1.0,", "a,1,0.1,1.5,2", "b,0,0.1,2.0,1", "b,1,0.1,2.5,1"])
    code, out, errors = call("import", path, "--metric", "val/loss", "--metric", "score:max", "--baseline", "a")
    assert code == 0, errors
    assert "4 runs are in results/runs" in errors
    assert "damaged" not in errors
    assert "score was not recorded by every run of runs.csv with a at 0.1" in out
    path = table(['a,0,0.1,"1,234",1'])
    assert "val/loss = '1,234' is no number" in call("import", path, "--metric", "val/loss", "--baseline", "a")[2]
    path = table(["a,0,1"], "strategy,seed,source")
    assert "nothing can be called source" in call("import", path, "--metric", "source:min", "--baseline", "a")[2]


def test_another_study_is_not_overwritten() -> None:
    strategies = ["--strategy", "decay-all", "--seeds", "1", "--epochs", "1", "--activation", "prelu"]
    code, _, errors = call("run", "smoke", *strategies, "--name", "runs")
    assert code == 0, errors
    path = table(["a,0,0.1,1,1"])
    code, _, errors = call("import", path, "--metric", "val/loss", "--baseline", "a")
    assert code == 2
    assert "holds another study; give --name" in errors


def test_other_separators_percentages_and_a_baseline_without_decay() -> None:
    lines = [f"decay;{s};0,1;{80 + s}%" for s in range(3)] + [f"none;{s};0;{85 + s}%" for s in range(3)]
    path = table(lines, "strategy;seed;wd;test_accuracy")
    code, _, errors = call("import", path, "--metric", "test_accuracy", "--baseline", "none")
    assert code == 0, errors
    rows = {row["strategy"]: row for row in json.loads(call("report", "results/runs", "--format", "json")[1])}
    assert rows["decay"]["test_accuracy_difference"] == pytest.approx(-0.05)
    assert rows["decay"]["weight_decay"] == 0.1
    path = table(["a,0,1,2"], "strategy,seed,loss,loss")
    assert "has several columns called loss" in call("import", path, "--metric", "loss", "--baseline", "a")[2]
    assert "imported from runs.csv, 6 runs" in call("status", "results/runs")[1]
    assert "its runs come from runs.csv" in call("run", "results/runs/study.toml")[2]
