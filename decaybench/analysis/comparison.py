"""Turns records into rows and compares each cell with its baseline. Never imports torch."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from decaybench.analysis.cells import Cell, Row, cells, final, strategy_name
from decaybench.analysis.statistics import (
    TIE_TOLERANCE,
    accuracy_interval,
    anytime_interval,
    correlation,
    equivalent,
    holm,
    mean_interval,
    minimum_detectable_difference,
    p_value,
    paired_win_rate,
)
from decaybench.results.record import decode
from decaybench.results.store import Record

CONFIG_COLUMNS = ("dataset", "network", "activation", "strategy", "optimizer", "lr", "weight_decay", "epochs")
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
    *CONFIG_COLUMNS,
    *("seeds", "diverged", "test_accuracy", "test_accuracy_low", "test_accuracy_high"),
    *("difference", "difference_low", "difference_high"),
    *("p_holm", "improvement", "pairing", "detectable", "verdict"),
    *("alpha_mean", "alpha_q05", "alpha_q50", "alpha_q95", "alpha_near_zero"),
)


@dataclass(frozen=True)
class ComparisonSettings:
    """How cells are compared.

    Attributes:
        baseline: The strategy that the others are compared with.
        margin: What counts as no difference, a fraction; None: nothing does.
        anytime: Whether seeds were added until the intervals were narrow enough, so that they must allow for looking.
    """

    baseline: str = "decay-all"
    margin: float | None = None
    anytime: bool = False


def summarize(records: Iterable[Record], question: ComparisonSettings | None = None) -> Summary:
    """Groups runs into cells and compares each with the baseline strategy, seed by seed."""
    question = question or ComparisonSettings()
    found = cells(records)
    varying = [
        key
        for key in dict.fromkeys(k for c in found for k in c.config)
        if key not in CONFIG_COLUMNS and len({str(c.config.get(key)) for c in found}) > 1
    ]
    notes: list[str] = []
    differences = [differences_of(cell, found, question.baseline, notes) for cell in found]
    p_values = holm([None if question.anytime else p_value(d) for d in differences])
    rows = []
    for cell, d, p in zip(found, differences, p_values, strict=True):
        evidence = _evidence(d, p, question)
        row = {**_row(cell, notes), **evidence, "pairing": _pairing(cell, found, question.baseline)}
        rows.append({**{key: row[key] for key in COLUMNS}, **{k: cell.config.get(k) for k in varying}})
    if found and not any(question.baseline in (strategy_name(cell), cell.config["strategy"]) for cell in found):
        notes.append(f"no difference is shown, since no run has the strategy {question.baseline}.")
    return Summary(rows, found, list(dict.fromkeys(notes)))


def _row(cell: Cell, notes: list[str]) -> Row:
    accuracy = accuracy_interval([final(r, "test_accuracy") for r in cell.by_seed.values()])
    diverged = [r for r in cell.records if r["diverged"] is not None]
    if diverged:
        epochs = ", ".join(str(r["diverged"]) for r in diverged)
        notes.append(f"{describe(cell)}: {len(diverged)} of {len(cell.records)} runs diverged (epoch {epochs}).")
    return {
        **{key: cell.config[key] for key in CONFIG_COLUMNS},
        "seeds": len(cell.records),
        "diverged": len(diverged),
        **dict(zip(("test_accuracy", "test_accuracy_low", "test_accuracy_high"), accuracy, strict=True)),
        **alpha_columns(cell.alphas()),
    }


def _evidence(differences: list[float], p: float | None, question: ComparisonSettings) -> Row:
    """Returns the difference to the baseline, and what may be concluded from it."""
    interval = (anytime_interval if question.anytime else mean_interval)(differences)
    row: Row = dict(zip(("difference", "difference_low", "difference_high"), interval, strict=True))
    row |= {
        "p_holm": p,
        "improvement": paired_win_rate(differences),
        "detectable": minimum_detectable_difference(differences),
    }
    return row | {"verdict": _verdict(differences, row, question)}


def _verdict(differences: list[float], row: Row, question: ComparisonSettings) -> str | None:
    """Returns a verdict: better, worse, same (in every seed, or within the margin) or not enough seeds."""
    if len(differences) < 2:
        return None
    if max(map(abs, differences)) < TIE_TOLERANCE:
        return "the same in every seed"
    low, high, p = row["difference_low"], row["difference_high"], row["p_holm"]
    clear = p is not None and p < 0.05 if not question.anytime else low is not None and (low > 0 or high < 0)
    if clear:
        return "better" if row["difference"] > 0 else "worse"
    if question.margin is not None and (inside := equivalent(differences, question.margin)) is not None:
        narrow = low is not None and -question.margin < low and high < question.margin
        if narrow if question.anytime else inside < 0.05:
            return f"the same within ±{100 * question.margin:g}"
    return "not enough seeds to tell"


def _pairing(cell: Cell, found: list[Cell], baseline: str) -> float | None:
    """Returns the correlation of paired runs; near 0, pairing by seed gains nothing."""
    other = baseline_of(cell, found, baseline, [])
    if other is None or other is cell:
        return None
    seeds = sorted(cell.by_seed.keys() & other.by_seed.keys())
    first, second = ([final(c.by_seed[s], "test_accuracy") for s in seeds] for c in (cell, other))
    return correlation(first, second)


def describe(cell: Cell) -> str:
    """Describes a cell in a few words, for a note."""
    return f"{cell.config['activation']} with {cell.config['strategy']}"


def baseline_of(cell: Cell, found: list[Cell], baseline: str, notes: list[str]) -> Cell | None:
    """Finds the one cell that differs in the strategy only; the control, which has no decay, fits any decay."""
    candidates = []
    for other in found:
        control = "no-decay" in (strategy_name(cell), strategy_name(other))
        but = ("strategy", "weight_decay") if control else ("strategy",)
        if baseline in (strategy_name(other), other.config["strategy"]) and cell.matches(other, *but):
            candidates.append(other)
    if len(candidates) > 1:
        notes.append(f"{describe(cell)}: no difference, since {len(candidates)} cells of {baseline} fit it.")
    return candidates[0] if len(candidates) == 1 else None


def differences_of(cell: Cell, found: list[Cell], baseline: str, notes: list[str]) -> list[float]:
    """Returns test accuracy minus the baseline's for every seed that both have; nothing for the baseline itself."""
    other = baseline_of(cell, found, baseline, notes)
    if other is None or other is cell:
        return []
    differences = []
    for seed in sorted(cell.by_seed.keys() & other.by_seed.keys()):
        ours, theirs = cell.by_seed[seed], other.by_seed[seed]
        if ours["fingerprints"] != theirs["fingerprints"]:
            notes.append(
                f"{describe(cell)}: seed {seed} is not paired, its initial tensors or batches are not the baseline's."
            )
            continue
        differences.append(final(ours, "test_accuracy") - final(theirs, "test_accuracy"))
    if differences and len(differences) < len(cell.records):
        notes.append(f"{describe(cell)}: the difference is over {len(differences)} of {len(cell.records)} seeds.")
    return differences


