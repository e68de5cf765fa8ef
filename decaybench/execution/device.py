"""The device of a study."""

import torch

from decaybench.errors import UsageError


def every(name: str) -> tuple[torch.device, ...]:
    """Returns the devices that a study may use: of ``auto`` and ``cuda`` every GPU, of others the one that is named.

    Raises:
        UsageError: When it is absent.
    """
    first = resolve(name)
    if str(first) == "cuda":
        return tuple(torch.device("cuda", index) for index in range(torch.cuda.device_count()))
    return (first,)


def resolve(name: str) -> torch.device:
    """Turns ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps`` into a device that is there.

    Raises:
        UsageError: When the device is absent; it never falls back by itself.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, index = name.partition(":")
    found = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[kind]
    if int(index or 0) >= found:
        raise UsageError(
            f"--device {name}: torch {torch.__version__} finds {found} such devices here; use --device cpu or auto."
        )
    return torch.device(name)
