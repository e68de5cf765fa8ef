"""Cells: a cell is the runs of one configuration over its seeds."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from decaybench.analysis.frame import Row, config_of, labels, pooled
from decaybench.registry import STRATEGIES
from decaybench.registry.methods import method_of
from decaybench.results.record import Layer


@dataclass
class Cell:
    """One configuration over its seeds, on the same data.

    Attributes:
        config: The fields of the configuration as texts and numbers.
        runs: The rows of `runs_frame` that belong to it, by seed.
    """

    config: Row
    runs: pd.DataFrame

    @cached_property
    def completed(self) -> pd.DataFrame:
        """The runs that did not diverge, by seed."""
        return self.runs[self.runs["diverged"].isna()].set_index("seed", drop=False)

    @property
    def seeds(self) -> list[int]:
        """The seeds of the runs that did not diverge."""
        return [int(seed) for seed in self.completed.index]

    def has(self, metric: str) -> bool:
        """Tells whether every run that did not diverge has recorded a metric."""
        known = self.completed[metric].notna() if metric in self.completed else ()
        return bool(len(known)) and bool(all(known))

    def values(self, metric: str, seeds: list[int] | None = None) -> list[float]:
        """Returns the last value of a metric for the runs that did not diverge, or for some seeds among them."""
        runs = self.completed if seeds is None else self.completed.loc[seeds]
        return [float(value) for value in runs[metric]]

    @cached_property
    def test_examples(self) -> set[int]:
        """How many test examples its runs recorded outcomes of; empty where they recorded none."""
        return {len(values) for found in self.completed.get("outcomes", ()) for values in (found or {}).values()}

    @cached_property
    def layers(self) -> list[tuple[Layer, ...]]:
        """The learned activations of each run that did not diverge."""
        return list(self.completed["layers"])

    def layer(self, index: int) -> list[Layer]:
        """Returns one layer of each run that has it."""
        return [layers[index] for layers in self.layers if index < len(layers)]

    def alphas(self, layer: int | None = None) -> npt.NDArray[Any]:
        """Returns the final activation parameters of all runs that did not diverge, of one layer or of all."""
        chosen = [part for layers in self.layers for part in layers] if layer is None else self.layer(layer)
        return pooled(chosen)  # type: ignore[no-any-return]

    def matches(self, other: "Cell", *except_fields: str) -> bool:
        """Tells whether two cells have the same configuration except in these fields."""
        mine, theirs = ({k: v for k, v in c.config.items() if k not in except_fields} for c in (self, other))
        return mine == theirs


def cells(runs: pd.DataFrame) -> list[Cell]:
    """Groups runs into cells, in reading order: same question together, strategies in the registry's order.

    Runs of one configuration on different data are different cells.
    """
    found = []
    for _, members in runs.groupby(["cell_id", "data_key"], sort=False):
        found.append(Cell(labels(config_of(members["config"].iloc[0])), members.sort_values("seed", kind="stable")))
    several = {cell.config["dataset"] for cell in found if "dataset" in cell.config}
    for label in several:
        keys = {key: None for cell in found if cell.config.get("dataset") == label for key in cell.runs["data_key"]}
        if len(keys) > 1:
            for cell in found:
                if cell.config.get("dataset") == label:
                    cell.config["dataset"] = f"{label} (data {cell.runs['data_key'].iloc[0][:6]})"
    return sorted(found, key=_position)


def _position(cell: Cell) -> tuple[Any, ...]:
    strategies = list(STRATEGIES)
    name = strategy_name(cell)
    question = [v for k, v in cell.config.items() if k not in ("strategy", "weight_decay")]
    return (
        # Numbers by size, texts by the alphabet, and the two never compared with each other.
        tuple((0, v, "") if isinstance(v, int | float) else (1, 0, str(v)) for v in question),
        cell.config["weight_decay"],
        strategies.index(name) if name in strategies else len(strategies),
        cell.config["strategy"],
    )


def strategy_name(cell: Cell) -> str:
    """Returns the name of a cell's strategy, without its options and the hash of somebody's own code."""
    return _without_hash(str(cell.config["strategy"])).split(",")[0]


def short_label(label: str) -> str:
    """Returns how a strategy is called in a table: somebody's own code by the name of its function."""
    plain = _without_hash(label)
    target, comma, options = plain.partition(",")
    return target.rpartition(":")[2] + comma + options if ":" in target else plain


def is_called(cell: Cell, name: str, among: Sequence[Cell] = ()) -> bool:
    """Tells whether a name is that of a cell's strategy, given with its options or without.

    Args:
        cell: The cell.
        name: Without options it is the strategy that has none; only where there is no such one, those that have some.
        among: The cells of which one may be called exactly so.
    """
    return _is_exactly(cell, name) or (name == strategy_name(cell) and not any(_is_exactly(c, name) for c in among))


def _is_exactly(cell: Cell, name: str) -> bool:
    label = str(cell.config["strategy"])
    return name in (label, _without_hash(label))


def _without_hash(label: str) -> str:
    return re.sub(r"@[0-9a-f]{6}$", "", label)


def method_of_cell(cell: Cell) -> tuple[str, str]:
    """Returns the method that a cell's strategy is under its optimizer and clipping."""
    return method_of(config_of(cell.runs["config"].iloc[0]))


def same_seeds(first: Cell, second: Cell) -> list[int]:
    """Returns the seeds that two cells have both completed."""
    return [int(seed) for seed in np.intersect1d(first.completed.index, second.completed.index)]
