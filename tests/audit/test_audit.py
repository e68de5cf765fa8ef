"""``decaybench audit`` on anybody's model: what it shows, what it refuses, what it remembers."""

import csv
import io
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from decaybench import registry
from decaybench.cli import app

# A network with the KAF authors' class and module name, and one with an activation nobody knows.
KAFNETS = """
import torch
class KAF(torch.nn.Module):
    def __init__(self, channels, D=20, conv=False):
        super().__init__()
        self.alpha = torch.nn.Parameter(torch.randn(1, channels, 1, 1, D) if conv else torch.randn(1, channels, D))
        self.register_buffer("gamma", torch.ones(1))
"""
NETS = """
import torch
from torch import nn

class Snaky(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.frequency = nn.Parameter(torch.ones(2, channels))
    def forward(self, x):
        return x + torch.sin(self.frequency.sum(0) * x) ** 2

def unknown(width: int):
    return nn.Sequential(nn.Linear(4, width), Snaky(width), nn.Linear(width, 2))

def kafnet():
    from kafnets import KAF
    return nn.Sequential(nn.Conv2d(1, 4, 3), KAF(4, conv=True), nn.Flatten(), nn.Linear(4, 3), KAF(3))

def prelu():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.PReLU(4), nn.Conv2d(4, 2, 3))

def plain():
    return nn.Sequential(nn.Linear(2, 2), nn.ReLU())

def careful(model):
    slopes = [p for n, p in model.named_parameters() if n == "1.weight"]
    rest = [p for n, p in model.named_parameters() if n != "1.weight"]
    return torch.optim.SGD([{"params": rest, "weight_decay": 0.1}, {"params": slopes}], lr=0.1)

def careless(model):
    first = torch.optim.SGD([model[0].weight, model[1].weight, nn.Parameter(torch.ones(1))], lr=0.1, weight_decay=0.1)
    return [first, torch.optim.SGD([model[0].weight, model[0].bias, model[2].weight], lr=0.1)]

def broken():
    raise ValueError("no such luck")

number = 3
def text():
    return "x"
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "kafnets.py").write_text(KAFNETS)
    (tmp_path / "nets.py").write_text(NETS)
    return tmp_path


def audit(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["audit", *arguments])


def rows(*arguments: str) -> dict[str, dict]:
    done = audit(*arguments, "--format", "json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    keys = {"name", "shape", "module", "role", "decayed", "optimizer", "by_running"}
    assert all(set(row) == keys for row in found)
    return {row["name"]: row for row in found}


def activations(*arguments: str) -> set[str]:
    return {name for name, row in rows(*arguments).items() if row["role"] == "activation"}


def config(folder: Path, kind: str) -> str:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = {"model_type": kind, "vocab_size": 64, "num_key_value_heads": 2, **sizes}
    (folder / kind).mkdir()
    (folder / kind / "config.json").write_text(json.dumps(text))
    return f"hf:{folder / kind}"


@pytest.mark.parametrize("target", ["torchvision:resnet50", "torchvision:vit_b_16", "timm:resnet18"])
def test_models_that_learn_no_activation_say_so_and_pass(target: str) -> None:
    done = audit(target, "--recipe", "torch", "--fail-on", "activation")
    assert done.exit_code == 0
    assert "This model has no activation parameters." in done.stderr
    assert "unknown" not in done.output


def test_timm_and_transformers_models_with_learned_activations(here: Path) -> None:
    stars = activations("timm:poolformerv2_s12")
    assert len(stars) == 24
    assert all(name.rpartition(".")[0].endswith("act") for name in stars)
    assert "proj_out.weight" not in activations("timm:vit_tiny_patch16_224")
    names = activations(config(here, "apertus"))
    assert {name.rpartition(".")[2] for name in names} == {"alpha_p", "alpha_n"}
    assert activations(config(here, "llama")) == set()
    assert activations(config(here, "mamba")) == set()


def test_a_transformers_config_names_its_architecture(here: Path) -> None:
    target = config(here, "llama")
    path = here / "llama" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": ["LlamaForCausalLM"]}))
    assert "lm_head.weight" in rows(target)
    assert "lm_head.weight" in rows(f"hf:{path}")
    assert "lm_head.weight" in rows(target, "--input", "1,8")


def test_the_kaf_authors_network(here: Path) -> None:
    found = rows("nets:kafnet")
    assert {n for n, r in found.items() if r["role"] == "activation"} == {"1.alpha", "4.alpha"}
    assert found["1.alpha"]["shape"] == [1, 4, 1, 1, 20]
    assert found["1.alpha"]["module"] == "KAF"
    assert {name for name, decays in found["1.alpha"]["decayed"].items() if not decays} == {"decaybench"}


def test_an_activation_nobody_knows_is_found_out_by_its_input(here: Path) -> None:
    without = audit("nets.py:unknown", "--kwargs", "width=3")
    assert "1 parameters belong to modules of unknown type, such as 1.frequency of Snaky" in without.stdout
    assert rows("nets.py:unknown", "--kwargs", "width=3", "--input", "5,4")["1.frequency"]["role"] == "activation"
    refused = audit("nets.py:unknown", "--kwargs", "width=3", "--recipe", "exclude-1d", "--fail-on", "activation")
    assert refused.exit_code == 1
    assert "exclude-1d decays 1 parameter of role unknown: 1.frequency (Snaky). Give --input" in refused.stderr
    arguments = ["nets.py:unknown", "--kwargs", "width=3", "--recipe", "exclude-1d", "--fail-on", "activation"]
    assert audit(*arguments, "--allow-unknown").exit_code == 0
    known = audit(*arguments, "--input", "5,4")
    assert known.exit_code == 1
    assert "exclude-1d decays 1 parameter of role activation: 1.frequency (Snaky)." in known.stderr


def test_the_summary_counts(here: Path) -> None:
    done = audit("nets:prelu")
    assert "torch decays 1 of 1 activation parameters and 100.00% of all 118 numbers." in done.stdout
    assert "exclude-1d decays 0 of 1 activation parameters and 91.53% of all 118 numbers." in done.stdout  # 108 of 118
    assert "decaybench decays 0 of 1 activation parameters and 96.61% of all 118 numbers." in done.stdout  # 114 of 118


def test_every_format_has_every_parameter_activations_first(here: Path) -> None:
    assert next(iter(rows("nets:prelu"))) == "1.weight"
    table = list(csv.DictReader(io.StringIO(audit("nets:prelu", "--format", "csv").stdout)))
    assert [r["name"] for r in table] == ["1.weight", "0.weight", "0.bias", "2.weight", "2.bias"]
    assert (table[0]["torch"], table[0]["exclude-1d"], table[0]["shape"]) == ("true", "false", "4")
    assert audit("nets:prelu", "--format", "markdown").stdout.splitlines()[2].startswith("| `1.weight` | 4 | PReLU |")
    lines = audit("nets:prelu").stdout.splitlines()
    assert lines[0].split()[4:] == ["torch", "exclude-1d", "hf-trainer", "decaybench"]  # the others do the same
    assert lines[1].split() == ["1.weight", "4", "PReLU", "activation", "decay", "·", "decay", "·"]
    assert "The same do torchvision, detectron2." in "\n".join(lines)
    every = audit("nets:prelu", "--all-recipes").stdout.splitlines()
    header = json.loads(audit("nets:prelu", "--all-recipes", "--format", "json").stdout)[0]["decayed"]
    assert list(header) == list(registry.RECIPES)
    assert len(every) > 5


@pytest.mark.parametrize(
    ("recipe", "roles", "code"),
    [
        ("torch", "activation", 1),
        ("exclude-1d", "activation", 0),
        ("decaybench", "activation", 0),
        ("decaybench", "activation,bias", 1),
        ("exclude-1d", "bias,norm", 0),
    ],
)
def test_fail_on(here: Path, recipe: str, roles: str, code: int) -> None:
    assert audit("nets:prelu", "--recipe", recipe, "--fail-on", roles).exit_code == code


def test_a_real_optimizer(here: Path) -> None:
    found = rows("nets:prelu", "--optimizer", "nets:careful")
    assert {n: r["decayed"]["optimizer"] for n, r in found.items()} == {
        "0.weight": True,
        "0.bias": True,
        "1.weight": False,
        "2.weight": True,
        "2.bias": True,
    }
    assert audit("nets:prelu", "--optimizer", "nets:careful", "--fail-on", "activation").exit_code == 0
    done = audit("nets:prelu", "--optimizer", "nets:careless", "--fail-on", "activation")
    assert done.exit_code == 1
    assert "In no param group: 2.bias." in done.stderr
    assert "In several param groups: 0.weight." in done.stderr
    assert "The optimizer has 1 parameters that are not this model's." in done.stderr
    assert "nets:prelu: optimizer decays 1 parameter of role activation: 1.weight (PReLU)." in done.stderr
    assert "hand the optimizer decaybench.param_groups(model, weight_decay=…), with extra=[…]" in done.stderr
    assert "the optimizer lacks 2.bias." in done.stderr
    assert "the optimizer has more than once: 0.weight." in done.stderr
    assert done.stdout == ""


def test_a_snapshot_notices_when_decay_comes_back(here: Path) -> None:
    common = ["nets:prelu", "--optimizer", "nets:careful"]
    assert audit(*common, "--snapshot", "decay.txt").exit_code == 0
    assert "1.weight\t4\tactivation\t-\n" in Path("decay.txt").read_text()
    assert audit(*common, "--check", "decay.txt").exit_code == 0
    again = audit("nets:prelu", "--optimizer", "nets:careless", "--check", "decay.txt")
    assert again.exit_code == 1
    assert "! 1.weight (activation) was spared and is now decayed by optimizer" in again.stderr
    assert "~ 0.bias (bias) is no longer decayed by optimizer" in again.stderr
    # A new activation that is decayed is as bad as an old one.
    Path("decay.txt").write_text(Path("decay.txt").read_text().replace("1.weight\t4\tactivation\t-\n", ""))
    new = audit("nets:prelu", "--optimizer", "nets:careless", "--check", "decay.txt")
    assert "! 1.weight (activation, 4) is new; decayed by optimizer" in new.stderr
    other = audit("nets:prelu", "--recipe", "torch", "--check", "decay.txt")
    assert other.exit_code == 2
    assert "decay.txt is about optimizer, this audit about torch." in other.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet50"], "'resnet50' names no model; allowed are package.module:factory"),
        (["nothing.here:net"], "and the installed packages) fails: ModuleNotFoundError: No module named 'nothing'."),
        (["nets:pre"], "Unknown attribute of nets 'pre': did you mean 'prelu'"),
        (["nets:unknown"], "missing a required argument: 'width'; give arguments as --kwargs name=value."),
        (["nets:plain", "--kwargs", "width=3"], "got an unexpected keyword argument 'width'"),
        (["nets:plain", "--kwargs", "width"], "--kwargs 'width' is not key=value."),
        (["nets:broken"], "nets:broken fails at nets.py:35: ValueError: no such luck."),
        (["nets:number"], "nets:number is a int"),
        (["nets:text"], "nets:text returned str, not a torch.nn.Module."),
        (["nets:prelu", "--input", "1,2,x"], "--input '1,2,x' is no shape"),
        (
            ["nets.py:unknown", "--kwargs", "width=3", "--input", "5,7"],
            "The model, given an example input of (5, 7), fails",
        ),
        (["nets:prelu", "--input", "5,7"], "The model, given an example input of (5, 7), fails: RuntimeError"),
        (["timm:resnet81"], "Unknown timm model 'resnet81': did you mean 'resnet18'"),
        (["torchvision:resnet51"], "Unknown torchvision model 'resnet51'"),
        (["hf:nowhere"], "hf:nowhere: there is no such file or folder"),
        (["hf:nets.py"], "hf:nets.py is no configuration of transformers"),
        (["nets:prelu", "--recipe", "tim"], "Unknown recipe 'tim': did you mean 'timm'"),
        ([], "No target is given, and there is no pyproject.toml"),
        (["nets:prelu", "--input", "1,2", "--input", "x=1,2"], "all arguments by position, or all by name"),
        (["nets:prelu", "--input", "1,2:complex"], "--input '1,2:complex': allowed are shapes such as"),
        (["nets:prelu", "nets:plain", "--snapshot", "d.txt"], "--snapshot and --check are about one model"),
        (["nets:prelu", "--rules", "nets.py"], "--rules nets.py is not valid TOML"),
        (["nets:prelu", "--rules", "nothing.toml"], "--rules nothing.toml: No such file"),
        (["nets:prelu", "--fail-on", "activation"], "--fail-on needs the one --recipe"),
        (["nets:prelu", "--recipe", "torch", "--fail-on", "slope"], "Unknown role 'slope'"),
        (["nets:prelu", "--optimizer", "nets:text"], "nets:text, called with the model, fails: TypeError"),
        (["nets:prelu", "--optimizer", "nets:careful", "--recipe", "torch"], "exclude each other"),
        (["nets:prelu", "--check", "nets.py"], "nets.py is no audit snapshot"),
    ],
    ids=str,
)
def test_bad_input_is_one_clear_sentence(here: Path, arguments: list[str], message: str) -> None:
    done = audit(*arguments)
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert "Traceback" not in done.output


def test_a_snapshot_that_is_not_there_is_a_failure(here: Path) -> None:
    done = audit("nets:prelu", "--check", "decay.txt")
    assert done.exit_code == 1
    assert "write it first with --snapshot decay.txt" in done.stderr
    assert audit("nets:prelu", "--snapshot", "nowhere/decay.txt").exit_code == 1


def test_a_detector_is_built_without_downloading_its_backbone() -> None:
    assert "backbone.body.conv1.weight" in rows("torchvision:fasterrcnn_resnet50_fpn")
