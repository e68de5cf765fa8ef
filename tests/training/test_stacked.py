"""Runs trained together are the same runs: to 1e-10 those of plain modules, bit for bit those trained one by one."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from decaybench import registry
from decaybench.registry.metrics import PARTS
from decaybench.study.config import RunConfig
from decaybench.training import checkpoint
from decaybench.training.data import Data, Part, load
from decaybench.training.metrics import clip_gradients
from decaybench.training.stacked.cohorts import capacity, cohort_key, cohorts
from decaybench.training.stacked.stack import SingleModel
from decaybench.training.trainer import Finished, Training
from helpers import CPU, tiny

STRATEGIES = [*registry.STRATEGIES, "loss-penalty,penalty=l1", "two-optimizers,alpha_optimizer=adam,alpha_lr=0.01"]
STEPS = 50


def double(data: Data) -> Data:
    return replace(data, **{name: Part(getattr(data, name).x.double(), getattr(data, name).y) for name in PARTS})


def alone(config: RunConfig, data: Data) -> Training:
    """The same run with torch's own modules, without a replica axis."""
    training = Training([config], data)
    for parameter in training.net.models[0].parameters():
        parameter.data = parameter.detach().clone()
    training.net = SingleModel(training.net.models[0])
    training.groups = [training._group(config, slice(0, 1), len(training._batches[config.seed]))]
    return training


def records(training: Training) -> dict[str, Any]:
    found = {}
    while not training.finished:
        found |= {e.config.run_id: e.record for e in training.advance() if isinstance(e, Finished)}
    return found


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("network", "activation"),
    [
        ("mlp,width=8", "prelu"),
        *(pytest.param(*p, marks=SLOW) for p in (("mlp,width=8", "kaf,D=8"), ("forum,width=4", "prelu"))),
    ],
)
@pytest.mark.parametrize(
    "optimizer", ["sgd", *(pytest.param(o, marks=SLOW) for o in ("sgd,momentum=0", "adam", "adamw", "rmsprop"))]
)
def test_a_cohort_is_its_runs_to_1e_10(optimizer: str, network: str, activation: str) -> None:
    """Every strategy in one cohort, with different decays, rates and seeds, and gradients clipped one by one."""
    study = tiny(
        strategy=STRATEGIES,
        optimizer=optimizer,
        network=network,
        activation=activation,
        weight_decay=[0.01, 0.1],
        lr=[0.003, 0.01],
        seeds=2,
        batch_size=32,
        clip_norm=0.5,
        epochs=20,
    )
    runs = study.runs()
    data = double(load(runs[0], CPU))
    together_ = Training(runs, data)
    for _ in range(STEPS):
        together_.advance()
    worst = 0.0
    for row, run in list(enumerate(together_.runs))[::4]:  # two or more of each strategy
        single = alone(run.config, data)
        for _ in range(STEPS):
            single.advance()
        ours, plain = together_.net.models[row], single.net.models[0]
        for a, b in zip(ours.parameters(), plain.parameters(), strict=True):
            worst = max(worst, float((a - b).detach().abs().max()))
        first, second = ([e.scores["test_loss"] for e in t.history] for t in (run, single.runs[0]))
        assert first == pytest.approx(second, rel=1e-10)
    assert 0 < worst < 1e-10


@pytest.mark.parametrize("activation", [*registry.ACTIVATIONS, "relu,gain=true"])
@pytest.mark.parametrize(
    "network",
    [
        "mlp,width=16",
        "mlp,width=16,norm=true",
        *(
            pytest.param(n, marks=SLOW)
            for n in ("forum,width=4", "kafnet", "vgg,depth=3,width=4", "vgg,depth=3,width=4,norm=true")
        ),
    ],
)
def test_every_activation_and_network_is_the_same_in_a_cohort(network: str, activation: str) -> None:
    runs = tiny(
        network=network, activation=activation, dataset="synthetic,samples=100,size=9", seeds=2, epochs=1
    ).runs()
    data = double(load(runs[0], CPU))
    assert capacity(runs[0], data, CPU) > 0
    many = records(Training(runs, data))
    for run in runs:
        (single,) = records(alone(run, data)).values()
        for part, series in single.history.items():
            assert many[run.run_id].history[part] == pytest.approx(series, rel=1e-9), part


@pytest.mark.parametrize("activation", registry.ACTIVATIONS)
@pytest.mark.parametrize("network", ["mlp,width=24", pytest.param("forum,width=5", marks=SLOW)])
def test_a_run_has_the_same_bits_whatever_trains_beside_it(network: str, activation: str) -> None:
    study = tiny(
        network=network, activation=activation, seeds=3, strategy=["decay-all", "exclude-1d"], augment="crop-flip"
    )
    runs = study.runs()
    data = load(runs[0], CPU)
    torch.set_num_threads(1)
    whole = records(Training(runs, data))
    parts = records(Training(runs[:1], data)) | records(Training(runs[1:3], data)) | records(Training(runs[3:], data))
    assert parts == whole


def test_a_run_that_diverges_does_not_touch_the_others() -> None:
    calm = tiny(activation="kaf", seeds=2, epochs=3).runs()
    wild = tiny(activation="kaf", seeds=2, epochs=3, lr=1e20).runs()
    data = load(calm[0], CPU)
    torch.set_num_threads(1)
    alone_, beside = records(Training(calm, data)), records(Training([*calm, *wild], data))
    assert all(beside[run.run_id].diverged for run in wild)
    assert {run.run_id: beside[run.run_id] for run in calm} == alone_


