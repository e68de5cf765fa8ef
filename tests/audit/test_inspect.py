"""The activation parameters of checkpoints: real ones of a published package, and files as people save them."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from typer.testing import CliRunner, Result

from decaybench.audit.checkpoint import shrink
from decaybench.cli import app
from helpers import REPOSITORY

MTCNN = REPOSITORY / "tests" / "data" / "mtcnn.safetensors"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\ndef make(width: int = 4):\n"
        "    return nn.Sequential(nn.Linear(3, width), nn.PReLU(width), nn.RMSNorm(width), nn.Linear(width, 2))\n"
    )
    return tmp_path


def inspect(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["inspect", *arguments])


def rows(*arguments: str) -> dict[str, dict]:
    done = inspect(*arguments, "--format", "json")
    assert done.exit_code == 0, done.output
    return {row["name"]: row for row in json.loads(done.stdout)}


def make(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(3, width), nn.PReLU(width), nn.RMSNorm(width), nn.Linear(width, 2))


@pytest.mark.parametrize(
    ("network", "n", "mean", "negative"),
    [("pnet", 58, -0.017, 50), ("rnet", 268, -0.039, 68), ("onet", 544, -0.012, 60)],
)
def test_the_slopes_of_mtcnn_are_what_was_counted_elsewhere(
    network: str, n: int, mean: float, negative: int, here: Path
) -> None:
    tensors = {k: v for k, v in load_file(MTCNN).items() if k.startswith(network)}
    save_file(tensors, "one.safetensors")
    found = rows("one.safetensors")
    whole = found["all"]
    assert (whole["n"], round(whole["mean"], 3), round(100 * whole["negative"])) == (n, mean, negative)
    assert {name.split(".")[1][:5] for name in found if name != "all"} == {"prelu"}


def test_the_range_and_quantiles_are_numpys(here: Path) -> None:
    found = rows(str(MTCNN))
    assert round(found["all"]["low"], 2) == -1.28
    assert round(found["all"]["high"], 2) == 1.3
    values = load_file(MTCNN)["pnet.prelu3.weight"].double().numpy()
    row = found["pnet.prelu3.weight"]
    assert [row["q05"], row["q50"], row["q95"]] == pytest.approx(list(np.quantile(values, [0.05, 0.5, 0.95])))
    assert row["near_zero"] == (np.abs(values) <= 0.01).mean()


@pytest.mark.parametrize("form", ["table", "markdown", "csv"])
def test_every_form_shows_every_layer(form: str) -> None:
    printed = inspect(str(MTCNN), "--format", form)
    for name in ("pnet.prelu1.weight", "rnet.prelu4.weight", "onet.prelu5.weight", "all"):
        assert name in printed.stdout
    assert "--target or --parameter says exactly which" in printed.output


def test_a_model_says_exactly_which(here: Path) -> None:
    model = make()
    torch.save(model.state_dict(), "plain.pt")
    assert set(rows("plain.pt")) == {"1.weight", "2.weight", "all"}  # a guess, which takes the norm for one
    assert set(rows("plain.pt", "--target", "net.py:make")) == {"1.weight"}
    assert set(rows("plain.pt", "--parameter", "1.*")) == {"1.weight"}
    wrong = inspect("plain.pt", "--target", "net.py:make", "--kwargs", "width=5")
    assert wrong.exit_code == 2
    assert "1.weight is 4 in the checkpoint and 5 in the model." in wrong.stderr


@pytest.mark.parametrize(
    "wrap",
    [
        lambda m: {"epoch": 3, "state_dict": m.state_dict(), "optimizer": {"state": {}}},
        lambda m: {"model": m.state_dict()},
        lambda m: {f"module.{k}": v for k, v in m.state_dict().items()},
        lambda m: {f"_orig_mod.{k}": v for k, v in m.state_dict().items()},
    ],
)
def test_checkpoints_as_people_save_them(wrap, here: Path) -> None:
    torch.save(wrap(make()), "c.pt")
    assert "1.weight" in rows("c.pt", "--parameter", "1.weight")


def test_two_checkpoints(here: Path) -> None:
    torch.manual_seed(0)
    before, after = make(), make()
    after[1].weight.data += torch.tensor([0.1, -0.1, 0.1, -0.1])
    torch.save(before.state_dict(), "before.pt")
    torch.save(after.state_dict(), "after.pt")
    row = rows("after.pt", "--against", "before.pt", "--target", "net.py:make")["1.weight"]
    assert row["mean_there"] == pytest.approx(0.25)
    assert row["rms_change"] == pytest.approx(0.1)


def test_what_decay_alone_does_is_the_closed_form_and_what_sgd_does(here: Path) -> None:
    torch.save(make().state_dict(), "c.pt")
    printed = inspect("c.pt", "--lr", "0.1", "--weight-decay", "5e-4", "--steps", "39100").stdout
    assert "decay alone shrinks a parameter without gradient to ×0.14" in " ".join(printed.split())
    assert shrink(1e-3, 0.01, 4690) == pytest.approx(0.954, abs=5e-4)
    for kind in (torch.optim.SGD, torch.optim.AdamW):
        p = nn.Parameter(torch.ones(1, dtype=torch.float64))
        p.grad = torch.zeros_like(p)
        optimizer = kind([p], lr=0.1, weight_decay=0.01)
        for _ in range(50):
            optimizer.step()
        assert float(p.detach()) == pytest.approx(shrink(0.1, 0.01, 50))


class Evil:
    """What a pickle may do when it is read."""

    def __reduce__(self) -> tuple:
        return (Path.write_text, (Path("owned"), "x"))


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (None, [], "There is no checkpoint c.pt."),
        (b"rubbish", [], "c.pt is no checkpoint that can be read without executing code"),
        (pickle.dumps({"a": Evil()}), [], "c.pt is no checkpoint that can be read without executing code"),
        ({"lr": 0.1}, [], "c.pt holds no tensors under names"),
        (make().state_dict(), ["--parameter", "act.*"], "--parameter 'act.*' matches nothing in it; a name is"),
        (make().state_dict(), ["--lr", "0.1"], "--lr, --weight-decay and --steps belong together."),
        (make().state_dict(), ["--input", "1,3"], "give its --target, too"),
        (make().state_dict(), ["--format", "xml"], "Unknown value of --format 'xml'"),
    ],
)
def test_bad_input_is_one_sentence(content, arguments: list[str], message: str, here: Path) -> None:
    if isinstance(content, bytes):
        Path("c.pt").write_bytes(content)
    elif content is not None:
        torch.save(content, "c.pt")
    done = inspect("c.pt", *arguments)
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert not Path("owned").exists()


def test_values_that_are_not_finite_are_counted(here: Path) -> None:
    state = make().state_dict()
    state["1.weight"][0] = float("nan")
    torch.save(state, "c.pt")
    row = rows("c.pt", "--parameter", "1.weight")["1.weight"]
    assert (row["not_finite"], row["mean"]) == (1, 0.25)
    state["1.weight"][:] = float("inf")
    torch.save(state, "c.pt")
    assert rows("c.pt", "--parameter", "1.weight")["1.weight"]["mean"] is None
    assert inspect("c.pt", "--parameter", "1.weight").exit_code == 0


def test_values_that_are_not_finite_are_said_and_compared_without(here: Path) -> None:
    first, second = make().state_dict(), make().state_dict()
    first["1.weight"][0], second["1.weight"][1] = float("nan"), float("inf")
    torch.save(first, "a.pt")
    torch.save(second, "b.pt")
    done = inspect("a.pt", "--parameter", "1.weight", "--against", "b.pt")
    assert "Not finite, and left out of the numbers: 1 in 1.weight." in " ".join(done.stdout.split())
    assert rows("a.pt", "--parameter", "1.weight", "--against", "b.pt")["1.weight"]["rms_change"] == 0


def test_which_tensors_are_meant_is_never_guessed_silently(here: Path) -> None:
    one, other = make().state_dict(), make().state_dict()
    one["1.weight"][:] = 0.5
    torch.save({"model": one, "ema": {"n": torch.ones(1), **other}}, "c.pt")
    assert rows("c.pt", "--parameter", "1.weight")["1.weight"]["mean"] == 0.5
    torch.save({"a.module.act.weight": torch.ones(2), "a.act.weight": torch.zeros(2)}, "two.pt")
    assert {r["mean"] for n, r in rows("two.pt").items() if n != "all"} == {0.0, 1.0}
    torch.save({"act[0].weight": torch.ones(2)}, "odd.pt")
    assert "act[0].weight" in rows("odd.pt", "--parameter", "act[0].weight")
    refused = inspect("odd.pt", "--parameter", "act[0].weight", "--against", "two.pt")
    assert refused.exit_code == 2
    assert "two.pt has none of these names" in refused.stderr
    torch.save({"n.weight": torch.ones(2, dtype=torch.int64)}, "int.pt")
    assert "n.weight is int64, and holds no learned numbers." in inspect("int.pt", "--parameter", "n.weight").stderr
    torch.save({f"model.{k}": v for k, v in one.items()}, "inside.pt")
    assert "the model inside another one, as model." in inspect("inside.pt", "--target", "net.py:make").stderr
    too_much = inspect("inside.pt", "--lr", "1000", "--weight-decay", "10", "--steps", "39100")
    assert too_much.exit_code == 2
    assert "above 1 decay overshoots zero" in too_much.stderr
