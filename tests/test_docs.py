"""The README and the manual do what they say: examples run, output is the tool's, links lead somewhere."""

import io
import itertools
import json
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import Cli
from rich.console import Console

import decaybench
from decaybench import registry
from decaybench.analysis.comparison import ComparisonSettings, summarize
from decaybench.analysis.frame import runs_frame
from decaybench.cli import app
from decaybench.registry.metrics import TESTED
from decaybench.report.formats import Report, print_report
from decaybench.report.verdicts import difference_text
from decaybench.results.store import StudyFolder
from decaybench.study.study import read_study
from helpers import REPOSITORY

README = (REPOSITORY / "README.md").read_text("utf-8")
MANUAL = REPOSITORY / "decaybench" / "docs"
PAGES = {path.stem: path.read_text("utf-8") for path in sorted(MANUAL.glob("*.md"))}
PAGES |= {"manual": PAGES["README"], "README": README}
BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [block for page in PAGES.values() for block in BLOCK.findall(page)]
COMMANDS = [
    line.partition("  #")[0].strip()
    for language, _, content in BLOCKS
    if language == "sh"
    for line in content.splitlines()
    if line.startswith("decaybench ")
]


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_readme_is_short_and_narrow() -> None:
    assert README.count("\n") <= 200
    assert all(len(line) <= 95 for _, _, content in BLOCK.findall(README) for line in content.splitlines())


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    folder = REPOSITORY if page == "README" else MANUAL
    for link in re.findall(r"\]\(([^)#]+)", PAGES[page]):
        assert link.startswith("https://") or (folder / link).exists(), link


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_these_options(command: str) -> None:
    words = shlex.split(command)[1:]
    group = typer.main.get_command(app)
    context = group.make_context("decaybench", words)
    name, chosen, rest = group.resolve_command(context, words)  # type: ignore[attr-defined]
    if hasattr(chosen, "commands"):
        chosen, rest = chosen.commands[rest[0]], rest[1:]
    chosen.make_context(name, rest)  # fails for an option that does not exist


def test_the_study_file_is_a_study(tmp_path: Path) -> None:
    (content,) = [c for lang, f, c in BLOCKS if (lang, f) == ("toml", "study.toml")]
    (tmp_path / "study.toml").write_text(content)
    study = read_study(str(tmp_path / "study.toml"), {})
    assert len(study.runs()) == 3 * 2 * 2 * 2 * 20
    assert study.epochs == [10]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["strategy", "activation", "network", "dataset"])
def test_how_to_add_one(family: str, cli: Cli, tmp_path: Path) -> None:
    (file, code), *rest = [(f, c) for lang, f, c in BLOCKS if lang == "python" and f == f"my_{family}.py"]
    assert not rest
    (tmp_path / file).write_text(code)
    (command,) = [c for lang, _, c in BLOCKS if lang == "sh" and f"my_{family}.py:" in c]
    done = cli(*shlex.split(command)[1:])
    assert done.returncode == 0, done.stderr
    rows = json.loads(cli("report", "--format", "json").stdout)
    assert any(f"my_{family}.py:" in row[family] for row in rows)
    assert all(row["alpha_mean"] is not None for row in rows)
    if family == "activation":  # its parameters are activation parameters: spared by exclude-alpha
        spread = {row["strategy"]: row["alpha_mean"] for row in rows if "my_" in row["activation"]}
        assert abs(spread["exclude-alpha"] - 1) < abs(spread["decay-all"] - 1)


def test_the_output_shown_is_what_the_tool_prints_for_the_committed_records() -> None:
    (shown,) = [c for lang, f, c in BLOCKS if (lang, f) == ("text", "output")]
    settings = ComparisonSettings()
    summary = summarize(runs_frame(StudyFolder(REPOSITORY / "results" / "first-look").load()), settings)
    console = Console(width=80, file=io.StringIO(), record=True)
    print_report(Report(summary, settings), console)
    printed = [line.rstrip() for line in console.export_text().splitlines()]
    assert shown.splitlines() == printed[: len(shown.splitlines())]


