"""Training: identical networks for every strategy, the same bits twice, divergence, schedules, clipping."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from decaybench import registry
from decaybench.errors import UsageError
from decaybench.optimizers import lr_factor, optimizer_factory
from decaybench.parameter_roles.roles import mark_activation, mark_by_behaviour
from decaybench.registry.spec import parse
from decaybench.results.record import INPUT_GRID, Record, dumps, loads
from decaybench.strategies.plan import Plan, Setup, make_plan, strategy_setup
from decaybench.training import checkpoint
from decaybench.training.activation_statistics import curve
from decaybench.training.data import load
from decaybench.training.metrics import evaluate, means
from decaybench.training.model import build_model
from decaybench.training.rates import Rates
from decaybench.training.seeding import model_fingerprint
from decaybench.training.stacked.stack import SingleModel
from decaybench.training.tasks import make_task
from decaybench.training.trainer import Finished, Training
from helpers import CPU, finish, one, tiny

STRATEGIES = [*registry.STRATEGIES, "loss-penalty,penalty=l1", "two-optimizers,alpha_optimizer=adam"]


def test_one_seed_gives_every_strategy_the_same_start_and_batches() -> None:
    prints = {s: finish(one(strategy=s, augment="crop-flip"))[1].fingerprints for s in STRATEGIES}
    assert len({tuple(p.values()) for p in prints.values()}) == 1
    other = one().model_copy(update={"seed": 1, "augment": "crop-flip"})
    for key, value in finish(other)[1].fingerprints.items():
        assert (value == prints["no-decay"][key]) == (key in ("data", "source"))


def test_fingerprints_see_a_single_changed_bit() -> None:
    model = build_model(one(), (1, 8, 8), 4)
    before = model_fingerprint(model)
    weight = next(model.parameters()).data.view(torch.int32)
    weight.view(-1)[0] ^= 1
    assert model_fingerprint(model) != before


@pytest.mark.parametrize("activation", ["prelu", "kaf"])
@pytest.mark.parametrize("network", ["mlp,dropout=0.5", "forum", "vgg,depth=3,width=4,norm=true"])
def test_two_runs_of_one_configuration_give_the_same_bits(network: str, activation: str) -> None:
    config = one(network=network, activation=activation, augment="crop-flip")
    torch.manual_seed(1)
    first = finish(config)[1]
    torch.manual_seed(2)  # whatever else draws from torch's generator does not matter
    assert finish(config)[1] == first


def test_dropout_draws_from_its_own_stream() -> None:
    with_dropout, without = (finish(one(network=n))[1] for n in ("mlp,dropout=0.5", "mlp"))
    assert with_dropout.fingerprints["batches"] == without.fingerprints["batches"]
    assert with_dropout.history != without.history


def test_excluding_by_groups_and_by_a_second_optimizer_are_the_same_bits() -> None:
    first, second = (finish(one(strategy=s, activation="kaf"))[1] for s in ("exclude-alpha", "two-optimizers"))
    assert first.layers == second.layers
    assert first.history == second.history
    decayed = finish(one(strategy="decay-all", activation="kaf"))[1]
    assert decayed.layers != first.layers


def test_a_run_that_diverges_is_recorded_and_stops() -> None:
    epochs, record = finish(one(lr=1e20, epochs=5))
    assert epochs[-1].diverged
    assert record.diverged == len(epochs) < 5
    assert all(len(series) == record.diverged for series in record.history.values())
    assert loads(dumps(record), record.run_id).history["test_loss"][-1] is None


def test_a_record_holds_the_parameters_as_they_were_and_became() -> None:
    config = one(activation="prelu,init=0.4", strategy="no-decay", weight_decay=0.0, lr=1e-30)
    data = load(config, CPU)
    _, record = finish(config, data)
    model = build_model(config, data.shape, data.outputs)
    s, (first, second) = data.validation.x.flatten(1), [m for m in model if isinstance(m, nn.Linear)][:2]
    for linear, layer in zip((first, second), record.layers, strict=True):
        s = linear(s).detach()
        assert (layer.initial == torch.tensor(0.4).numpy()).all()
        assert (layer.final == layer.initial).all()
        assert layer.distance_from_start == 0
        assert len(layer.quantiles) == config.epochs + 1
        # f(s) = s above 0 and 0.4·s below, on the inputs that the layer gets from the validation images.
        f = torch.where(s > 0, s, 0.4 * s)
        assert layer.distance_from_zero == pytest.approx(float(f.square().mean().sqrt()), rel=1e-4)
        assert layer.distance_from_relu == pytest.approx(0.4 * float(s.clamp(max=0).square().mean().sqrt()), rel=1e-4)
        counts, _ = np.histogram(s.clamp(-6, 6), np.linspace(-6, 6, 49))
        assert layer.inputs == pytest.approx(counts / counts.sum(), abs=1e-3)
        assert layer.curve["end"]["mean"][::12] == pytest.approx([-2.4, -1.2, 0, 3, 6])
        s = f


def test_history_ends_with_what_the_model_scores() -> None:
    epochs, record = finish(one(epochs=3))
    assert [e.number for e in epochs] == [1, 2, 3]
    assert record.history["test_accuracy"] == [e.scores["test_accuracy"] for e in epochs]
    assert 0.3 < record.history["train_accuracy"][-1] <= 1  # four classes: chance is 0.25


def test_a_record_holds_what_became_of_every_test_image() -> None:
    """In the order of the data set, whatever trained beside it; accuracy and loss are the means."""
    configs = tiny(activation="prelu", seeds=3, strategy="decay-all").runs()
    data = load(configs[0], CPU)
    training = Training(configs, data)
    found: dict[int, Record] = {}
    while not training.finished:
        found |= {e.config.seed: e.record for e in training.advance() if isinstance(e, Finished)}
    for row, seed in enumerate(sorted(found)):
        record = found[seed]
        assert record.outcomes
        model = training.net.models[row].eval()
        out = model(data.test.x).detach()
        assert (record.outcomes["test_accuracy"] == (out.argmax(1) == data.test.y).numpy()).all()
        losses = nn.functional.cross_entropy(out, data.test.y, reduction="none").numpy()
        np.testing.assert_allclose(record.outcomes["test_loss"], losses, rtol=2e-3, atol=1e-6)
        assert record.outcomes["test_accuracy"].mean() == pytest.approx(record.final("test_accuracy"))
        assert losses.mean() == pytest.approx(record.final("test_loss"), rel=1e-5)


def test_a_loss_that_float16_cannot_hold_is_its_largest_number() -> None:
    class Wrong(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.full((len(x), 4), -1e6).index_fill(1, torch.tensor([0]), 1e6)

    config = one()
    data = load(config, CPU)
    training = Training([config], data)
    training._tested = evaluate(SingleModel(Wrong()), data.test, make_task("classification"))
    loss = training._outcomes(0)["test_loss"]
    assert loss is not None and loss.max() == 65504


def test_evaluate_against_a_loop() -> None:
    data = load(one(), CPU)
    model = build_model(one(network="mlp,dropout=0.9"), data.shape, data.outputs).eval()
    losses, hits = [], 0
    for x, y in zip(data.test.x, data.test.y, strict=True):
        p = model(x[None]).detach().double().softmax(1)[0]
        losses.append(-math.log(float(p[y])))
        hits += int(p.argmax() == y)
    model.train()
    found = means(evaluate(SingleModel(model), data.test, make_task("classification")))
    loss, accuracy = found["loss"], found["accuracy"]
    assert loss == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert accuracy == hits / len(losses)


def test_clipping_is_joint_over_all_optimizers() -> None:
    data = load(one(), CPU)
    norms = []
    for strategy in ("exclude-alpha", "two-optimizers"):
        config = one(strategy=strategy, optimizer="sgd,momentum=0", lr=1.0, clip_norm=0.05, batch_size=1000)
        before = build_model(config, data.shape, data.outputs)
        training = Training([config.model_copy(update={"weight_decay": 0.0})], data)
        training.advance()
        moved = [a - b for a, b in zip(training.net.models[0].parameters(), before.parameters(), strict=True)]
        norms.append(float(torch.cat([m.detach().flatten() for m in moved]).norm()))
    assert norms == [pytest.approx(0.05, rel=1e-4)] * 2


def test_without_decay_all_strategies_give_the_same_bits() -> None:
    records = {
        s: finish(one(strategy=s, weight_decay=0.0, activation="kaf", clip_norm=1.0))[1] for s in registry.STRATEGIES
    }
    for strategy, record in records.items():
        assert record.layers == records["no-decay"].layers, strategy
        assert record.history == records["no-decay"].history, strategy


def forgets(setup: Setup) -> Plan:
    return Plan([setup.optimizer(setup.group("weights"))])


def repeats(setup: Setup) -> Plan:
    return Plan([setup.optimizer(setup.group("all")), setup.optimizer(setup.group("activation"))])


def no_plan(setup: Setup) -> list:
    return []


@pytest.mark.parametrize(
    ("name", "message"),
    [("forgets", "2.weight is in 0 param groups"), ("repeats", "is in 2 param groups"), ("no_plan", "returned list")],
)
def test_a_strategy_that_forgets_or_repeats_a_parameter_is_refused(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        finish(one(strategy=f"test_trainer:{name}"))


def test_changed_data_is_another_fingerprint() -> None:
    prints = [load(one(dataset=f"synthetic,samples=200,noise={n}"), CPU).fingerprint for n in (1.0, 1.0, 1.1)]
    assert prints[0] == prints[1] != prints[2]


def test_looking_at_an_activation_does_not_change_it() -> None:
    layer = mark_activation(nn.Sequential(nn.PReLU(3), nn.BatchNorm1d(3), nn.Dropout(0.5)))
    before, random_state = model_fingerprint(layer), torch.get_rng_state()
    assert curve(layer) is not None
    assert model_fingerprint(layer) == before
    assert torch.equal(torch.get_rng_state(), random_state)
    assert layer.training
    assert layer[1].training


def test_a_second_optimizer_of_another_kind_has_its_own_default_rate() -> None:
    config = one(strategy="two-optimizers,alpha_optimizer=adam")
    plan = make_plan(config, build_model(config, (1, 8, 8), 4))
    assert [o.param_groups[0]["lr"] for o in plan.optimizers] == [0.05, 0.001]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", lambda e: 1.0),
        ("cosine", lambda e: (1 + math.cos(math.pi * e / 4)) / 2),
        ("step,step_size=1.5,gamma=0.5", lambda e: 0.5 ** int(e / 1.5)),
        ("cosine,warmup=1", lambda e: (1 + math.cos(math.pi * e / 4)) / 2 * min(1.0, e + 0.2)),
        ("step,step_size=2,warmup=2", lambda e: 0.1 ** int(e / 2) * min(1.0, (e + 0.2) / 2)),
    ],
)
def test_schedules_by_their_formula(schedule: str, expected) -> None:
    (spec,) = parse("schedule", schedule)
    (sgd,) = parse("optimizer", "sgd")
    optimizer = optimizer_factory(sgd, 0.1)([nn.Parameter(torch.zeros(1))])
    rates = Rates([(optimizer, lr_factor(spec, epochs=4, steps_per_epoch=5))], None)
    for done in range(20):
        if done % 5 == 0:
            rates.begin(done, 5)
        rates.set(done % 5)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * expected(done / 5), abs=1e-12)


def test_the_curve_of_an_activation_that_takes_only_images_is_unknown() -> None:
    class ImagesOnly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.ones(1, 3, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a * x.square()

    assert curve(ImagesOnly()) is None


OWN = """
import torch
from torch import nn

