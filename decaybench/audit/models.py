"""Builds the model to audit from a name: a user's code, timm, torchvision, or a local transformers config."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from decaybench.errors import DecaybenchError, UsageError, unknown
from decaybench.parameter_roles.inference import observe
from decaybench.registry import imports
from decaybench.registry.user_code import user_code
from decaybench.vision import torchvision

FORMS = "package.module:factory, path/to/file.py:factory, timm:NAME, torchvision:NAME or hf:CONFIG_OR_FOLDER"
Options = Mapping[str, Any]


def build(target: str, options: Options, *, shapes_only: bool = False) -> nn.Module:
    """Builds a model. This runs the code that the target names; weights are never downloaded.

    Args:
        target: One of `FORMS`.
        options: Keywords for the factory.
        shapes_only: Whether the model will not be run: a library's is then built without memory, on the meta device.

    Raises:
        UsageError: When there is no such model, or it cannot be built, with the reason.
    """
    kind, colon, name = target.partition(":")
    if not (colon and name):
        raise UsageError(f"{target!r} names no model; allowed are {FORMS}.")
    library = _LIBRARIES.get(kind)
    if library is None:
        return _own(target, options)
    make = library(name, options)
    with user_code(f"{target}, built with {dict(options)},"):
        if shapes_only:
            try:
                with torch.device("meta"):
                    return make()
            except (RuntimeError, NotImplementedError):  # it looks at its own numbers while it is built
                pass
        return make()


def _own(target: str, options: Options) -> nn.Module:
    factory = imports.load(target)
    if isinstance(factory, nn.Module):
        return factory
    if not callable(factory):
        raise UsageError(f"{target} is a {type(factory).__name__}; it must be a function or class that makes a model.")
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        raise UsageError(
            f"{target} takes {inspect.signature(factory)}: {error}; give arguments as --kwargs name=value."
        ) from error
    with user_code(target):
        model = factory(**options)
    if not isinstance(model, nn.Module):
        raise UsageError(f"{target} returned {type(model).__name__}, not a torch.nn.Module.")
    return model


def example(model: nn.Module, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Draws one batch for a model: normal numbers of its type, or token ids (N, length) where it has an embedding.

    Raises:
        UsageError: When the model does not take the batch, with its own error.
    """
    draw = torch.Generator().manual_seed(seed)
    words = min((m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)), default=0)
    if words and len(shape) == 2:
        batch = torch.randint(words, shape, generator=draw)  # (N, length)
    else:
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
        batch = torch.randn(shape, generator=draw, dtype=dtype)
    observe(model, batch)
    return batch


def optimizers_of(target: str, model: nn.Module) -> list[Optimizer]:
    """Calls a user's function with the model and returns the optimizers that it makes.

    Raises:
        UsageError: When it fails, or returns neither an optimizer nor several.
    """
    factory = imports.load(target)
    with user_code(f"{target}, called with the model,"):
        made = factory(model)
        several = list(made) if isinstance(made, list | tuple) else [made]
    for one in several:
        if not isinstance(one, Optimizer):
            raise UsageError(f"{target} returned {type(one).__name__}; it must return one or several torch optimizers.")
    return several


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DecaybenchError(f"{name} does not import ({error}); install it: pip install {name}.") from error


def _timm(name: str, options: Options) -> Callable[[], nn.Module]:
    timm = _package("timm")
    if name.partition(".")[0] not in timm.list_models():
        raise unknown("timm model", name, timm.list_models())
    return lambda: timm.create_model(name, pretrained=False, **options)


def _torchvision(name: str, options: Options) -> Callable[[], nn.Module]:
    models = torchvision().models
    if name not in models.list_models():
        raise unknown("torchvision model", name, models.list_models())
    builder = models.get_model_builder(name)
    # Of a detector, the backbone has weights of its own, which are downloaded unless told otherwise.
    never = {k: None for k in ("weights", "weights_backbone") if k in inspect.signature(builder).parameters}
    return lambda: builder(**{**never, **options})


def _transformers(name: str, options: Options) -> Callable[[], nn.Module]:
    path = Path(name)
    if not path.exists():
        raise UsageError(f"hf:{name}: there is no such file or folder (looked in {Path.cwd()}); nothing is downloaded.")
    transformers = _package("transformers")
    try:
        config = transformers.AutoConfig.from_pretrained(
            path, local_files_only=True, trust_remote_code=False, **options
        )
    except Exception as error:
        raise UsageError(f"hf:{name} is no configuration of transformers: {_reason(error)}.") from error
    architecture = next(iter(getattr(config, "architectures", None) or []), "")
    return lambda: getattr(transformers, architecture, transformers.AutoModel.from_config)(config)


_LIBRARIES: dict[str, Callable[[str, Options], Callable[[], nn.Module]]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "hf": _transformers,
}


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.') if lines else 'no reason given'}"
