"""The audit as a guard: optimizers as people return them, own rules, and the forms that a CI reads."""

import io
import json
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from decaybench.cli import app
from decaybench.report.audit import Shown, print_audit
from helpers import REPOSITORY

OPTIMIZERS = """
import torch
from torch import nn
from torch.optim.lr_scheduler import ConstantLR, LambdaLR
from decaybench.activations import KAF


def net(width: int = 8):
    return nn.Sequential(nn.Linear(4, width), nn.PReLU(width), nn.Linear(width, 2))


def kaf():
    return nn.Sequential(nn.Linear(4, 8), KAF(8), nn.Linear(8, 2))


def two_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.slope = nn.Linear(4, 4), nn.Parameter(torch.ones(4))
            self.table = nn.Parameter(torch.ones(9, 4))

        def forward(self, image, ids):
            return nn.functional.prelu(self.fc(image), self.slope) + self.table[ids]

    return Two()


def split(model):
    slopes = list(model[1].parameters())
    return [*model[0].parameters(), *model[2].parameters()], slopes


def bare(model):
    rest, slopes = split(model)
    return torch.optim.AdamW([{"params": rest, "weight_decay": 0.1}, {"params": slopes, "weight_decay": 0.0}])


def times(name):
    def make(model):
        rest, slopes = split(model)
        return torch.optim.AdamW([{"params": rest, name: 1.0}, {"params": slopes, name: 0.0}], weight_decay=0.1)

    return make


wd_mult, wd_multiplier, decay_mult = times("wd_mult"), times("wd_multiplier"), times("decay_mult")


def lightning(model):
    optimizer = bare(model)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": ConstantLR(optimizer), "interval": "step"}}


def pair(model):
    optimizer = bare(model)
    return [optimizer], [ConstantLR(optimizer)]


class Wrapper:
    def __init__(self, optimizer):
        self.optimizer = optimizer


def wrapped(model):
    return Wrapper(Wrapper(bare(model)))


def in_a_dict(model):
    rest, slopes = split(model)
    return {"body": torch.optim.SGD(rest, 0.1, weight_decay=0.1), "slopes": torch.optim.SGD(slopes, 0.1)}


def by_parameter(model):
    slopes = {id(p) for p in split(model)[1]}
    return {p: torch.optim.SGD([p], 0.1, weight_decay=0.0 if id(p) in slopes else 0.1) for p in model.parameters()}


def generator(model):
    yield bare(model)


class Lit(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 8), nn.PReLU(8), nn.Linear(8, 2))

    def configure_optimizers(self):
        return lightning(self)


def groups(model):
    return bare(model).param_groups


def schedule_off(model):
    rest, slopes = split(model)
    return torch.optim.SGD([{"params": rest}, {"params": slopes, "lr": 0.0}], lr=0.1, weight_decay=0.1)


def swapped(model):
    rest, slopes = split(model)
    return torch.optim.AdamW([{"params": slopes, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}])


def warmed_up(model):
    optimizer = swapped(model)
    LambdaLR(optimizer, lambda step: step / 100)  # every learning rate begins at 0
    return [optimizer]


def all_zero(model):
    return torch.optim.SGD(model.parameters(), lr=0.0, weight_decay=0.1)


def muon(model):
    matrices = [p for p in model.parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if p.ndim != 2]
    return torch.optim.Muon(matrices, lr=0.1, weight_decay=0.0), torch.optim.AdamW(rest, weight_decay=0.0)


def nothing(model):
    return {"lr": 0.1, "name": "adam"}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "opts.py").write_text(OPTIMIZERS)
    return tmp_path


def audit(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["audit", *arguments])


def gate(optimizer: str, model: str = "opts:net") -> Result:
    return audit(model, "--optimizer", f"opts:{optimizer}", "--fail-on", "activation")


SPARING = ["bare", "wd_mult", "wd_multiplier", "decay_mult", "lightning", "pair", "wrapped", "in_a_dict"]
SPARING += ["by_parameter", "generator", "groups", "schedule_off"]


@pytest.mark.parametrize("name", SPARING)
def test_what_people_return_is_understood(here: Path, name: str) -> None:
    done = gate(name)
    assert done.exit_code == 0, done.output
    found = json.loads(audit("opts:net", "--optimizer", f"opts:{name}", "--format", "json").stdout)
    assert {row["name"] for row in found if not row["decayed"]["optimizer"]} == {"1.weight"}
    if name.startswith(("wd", "decay")):
        assert f"The decay of a group is taken times its {name}" in done.stderr
    if name == "schedule_off":
        assert "1 of 2 groups have a learning rate of 0" in done.stderr


def test_a_method_of_the_model_may_make_the_optimizer(here: Path) -> None:
    done = audit("opts:Lit", "--optimizer", "opts:Lit.configure_optimizers", "--fail-on", "activation")
    assert done.exit_code == 0, done.output
    wrong = audit("opts:Lit", "--optimizer", "opts:Lit.configure_optimizer")
    assert "Unknown attribute of opts.Lit 'configure_optimizer': did you mean 'configure_optimizers'" in wrong.stderr


@pytest.mark.parametrize("name", ["swapped", "warmed_up", "all_zero"])
def test_what_decays_the_slopes_is_found_whatever_the_warm_up(here: Path, name: str) -> None:
    done = gate(name)
    assert done.exit_code == 1
    assert "optimizer decays 1 parameter of role activation: 1.weight (PReLU)." in done.stderr


def test_nothing_that_is_an_optimizer_is_no_pass(here: Path) -> None:
    done = gate("nothing")
    assert done.exit_code == 2
    assert "opts:nothing returned dict, in which there is no optimizer" in done.stderr


def test_muon_takes_the_coefficients_of_a_kaf_and_the_audit_says_so(here: Path) -> None:
    done = audit("opts:kaf", "--optimizer", "opts:muon")
    line = next(line for line in done.stdout.splitlines() if line.startswith("1.alpha"))
    assert line.split()[:5] == ["1.alpha", "8×20", "KAF", "activation", "Muon"]
    assert "Muon is made for weights of matrix products, and has activation parameters: 1.alpha." in done.stdout


def test_a_model_with_two_inputs(here: Path) -> None:
    wanted = {"slope": "activation", "table": "embedding", "fc.weight": "weight", "fc.bias": "bias"}
    for inputs in (["--input", "image=2,4", "--input", "ids=2:int"], ["--input", "2,4", "--input", "2:int"]):
        done = audit("opts:two_inputs", *inputs, "--format", "json")
        assert {row["name"]: row["role"] for row in json.loads(done.stdout)} == wanted, done.output
    done = audit("opts:two_inputs", "--input", "2,4")
    assert done.exit_code == 2
    assert "missing 1 required positional argument" in done.stderr


def test_a_role_that_running_showed_is_no_proof_that_there_is_no_other(here: Path) -> None:
    (here / "gain.py").write_text(
        "import torch\nfrom torch import nn\n\nclass Gain(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.fc, self.gain = nn.Linear(4, 4), nn.Parameter(torch.zeros(1))\n"
        "    def forward(self, x):\n        return x + self.gain * torch.relu(self.fc(x))\n"
    )
    done = audit("gain.py:Gain", "--input", "2,4")
    assert "This model has no activation parameters" not in done.output
    assert "No activation parameter was found; 1 roles are what running the model once showed." in done.output


def test_own_rules(here: Path) -> None:
    Path("rules.toml").write_text(
        '[mine]\nsummary = "ours"\ncontains = ["bias"]\nmatches = ["^1\\\\.weight$"]\n\n[bad]\nndim_below = 1\n'
    )
    found = audit("opts:net", "--rules", "rules.toml", "--recipe", "mine", "--fail-on", "activation")
    assert found.exit_code == 0, found.output
    bad = audit("opts:net", "--rules", "rules.toml", "--recipe", "bad", "--fail-on", "activation")
    assert bad.exit_code == 1
    for text, message in (
        ("[mine]\nlike = ['x']", "Unknown field of [mine] in rules.toml 'like'"),
        ("[mine]\ncontains = 'bias'", "mine.contains = 'bias'; allowed is a list of texts."),
        ("[mine]\nndim_below = 'two'", "mine.ndim_below = 'two'; allowed is a whole number."),
        ("[mine]\nmatches = ['(']", "'(' is no regular expression"),
        ("mine = 3", "mine is no table"),
        ("", "has no recipe"),
    ):
        Path("rules.toml").write_text(text)
        done = audit("opts:net", "--rules", "rules.toml")
        assert done.exit_code == 2
        assert message in done.stderr


def test_the_line_of_a_ci_says_only_what_is_wrong(here: Path) -> None:
    passed = audit("opts:net", "opts:kaf", "--recipe", "decaybench", "--fail-on", "activation")
    assert passed.exit_code == 0
    assert passed.stdout.splitlines() == [
        "opts:net: decaybench spares what it should (1 activation parameter).",
        "opts:kaf: decaybench spares what it should (1 activation parameter).",
    ]
    assert audit("opts:net", "--recipe", "decaybench", "--fail-on", "activation", "--quiet").output == ""
    failed = audit("opts:net", "opts:kaf", "--recipe", "exclude-1d", "--fail-on", "activation")
    assert (failed.exit_code, failed.stdout) == (
        1,
        "opts:net: exclude-1d spares what it should (1 activation parameter).\n",
    )
    assert "opts:kaf: exclude-1d decays 1 parameter of role activation: 1.alpha (KAF). To spare them," in failed.stderr
    timm = audit("opts:kaf", "--recipe", "timm", "--fail-on", "activation")
    assert "name them in the model's no_weight_decay()" in timm.stderr


def test_annotations_of_github(here: Path) -> None:
    done = audit("opts.py:kaf", "--recipe", "torch", "--fail-on", "activation", "--format", "github")
    assert done.exit_code == 1
    line = next(i for i, text in enumerate(OPTIMIZERS.splitlines(), 1) if text.startswith("def kaf"))
    assert done.stdout.startswith(
        f"::error file=opts.py,line={line},title=decaybench audit opts.py%3Akaf::opts.py:kaf: "
    )
    assert done.stdout.count("\n") == 1
    assert audit("opts:kaf", "--recipe", "decaybench", "--fail-on", "activation", "--format", "github").stdout == ""


def test_junit_is_read_back(here: Path) -> None:
    done = audit("opts:kaf", "--recipe", "torch", "--fail-on", "activation", "--format", "junit")
    suite = ET.fromstring(done.stdout).find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures")) == ("1", "1")
    passed = audit("opts:kaf", "--recipe", "decaybench", "--fail-on", "activation", "--format", "junit")
    suite = ET.fromstring(passed.stdout).find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures")) == ("1", "0")


def test_pyproject(here: Path) -> None:
    Path("pyproject.toml").write_text(
        '[tool.decaybench.audit]\ntargets = ["opts:net", "opts:kaf"]\nrecipe = "exclude-1d"\nfail-on = "activation"\n'
    )
    done = audit()
    assert done.exit_code == 1
    assert "opts:kaf: exclude-1d decays" in done.stderr
    assert audit("--recipe", "decaybench").exit_code == 0  # the command line wins
    text = '[tool.decaybench.audit]\ntargets = "opts:net"\nrecipe = "exclude-1d"\nkwargs = { width = 3 }\n'
    Path("pyproject.toml").write_text(text)
    assert "1.weight  3" in audit("--format", "table").stdout  # what fails is activation, where nothing is said
    for text, message in (
        (
            "targets = ['opts:net']\nrecipies = 'x'",
            "Unknown field of [tool.decaybench.audit] in pyproject.toml 'recipies'",
        ),
        ("targets = ['opts:net']", "needs the recipe, or the optimizer, that you use."),
        ("targets = 3", "targets = 3; allowed is a text or a list of texts."),
        ("fail-on = 'activation'", "has no targets in [tool.decaybench.audit]"),
        ("targets = 'opts:net'\nallow-unknown = 'yes'", "allow-unknown = 'yes'; allowed is true or false."),
    ):
        Path("pyproject.toml").write_text(f"[tool.decaybench.audit]\n{text}\n")
        done = audit()
        assert done.exit_code == 2
        assert message in done.stderr


def test_a_check_is_about_decay_and_a_strict_one_about_everything(here: Path) -> None:
    common = ["--optimizer", "opts:bare", "--snapshot", "d.txt"]
    assert audit("opts:net", *common).exit_code == 0
    wider = ["opts:net", "--kwargs", "width=16", "--optimizer", "opts:bare", "--check", "d.txt"]
    done = audit(*wider)
    assert done.exit_code == 0
    assert "Note: ~ 0.weight: shape 8×4 became 16×4" in done.stderr
    strict = audit(*wider, "--strict")
    assert strict.exit_code == 1
    assert "~ 0.weight: shape 8×4 became 16×4" in strict.stderr
    assert audit("opts:net", "--optimizer", "opts:swapped", "--check", "d.txt").exit_code == 1


@pytest.mark.slow
def test_a_model_of_a_billion_parameters_takes_no_memory(tmp_path: Path) -> None:
    """A Llama of 1.2 billion parameters, on the meta device."""
    code = (
        "import json, pathlib, re\n"
        "pathlib.Path('config.json').write_text(json.dumps({'model_type': 'llama', 'hidden_size': 2048,"
        " 'intermediate_size': 8192, 'num_hidden_layers': 16, 'num_attention_heads': 32, 'vocab_size': 128256}))\n"
        "from typer.testing import CliRunner\nfrom decaybench.cli import app\n"
        "done = CliRunner().invoke(app, ['audit', 'hf:config.json', '--recipe', 'torch', '--fail-on', 'activation'])\n"
        "assert done.exit_code == 0, done.output\n"
        "print(re.search(r'VmHWM:\\s+(\\d+) kB', pathlib.Path('/proc/self/status').read_text())[1])"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1_500_000  # KiB; the numbers alone would be 4.8 million


MORE = """
import os
import torch
from torch import nn
from opts import net, split


