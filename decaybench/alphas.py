"""What the activation parameters are: their values, their quantiles, the functions they make."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from decaybench.probe import probe
from decaybench.records import encode
from decaybench.role import activation_layers

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
GRID = torch.linspace(-3, 3, 121)  # where learned functions are compared, in units of the activation's input


def values(layer: nn.Module) -> Tensor:
    """All activation parameters of a layer, flat, in float32 on the CPU."""
    return torch.cat([p.detach().flatten().float().cpu() for p in layer.parameters()])


def curve(layer: nn.Module) -> Tensor | None:
    """The learned functions of a layer on `GRID`, (G, C); None when it takes no input (G, C)."""
    first = next(layer.parameters())
    channels = first.shape[0] if first.ndim else 1
    s = GRID.to(first.device, first.dtype)[:, None].expand(-1, channels)  # (G, C)
    try:
        out = probe(layer, s)
    except Exception:  # somebody's own activation, for images only, say
        return None
    return out.float().cpu() if isinstance(out, Tensor) and out.shape == s.shape else None


def _number(x: Tensor) -> float | None:
    return float(x) if torch.isfinite(x) else None


def rms(difference: Tensor) -> float | None:
    """Root mean square, or None where it is not finite."""
    return _number(difference.square().mean().sqrt())


@dataclass
class Watch:
    """Follows the activation parameters of one model from its start on."""

    model: nn.Module
    layers: dict[str, nn.Module] = field(init=False)
    quantiles: dict[str, list[list[float | None]]] = field(init=False)

    def __post_init__(self) -> None:
        self.layers = activation_layers(self.model)
        self._start = {name: values(layer) for name, layer in self.layers.items()}
        self._start_curve = {name: curve(layer) for name, layer in self.layers.items()}
        self.quantiles = {name: [] for name in self.layers}
        self.look()

    def look(self) -> None:
        """Notes the quantiles of this moment: once at the start, then once an epoch."""
        for name, layer in self.layers.items():
            q = torch.quantile(values(layer), torch.tensor(LEVELS))
            self.quantiles[name].append([_number(x) for x in q])

    def summary(self) -> list[dict[str, Any]]:
        """One entry per layer for the record: values at start and end, quantiles per epoch, distances."""
        return [self._layer(name, layer) for name, layer in self.layers.items()]

    def _layer(self, name: str, layer: nn.Module) -> dict[str, Any]:
        end, start = curve(layer), self._start_curve[name]
        return {
            "name": name,
            "type": type(layer).__name__,
            "initial": encode(self._start[name].numpy()),
            "final": encode(values(layer).numpy()),
            "quantiles": self.quantiles[name],
            "distance_from_start": None if end is None or start is None else rms(end - start),
            "distance_from_zero": None if end is None else rms(end),
        }