def alpha_columns(alphas: npt.NDArray[Any]) -> Row:
    """Computes mean, quantiles and the share within 0.01 of zero; all None where nothing is learned."""
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
    """Yields one row per activation layer of a cell, over its seeds."""
    records = list(cell.by_seed.values())
    for index, layer in enumerate(records[0]["layers"] if records else []):
        entries = [r["layers"][index] for r in records]
        yield {
            "layer": layer["name"],
            **alpha_columns(cell.alphas(index)),
            "distance_from_start": mean_of(e["distance_from_start"] for e in entries),
            "distance_from_zero": mean_of(e["distance_from_zero"] for e in entries),
            "distance_from_relu": mean_of(e["distance_from_relu"] for e in entries),
            "share_of_norm": mean_of(share_of_norm(decode(e["final"])) for e in entries),
        }


def share_of_norm(alphas: npt.NDArray[Any]) -> float | None:
    """Returns the share of parameters that carry 95% of the sum of squares: small where few of them matter."""
    squares = np.sort(np.square(alphas.astype(np.float64)))[::-1]
    total = squares.sum()
    if not len(alphas) or not np.isfinite(total) or total == 0:
        return None
    return float(np.searchsorted(np.cumsum(squares), 0.95 * total) + 1) / len(alphas)


def distances(cell: Cell) -> tuple[float | None, float | None]:
    """Returns how far the learned functions are from their start and from zero, mean over layers and seeds."""
    layers = [entry for r in cell.by_seed.values() for entry in r["layers"]]
    return mean_of(e["distance_from_start"] for e in layers), mean_of(e["distance_from_zero"] for e in layers)


def mean_of(values: Iterable[float | None]) -> float | None:
    """Returns the mean of the values that are known, None where there is none."""
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None