def generated(model):
    return [{"params": model.parameters(), "weight_decay": 0.1}]


def one_tensor(model):
    rest, slopes = split(model)
    return ({"params": rest, "weight_decay": 0.1}, {"params": slopes[0], "weight_decay": 0.0})


def one_group(model):
    return {"params": list(model.named_parameters()), "weight_decay": 0.1}


def values(model):
    rest, slopes = split(model)
    groups = {"a": {"params": rest, "weight_decay": 0.1}, "b": {"params": slopes, "weight_decay": 0.0}}
    return groups.values()


def without_decay(model):
    return [{"params": list(model.parameters())}]


def by_schedule(model):
    groups = [{"params": list(model.parameters()), "wd_multiplier": 1.0}]
    return torch.optim.AdamW(groups, weight_decay=0.0)


def text(model):
    return [{"params": list(model.parameters()), "weight_decay": "a"}]


def lacking(model):
    return torch.optim.SGD(model[0].parameters(), lr=0.1, weight_decay=0.1)


def moves_away():
    os.chdir("/")
    return nn.PReLU()


class Pipe(nn.Module):
    def named_parameters(self, *args, **kwargs):
        raise BrokenPipeError


def empty():
    return nn.Identity()


def wide():
    return nn.Sequential(*[nn.PReLU() for _ in range(30)])


