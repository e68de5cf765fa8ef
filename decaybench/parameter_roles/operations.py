"""Names of operations, by what they do to the elements of a tensor."""

# Layers, with what they take by position: x, the input; w, the weight; b, the bias.
LAYERS = {"linear": "xwb", "bilinear": "xxwb", "addmm": "bxw", "baddbmm": "bxw", "addbmm": "bxw", "addmv": "bxw"}
LAYERS |= {f"conv{t}{d}d": "xwb" for t in ("", "_transpose") for d in (1, 2, 3)}
SLOTS = {"input": "x", "weight": "w", "bias": "b", "mat1": "x", "mat2": "w", "input1": "x", "input2": "x"}
PRODUCTS = frozenset("matmul tensordot multi_dot linalg_multi_dot chain_matmul vdot grouped_mm scaled_mm".split())
ATTENTION = "scaled_dot_product_attention"
HEADS = frozenset(["multi_head_attention_forward", "native_multi_head_attention"])
RECURRENT = frozenset(f"{kind}{cell}" for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu") for cell in ("", "_cell"))
NORMS = frozenset("layer_norm group_norm batch_norm instance_norm rms_norm native_layer_norm native_batch_norm".split())
LOOKUPS = frozenset("embedding embedding_bag index index_select gather take take_along_dim grid_sample cdist".split())
JOINS = frozenset("cat stack hstack vstack dstack column_stack row_stack".split())
CHOICES = frozenset("where masked_fill setitem masked_set masked_scatter copy_into".split())
PARTS = frozenset("index stack cat narrow select".split())
MULTIPLY, ADD = frozenset("mul div addcmul addcdiv lerp".split()), frozenset(["add", "sub"])
# Nonlinear in the parameter and the data at once, element by element.
TWO_WAY = frozenset(
    "pow maximum minimum fmax fmin clamp clamp_min clamp_max atan2 hypot threshold fmod remainder xlogy heaviside "
    "logaddexp gt lt ge le hardtanh floordiv".split()
)
ROUNDING = frozenset("round floor ceil trunc fix".split())
# Element-wise and nonlinear. The first satisfy f(ax) = a f(x) for a > 0, or round: a factor in front of them does not
# change their shape.
HOMOGENEOUS = ROUNDING | frozenset(
    "relu leaky_relu abs sign sgn clamp clamp_min clamp_max relu6 hardtanh threshold rrelu nan_to_num prelu "
    "masked_select masked_set masked_scatter".split()
)
SHAPED = frozenset(
    "elu selu celu gelu silu mish softplus sigmoid logsigmoid tanh tanhshrink hardswish hardsigmoid softsign "
    "softshrink hardshrink exp expm1 exp2 log log1p log2 log10 sqrt rsqrt square reciprocal sin cos tan asin acos atan "
    "sinh cosh asinh acosh atanh erf erfc erfinv sinc special_sinc logit pow frac where maximum minimum fmax fmin gt "
    "lt ge le eq ne masked_fill atan2".split()
)
NONLINEAR = HOMOGENEOUS | SHAPED
BENDING = (NONLINEAR | TWO_WAY) - ROUNDING  # what rounds is a quantizer's
LINEAR = (
    MULTIPLY
    | ADD
    | frozenset(
        "neg positive to float double half bfloat16 type clone detach contiguous dropout dropout1d dropout2d dropout3d "
        "alpha_dropout feature_dropout data type_as requires_grad alias lift_fresh logical_not logical_and logical_or "
        "invert view reshape flatten unflatten transpose permute t T mT squeeze unsqueeze expand expand_as view_as "
        "reshape_as movedim moveaxis swapaxes swapdims ravel repeat tile repeat_interleave setitem copy_into bool int "
        "long and or xor bitwise_and bitwise_or bitwise_not logical_xor".split()
    )
)
ELEMENTWISE = LINEAR | NONLINEAR | TWO_WAY
REDUCTIONS = frozenset(
    "sum mean var std norm amax amin var_mean std_mean linalg_norm vector_norm linalg_vector_norm max min median "
    "aminmax logsumexp prod nanmean".split()
)
EXTREMES = frozenset("max min amax amin logsumexp".split())
GATES = frozenset(["sigmoid", "softplus"])  # their values are above 0
NORMALIZED = NORMS | {"normalize"}
DISTANCES = frozenset("cdist cosine_similarity pairwise_distance".split())
TABLES_BY_SIZE = ROUNDING | {"bucketize", "searchsorted"}  # an index by the size of numbers, as of a spline
