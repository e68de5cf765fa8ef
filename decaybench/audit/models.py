"""Builds the model to audit from a name: a user's code, timm, torchvision, or a local transformers config."""

import importlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from decaybench.errors import DecaybenchError, UsageError, unknown
from decaybench.parameter_roles.inference import observe
from decaybench.parameter_roles.probe import Example
from decaybench.registry import imports
from decaybench.registry.user_code import is_own, short_path, user_code
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
            with suppress(RuntimeError), torch.device("meta"):  # unless it looks at its own numbers while it is built
                return make()
        return make()


def _own(target: str, options: Options) -> nn.Module:
    factory = imports.load(target)
    if isinstance(factory, nn.Module):
        return factory
    if not callable(factory):
        raise UsageError(f"{target} is a {type(factory).__name__}; it must be a function or class that makes a model.")
    try:
        inspect.signature(factory).bind(**options)
    except ValueError as error:
        raise UsageError(
            f"{target} has no signature that Python can read; name a function or class of your own."
        ) from error
    except TypeError as error:
        raise UsageError(
            f"{target} takes {inspect.signature(factory)}: {error}; give arguments as --kwargs name=value."
        ) from error
    with user_code(target):
        model = factory(**options)
    if not isinstance(model, nn.Module):
        raise UsageError(f"{target} returned {type(model).__name__}, not a torch.nn.Module.")
    return model


@dataclass(frozen=True)
class Input:
    """One argument of an example input.

    Attributes:
        shape: Its shape.
        name: The name of the argument; empty where it is given by position.
        kind: ``int``, ``float`` or ``bool``; empty where the model decides.
    """

    shape: tuple[int, ...]
    name: str = ""
    kind: str = ""


def example(model: nn.Module, inputs: Sequence[Input], seed: int = 0) -> Example:
    """Draws one batch for a model: normal numbers of its type, or token ids where it has an embedding.

    Args:
        model: The model.
        inputs: Its arguments, all by position or all by name.
        seed: Of the random numbers.

    Raises:
        UsageError: When the model does not take the batch, with its own error.
    """
    draw = torch.Generator().manual_seed(seed)
    words = min((m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)), default=0)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)

    def one(wanted: Input) -> torch.Tensor:
        kind = wanted.kind or ("int" if words and len(wanted.shape) == 2 and len(inputs) == 1 else "float")
        if kind == "float":
            return torch.randn(wanted.shape, generator=draw, dtype=dtype)
        numbers = torch.randint(2 if kind == "bool" else words or 2, wanted.shape, generator=draw)
        return numbers.bool() if kind == "bool" else numbers

    drawn = [one(wanted) for wanted in inputs]
    named = {wanted.name: x for wanted, x in zip(inputs, drawn, strict=True) if wanted.name}
    batch: Example = named if named else drawn[0] if len(drawn) == 1 else tuple(drawn)
    observe(model, batch)
    return batch


def place_of_target(target: str) -> tuple[str, int] | None:
    """Returns the file and the line of a target that is the user's own code; None for a library's."""
    kind, _, name = target.partition(":")
    if kind in _LIBRARIES or not name:
        return None
    factory = imports.load(target)
    try:
        if isinstance(factory, nn.Module):
            return None
        made = factory if inspect.isclass(factory) or inspect.isfunction(factory) else type(factory)
        file = Path(inspect.getsourcefile(made) or "")
        return (short_path(file), inspect.getsourcelines(made)[1]) if is_own(file.resolve()) else None
    except (TypeError, OSError):
        return None


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
    if architecture and not hasattr(transformers, architecture):
        raise UsageError(
            f"hf:{name}: its architecture {architecture} is none of transformers {transformers.__version__}."
        )
    return lambda: getattr(transformers, architecture or "-", transformers.AutoModel.from_config)(config)


_LIBRARIES: dict[str, Callable[[str, Options], Callable[[], nn.Module]]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "hf": _transformers,
}


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].rstrip('.') if lines else 'no reason given'}"
