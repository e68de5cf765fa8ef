"""The recipes: rules of other people's code for what decays. They are audited, never trained with."""

from collections.abc import Mapping

from decaybench.registry.entry import Entry

_MODULE = "decaybench.audit.recipes:"


RECIPES: Mapping[str, Entry] = {
    "torch": Entry("weight_decay on the optimizer: every parameter", _MODULE + "torch_default"),
    "exclude-1d": Entry("timm's and nanoGPT's rule: no biases, nothing of one dimension", _MODULE + "exclude_1d"),
    "hf-trainer": Entry("transformers' Trainer: by name, no bias and no norm", _MODULE + "hf_trainer"),
    "torchvision": Entry(
        "torchvision's set_weight_decay with norm_weight_decay=0: no norm", _MODULE + "torchvision_norms"
    ),
    "decaybench": Entry(
        "decaybench.param_groups: everything but the activation parameters", _MODULE + "decaybench_default"
    ),
}
