"""Everything that has a name: what it is, which options it has, where it lives.

This file never imports torch, so that ``decaybench list`` and every check of a configuration answer at
once. To add a strategy, an activation, a network or a data set: write it in its own file, then give it one
entry here. The contract tests, the run, the report and ``list`` go through these tables and cover it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from decaybench.registry import options as o


@dataclass(frozen=True)
class Entry:
    """One name.

    Attributes:
        summary: One line for ``decaybench list``.
        target: ``package.module:attribute``, imported when it is first used.
        options: The options it takes, passed to the target as keywords.
    """

    summary: str
    target: str
    options: type[o.Options] = o.Options


@dataclass(frozen=True)
class StrategyEntry(Entry):
    """A strategy, with what it says it decays.

    Attributes:
        decays: Which parameters are pulled: ``all``, ``none``, ``weights`` (all but the activation
            parameters), ``activation``, or ``matrices`` (two dimensions or more, and no bias).
    """

    decays: Literal["all", "none", "weights", "activation", "matrices"] = "all"


_S = "decaybench.strategies.strategies:"
STRATEGIES: Mapping[str, StrategyEntry] = {
    "no-decay": StrategyEntry("control: nothing is regularized", _S + "no_decay", decays="none"),
    "decay-all": StrategyEntry("the optimizer's weight_decay on every parameter", _S + "decay_all"),
    "exclude-alpha": StrategyEntry(
        "param groups: activation parameters get weight_decay=0", _S + "exclude_alpha", decays="weights"
    ),
    "loss-penalty": StrategyEntry(
        "no optimizer decay; a penalty on the other parameters is added to the loss",
        _S + "loss_penalty",
        o.LossPenaltyOptions,
        "weights",
    ),
    "two-optimizers": StrategyEntry(
        "weights in one optimizer with decay, activation parameters in a second without",
        _S + "two_optimizers",
        o.TwoOptimizersOptions,
        "weights",
    ),
    "exclude-1d": StrategyEntry(
        "the widespread rule: skip biases and 1-D parameters (spares PReLU, decays KAF)",
        _S + "exclude_1d",
        decays="matrices",
    ),
    "alpha-only": StrategyEntry(
        "diagnostic: only the activation parameters are decayed", _S + "alpha_only", decays="activation"
    ),
    "decay-to-init": StrategyEntry(
        "activation parameters are pulled to their initial value instead of to zero", _S + "decay_to_init"
    ),
    "proximal-l1": StrategyEntry(
        "soft-thresholding after the step: exact zeros", _S + "proximal_l1", o.ProximalOptions
    ),
}


ACTIVATIONS: Mapping[str, Entry] = {
    "relu": Entry("max(0, s); nothing learned", "decaybench.activations.relu:relu"),
    "leaky-relu": Entry("s or slope·s; nothing learned", "decaybench.activations.relu:leaky_relu", o.LeakyReLUOptions),
    "prelu": Entry(
        "learned negative slope, per channel or shared (He et al. 2015)",
        "decaybench.activations.prelu:prelu",
        o.PReLUOptions,
    ),
    "kaf": Entry(
        "kernel activation function, Σ α·κ(s, d) (Scardapane et al. 2017)",
        "decaybench.activations.kaf.module:KAF",
        o.KAFOptions,
    ),
    "swish": Entry(
        "s·σ(βs), learned β per channel (Ramachandran et al. 2017)",
        "decaybench.activations.swish:Swish",
        o.SwishOptions,
    ),
    "xielu": Entry(
        "two learned curvatures; decays to ln 2, not to 0 (Huang et al. 2024)",
        "decaybench.activations.xielu:XIELU",
        o.XIELUOptions,
    ),
}


_N = "decaybench.networks."
NETWORKS: Mapping[str, Entry] = {
    "forum": Entry("the thread's Conv-act-Conv-act-Conv, any image size", _N + "small:forum", o.ForumOptions),
    "mlp": Entry("dense layers", _N + "small:mlp", o.MLPOptions),
    "kafnet": Entry("the KAF authors' demo: two conv 20@5×5 with pooling", _N + "small:kafnet"),
    "vgg": Entry("a plain 3×3 stack after He et al., depth is an option", _N + "vgg:vgg", o.VGGOptions),
    "resnet18": Entry("torchvision's, small-image stem, no activation shared", _N + "resnet:resnet18"),
}


_D = "decaybench.datasets."
DATASETS: Mapping[str, Entry] = {
    "digits": Entry("UCI digits, 1,797 images of 8×8, inside scikit-learn", _D + "embedded:digits"),
    "fashion-mnist": Entry("70,000 images of 28×28 (Debian's package, or download)", _D + "files:fashion_mnist"),
    "mnist": Entry("70,000 images of 28×28, through torchvision", _D + "files:mnist"),
    "cifar10": Entry("60,000 colour images of 32×32, through torchvision", _D + "files:cifar10"),
    "cifar100": Entry("the same with 100 classes, through torchvision", _D + "files:cifar100"),
    "svhn": Entry("99,289 house numbers of 32×32, through torchvision", _D + "files:svhn"),
    "synthetic": Entry("seeded noisy prototypes, for tests", _D + "embedded:synthetic", o.SyntheticOptions),
}


_O = "decaybench.optimizers:"
OPTIMIZERS: Mapping[str, Entry] = {
    "sgd": Entry("momentum 0.9 unless told otherwise; decay is part of the gradient", _O + "sgd", o.SGDOptions),
    "adam": Entry("decay is part of the gradient", _O + "adam", o.AdamOptions),
    "adamw": Entry("decay is apart from the gradient", _O + "adamw", o.AdamOptions),
    "rmsprop": Entry("decay is part of the gradient", _O + "rmsprop", o.RMSpropOptions),
}


SCHEDULES: Mapping[str, Entry] = {
    "constant": Entry("the learning rate stays", _O + "constant", o.ScheduleOptions),
    "cosine": Entry("falls along half a cosine to zero at the end", _O + "cosine", o.ScheduleOptions),
    "step": Entry("is multiplied by gamma every step_size epochs", _O + "step", o.StepOptions),
}


_R = "decaybench.audit.recipes:"
RECIPES: Mapping[str, Entry] = {
    "torch": Entry("weight_decay on the optimizer: every parameter", _R + "torch_default"),
    "exclude-1d": Entry("timm's and nanoGPT's rule: no biases, nothing of one dimension", _R + "exclude_1d"),
    "hf-trainer": Entry("transformers' Trainer: by name, no bias and no norm", _R + "hf_trainer"),
    "torchvision": Entry("torchvision's set_weight_decay with norm_weight_decay=0: no norm", _R + "torchvision_norms"),
    "decaybench": Entry("decaybench.param_groups: everything but the activation parameters", _R + "decaybench_default"),
}

# What a run is made of; recipes are only audited.
FAMILIES: Mapping[str, Mapping[str, Entry]] = {
    "strategy": STRATEGIES,
    "activation": ACTIVATIONS,
    "network": NETWORKS,
    "dataset": DATASETS,
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
}


def default_lr(optimizer: str) -> float:
    """The learning rate an optimizer of the catalog has when none is asked for."""
    options = OPTIMIZERS[optimizer].options
    assert issubclass(options, o.OptimizerOptions)
    return options.default_lr
