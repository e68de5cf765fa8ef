"""Cells: a cell is the runs of one configuration over its seeds."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from decaybench.registry import STRATEGIES
from decaybench.registry.spec import Spec
from decaybench.results.record import decode
from decaybench.results.store import Record

SPECS = ("dataset", "network", "activation", "strategy", "optimizer", "schedule")
Row = dict[str, Any]


def labels(config: dict[str, Any]) -> Row:
    """Writes a configuration without its seed as a person would: every named part as one text."""
    named = {k: _label(v) if k in SPECS else v for k, v in config.items() if k not in ("seed", "precision")}
    return {**named, "precision": config.get("precision", "float32")}


def _label(value: dict[str, Any]) -> str:
    """Writes a Spec as text; a user's own code with the hash of its source, since versions of it differ."""
    return _text(value["name"], tuple(value["options"].items()), value["source"])


@lru_cache(maxsize=4096)
def _text(name: str, options: tuple[tuple[str, Any], ...], source: str | None) -> str:
    spec = Spec.model_construct(name=name, options=dict(options), source=source)
    return f"{spec.label}@{spec.source[:6]}" if spec.source else spec.label


@dataclass
class Cell:
    """One configuration over its seeds.

    Attributes:
        config: The fields of the configuration as texts and numbers.
        records: The records of the cell, one per seed.
    """

    config: Row
    records: list[Record] = field(default_factory=list)

    @cached_property
    def by_seed(self) -> dict[int, Record]:
        """The runs that did not diverge."""
        return {r["config"]["seed"]: r for r in self.records if r["diverged"] is None}

    def alphas(self, layer: int | None = None) -> npt.NDArray[Any]:
        """The final activation parameters of all seeds that did not diverge, of one layer or of all."""
        chosen = [r["layers"] if layer is None else r["layers"][layer : layer + 1] for r in self.by_seed.values()]
        parts = [decode(entry["final"]) for entries in chosen for entry in entries]
        return np.concatenate(parts) if parts else np.empty(0, np.float32)

    def matches(self, other: "Cell", *but: str) -> bool:
        """Tells whether two cells have the same configuration except in these fields."""
        return all(self.config[k] == other.config[k] for k in self.config if k not in but)


def cells(records: Iterable[Record]) -> list[Cell]:
    """Groups runs into cells, in reading order: same question together, strategies in the registry's order."""
    found: dict[tuple[Any, ...], Cell] = {}
    for record in records:
        config = labels(record["config"])
        found.setdefault(tuple(config.values()), Cell(config)).records.append(record)
    return sorted(found.values(), key=_position)


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


def final(record: Record, key: str) -> float:
    """Returns the last epoch's value of a series."""
    return float(record["history"][key][-1])


def strategy_name(cell: Cell) -> str:
    """Returns the name of a cell's strategy, without its options."""
    return str(cell.config["strategy"]).split(",")[0]
