"""From records to rows: what is compared with what. Computes, never renders; never imports torch."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from decaybench.cells import Cell, Row, cells, strategy_name
from decaybench.results import Record
from decaybench.statistics import accuracy_interval, mean_interval

SHOWN = ("dataset", "network", "activation", "strategy", "optimizer", "lr", "weight_decay", "epochs")
NEAR_ZERO = 0.01


@dataclass(frozen=True)
class Summary:
    """What a report shows.

    Attributes:
        rows: One per cell; the keys of `COLUMNS`, and every other field in which the cells differ.
        cells: The cells, in the same order.
        notes: A sentence for everything a reader must know: what diverged, what could not be paired.
    """

    rows: list[Row]
    cells: list[Cell]
    notes: list[str]


COLUMNS = (
    *SHOWN,
    *("seeds", "diverged", "test_accuracy", "test_accuracy_low", "test_accuracy_high"),
    *("difference", "difference_low", "difference_high"),
    *("alpha_mean", "alpha_q05", "alpha_q50", "alpha_q95", "alpha_near_zero"),
)


def summarize(records: Iterable[Record], baseline: str = "decay-all") -> Summary:
    """Groups runs into cells and compares each with the baseline strategy, seed by seed."""
    found = cells(records)
    varying = [
        key
        for key in dict.fromkeys(k for c in found for k in c.config)
        if key not in SHOWN and len({str(c.config.get(key)) for c in found}) > 1
    ]
    notes: list[str] = []
    rows = [{**_row(cell, found, baseline, notes), **{k: cell.config.get(k) for k in varying}} for cell in found]
    if found and not any(baseline in (strategy_name(cell), cell.config["strategy"]) for cell in found):
        notes.append(f"no difference is shown, since no run has the strategy {baseline}.")
    return Summary(rows, found, list(dict.fromkeys(notes)))


def _row(cell: Cell, found: list[Cell], baseline: str, notes: list[str]) -> Row:
    accuracy = accuracy_interval([final(r, "test_accuracy") for r in cell.by_seed.values()])
    differences = _differences(cell, _baseline(cell, found, baseline, notes), notes)
    difference = mean_interval(differences)
    if differences and len(differences) < len(cell.records):
        notes.append(f"{describe(cell)}: the difference is over {len(differences)} of {len(cell.records)} seeds.")
    diverged = [r for r in cell.records if r["diverged"] is not None]
    if diverged:
        epochs = ", ".join(str(r["diverged"]) for r in diverged)
        notes.append(f"{describe(cell)}: {len(diverged)} of {len(cell.records)} runs diverged (epoch {epochs}).")
    return {
        **{key: cell.config[key] for key in SHOWN},
        "seeds": len(cell.records),
        "diverged": len(diverged),
        **dict(zip(("test_accuracy", "test_accuracy_low", "test_accuracy_high"), accuracy, strict=True)),
        **dict(zip(("difference", "difference_low", "difference_high"), difference, strict=True)),
        **alpha_columns(cell.alphas()),
    }


def describe(cell: Cell) -> str:
    """A cell in a few words, for a note."""
    return f"{cell.config['activation']} with {cell.config['strategy']}"


def final(record: Record, key: str) -> float:
    """The last epoch's value of a series."""
    return float(record["history"][key][-1])


def _baseline(cell: Cell, found: list[Cell], baseline: str, notes: list[str]) -> Cell | None:
    """The one cell that differs in the strategy only; the control, which has no decay, fits any."""
    candidates = []
    for other in found:
        control = "no-decay" in (strategy_name(cell), strategy_name(other))
        but = ("strategy", "weight_decay") if control else ("strategy",)
        if baseline in (strategy_name(other), other.config["strategy"]) and cell.matches(other, *but):
            candidates.append(other)
    if len(candidates) > 1:
        notes.append(f"{describe(cell)}: no difference, since {len(candidates)} cells of {baseline} fit it.")
    return candidates[0] if len(candidates) == 1 else None


def _differences(cell: Cell, baseline: Cell | None, notes: list[str]) -> list[float]:
    """Test accuracy minus the baseline's, for every seed that both have; a cell is not compared with itself."""
    if baseline is None or baseline is cell:
        return []
    differences = []
    for seed in sorted(cell.by_seed.keys() & baseline.by_seed.keys()):
        ours, theirs = cell.by_seed[seed], baseline.by_seed[seed]
        if ours["fingerprints"] != theirs["fingerprints"]:
            notes.append(
                f"{describe(cell)}: seed {seed} is not paired, its initial tensors or batches are not the baseline's."
            )
            continue
        differences.append(final(ours, "test_accuracy") - final(theirs, "test_accuracy"))
    return differences


def alpha_columns(alphas: npt.NDArray[Any]) -> Row:
    """Mean, quantiles and the share within 0.01 of zero; all None where nothing is learned."""
    if not len(alphas):
        return dict.fromkeys(COLUMNS[-5:])
    low, middle, high = (float(q) for q in np.quantile(alphas, [0.05, 0.5, 0.95]))
    return {
        "alpha_mean": float(alphas.mean(dtype=np.float64)),
        "alpha_q05": low,
        "alpha_q50": middle,
        "alpha_q95": high,
        "alpha_near_zero": float((np.abs(alphas) <= NEAR_ZERO).mean()),
    }


def layer_rows(cell: Cell) -> Iterator[Row]:
    """One row per activation layer of a cell, over its seeds."""
    records = list(cell.by_seed.values())
    for index, layer in enumerate(records[0]["layers"] if records else []):
        entries = [r["layers"][index] for r in records]
        yield {
            "layer": layer["name"],
            **alpha_columns(cell.alphas(index)),
            "distance_from_start": mean_of(e["distance_from_start"] for e in entries),
            "distance_from_zero": mean_of(e["distance_from_zero"] for e in entries),
        }


def distances(cell: Cell) -> tuple[float | None, float | None]:
    """How far the learned functions are from their start and from zero, over layers and seeds."""
    layers = [entry for r in cell.by_seed.values() for entry in r["layers"]]
    return mean_of(e["distance_from_start"] for e in layers), mean_of(e["distance_from_zero"] for e in layers)


def mean_of(values: Iterable[float | None]) -> float | None:
    """The mean of what is known."""
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None
