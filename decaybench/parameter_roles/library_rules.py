"""Rules for modules of other packages, recognized by the names of their types without importing them."""

import re
from typing import Literal

Role = Literal["weight", "bias", "norm", "scale", "embedding", "activation", "unknown"]

_LIBRARIES = r"timm|transformers|torchvision"
# (package or module, "Class.parameter", role): the first rule that fits a class of the owner's MRO decides.
_RULES: tuple[tuple[str, str, Role], ...] = (
    # Learned activation functions.
    (r"decaybench\.activations", r"\w+\.\w+", "activation"),
    (r"(.*\.)?kafnets", r"KAF\w*\.\w+", "activation"),  # the KAF authors' own code
    (r"rational|rational_kat_cu|kat_rational", r"\w+\.(numerator|denominator|weight_\w+)", "activation"),
    (r"timm", r"(StarReLU\.\w+|FilterResponseNormTlu2d\.tau|EvoNorm2d\w+\.v)", "activation"),
    (r"transformers", r"(XIELUActivation|\w*Snake\w*)\.\w+", "activation"),
    (r".*", r"(Swish|SwishBeta|LearnedSwish)\.beta", "activation"),  # Ramachandran et al. 2017
    (r".*", r"(DyT|DynamicTanh)\.alpha\w*", "activation"),  # Zhu et al. 2025: tanh(αx) instead of a norm
    (r".*", r"(DyT|DynamicTanh)\.\w+", "norm"),
    # State-space models: decay rates and skip gains, not matrices of weights.
    (r"mamba_ssm|transformers|timm", r"\w*(Mamba|Mixer|DeltaNet|ForgetGate|SSD)\w*\.(A|A_log|D|dt_bias)", "scale"),
    (r".*", r"(S4|S4D|S4DKernel|SSKernel\w*)\.(log_dt|log_A_real|A_imag|A_real|inv_A_real|D)", "scale"),
    # Norms, gains, embeddings and layers that these libraries define themselves.
    (
        _LIBRARIES,
        r"\w*(RMSNorm|RmsNorm|LayerNorm|EvoNorm|FilterResponseNorm|SimpleNorm|InplaceAbn|ResponseNorm|GRN|GroupNorm|NoNorm)\w*\.\w+",
        "norm",
    ),
    (_LIBRARIES, r"(Scale|\w*(LayerScale|ScaledStdConv)\w*)\.(gamma|lambda1|scale|gain)", "scale"),
    (_LIBRARIES, r"\w+\.(gamma\w*|lambdas?(_\w+)?|ls\d|\w*scal(e|es|ing)(_\w+)?|\w*temp(erature)?|\w*gain)", "scale"),
    (_LIBRARIES, r"\w+\.(sinks|gate|gating_param|time_(mix|decay|first)\w*|pos_emb_alpha\w*)", "scale"),
    (_LIBRARIES, r"Affine\.(alpha|beta)", "scale"),
    (_LIBRARIES, r"\w+\.(attention_biases|pos_bias_[uv]|bias_[kuv])", "bias"),
    (_LIBRARIES, r"\w+\.\w*(embed|emb_|token|position|prompt|latent|newline|memory)\w*", "embedding"),
    (_LIBRARIES, r"\w+\.(\w*(_pos|pos_emb|mask_emb)|\w*rel_pos_[hw]|(height|width)_rel|query|probe)", "embedding"),
    (_LIBRARIES, r"\w+\.relative_position_bias_table", "embedding"),
    (r"transformers", r"Conv1D\.weight", "weight"),
    (r"transformers", r"\w+(Experts|Router)\.(weight|down_proj|up_proj|gate_up_proj)", "weight"),
    (r"transformers", r"(XLNet\w+\.[qkorv]|\w*Quant(Linear|Embedding)\.weight)", "weight"),
    (_LIBRARIES, r"\w+\.(\w+_weights?|(\w+_)?proj(ection)?|w_g)", "weight"),
    (_LIBRARIES, r"\w+\.(\w+_)?bias", "bias"),
)


def known_role(owner: type, parameter: str) -> Role:
    """Returns the role of a parameter by the type of the module that owns it, ``unknown`` where no rule fits.

    Args:
        owner: The module's type; its base classes are asked, too.
        parameter: The parameter's own name in that module.
    """
    for cls in owner.__mro__:
        for wanted, pattern, role in _RULES:
            if re.fullmatch(rf"({wanted})(\..*)?", cls.__module__) and re.fullmatch(
                pattern, f"{cls.__name__}.{parameter}"
            ):
                return role
    return "unknown"