def test_the_figures_on_the_start_of_a_kaf_are_those_of_the_records() -> None:
    runs = decaybench.load(REPOSITORY / "results" / "kaf-start").sort_values("seed")
    text = " ".join((REPOSITORY / "results" / "kaf-start" / "README.md").read_text("utf-8").split())
    for label in ("kaf", "kaf,init=random"):
        first, second, third = (f"{100 * value:.2f}%" for value in runs[runs.activation == label].validation_accuracy)
        for page in (" ".join(PAGES["studies"].split()), text):
            assert f"{first}, {second} and {third}" in page


FIGURE = re.compile(r"[−+]?\d+\.\d\d? \[[−+]?\d+\.\d\d?, [−+]?\d+\.\d\d?\]")
# The committed ones: what somebody ran in this clone has no README.
STUDIES = sorted(
    p.parent.name for p in (REPOSITORY / "results").glob("*/README.md") if (p.parent / "study.toml").exists()
)


@pytest.mark.slow
def test_the_words_of_the_answer_are_the_verdicts_of_the_records(cli: Cli) -> None:
    @cache
    def rows_of(study: str) -> list[dict[str, Any]]:
        return json.loads(cli("report", str(REPOSITORY / "results" / study), "--format", "json").stdout)  # type: ignore

    def row_of(study: str, **wanted: Any) -> dict[str, Any]:
        (row,) = [row for row in rows_of(study) if all(row[key] == value for key, value in wanted.items())]
        return row

    def verdict(study: str, decay: float, metric: str = "test_accuracy", **cell: Any) -> str:
        return str(row_of(study, strategy="exclude-alpha", weight_decay=decay, **cell)[f"{metric}_verdict"])

    def accuracy(study: str, strategy: str, decay: float, activation: str) -> float:
        row = row_of(study, strategy=strategy, weight_decay=decay, activation=activation)
        return float(row["test_accuracy"])

    answer = " ".join(section("The answer so far").split())
    assert "At a decay that suits training, decaying α or not is the same on Fashion-MNIST and Letter" in answer
    assert "strong decay of slopes costs Fashion-MNIST and Letter, gains on MNIST-1D" in answer
    assert "with each at its own best λ and rate two more data sets show no difference" in answer
    assert "Far above, a KAF must be spared, and no decay is better still" in answer
    assert "At too high a learning rate decay of α helps a KAF" in answer
    for study, activation in itertools.product(("confirm-fashion", "confirm-letter"), ("prelu", "kaf")):
        assert verdict(study, 0.0003, activation=activation) == "the same within ±0.5 points"
        assert verdict(study, 0.01, activation=activation) == "better"
        assert accuracy(study, "no-decay", 0, activation) > accuracy(study, "exclude-alpha", 0.01, activation)
    assert verdict("why-mnist1d", 0.03, activation="prelu", network="mlp") == "worse"
    for study, decay, network in (("why-digits", 0.1, "forum"), ("why-mnist1d", 0.03, "mlp")):
        for activation in ("kaf", "relu,gain=True"):
            assert verdict(study, decay, activation=activation, network=network) == "better"
    assert "sparing Swish's β at λ = 0.3 lowers test loss" in answer
    assert "xIELU's is the same within ±2%" in answer
    assert verdict("xielu-lm", 0.3, "test_loss", activation="swish") == "better"
    for decay in (0.1, 0.3, 1.0, 3.0):
        assert verdict("xielu-lm", decay, "test_loss", activation="xielu") == "the same within ±2%"
    tuned = [line for line in answer.split(" | ") if "[" in line and "](" not in line][-4:]
    assert all(text.split("[")[1].startswith("−") and ", +" in text for text in tuned)  # around 0
    normed = {"activation": "relu,gain=True", "network": "forum,norm=True"}
    assert verdict("why-digits", 0.03, **normed) == "the same within ±0.5 points"
    assert verdict("why-digits", 0.3, **normed) == "better"
    assert verdict("tuned-mnist1d-sgd", 0.001, activation="kaf", lr=0.3) == "worse"


