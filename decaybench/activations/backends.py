"""Which code computes the activations of a network on this machine: results differ between them by rounding."""

from torch import nn

from decaybench import native
from decaybench.activations import compiled
from decaybench.activations.kaf import triton
from decaybench.activations.kaf.module import KAF
from decaybench.activations.prelu import PReLU


def backends(model: nn.Module) -> dict[str, str]:
    """Returns the backend of each learned activation in a network, by its class.

    Args:
        model: A network on the device on which it is trained.

    Returns:
        ``compiled`` (with the compiler), ``triton`` or ``torch`` for each class.
    """
    found = {}
    for module in model.modules():
        parameter = next(module.parameters(recurse=False), None)
        if parameter is None or not isinstance(module, KAF | PReLU):
            continue
        backend = "torch"
        if parameter.device.type == "cpu" and compiled.library(parameter.dtype) is not None:
            backend = f"compiled ({native.compiler_version()})"
        elif isinstance(module, KAF) and parameter.device.type == "cuda" and triton.usable(parameter):
            backend = "triton"
        found[type(module).__name__] = backend
    return found


def slow_backend(model: nn.Module) -> str:
    """Says which activation of a network on a GPU its kernels do not compute, and why; empty where they do.

    Args:
        model: A network on the device on which it is trained.
    """
    for module in model.modules():
        if isinstance(module, KAF) and module.alpha.is_cuda and (reason := triton.hindrance(module.alpha.device)):
            return (
                "torch's own operations compute KAF, many times slower, since Triton cannot build its kernels, "
                f"for which it needs a C compiler and Python's headers ({reason})"
            )
    return ""
