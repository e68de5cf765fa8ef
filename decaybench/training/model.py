"""Builds the model of a run: the same initial tensors for every strategy of one seed."""

import itertools
from collections.abc import Callable

import torch
from torch import nn

from decaybench.errors import UsageError
from decaybench.parameter_roles.probe import probe
from decaybench.parameter_roles.roles import mark_activation
from decaybench.registry import NETWORKS, TASKS
from decaybench.registry.build import construct
from decaybench.registry.spec import Spec
from decaybench.registry.user_code import user_code
from decaybench.study.config import RunConfig
from decaybench.training.seeding import seeded, stream_seed


def build_model(config: RunConfig, shape: tuple[int, ...], outputs: int, task: str = "classification") -> nn.Module:
    """Builds the network with its activations on the CPU, initialized from the seed of the run.

    Each activation is initialized from a stream of its own, so that one that draws random numbers leaves
    the weights as another one would have them.

    Args:
        config: The run whose model is built.
        shape: (C, H, W) of one image, (T,) of one sequence.
        outputs: Number of outputs.
        task: What it is for.

    Raises:
        UsageError: When network and data do not fit, or a user's own code returns no module.
    """
    tokens = TASKS[task].tokens
    entry = NETWORKS.get(config.network.name)
    if entry is not None and entry.tokens != tokens:
        fitting = ", ".join(name for name, other in NETWORKS.items() if other.tokens == tokens)
        kind = "tokens" if tokens else "images or vectors"
        raise UsageError(
            f"The network {config.network.name} cannot be trained on {config.dataset.label}, which holds {kind}; these "
            f"can: {fitting}."
        )
    with seeded(stream_seed(config.seed, "init")):
        model = construct("network", config.network, shape, outputs, _maker(config.activation, config.seed))
    if not isinstance(model, nn.Module):
        raise UsageError(f"The network {config.network.name} returned {type(model).__name__}, not a torch.nn.Module.")
    what = f"The network {config.network.label} with {config.activation.label}, given two inputs of {shape},"
    given = torch.zeros(2, *shape, dtype=torch.long if tokens else None)
    expected = (2, outputs, *(shape if tokens else ()))
    with user_code(what), seeded(stream_seed(config.seed, "init/lazy")):  # the first call initializes lazy layers
        out = probe(model, given)
    if not isinstance(out, torch.Tensor) or out.shape != expected:
        found = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        per = {"classification": ", one number per class", "next-token": ", one number per token and place"}.get(
            task, ""
        )
        raise UsageError(
            f"The network {config.network.name} gives {found} for two inputs; it must give {expected}{per}."
        )
    return model


def _maker(activation: Spec, seed: int) -> Callable[[int], nn.Module]:
    place = itertools.count()

    def make(channels: int) -> nn.Module:
        with seeded(stream_seed(seed, f"init/activation/{next(place)}")):
            module = construct("activation", activation, channels)
        if not isinstance(module, nn.Module):
            raise UsageError(f"The activation {activation.name} returned {type(module).__name__}, not a module.")
        if empty := [name for name, parameter in module.named_parameters() if not parameter.numel()]:
            raise UsageError(f"The activation {activation.label} has an empty parameter: {empty[0]}.")
        return mark_activation(module) if list(module.parameters()) else module

    return make