def test_the_tables_of_false_alarms_and_coverage_are_what_the_command_wrote() -> None:
    page = (MANUAL / "statistics.md").read_text("utf-8")
    found = json.loads((REPOSITORY / "results" / "bench" / "verdicts.json").read_text("utf-8"))
    _, alarms, coverage = found.values()
    expected = []
    for name, activation in (("PReLU", "prelu"), ("KAF", "kaf")):
        rows = [row for row in alarms if row["digits, forum"] == activation]
        for text, key in (
            ("a verdict in accuracy or loss", "either"),
            ("t-test over seeds, accuracy alone", "t over seeds"),
        ):
            values = " | ".join(f"{row[f'false alarms, {key}']:.3f}" for row in rows)
            expected.append(f"| {name}: {text} | {values} |")
    for row in coverage:
        assert row["seeds"] < 5 or row["coverage, crossed"] >= 0.875  # the page says where it is low
    groups = {(row["Fashion-MNIST, forum"], row["metric"]) for row in coverage}
    for contrast, metric in groups:
        rows = [row for row in coverage if (row["Fashion-MNIST, forum"], row["metric"]) == (contrast, metric)]
        name = contrast.replace("kaf", "KAF").replace("prelu", "PReLU")
        expected.append(f"| {name}: {metric} | " + " | ".join(f"{r['coverage, crossed']:.3f}" for r in rows) + " |")
        expected.append(" | ".join(f"{r['coverage, t over seeds']:.3f}" for r in rows))
        expected.append(" | ".join(f"{r['power, crossed']:.2f} ({r['power, t over seeds']:.2f})" for r in rows))
    assert [line for line in expected if line not in page] == []


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_figures_with_an_interval_in_the_readme_of_a_study_are_in_its_report(study: str, cli: Cli) -> None:
    folder = REPOSITORY / "results" / study
    text = " ".join((folder / "README.md").read_text("utf-8").split())
    done = cli("report", str(folder))
    printed = reported(cli, folder)
    # Every run that study.toml asks for is there, whole, if perhaps of an older version of the training code.
    assert all("older version of the training code" in line for line in done.stderr.splitlines() if "Warning" in line)
    assert all(figure in printed for figure in FIGURE.findall(text)), [
        f for f in FIGURE.findall(text) if f not in printed
    ]
    for word in ("Command", "Machine", "Time", "Verdict"):
        assert word in text


def test_all_studies_take_less_than_six_hours_together() -> None:
    seconds = 0
    for study in STUDIES:
        text = (REPOSITORY / "results" / study / "README.md").read_text("utf-8")
        (number, unit) = re.findall(r"^- Time: (\d+) (s|min)", text, re.MULTILINE)[0]
        seconds += int(number) * {"s": 1, "min": 60}[unit]
    hours, minutes = divmod(round(seconds / 60), 60)
    assert hours < 6
    assert f"take {hours} h {minutes} min" in (REPOSITORY / "results" / "README.md").read_text("utf-8")


