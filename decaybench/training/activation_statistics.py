"""Statistics of activation parameters and of the functions they make, on the inputs they really get."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from decaybench.activations.float64 import device_with_float64
from decaybench.parameter_roles.probe import probe
from decaybench.parameter_roles.roles import activation_layers
from decaybench.results.record import INPUT_GRID, QUANTILE_LEVELS, Layer

CHANNEL_QUANTILES = (0.05, 0.95)  # of the functions of a layer's channels
CHANNELS = 8  # of a layer that are drawn one by one


def values(layer: nn.Module) -> Tensor:
    """Returns all activation parameters of a layer, flat, in float32 on the CPU."""
    return torch.cat([p.detach().flatten().float().cpu() for p in layer.parameters()])


def curve(layer: nn.Module) -> Tensor | None:
    """Evaluates the learned functions of a layer at `INPUT_GRID`, (G, C); None when it takes no such input."""
    first = next(layer.parameters())
    channels = first.shape[0] if first.ndim else 1
    grid = torch.tensor(INPUT_GRID, device=first.device, dtype=first.dtype)
    s = grid[:, None].expand(-1, channels)  # (G, C)
    try:
        out = probe(layer, s)
    except Exception:  # a user's own activation that takes only images, say
        return None
    return out.float().cpu() if isinstance(out, Tensor) and out.shape == s.shape else None


def layer_inputs(model: nn.Module, layers: dict[str, nn.Module], x: Tensor) -> dict[str, Tensor]:
    """Returns what each layer gets as input, (B, C, …), when the model gets x (B, …)."""
    found: dict[str, Tensor] = {}

    def note(name: str, given: tuple[Any, ...]) -> None:
        if given and isinstance(given[0], Tensor):
            found[name] = given[0].detach().clone()

    hooks = [m.register_forward_pre_hook(lambda _, given, n=n: note(n, given)) for n, m in layers.items()]
    try:
        probe(model, x)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def rms(difference: Tensor) -> float | None:
    """Computes the root mean square, or None where it is not finite."""
    return _numbers(difference.to(device_with_float64(difference.device)).double().square().mean().sqrt()[None])[0]


def _numbers(x: Tensor) -> list[float | None]:
    """Lists the numbers of a tensor, None for those that are not finite."""
    return [number if math.isfinite(number) else None for number in x.tolist()]


def _rounded(x: Tensor) -> list[float | None]:
    """Lists numbers rounded to three digits, for a picture."""
    return [None if number is None else float(f"{number:.3g}") for number in _numbers(x)]


def _drawn(functions: Tensor | None) -> dict[str, Any] | None:
    """Summarizes the functions (G, C) of a layer for a picture: their mean, and where most of them lie."""
    if functions is None:
        return None
    low, high = torch.quantile(functions, torch.tensor(CHANNEL_QUANTILES), dim=1)
    return {"mean": _rounded(functions.mean(1)), "low": _rounded(low), "high": _rounded(high)}


def _channels(functions: Tensor | None) -> list[list[float | None]]:
    """Lists some functions of a layer, evenly chosen among its channels, of all (G, C)."""
    if functions is None:
        return []
    count = functions.shape[1]
    chosen = torch.linspace(0, count - 1, min(CHANNELS, count)).round().long()
    return [_rounded(line) for line in functions[:, chosen].T]


@dataclass
class ActivationStatistics:
    """Follows the activation parameters of one model from its start on.

    Attributes:
        model: The model.
        channels: Whether the functions of some channels are described one by one, too.
        layers: Its activation layers.
        quantiles: Of the parameters of each layer, at the start and after each epoch.
    """

    model: nn.Module
    channels: bool = True
    layers: dict[str, nn.Module] = field(init=False)
    quantiles: dict[str, list[list[float | None]]] = field(init=False)

    def __post_init__(self) -> None:
        self.layers = activation_layers(self.model)
        self._start = {n: {k: p.detach().clone() for k, p in m.named_parameters()} for n, m in self.layers.items()}
        self._initial = {name: values(layer) for name, layer in self.layers.items()}
        self._drawn = {name: _drawn(curve(layer)) for name, layer in self.layers.items()}
        self.quantiles = {name: [] for name in self.layers}
        self.record_quantiles()

    def record_quantiles(self) -> None:
        """Records the quantiles of this moment: once at the start, then once an epoch."""
        for name, layer in self.layers.items():
            q = torch.quantile(values(layer), torch.tensor(QUANTILE_LEVELS))
            self.quantiles[name].append(_numbers(q))

    def summary(self, x: Tensor) -> tuple[Layer, ...]:
        """Describes each layer for the record.

        Args:
            x: (B, …), a batch whose activations the distances of functions are measured on.
        """
        return self.described(layer_inputs(self.model, self.layers, x))

    def described(self, inputs: Mapping[str, Tensor]) -> tuple[Layer, ...]:
        """Describes each layer for the record.

        Args:
            inputs: What layers get, (B, C, …) each, on which the distances of functions are measured.
        """
        return tuple(self._layer(name, layer, inputs.get(name)) for name, layer in self.layers.items())

    def _layer(self, name: str, layer: nn.Module, s: Tensor | None) -> Layer:
        end = curve(layer)
        drawn = {"channels": _channels(end)} if self.channels and end is not None else {}
        return Layer(
            name=name,
            type=type(layer).__name__,
            final=values(layer).numpy(),
            initial=self._initial[name].numpy(),
            quantiles=self.quantiles[name],
            curve={"start": self._drawn[name], "end": _drawn(end), **drawn},
            **self._functions(name, layer, s),
        )

    def _functions(self, name: str, layer: nn.Module, s: Tensor | None) -> dict[str, Any]:
        """Measures where the inputs s (B, C, …) lie, and how far the function is from others on them."""
        if s is None:
            return {}
        far: dict[str, Any] = {}
        end, relu = probe(layer, s), s.relu()
        layer_at_start = _At(layer, self._start[name])
        if isinstance(end, Tensor):
            far["distance_from_zero"] = rms(end)
            far["distance_from_start"] = rms(end - probe(layer_at_start, s))
            far["distance_from_relu"] = rms(end - relu) if end.shape == s.shape else None
        edges = torch.tensor(INPUT_GRID, device=s.device, dtype=s.dtype)
        inside = torch.nan_to_num(s.flatten()).clamp(INPUT_GRID[0], INPUT_GRID[-1])
        bins = torch.bucketize(inside, edges[1:-1])
        counts = torch.bincount(bins, minlength=len(INPUT_GRID) - 1).cpu()
        return {"inputs": _rounded(counts.double() / counts.sum()), **far}


class _At(nn.Module):
    """A layer with other parameters."""

    def __init__(self, layer: nn.Module, parameters: dict[str, Tensor]) -> None:
        super().__init__()
        self.layer, self._then = layer, parameters

    def forward(self, s: Tensor) -> Any:
        return functional_call(self.layer, self._then, (s,))
