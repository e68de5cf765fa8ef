"""The numbers a run is computed in: part of what it is, and really those."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from decaybench import registry
from decaybench.errors import UsageError
from decaybench.report.titles import titled
from decaybench.study.config import RunConfig
from decaybench.study.study import read_study, to_toml
from decaybench.training.data import load
from decaybench.training.precision import check, products
from decaybench.training.stacked import compiled
from decaybench.training.stacked.stack import SingleModel, StackedModels
from decaybench.training.trainer import Finished, Training, train
from helpers import CPU, finish, one, tiny
from made_records import summary_of

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "mkldnn_convolution")


class Types(TorchDispatchMode):
    """Notes in which type products are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[torch.dtype] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.__name__.partition(".")[0] in PRODUCTS:
            self.seen |= {a.dtype for a in args[:2]}
        return func(*args, **(kwargs or {}))


def test_float32_goes_without_saying_in_records_and_ids() -> None:
    config = one()
    assert "precision" not in config.model_dump()
    assert RunConfig.model_validate_json(config.model_dump_json()) == config
    other = one(precision="bfloat16")
    assert other.model_dump()["precision"] == "bfloat16"
    assert RunConfig.model_validate_json(other.model_dump_json()).run_id == other.run_id != config.run_id


def test_studies_of_float32_are_called_as_before() -> None:
    assert read_study(None, {"epochs": 2}).name == "digits-397f61"
    assert read_study(None, {"epochs": 2, "precision": "bfloat16"}).name != "digits-8cc551"
    assert "precision" not in to_toml(read_study(None, {"epochs": 2}))


@pytest.mark.parametrize("kind", [StackedModels, SingleModel])
@pytest.mark.parametrize("activation", [*registry.ACTIVATIONS, "prelu,shared=true"])
@pytest.mark.parametrize("network", ["mlp,width=8", "forum,width=4"])
def test_bfloat16_products_and_float32_parameters(network: str, activation: str, kind: type) -> None:
    for precision, wanted in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        config = one(network=network, activation=activation, precision=precision)
        data = load(config, CPU)
        training = Training([config], data)
        if kind is SingleModel:
            training.net = SingleModel(training.net.models[0], config.precision)
        with Types() as types:
            out = training.net(data.train.x[None, :8])
            out.square().sum().backward()
        ours = kind is StackedModels and "forum" in network and wanted is torch.float32  # torch sees no product
        assert types.seen == (set() if ours and compiled.library(wanted) else {wanted})
        assert out.dtype == torch.float32
        assert {p.dtype for p in training.net.parameters().values()} == {torch.float32}


def test_bfloat16_runs_learn_what_float32_runs_learn() -> None:
    fields = {"activation": "kaf", "network": "forum,width=8", "epochs": 6}
    runs = [one(**fields), one(**fields, precision="bfloat16")]
    losses = [finish(run)[1].history["train_loss"] for run in runs]
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.parametrize("activation", ["kaf", "prelu"])
def test_bfloat16_runs_have_the_same_bits_whatever_trains_beside_them(activation: str) -> None:
    runs = tiny(
        activation=activation, network="forum,width=5", precision="bfloat16", strategy="decay-all", seeds=3
    ).runs()
    data = load(runs[0], CPU)
    torch.set_num_threads(1)
    together = [e.record for e in train(runs, data) if isinstance(e, Finished)]
    assert {r.run_id: r for r in together} == {r.run_id: finish(r, data)[1] for r in runs}


def test_two_precisions_are_never_compared_with_each_other() -> None:
    study = tiny(
        activation="prelu", strategy=["decay-all", "exclude-alpha"], precision=["float32", "bfloat16"], seeds=2
    )
    summary = summary_of(finish(run)[1] for run in study.runs())
    assert [row["precision"] for row in summary.rows] == ["bfloat16", "bfloat16", "float32", "float32"]
    assert [title.rpartition(" · ")[2] for title, _ in titled(summary)] == [
        "precision=bfloat16",
        "precision=float32",
    ]
    assert all((row["test_accuracy_difference"] is None) == (row["strategy"] == "decay-all") for row in summary.rows)


def test_products_are_those_asked_for_and_as_before_afterwards() -> None:
    settings = torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn
    before = [s.fp32_precision for s in settings]
    for precision, wanted in (("float32", "ieee"), ("bfloat16", "ieee"), ("tf32", "tf32")):
        with products(precision, torch.device("cuda")):
            assert [s.fp32_precision for s in settings] == [wanted] * 3
            assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == (wanted == "tf32")
            with torch.backends.cudnn.flags(deterministic=True):  # somebody's network may do this
                pass
    assert [s.fp32_precision for s in settings] == before


def test_tf32_is_refused_where_there_is_none() -> None:
    runs = [one(), one(precision="tf32")]
    check(runs, torch.device("cuda"))
    with pytest.raises(
        UsageError,
        match=r"precision tf32: only CUDA GPUs from compute capability 8.0 on have it, and this study runs on cpu",
    ):
        check(runs, CPU)
