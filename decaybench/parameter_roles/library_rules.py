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
    # Kolmogorov-Arnold networks: coefficients of learned functions on the edges.
    (r"kan", r"(KANLayer|Symbolic_KANLayer)\.\w+", "activation"),  # pykan
    (r"kan", r"MultKAN\.(sub)?node_scale\w*", "scale"),
    (r"kan", r"MultKAN\.(sub)?node_bias\w*", "bias"),
    (r".*", r"KANLinear\.(spline_weight|spline_scaler)", "activation"),  # efficient-kan
    (r".*", r"KANLinear\.base_weight", "weight"),
    (r".*", r"SplineLinear\.weight", "activation"),  # FastKAN
    (r".*", r"(Cheby|Jacobi|Taylor|Fourier|NaiveFourier|Legendre)KAN(Layer|Linear)\.\w*coeffs", "activation"),
    (r".*", r"(Cheby|Jacobi|Taylor|Fourier|Wavelet)KANLinear\.base_weight", "weight"),
    (r".*", r"WaveletKANLinear\.(wavelet_weights|scale|translation)", "activation"),
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
    (r"timm", r"(EfficientViM\w*\.(alpha|weights\w*)|HSMSSD\.\w+)", "scale"),
    (r"timm", r"CondConv2d\.weight", "weight"),
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

    A class of the user's that is derived from a library's has the parameters that the library's own code names;
    whatever else it learns is unknown.

    Args:
        owner: The module's type; its base classes are asked, too.
        parameter: The parameter's own name in that module.
    """
    for cls in owner.__mro__:
        if cls is not owner and not _names(cls, parameter):
            continue
        for wanted, pattern, role in _RULES:
            if re.fullmatch(rf"({wanted})(\..*)?", cls.__module__) and re.fullmatch(
                pattern, f"{cls.__name__}.{parameter}"
            ):
                return role
    return "unknown"


def _names(cls: type, parameter: str) -> bool:
    """Tells whether the code of a class names a parameter, as in ``self.weight = …``."""
    own = parameter.partition(".")[0]
    for member in vars(cls).values():
        code = getattr(member, "__code__", None)
        if code is not None and (own in code.co_names or own in code.co_consts):
            return True
    return False