def test_a_cell_that_is_recomputed_from_the_file_is_the_one_that_the_report_prints() -> None:
    page = PAGES["statistics"]
    (code,) = re.findall(r"```python recompute\n(.*?)```", page, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    printed = done.stdout.strip()
    assert f"it prints `{printed}`" in page, done.stderr
    shown = " ".join(c for lang, f, c in BLOCKS if (lang, f) == ("text", "output"))
    assert printed in " ".join(shown.split())


@pytest.mark.slow
def test_the_answer_is_about_the_strategy_without_options_where_there_is_one(cli: Cli) -> None:
    """Of why-digits exclude-alpha, and not exclude-alpha,layer=0, which is worse in one place."""
    answer = cli("report", str(REPOSITORY / "results" / "why-digits")).stdout
    sentence = " ".join(answer.split()).partition("Loss:")[0]
    assert "exclude-alpha is better than decay-all" in sentence
    assert "worse" not in sentence


@pytest.mark.slow
@pytest.mark.parametrize("study", ["slopes", "why-digits", "why-mnist1d"])
def test_the_figures_shown_are_what_the_lines_beside_them_print(study: str) -> None:
    text = (REPOSITORY / "results" / study / "README.md").read_text("utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (shown,) = re.findall(r"```text\n(.*?)```", text, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.stdout == shown, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("study", STUDIES)
def test_no_verdict_on_a_committed_study_contradicts_the_numbers_beside_it(study: str, cli: Cli) -> None:
    rows = json.loads(cli("report", str(REPOSITORY / "results" / study), "--format", "json").stdout)
    for row in rows:
        for metric, margin in (("test_accuracy", 0.005), ("test_loss", 0.02 * (row["test_loss_baseline"] or 0))):
            names = ("verdict", "difference_low", "difference_high", "p_holm", "detectable", "difference")
            verdict, low, high, p, seen, difference = (row.get(f"{metric}_{name}") for name in names)
            if verdict is None or low is None:
                continue
            assert low <= difference <= high
            clear, inside = low > 0 or high < 0, -margin < low and high < margin
            assert {"better": clear, "worse": clear, "cannot tell": not clear}.get(verdict, inside), row
            assert (p < 0.05) == clear or inside
            assert verdict != "cannot tell" or seen is None or seen > abs(difference)


@pytest.mark.slow
def test_the_zeros_of_the_study_of_sparseness_are_those_of_its_records() -> None:
    frame = decaybench.load(REPOSITORY / "results" / "sparsity")
    zeros = frame.groupby(["activation", "strategy", "weight_decay"]).alpha_zero.mean()
    random, elu = "kaf,init=random,std=0.3", "kaf"
    cells = [(random, "proximal-l1,on=activation", d) for d in (0.03, 0.1)]
    cells += [(elu, "proximal-l1,on=activation", 1.0), (random, "proximal-l1", 0.03)]
    text = (REPOSITORY / "results" / "sparsity" / "README.md").read_text("utf-8")
    shown = re.findall(r"(\d+\.\d)%", text)
    assert shown == [f"{100 * zeros[cell]:.1f}" for cell in cells]
    assert (frame[frame.strategy.str.startswith("loss-penalty")].alpha_zero == 0).all()


@pytest.mark.slow
def test_the_slopes_shown_are_those_of_the_records(cli: Cli) -> None:
    text = (REPOSITORY / "results" / "slopes" / "README.md").read_text("utf-8")
    rows = json.loads(cli("report", str(REPOSITORY / "results" / "slopes"), "--layers", "--format", "json").stdout)
    for kind, row in zip(("per channel (mean)", "shared"), rows, strict=True):
        means = " | ".join(f"{layer['alpha_mean']:.3f}" for layer in row["layers"])
        assert f"| here, {kind} | {means} |" in text
    printed = cli("inspect", str(REPOSITORY / "tests" / "data" / "mtcnn.safetensors")).stdout
    for network in ("pnet", "rnet", "onet"):
        means = re.findall(rf"{network}\.prelu\d\.weight +\d+ +(\S+)", printed)
        assert f"| {network} | {' | '.join(means)} |" in text


def reported(cli: Cli, folder: Path) -> str:
    """What the report prints, every difference with its interval over seeds, uncorrected, and every mean."""
    rows = json.loads(cli("report", str(folder), "--format", "json").stdout)
    alone = [
        difference_text(
            TESTED[0], 1.0, *(row[f"test_accuracy_{key}"] for key in ("difference", "seeds_low", "seeds_high"))
        )
        for row in rows
        if row.get("test_accuracy_difference") is not None
    ]
    means = [[row.get(f"test_accuracy{end}") for end in ("", "_low", "_high")] for row in rows]
    alone += ["{:.2f} [{:.2f}, {:.2f}]".format(*(100 * end for end in ends)) for ends in means if None not in ends]
    return " ".join([*cli("report", str(folder), "--wide").stdout.split(), *alone])


@pytest.mark.slow
def test_the_answer_has_the_figures_of_the_reports_that_it_names(cli: Cli) -> None:
    sentences = re.split(r"\n(?=[|-] ?)", section("The answer so far"))
    checked = 0
    for sentence in sentences:
        figures = FIGURE.findall(" ".join(sentence.split()))
        if figures:
            (study,) = re.findall(r"results/([\w-]+)\)", sentence)
            printed = reported(cli, REPOSITORY / "results" / study)
            assert all(figure in printed for figure in figures), (study, [f for f in figures if f not in printed])
            checked += len(figures)
    assert checked == 19


def test_the_answer_to_the_thread_runs_and_spares_the_slopes() -> None:
    (code,) = [c for lang, f, c in BLOCKS if (lang, f) == ("python", "own_model.py")]
    names: dict[str, Any] = {}
    exec(code, names)
    spared = [n for g in names["optimizer"].param_groups if g["weight_decay"] == 0 for n in g["param_names"]]
    assert spared == ["1.weight", "3.weight"]
    assert {g["weight_decay"] for g in names["optimizer"].param_groups} == {0.0, 1e-5}


def test_every_strategy_is_explained() -> None:
    for name in registry.STRATEGIES:
        assert f"| `{name}` |" in section("Strategies")


def test_ci_runs_the_test_command_of_the_readme() -> None:
    (command,) = [c.strip() for lang, _, c in BLOCKS if lang == "sh" and "pytest" in c]
    assert command in (REPOSITORY / ".ci" / "run").read_text()


RECIPES_SHOWN = ("--recipe", "torch", "--recipe", "exclude-1d", "--recipe", "decaybench")


def test_the_audit_shown_is_what_the_tool_prints(cli: Cli, tmp_path: Path) -> None:
    (code,) = [c for lang, f, c in BLOCKS if (lang, f) == ("python", "my_model.py")]
    (tmp_path / "my_model.py").write_text(code)
    (shown,) = [c for lang, f, c in BLOCKS if (lang, f) == ("text", "audit")]
    assert shown.split() == cli("audit", "my_model.py:make", *RECIPES_SHOWN).stdout.split()


@pytest.mark.slow
def test_the_answer_shown_is_what_verify_prints(cli: Cli) -> None:
    (shown,) = [c for lang, f, c in BLOCKS if (lang, f) == ("text", "verify")]
    assert " ".join(cli("verify", "--steps", "4").stdout.split()).startswith(" ".join(shown.split()))


def test_every_recipe_is_explained() -> None:
    for name in registry.RECIPES:
        assert re.search(rf"^\|[^|]*`{re.escape(name)}`[^|]*\|", PAGES["auditing"], re.MULTILINE), name


def test_the_figures_of_speed_are_those_of_the_committed_run() -> None:
    run = (REPOSITORY / "results" / "bench" / "README.md").read_text("utf-8")
    table = PAGES["speed"]
    main = [line.split() for line in run.splitlines() if re.match(r"128×32×28×28 +\S+ +[\d.]+ ", line)]
    assert len(main) == 5
    for _, name, *figures in main:
        shown = {"PReLU": "| our `PReLU` |", "KAF": "| our `KAF` |", "definition": "| the KAF as it is defined"}
        (row,) = [line for line in table.splitlines() if line.startswith(shown.get(name, f"| `{name}` |"))]
        assert [cell.strip() for cell in row.split("|")][2:5] == figures[:3], name


def test_the_picture_is_what_its_command_draws(cli: Cli, tmp_path: Path) -> None:
    (line,) = re.findall(r"`decaybench (report\s+results/first-look --figure answer) --output (\S+?\.svg)`", README)
    arguments = [str(REPOSITORY / word) if word.startswith("results/") else word for word in line[0].split()]
    done = cli(*arguments, "--output", "answer.svg")
    assert done.returncode == 0, done.stderr
    texts = [
        re.findall(r"<text [^>]*>([^<]*)</text>", path.read_text(encoding="utf-8"))
        for path in (tmp_path / "answer.svg", REPOSITORY / line[1])
    ]
    assert texts[0] == texts[1]
    assert len(texts[0]) > 15
    assert f"]({line[1]})" in README
