"""Compares strategies each at its own best, chosen on validation accuracy, with the choice in the uncertainty."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from decaybench.analysis.cells import Cell, method_of_cell, strategy_name
from decaybench.analysis.frame import Row

BOOTSTRAP_SAMPLES = 2000
TUNED_FIELDS = ("lr", "weight_decay")
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Candidates:
    """One strategy with all its learning rates and decays, on the seeds that every cell of the question has.

    Attributes:
        cells: The cells of the strategy, in the order of the study.
        validation, test: Accuracies of the last epoch, (cells, seeds).
    """

    strategy: str
    cells: list[Cell]
    validation: Floats
    test: Floats

    @property
    def grid(self) -> set[tuple[float, float]]:
        """The learning rates and decays that were searched."""
        return {(cell.config["lr"], cell.config["weight_decay"]) for cell in self.cells}

    def best(self, seeds: npt.NDArray[np.intp]) -> tuple[npt.NDArray[np.intp], Floats]:
        """Chooses a cell for each resample of seeds (B, n), and returns its index and test accuracy, both (B,)."""
        chosen = self.validation[:, seeds].mean(2).argmax(0)  # (B,)
        return chosen, self.test[:, seeds].mean(2)[chosen, np.arange(len(seeds))]


def tuned(found: Iterable[Cell], baseline: str) -> list[list[Row]]:
    """Compares strategies at their own best: the rows of each question with more than one learning rate or decay.

    No decay at all is a candidate of every strategy, where the study has it. The interval is Student's t with the
    standard error of a bootstrap over seeds in which every resample chooses again, so that the optimism of choosing is
    counted; all strategies share the resampled seeds. It speaks about these test images. Only searches over the same
    rates and decays are compared.
    """
    questions: dict[tuple[str, ...], list[Cell]] = {}
    for cell in found:
        key = tuple(f"{k}={v}" for k, v in cell.config.items() if k not in ("strategy", *TUNED_FIELDS))
        questions.setdefault(key, []).append(cell)
    return [rows for cells in questions.values() if (rows := _question(cells, baseline))]


def _question(cells: list[Cell], baseline: str) -> list[Row]:
    groups = _by_method(cells)
    whole = [c for c in cells if c.seeds]
    if max(map(len, groups.values())) < 2 or not whole:
        return []
    seeds = sorted(set.intersection(*(set(c.seeds) for c in whole)))
    if not seeds:
        return []
    none = [c for name, group in groups.items() if name == "no-decay" for c in group if c.seeds]
    candidates = [
        _candidates(name, [c for c in group if c.seeds] + (none if name != "no-decay" else []), seeds)
        for name, group in groups.items()
    ]
    all_seeds = np.arange(len(seeds))[None]  # (1, n): the sample itself
    resampled = np.random.default_rng(0).integers(len(seeds), size=(BOOTSTRAP_SAMPLES, len(seeds)))
    candidates = [c for c in candidates if c.cells]
    references = [c for c in candidates if baseline in c.strategy.split(" = ")]
    references = references or [c for c in candidates if baseline == strategy_name(c.cells[0])]
    reference = references[0] if len(references) == 1 else None
    return [_row(c, reference, all_seeds, resampled) for c in candidates if c.cells]


def _by_method(cells: list[Cell]) -> dict[str, list[Cell]]:
    """Groups cells by strategy, without those of a strategy that is the same method as an earlier one."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(str(cell.config["strategy"]), []).append(cell)
    methods: dict[tuple[str, str], list[str]] = {}
    for name, group in groups.items():
        methods.setdefault(method_of_cell(max(group, key=lambda c: float(c.config["weight_decay"]))), []).append(name)
    return {" = ".join(names): groups[names[0]] for names in methods.values()}


def _candidates(name: str, cells: list[Cell], seeds: list[int]) -> Candidates:
    def of(key: str) -> Floats:
        return np.array([cell.values(key, seeds) for cell in cells])

    return Candidates(name, cells, of("validation_accuracy"), of("test_accuracy"))


def _row(
    c: Candidates, reference: Candidates | None, all_seeds: npt.NDArray[np.intp], resampled: npt.NDArray[np.intp]
) -> Row:
    (chosen,), (test,) = c.best(all_seeds)
    again, scores = c.best(resampled)
    best, n = c.cells[chosen], all_seeds.shape[1]
    row = {key: best.config[key] for key in best.config if key not in TUNED_FIELDS}
    row |= {"lr": best.config["lr"], "weight_decay": best.config["weight_decay"], "seeds": n}
    row |= {"strategy": c.strategy, "candidates": len(c.cells), "chosen_again": float((again == chosen).mean())}
    row |= {"on_edge": _on_edge(best, c.cells)}
    row |= {"validation_accuracy": float(c.validation[chosen].mean())}
    row |= _interval("test_accuracy", float(test), scores, n)
    if reference is None or reference is c or c.grid != reference.grid:
        return row | dict.fromkeys(("difference", "difference_low", "difference_high"))
    _, (theirs,) = reference.best(all_seeds)
    return row | _interval("difference", float(test - theirs), scores - reference.best(resampled)[1], n)


def _on_edge(best: Cell, cells: list[Cell]) -> bool:
    """Tells whether nothing larger, or nothing smaller, than the best rate or decay was tried; 0 has nothing below."""
    for key in TUNED_FIELDS:
        tried = sorted({cell.config[key] for cell in cells})
        if len(tried) > 1 and best.config[key] in (tried[0], tried[-1]) and best.config[key] != 0:
            return True
    return False


def _interval(key: str, estimate: float, resampled: Floats, n: int) -> Row:
    if n < 2 or np.ptp(resampled) < 1e-12:
        return {key: estimate, f"{key}_low": None, f"{key}_high": None}
    least = 0.0 if key == "test_accuracy" else -1.0
    error = float(resampled.std()) * (n / (n - 1)) ** 0.5  # a bootstrap's variance lacks this factor
    half = float(stdtrit(n - 1, 0.975)) * error
    return {key: estimate, f"{key}_low": max(least, estimate - half), f"{key}_high": min(1.0, estimate + half)}