class Snaky(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.frequency = nn.Parameter(torch.ones(channels))
    def forward(self, x):
        return x + torch.sin(self.frequency * x) ** 2

def net(shape, classes, activation):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), Snaky(8), nn.Linear(8, classes))
"""


def test_an_activation_that_a_network_brings_along_is_found_by_what_it_does(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(OWN)
    config = one(network="own.py:net", activation="relu", strategy="exclude-alpha")
    data = load(config, CPU)
    model = build_model(config, data.shape, data.outputs)
    mark_by_behaviour(model, data.train.x[:16])
    assert strategy_setup(config, model).alphas == {"2.frequency"}
    before = torch.get_rng_state()
    assert [layer.name for layer in finish(config, data)[1].layers] == ["2"]
    assert torch.equal(torch.get_rng_state(), before)


def test_some_channels_are_described_one_by_one_in_the_first_seed_only() -> None:
    for seed, config in enumerate(tiny(strategy="exclude-alpha", activation="prelu", seeds=2).runs()):
        assert config.seed == seed
        _, record = finish(config)
        for layer in record.layers:
            assert layer.curve is not None
            lines = layer.curve.get("channels", [])
            assert len(lines) == (8 if seed == 0 else 0)
            for line in lines:  # a PReLU's slope is what it is at −1, and it is 1 where s > 0
                at = dict(zip(INPUT_GRID, line, strict=True))
                assert at[1.0] == pytest.approx(1.0)
                assert min(abs(layer.final + at[-1.0])) < 1e-2


def test_a_schedule_of_ones_own_that_draws_is_the_same_after_an_interruption(tmp_path: Path) -> None:
    """Its numbers are the run's, whatever was drawn before it, and none is drawn twice."""
    (own := tmp_path / "mine.py").write_text(
        "import random\n\n\ndef jumpy(epoch, epochs):\n    return 0.5 + random.random()\n"
    )
    config = one(schedule=f"{own}:jumpy", epochs=3, batch_size=32)
    data = load(config, CPU)

    def losses(before: int, stop: int | None = None) -> list[float]:
        random.seed(before)
        training, steps, found = Training([config], data), 0, []
        while not training.finished:
            found += [e.record.history["train_loss"] for e in training.advance() if isinstance(e, Finished)]
            steps += 1
            if steps == stop:
                saved, training = checkpoint.save(training), Training([config], data)
                checkpoint.restore(training, saved)
        return found[0]

    assert losses(1) == losses(2) == losses(1, stop=8) == losses(1, stop=11)
