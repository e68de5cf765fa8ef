"""Builds the model of a run: the same initial tensors for every strategy of one seed."""

import itertools
from collections.abc import Callable

import torch
from torch import nn

from decaybench.errors import UsageError
from decaybench.parameter_roles.probe import probe
from decaybench.parameter_roles.roles import mark_activation
from decaybench.registry.build import construct
from decaybench.registry.spec import Spec
from decaybench.registry.user_code import user_code
from decaybench.study.config import RunConfig
from decaybench.training.seeding import seeded, stream_seed


def build_model(config: RunConfig, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Builds the network with its activations on the CPU, initialized from the seed of the run.

    Each activation is initialized from a stream of its own, so that one that draws random numbers leaves
    the weights as another one would have them.

    Args:
        config: The run whose model is built.
        shape: (C, H, W) of one image.
        classes: Number of outputs.

    Raises:
        UsageError: When network and images do not fit, or a user's own code returns no module.
    """
    with seeded(stream_seed(config.seed, "init")):
        model = construct("network", config.network, shape, classes, _maker(config.activation, config.seed))
    if not isinstance(model, nn.Module):
        raise UsageError(f"The network {config.network.name} returned {type(model).__name__}, not a torch.nn.Module.")
    what = f"The network {config.network.label} with {config.activation.label}, given two images of {shape},"
    with user_code(what), seeded(stream_seed(config.seed, "init/lazy")):  # the first call initializes lazy layers
        out = probe(model, torch.zeros(2, *shape))
    if not isinstance(out, torch.Tensor) or out.shape != (2, classes):
        given = tuple(out.shape) if isinstance(out, torch.Tensor) else type(out).__name__
        raise UsageError(
            f"The network {config.network.name} gives {given} for two images; "
            f"it must give (2, {classes}), one number per class."
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