def lazy():
    return nn.Sequential(nn.LazyLinear(3), nn.PReLU())


instance = nn.PReLU()
"""


@pytest.fixture
def more(here: Path) -> Path:
    (here / "more.py").write_text(MORE)
    return here


@pytest.mark.parametrize(("name", "code"), [("generated", 1), ("one_tensor", 0), ("one_group", 1), ("values", 0)])
def test_param_groups_in_every_form_that_torch_takes(more: Path, name: str, code: int) -> None:
    done = audit("opts:net", "--optimizer", f"more:{name}", "--fail-on", "activation")
    assert done.exit_code == code, done.output
    assert "lacks" not in done.output


def test_a_schedule_that_sets_the_decay_itself_is_judged_by_its_multipliers(more: Path) -> None:
    done = audit("opts:net", "--optimizer", "more:by_schedule", "--fail-on", "activation")
    assert done.exit_code == 1
    assert "a schedule sets it: its multipliers alone decide here" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["opts:net", "--optimizer", "more:without_decay"], "Group 0 has no weight_decay"),
        (["opts:net", "--optimizer", "more:text"], "weight_decay = 'a', which is no number."),
        (["opts:net", "--optimizer", "nope"], "'nope' names no function"),
        (["opts:net", "--recipe", "torch", "--fail-on", ""], "--fail-on '' names no role; allowed are"),
        (["opts:net", "--recipe", "torch", "--fail-on", ","], "--fail-on ',' names no role; allowed are"),
        (
            ["opts:net", "--format", "brief"],
            "--format brief says what is wrong, which only --fail-on or --check decides.",
        ),
        (["opts:net", "--format", "junit"], "--format junit says what is wrong"),
        (["more:empty", "--recipe", "torch"], "The model has no parameters"),
        (["opts:net", "--check", "d.txt", "--snapshot", "d.txt"], "--snapshot and --check name the same file"),
        (["opts:net", "--input", "99999999999,3"], "at most 1,000,000,000 are drawn."),
        (["builtins:dict"], "builtins:dict has no signature that Python can read"),
    ],
)
def test_what_cannot_be_audited_is_no_pass(more: Path, arguments: list[str], message: str) -> None:
    done = audit(*arguments)
    assert done.exit_code == 2, done.output
    assert message in done.stderr


def test_a_broken_pipe_is_no_pass(more: Path) -> None:
    done = audit("more:Pipe", "--recipe", "torch", "--fail-on", "activation")
    assert done.exit_code == 1
    assert "its code raises BrokenPipeError" in done.stderr
    command = [sys.executable, "-m", "decaybench", "audit", *["opts.py:net"] * 3, "--recipe", "torch"]
    command += ["--fail-on", "activation", "--format", "table"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(60) == 1


def test_a_factory_that_changes_the_folder(more: Path) -> None:
    done = audit("more.py:moves_away", "--recipe", "torch", "--fail-on", "activation", "--format", "github")
    assert done.exit_code == 1
    assert "::error file=" in done.stdout


def test_a_check_notices_what_the_optimizer_lost_and_what_is_unknown(more: Path) -> None:
    assert audit("opts:net", "--optimizer", "opts:bare", "--snapshot", "d.txt").exit_code == 0
    done = audit("opts:net", "--optimizer", "more:lacking", "--check", "d.txt")
    assert done.exit_code == 1
    assert "the optimizer lacks 1.weight, 2.weight, 2.bias." in done.stderr
    text = Path("d.txt").read_text().replace("2.bias\t2\tbias\toptimizer\n", "")
    Path("d.txt").write_text(text.replace("0.bias\t8\tbias\toptimizer", "0.bias\t8\tbias\t-"))
    again = audit("opts:net", "--optimizer", "opts:bare", "--check", "d.txt")
    assert "! 2.bias (bias, 2) is new; decayed by optimizer" in again.stderr  # no bias was decayed before


def test_several_findings_are_several_sentences(more: Path) -> None:
    done = audit("opts:kaf", "--recipe", "torch", "--fail-on", "activation,bias")
    lines = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 2
    assert "\\n" not in done.stderr
    assert done.stderr.count("exclude=('activation', 'bias')") == 1
    wide = audit("more:wide", "--recipe", "torch", "--fail-on", "activation")
    assert "7.weight (PReLU) and 22 more." in wide.stderr


def test_several_targets_are_one_file(more: Path) -> None:
    both = ["opts:net", "opts:kaf", "--recipe", "torch"]
    assert {row["target"] for row in json.loads(audit(*both, "--format", "json").stdout)} == {"opts:net", "opts:kaf"}
    table = audit(*both, "--format", "csv").stdout.splitlines()
    assert table[0].startswith("target,name,")
    assert sum(line.startswith("target,") for line in table) == 1
    xml = ET.fromstring(audit(*both, "--fail-on", "activation", "--format", "junit").stdout)
    assert [suite.get("name") for suite in xml] == ["decaybench audit opts:net", "decaybench audit opts:kaf"]
    alone = audit("more.py:instance", "--recipe", "torch", "--fail-on", "activation", "--format", "github")
    assert "file=" not in alone.stdout  # the library's own line would help nobody


def test_lazy_layers_get_their_shapes_from_the_input(more: Path) -> None:
    done = audit("more:lazy")
    assert done.exit_code == 2
    assert "0.weight has no shape before the model has seen an input: give --input" in done.stderr
    found = json.loads(audit("more:lazy", "--input", "2,4", "--format", "json").stdout)
    assert {row["name"]: row["shape"] for row in found}["0.weight"] == [3, 4]


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_narrow_terminal_keeps_names_and_says_what_it_leaves_out(more: Path, width: int) -> None:
    from opts import net  # type: ignore[import-not-found]

    from decaybench.audit.audit import audit as run_audit

    console = Console(file=io.StringIO(), width=width)
    print_audit(Shown(run_audit(net()), every=width > 60), console)
    printed = console.file.getvalue()
    assert "1.weight" in printed
    assert max(map(len, printed.splitlines())) <= width
    header = printed.splitlines()[0].split()
    assert header[:1] == ["parameter"]
    assert {"torch", "role"} <= set(header)
    assert "Not shown for want of width:" in printed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[torch]\nndim_below = 1", "'torch' is a recipe of its own here"),
        ('["a,b"]\nndim_below = 1', "'a,b' is no name"),
        ("[mine]\nndim_below = true", "mine.ndim_below = True; allowed is a whole number."),
        ("[mine]\nndim_is = -5", "mine.ndim_is = -5; allowed is a whole number."),
        ("[mine]\ntorch_norms = 1", "mine.torch_norms = 1; allowed is true or false."),
        ("[mine]\nowners = ['PReLU']", "there is no type 'PReLU'"),
        ("[mine]\nowners = ['torch.nn.Embeding']", "there is no type 'torch.nn.Embeding'"),
        ("[mine]\nmatches = ['[A-Z]lpha']", "has capitals; names are in lower case there."),
    ],
)
def test_own_rules_that_mean_nothing_are_refused(more: Path, text: str, message: str) -> None:
    Path("rules.toml").write_text(text)
    done = audit("opts:net", "--rules", "rules.toml")
    assert done.exit_code == 2, done.output
    assert message in done.stderr
