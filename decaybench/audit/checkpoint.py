"""Reads what the activation parameters of a trained model are, from a checkpoint file; no code in it is executed."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from decaybench.errors import DecaybenchError, UsageError
from decaybench.parameter_roles.param_groups import clean
from decaybench.parameter_roles.probe import Example
from decaybench.parameter_roles.roles import roles

_STATE_KEYS = ("state_dict", "model_state_dict", "model", "module", "net", "ema", "params")
# Own names of learned activations' parameters in the layers of torch and of the packages that the roles know.
_NAMES = re.compile(
    r"alpha|alpha_p|alpha_n|slope|slopes|negative_slope|numerator|denominator|weight_numerator|weight_denominator|"
    r"spline_weight|spline_scaler|\w*_?coeffs|coef"
)
_STATISTICS = ("bias", "running_mean", "running_var")


@dataclass(frozen=True)
class LearnedLayer:
    """The activation parameters of one layer, under one name of the checkpoint.

    Attributes:
        values: All of them, flat, as float64.
    """

    name: str
    shape: tuple[int, ...]
    values: npt.NDArray[np.float64]

    @property
    def not_finite(self) -> int:
        """Number of values that are NaN or infinite."""
        return int((~np.isfinite(self.values)).sum())


def load_state(path: Path) -> dict[str, Tensor]:
    """Loads the tensors of a checkpoint: .safetensors, or what ``torch.load(weights_only=True)`` reads.

    Of a checkpoint with more in it, the state dict is found; what wrappers put before names is taken away.

    Raises:
        UsageError: When there is no such file, or no tensor in it can be read without executing code.
    """
    if not path.is_file():
        raise UsageError(f"There is no checkpoint {path}.")
    try:
        if path.suffix == ".safetensors":
            whole: Any = _safetensors(path)
        else:
            whole = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except DecaybenchError:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise UsageError(
            f"{path} is no checkpoint that can be read without executing code ({type(error).__name__}: {reason[:99]}); "
            "save model.state_dict() with torch.save, or as .safetensors."
        ) from error
    state = _state(whole)
    if not state:
        raise UsageError(f"{path} holds no tensors under names, so it is no state dict.")
    short = {name: clean(name) for name in state}
    unique = len(set(short.values())) == len(short)
    return {short[name] if unique else name: tensor for name, tensor in state.items()}


def _safetensors(path: Path) -> Mapping[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise DecaybenchError("A .safetensors file needs safetensors: pip install safetensors.") from error
    found: Mapping[str, Tensor] = load_file(path)
    return found


def _state(whole: Any) -> dict[str, Tensor]:
    """Finds the state dict in what a file holds: itself, or under the first of the usual keys that has one."""
    if not isinstance(whole, Mapping):
        return {}
    own = {str(k): v for k, v in whole.items() if isinstance(v, Tensor)}
    inside = (found for key in _STATE_KEYS if (found := _state(whole.get(key))))
    return own or next(inside, {})


def learned_layers(
    state: Mapping[str, Tensor],
    patterns: Sequence[str] = (),
    model: nn.Module | None = None,
    example: Example | None = None,
) -> list[LearnedLayer]:
    """Finds the activation parameters among the tensors of a checkpoint.

    Args:
        state: The tensors, by name.
        patterns: Names, or ``fnmatch`` patterns; with any, what they match.
        model: The model that it is of; roles are then those of its parameters.
        example: One batch for the model, by which unknown roles are found out.

    Returns:
        Without patterns and model, what can be one by its shape and name: one-dimensional weights without a bias or a
        statistic beside them, and own names that activations use.

    Raises:
        UsageError: When a pattern matches nothing, or the checkpoint is not the model's.
    """
    if patterns:
        names = []
        for pattern in patterns:
            hits = [pattern] if pattern in state else [name for name in state if fnmatch(name, pattern)]
            if not hits:
                raise UsageError(
                    f"--parameter {pattern!r} matches nothing in it; a name is, for one, {next(iter(state))!r}."
                )
            names += [name for name in hits if name not in names]
    elif model is not None:
        names = _of_model(state, model, example)
    else:
        names = [name for name, tensor in state.items() if _may_be(state, name, tensor)]
    for name in names:
        if not state[name].is_floating_point() or state[name].is_meta:
            what = "on the meta device" if state[name].is_meta else str(state[name].dtype).removeprefix("torch.")
            raise UsageError(f"{name} is {what}, and holds no learned numbers.")
    return [_layer(name, state[name]) for name in names if state[name].numel()]


def _of_model(state: Mapping[str, Tensor], model: nn.Module, example: Example | None) -> list[str]:
    found = {clean(name): role for name, role in roles(model, example).items()}
    known = {name: tuple(p.shape) for name, p in ((clean(n), p) for n, p in model.named_parameters())}
    wanted = [name for name, role in found.items() if role == "activation"]
    if lost := [name for name in known if name not in state]:
        inside = [name.removesuffix(lost[0]) for name in state if name.endswith(f".{lost[0]}")]
        if len(inside) == 1 and all(f"{inside[0]}{name}" in state for name in known):
            raise UsageError(
                f"The checkpoint has the model inside another one, as {inside[0]}…: name them with --parameter "
                f"'{inside[0]}…', or audit the outer model."
            )
    for name in wanted:
        if name not in state:
            raise UsageError(f"The checkpoint has no {name}, which the model has: it is of another model.")
        if tuple(state[name].shape) != known[name]:
            raise UsageError(
                f"{name} is {_text(state[name].shape)} in the checkpoint and {_text(known[name])} in the model."
            )
    return wanted


def _text(shape: Iterable[int]) -> str:
    return "×".join(map(str, shape)) or "()"


def _may_be(state: Mapping[str, Tensor], name: str, tensor: Tensor) -> bool:
    prefix, _, own = name.rpartition(".")
    if _NAMES.fullmatch(own):
        return True
    beside = (f"{prefix}.{other}" if prefix else other for other in _STATISTICS)
    return own == "weight" and tensor.ndim == 1 and not any(other in state for other in beside)


def _layer(name: str, tensor: Tensor) -> LearnedLayer:
    whole = tensor.detach().to_dense() if tensor.layout is not torch.strided else tensor.detach()
    return LearnedLayer(name, tuple(tensor.shape), whole.double().flatten().numpy())


def shrink(lr: float, weight_decay: float, steps: int) -> float:
    """Returns by what a parameter is multiplied that has no gradient from the data: (1 − lr·λ)^steps.

    For SGD without momentum and for AdamW, at a constant learning rate.

    Raises:
        UsageError: Where lr·λ is above 1, so that decay overshoots.
    """
    if lr * weight_decay > 1:
        raise UsageError(f"lr × λ is {lr * weight_decay:g}; above 1 decay overshoots zero, and nothing shrinks.")
    return float((1 - lr * weight_decay) ** steps)
