"""Gives every Python that starts with this folder and `tests` on its path eight pretended GPUs, once it trains."""

import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import Any


class Pretending(importlib.abc.MetaPathFinder):
    """Starts the GPUs when the module is imported that trains."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "decaybench.execution.job":
            return None
        sys.meta_path.remove(self)
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None and spec.loader is not None
        real = spec.loader.exec_module

        def execute(module: ModuleType) -> None:
            from pretended_gpu import PretendedGpu

            PretendedGpu(devices=8).__enter__()
            real(module)

        spec.loader.exec_module = execute  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Pretending())
