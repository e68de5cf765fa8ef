"""Pairs each cell with its baseline, seed by seed and image by image."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from decaybench.analysis.cells import Cell, is_called, method_of_cell, same_seeds, strategy_name
from decaybench.analysis.frame import FINGERPRINTS
from decaybench.results.record import LARGEST_LOSS


def outcomes_of(cell: Cell, metric: str, seeds: list[int]) -> npt.NDArray[np.float64] | None:
    """Returns the values of a metric on each test example, (seeds, examples).

    Returns:
        None where seeds have test examples of their own, where a record does not hold them, and where a loss is as
        large as a record can hold, so that the true one is not known.
    """
    if "outcomes" not in cell.completed or split_by_seed(cell):
        return None
    arrays = [outcomes.get(metric) for outcomes in cell.completed.loc[seeds, "outcomes"]]
    if not arrays or any(a is None or len(a) != len(arrays[0]) for a in arrays):
        return None
    table = np.stack(arrays)
    clamped = table.dtype == np.float16 and table.max() >= LARGEST_LOSS
    return None if clamped else table.astype(np.float64)


def split_by_seed(cell: Cell) -> bool:
    """Tells whether every seed of a cell divided the data set anew."""
    return "script" not in cell.config and bool(cell.config.get("split") == "seed")


def test_share(cell: Cell) -> float:
    """Returns the number of test examples, divided by that of the examples to train on before any limit."""
    examples = json.loads(cell.runs["provenance"].iloc[0])["examples"]
    return float(examples["test"] / examples["available"])


def describe(cell: Cell) -> str:
    """Describes a cell in a few words, for a note."""
    decay = cell.config["weight_decay"]
    what = cell.config.get("activation") or cell.config.get("script")
    return f"{what} with {cell.config['strategy']}" + (f" at {decay:g}" if decay else "")


def baseline_of(cell: Cell, found: list[Cell], baseline: str, notes: list[str]) -> Cell | None:
    """Finds the one cell that differs in the strategy only; the control, which has no decay, fits any decay."""
    named = [other for other in found if is_called(other, baseline, found)]
    candidates = [other for other in named if cell.matches(other, "strategy")]
    if not candidates:
        either = [other for other in named if cell.matches(other, "strategy", "weight_decay")]
        candidates = [other for other in either if 0 in (cell.config["weight_decay"], other.config["weight_decay"])]
    if len(candidates) > 1 and strategy_name(cell) != "no-decay":
        notes.append(f"{describe(cell)}: no difference, since {len(candidates)} cells of {baseline} fit it.")
    return candidates[0] if len(candidates) == 1 else None


@dataclass(frozen=True)
class Pairs:
    """Two cells on the seeds that both have, in the order of the seeds.

    Attributes:
        seeds: The seeds.
        first, second: The cell and its baseline.
    """

    seeds: list[int]
    first: Cell
    second: Cell

    def have(self, metric: str) -> bool:
        """Tells whether both cells have recorded a metric."""
        return self.first.has(metric) and self.second.has(metric)

    def differences(self, metric: str) -> list[float]:
        """Returns the difference of each seed."""
        ours, theirs = (cell.values(metric, self.seeds) for cell in (self.first, self.second))
        return [a - b for a, b in zip(ours, theirs, strict=True)]

    def outcomes(self, metric: str) -> npt.NDArray[np.float64] | None:
        """Returns the difference of each seed on each test example, (seeds, examples)."""
        ours, theirs = (outcomes_of(cell, metric, self.seeds) for cell in (self.first, self.second))
        if ours is None or theirs is None or ours.shape != theirs.shape:
            return None
        return ours - theirs


def tested(keys: list[Any], pairs: "list[Pairs | None]", baselines: set[tuple[str, str]]) -> list[int]:
    """Chooses the cell of each method and decay that is tested: of those with a pair, the one with most seeds."""
    first: dict[Any, int] = {}
    for i, (key, pair) in enumerate(zip(keys, pairs, strict=True)):
        if pair is not None and key[0] not in baselines:
            best = pairs[first.setdefault(key, i)]
            if best is not None and len(pair.seeds) > len(best.seeds):
                first[key] = i
    return list(first.values())


def paired(cell: Cell, found: list[Cell], baseline: str, notes: list[str]) -> Pairs | None:
    """Pairs a cell with its baseline; None for the baseline itself, and without runs whose fingerprints agree."""
    other = baseline_of(cell, found, baseline, notes)
    if other is None or other is cell:
        return None
    seeds = same_seeds(cell, other)
    prints = [f"{key}_fingerprint" for key in FINGERPRINTS]
    ours, theirs = (c.completed.loc[seeds, prints].fillna("").to_numpy() for c in (cell, other))
    alike = (ours == theirs).all(1)
    if "script" in cell.config:
        # Runs that nothing pairs are still two samples, of which seeds are any order: a difference by seed holds.
        known = [(bool(a), bool(row[1])) for a, row in zip(alike, ours, strict=True)]
        if not all(same and initial for same, initial in known):
            notes.append(
                f"{describe(cell)}: nothing shows that its runs are paired with the baseline's, that is, start from "
                "the same tensors. They are compared seed by seed all the same: that holds either way, and is as wide "
                "as what the two do not have in common."
            )
        alike[:] = True
    for seed, same in zip(seeds, alike, strict=True):
        if not same:
            notes.append(
                f"{describe(cell)}: seed {seed} is not paired, its initial tensors or batches are not the baseline's."
            )
    seeds = [seed for seed, same in zip(seeds, alike, strict=True) if same]
    if seeds and len(seeds) < len(cell.runs):
        notes.append(f"{describe(cell)}: the difference is over {len(seeds)} of {len(cell.runs)} seeds.")
    return Pairs(seeds, cell, other) if seeds else None


def pairs_of(found: list[Cell], baseline: str) -> list[Pairs]:
    """Pairs each distinct method of one question with the baseline."""
    methods = [(method_of_cell(cell), cell.config["weight_decay"]) for cell in found]
    pairs = [paired(cell, found, baseline, []) for cell in found]
    baselines = {method_of_cell(cell) for cell in found if is_called(cell, baseline, found)}
    return [pairs[i] for i in tested(methods, pairs, baselines)]  # type: ignore[misc]