def test_clipping_is_torchs_for_each_replica() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes, R = [(4, 3), (5,), (2, 2, 2)], 3
    gradients = [torch.randn(R, *shape, generator=generator) * 10**r for r, shape in enumerate(shapes)]
    expected = []
    for r in range(R):
        parameters = [nn.Parameter(torch.zeros(shape)) for shape in shapes]
        for p, g in zip(parameters, gradients, strict=True):
            p.grad = g[r].clone() * (0.001 if r == 1 else 1)
        nn.utils.clip_grad_norm_(parameters, 2.0)
        expected.append([p.grad for p in parameters])
    for g in gradients:
        g[1] *= 0.001  # one that is not to be clipped
    clip_gradients(gradients, 2.0)
    for r in range(R):
        for g, e in zip(gradients, expected[r], strict=True):
            torch.testing.assert_close(g[r], e)


def test_clipping_a_replica_gives_the_same_bits_whatever_is_beside_it() -> None:
    for seed in range(60):
        torch.manual_seed(seed)
        R, parameters = 2 + seed % 8, 1 + seed % 25
        gradients = [torch.randn(R, 1 + (seed * 7 + i * 13) % 400, 1 + i % 9) for i in range(parameters)]
        apart = [[g[r : r + 1].clone() for g in gradients] for r in range(R)]
        clip_gradients(gradients, 0.5)
        for r, own in enumerate(apart):
            clip_gradients(own, 0.5)
            assert all(torch.equal(g[r], o[0]) for g, o in zip(gradients, own, strict=True))


def test_what_cannot_be_stacked_trains_alone() -> None:
    for network in ("mlp,dropout=0.5", "resnet18"):
        run = tiny(network=network).runs()[0]
        assert capacity(run, load(run, CPU), CPU) == 0


def test_large_networks_train_alone_on_a_cpu_and_together_on_a_gpu() -> None:
    run = tiny(network="vgg", dataset="synthetic,samples=200,size=28", batch_size=64).runs()[0]
    data = load(run, CPU)
    assert capacity(run, data, CPU) == 0
    assert capacity(run, data, torch.device("cuda"), memory=70 << 30) > 30


def test_batch_norm_in_a_cohort_is_torchs_with_its_buffers() -> None:
    runs = tiny(network="vgg,depth=3,width=4,norm=true", activation="prelu", seeds=3, epochs=2).runs()
    data = double(load(runs[0], CPU))
    together = Training(runs, data, stacked=True)
    for _ in range(5):
        together.advance()
    for row, run in enumerate(together.runs):
        single = alone(run.config, data)
        for _ in range(5):
            single.advance()
        for (name, ours), theirs in zip(
            together.net.models[row].state_dict().items(), single.net.models[0].state_dict().values(), strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10, msg=name)
    assert int(together.net.parameters()["1.num_batches_tracked"][0]) == 5


def test_runs_are_cut_into_cohorts_that_fit() -> None:
    runs = tiny(activation=["prelu", "kaf", "prelu,init=0.1", "kaf,D=5"], weight_decay=[0.1, 0.2], seeds=11).runs()
    keys = {cohort_key(run) for run in runs}
    assert len(keys) == 3  # where a slope starts does not matter, the size of a dictionary does
    cut = cohorts(runs, dict.fromkeys(keys, 16), workers=2)
    assert sorted(run.run_id for c in cut for run in c) == sorted(run.run_id for run in runs)
    assert all(len(c) <= 16 and len({cohort_key(run) for run in c}) == 1 for c in cut)
    assert [len(c) for c in cohorts(runs[:3], dict.fromkeys(keys, 0), workers=1)] == [1, 1, 1]


def test_no_worker_is_idle_while_another_trains_many() -> None:
    runs = tiny(activation="prelu", strategy="decay-all", seeds=8).runs()
    most = {cohort_key(runs[0]): 32}
    assert [len(c) for c in cohorts(runs, most, workers=2)] == [4, 4]
    assert [len(c) for c in cohorts(runs, most, workers=1)] == [8]
    several = tiny(activation=["prelu", "kaf", "relu"], strategy="decay-all", seeds=8).runs()
    most = dict.fromkeys(map(cohort_key, several), 32)
    assert [len(c) for c in cohorts(several, most, workers=2)] == [8, 8, 8]  # there is work for both


@pytest.mark.parametrize(
    "network", ["mlp", *(pytest.param(n, marks=SLOW) for n in ("mlp,dropout=0.5", "vgg,depth=3,width=4,norm=true"))]
)
@pytest.mark.parametrize("strategy", ["decay-to-init", "two-optimizers,alpha_optimizer=adam", "proximal-l1"])
def test_a_resumed_training_gives_the_same_bits(strategy: str, network: str) -> None:
    fields: dict[str, Any] = {
        "strategy": strategy,
        "schedule": "cosine,warmup=1",
        "augment": "crop-flip",
        "batch_size": 32,
    }
    runs = tiny(network=network, activation="kaf", seeds=2 if network == "mlp" else 1, epochs=4, **fields).runs()
    data = load(runs[0], CPU)
    torch.set_num_threads(1)
    undisturbed = records(Training(runs, data))
    training = Training(runs, data)
    for _ in range(13):  # in the middle of an epoch
        training.advance()
    saved = checkpoint.save(training)
    assert checkpoint.configs(saved) == [run.config for run in training.runs]
    again = Training(runs, data)
    checkpoint.restore(again, saved)
    assert records(again) == undisturbed
    assert checkpoint.configs(saved[:-100]) is None
