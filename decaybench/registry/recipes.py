"""The recipes: rules of other people's code for what decays. They are audited, never trained with.

Almost every rule spares parameters by a piece of their name, their number of dimensions or the type of their module,
so it is data, which `decaybench.audit.recipes` applies to a model.
"""

from collections.abc import Mapping
from dataclasses import dataclass

_NN = "torch.nn."
_BATCH_NORMS = tuple(f"{_NN}{name}" for name in ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm"))
_INSTANCE_NORMS = tuple(f"{_NN}InstanceNorm{d}d" for d in (1, 2, 3))
_BATCH_BASE, _INSTANCE_BASE = "torch.nn.modules.batchnorm._BatchNorm", "torch.nn.modules.instancenorm._InstanceNorm"
_GROUP, _LAYER, _LOCAL = _NN + "GroupNorm", _NN + "LayerNorm", _NN + "LocalResponseNorm"


@dataclass(frozen=True)
class Spares:
    """What a recipe does not decay: a parameter that any of these describes.

    Attributes:
        contains: Pieces of the full name.
        contains_lower: Pieces of the full name in lower case.
        matches: Regular expressions that occur in the full name in lower case.
        ends_with: Ends of the full name.
        own_names: Names of parameters in their module.
        ndim_below: Parameters with fewer dimensions.
        ndim_is: Parameters with exactly so many dimensions.
        owners: Types of modules whose own parameters are spared, subclasses included.
        within: Types of modules, subclasses included, all of whose parameters are spared, those of parts included.
        class_names: Names of modules' classes whose own parameters are spared.
        torch_norms: Own parameters of every class of ``torch.nn`` with Norm in its name.
        no_weight_decay: What ``no_weight_decay()`` of the model names.
    """

    contains: tuple[str, ...] = ()
    contains_lower: tuple[str, ...] = ()
    matches: tuple[str, ...] = ()
    ends_with: tuple[str, ...] = ()
    own_names: tuple[str, ...] = ()
    ndim_below: int = 0
    ndim_is: int | None = None
    owners: tuple[str, ...] = ()
    within: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    torch_norms: bool = False
    no_weight_decay: bool = False


@dataclass(frozen=True)
class Recipe:
    """A rule of somebody's code.

    Attributes:
        summary: One line for ``decaybench list``.
        spares: What it does not decay; None for the rule of this package, which goes by roles.
    """

    summary: str
    spares: Spares | None


RECIPES: Mapping[str, Recipe] = {
    "torch": Recipe("weight_decay on the optimizer: every parameter; insightface's, too", Spares()),
    "exclude-1d": Recipe(
        "timm's param_groups_weight_decay: no biases, nothing of one dimension",
        Spares(ndim_below=2, ends_with=(".bias",)),
    ),
    "timm": Recipe(
        "timm's create_optimizer_v2: exclude-1d, and what the model's no_weight_decay() names",
        Spares(ndim_below=2, ends_with=(".bias",), no_weight_decay=True),
    ),
    "nanogpt": Recipe("nanoGPT: what has two dimensions or more, biases included", Spares(ndim_below=2)),
    "exactly-1d": Recipe(
        "Megatron: no biases, nothing of exactly one dimension; scalars are decayed",
        Spares(ndim_is=1, ends_with=(".bias",)),
    ),
    "bert": Recipe(
        "BERT's snippet: no name with bias or LayerNorm.weight", Spares(contains=("bias", "LayerNorm.weight"))
    ),
    "hf-trainer": Recipe(
        "transformers 5's Trainer: by name, no bias and no norm",
        Spares(within=(_LAYER,), matches=(r"bias", r"layernorm", r"rmsnorm", r"(^|\.)norm(\.|$)", r"_norm(\.|$)")),
    ),
    "hf-trainer-4.48": Recipe(
        "transformers' Trainer up to 4.48: no bias, nothing in an nn.LayerNorm",
        Spares(within=(_LAYER,), contains=("bias",)),
    ),
    "torchvision": Recipe(
        "torchvision's set_weight_decay with norm_weight_decay=0: no norm",
        Spares(owners=(_BATCH_BASE, _INSTANCE_BASE, _LAYER, _GROUP, _LOCAL)),
    ),
    "ultralytics": Recipe(
        "Ultralytics: no name with bias or logit_scale, no norm of torch.nn",
        Spares(contains=("bias", "logit_scale"), torch_norms=True),
    ),
    "mmengine": Recipe(
        "MMEngine with norm_decay_mult=0 and bias_decay_mult=0",
        Spares(owners=(_BATCH_BASE, _INSTANCE_BASE, _GROUP, _LAYER), own_names=("bias",)),
    ),
    "detectron2": Recipe(
        "detectron2's defaults: WEIGHT_DECAY_NORM = 0, biases decayed",
        Spares(owners=(*_BATCH_NORMS, _GROUP, *_INSTANCE_NORMS, _LAYER, _LOCAL)),
    ),
    "open_clip": Recipe(
        "open_clip: by dimensions, and bn, ln, bias, logit_scale in the name",
        Spares(ndim_below=2, contains=("bn", "ln", "bias", "logit_scale")),
    ),
    "fastai": Recipe(
        "fastai with wd_bn_bias=False: no norm of torch, no bias",
        Spares(owners=(_BATCH_BASE, _INSTANCE_BASE, _LAYER), own_names=("bias",)),
    ),
    "dinov2": Recipe(
        "DINOv2: no .bias, no name with norm or gamma", Spares(ends_with=(".bias",), contains=("norm", "gamma"))
    ),
    "gpt-neox": Recipe(
        "GPT-NeoX: no bias, nothing of its classes of norms",
        Spares(
            own_names=("bias",),
            class_names=("LayerNorm", "RMSNorm", "ScaleNorm", "TELayerNorm", "TERMSNorm", "MixedFusedLayerNorm"),
        ),
    ),
    "openrlhf": Recipe(
        "OpenRLHF, DeepSpeed's examples: by name, no bias and no norm",
        Spares(contains=("bias", "layer_norm.weight", "layernorm.weight", "norm.weight", "ln_f.weight")),
    ),
    "muon": Recipe(
        "Muon's split, of which the matrices are decayed: no embed or head in the name",
        Spares(ndim_below=2, contains_lower=("embed", "head")),
    ),
    "decaybench": Recipe("decaybench.param_groups: everything but the activation parameters", None),
}
