"""Imports torchvision, which does not import beside every torch, in this one place."""

from types import ModuleType

from decaybench.errors import DecaybenchError


def torchvision() -> ModuleType:
    """Imports torchvision, or explains why it does not import.

    Raises:
        DecaybenchError: When it does not import, with the reason and the way out.
    """
    try:
        import torchvision as module
    except (ImportError, RuntimeError, OSError) as error:
        raise DecaybenchError(
            f"torchvision does not import beside the installed torch ({str(error).splitlines()[0]}); install both "
            "from one place in one step: pip install --force-reinstall torch torchvision."
        ) from error
    return module  # type: ignore[no-any-return]
