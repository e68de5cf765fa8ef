"""The learning rates of a training, step by step."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

Factor = Callable[[int], float]


class Rates:
    """Sets the learning rates of optimizers before each step.

    Args:
        scheduled: The optimizers, each with what its learning rates are multiplied by at a step.
        device: Where a recorded step reads them; None where none is recorded, and they are numbers.

    Attributes:
        table: The rates of all param groups, step by step, since `begin` or `use`.
    """

    def __init__(self, scheduled: Sequence[tuple[Optimizer, Factor]], device: torch.device | None) -> None:
        self._scheduled, self._device = scheduled, device
        self._base = [[float(group["lr"]) for group in optimizer.param_groups] for optimizer, _ in scheduled]
        self._now = torch.zeros(sum(map(len, self._base)), device=device)  # (G,), of all param groups
        self.table: list[list[float]] = []
        self._there: Tensor  # the same on the device, (steps, G)

    def begin(self, first: int, steps: int) -> None:
        """Computes the rates of some steps from ``first`` on."""
        factors = [[factor(step) for _, factor in self._scheduled] for step in range(first, first + steps)]
        self.use([[lr * f for base, f in zip(self._base, row, strict=True) for lr in base] for row in factors])

    def use(self, table: list[list[float]]) -> None:
        """Takes the rates of all param groups at some steps, and prepares the groups for them."""
        self.table = table
        if self._device is not None:
            self._there = torch.tensor(table, device=self._device)
            for group, place in zip(self._groups(), self._now.unbind(), strict=True):
                group["lr"] = place

    def set(self, step: int) -> None:
        """Sets the rates of a step, by its number in the table."""
        if self._device is not None:
            self._now.copy_(self._there[step])
            return
        for group, lr in zip(self._groups(), self.table[step], strict=True):
            group["lr"] = lr

    def _groups(self) -> list[dict[str, object]]:
        return [group for optimizer, _ in self._scheduled for group in optimizer.param_groups]
