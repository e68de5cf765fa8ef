"""Turns records into rows and compares each cell with its baseline. Never imports torch."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from decaybench.analysis.cells import Cell, cells, same_seeds, strategy_name
from decaybench.analysis.frame import ALPHA_COLUMNS, FINGERPRINTS, Row, alpha_columns, config_of
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
from decaybench.registry.hashing import config_digest

CONFIG_COLUMNS = ("dataset", "network", "activation", "strategy", "optimizer", "lr", "weight_decay", "epochs")


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
    *ALPHA_COLUMNS,
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


def summarize(runs: pd.DataFrame, settings: ComparisonSettings | None = None) -> Summary:
    """Groups runs into cells and compares each with the baseline strategy, seed by seed.

    Args:
        runs: One row a run, as `decaybench.analysis.frame.runs_frame` makes it.
        settings: How cells are compared.
    """
    settings = settings or ComparisonSettings()
    runs, notes = _one_version(runs)
    found = cells(runs)
    varying = [
        key
        for key in dict.fromkeys(k for c in found for k in c.config)
        if key not in CONFIG_COLUMNS and len({str(c.config.get(key)) for c in found}) > 1
    ]
    pairs = [_pairs(cell, found, settings.baseline, notes) for cell in found]
    p_values = holm([None if settings.anytime else p_value(pair.differences) for pair in pairs])
    rows = []
    for cell, pair, p in zip(found, pairs, p_values, strict=True):
        evidence = _evidence(pair.differences, p, settings)
        row = {**_row(cell, notes), **evidence, "pairing": correlation(pair.ours, pair.theirs)}
        rows.append({**{key: row[key] for key in COLUMNS}, **{k: cell.config.get(k) for k in varying}})
    if found and not any(settings.baseline in (strategy_name(cell), cell.config["strategy"]) for cell in found):
        notes.append(f"no difference is shown, since no run has the strategy {settings.baseline}.")
    notes += [*_data_notes(found), *_initial_notes(found), *_machine_notes(runs), *_digest_notes(runs)]
    return Summary(rows, found, list(dict.fromkeys(notes)))


def _one_version(runs: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Keeps, of runs that several versions of the training code computed, those of the newest, and says so."""
    first = runs.drop_duplicates("cell_id").set_index("cell_id")["config"].map(config_of)
    versions = first.map(lambda config: config.get("training_version", -1))
    if versions.nunique() <= 1:
        return runs, []
    without = ("training_version", "seed")
    keys = first.map(lambda config: config_digest({k: v for k, v in config.items() if k not in without}))
    whole = runs["cell_id"].map(versions)
    newest = whole.groupby([runs["cell_id"].map(keys), runs["seed"]]).transform("max")
    kept = runs[whole == newest]
    text = ", ".join(f"{(newest[kept.index] == v).sum()} of version {v}" for v in sorted({*newest[kept.index]}))
    return kept, [f"runs of several versions of the training code are shown and never averaged: {text}."]


def _row(cell: Cell, notes: list[str]) -> Row:
    accuracy = accuracy_interval(cell.values("test_accuracy"))
    diverged = cell.runs["diverged"].dropna()
    if len(diverged):
        epochs = ", ".join(str(int(epoch)) for epoch in diverged)
        notes.append(f"{describe(cell)}: {len(diverged)} of {len(cell.runs)} runs diverged (epoch {epochs}).")
    return {
        **{key: cell.config[key] for key in CONFIG_COLUMNS},
        "seeds": len(cell.runs),
        "diverged": len(diverged),
        **dict(zip(("test_accuracy", "test_accuracy_low", "test_accuracy_high"), accuracy, strict=True)),
        **alpha_columns(cell.alphas()),
    }


def _evidence(differences: list[float], p: float | None, settings: ComparisonSettings) -> Row:
    """Returns the difference to the baseline, and what may be concluded from it."""
    interval = (anytime_interval if settings.anytime else mean_interval)(differences)
    row: Row = dict(zip(("difference", "difference_low", "difference_high"), interval, strict=True))
    row |= {"p_holm": p, "improvement": paired_win_rate(differences)}
    row |= {"detectable": minimum_detectable_difference(differences)}
    return row | {"verdict": _verdict(differences, row, settings)}


def _verdict(differences: list[float], row: Row, settings: ComparisonSettings) -> str | None:
    """Returns a verdict: better, worse, same (in every seed, or within the margin) or not enough seeds."""
    if len(differences) < 2:
        return None
    if max(map(abs, differences)) < TIE_TOLERANCE:
        return "the same in every seed"
    low, high, p = row["difference_low"], row["difference_high"], row["p_holm"]
    clear = p is not None and p < 0.05 if not settings.anytime else low is not None and (low > 0 or high < 0)
    if clear:
        return "better" if row["difference"] > 0 else "worse"
    if settings.margin is not None and (inside := equivalent(differences, settings.margin)) is not None:
        narrow = low is not None and -settings.margin < low and high < settings.margin
        if narrow if settings.anytime else inside < 0.05:
            return f"the same within ±{100 * settings.margin:g}"
    return "not enough seeds to tell"


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


class Pairs(NamedTuple):
    """The test accuracies of two cells on the seeds that both have, in the order of the seeds."""

    ours: list[float]
    theirs: list[float]

    @property
    def differences(self) -> list[float]:
        return [a - b for a, b in zip(self.ours, self.theirs, strict=True)]


def _pairs(cell: Cell, found: list[Cell], baseline: str, notes: list[str]) -> Pairs:
    """Pairs a cell with its baseline; nothing for the baseline itself, and for runs whose fingerprints differ."""
    other = baseline_of(cell, found, baseline, notes)
    if other is None or other is cell:
        return Pairs([], [])
    seeds = same_seeds(cell, other)
    prints = [f"{key}_fingerprint" for key in FINGERPRINTS]
    alike = (cell.completed.loc[seeds, prints].to_numpy() == other.completed.loc[seeds, prints].to_numpy()).all(1)
    for seed, same in zip(seeds, alike, strict=True):
        if not same:
            notes.append(
                f"{describe(cell)}: seed {seed} is not paired, its initial tensors or batches are not the baseline's."
            )
    seeds = [seed for seed, same in zip(seeds, alike, strict=True) if same]
    if seeds and len(seeds) < len(cell.runs):
        notes.append(f"{describe(cell)}: the difference is over {len(seeds)} of {len(cell.runs)} seeds.")
    return Pairs(cell.values("test_accuracy", seeds), other.values("test_accuracy", seeds))


def differences_of(cell: Cell, found: list[Cell], baseline: str, notes: list[str]) -> list[float]:
    """Returns test accuracy minus the baseline's for every seed that both have; nothing for the baseline itself."""
    return _pairs(cell, found, baseline, notes).differences


def _data_notes(found: list[Cell]) -> list[str]:
    """Says where one name stands for several data sets."""
    parts: dict[str, set[str]] = {}
    for cell in found:
        name, _, key = str(cell.config["dataset"]).partition(" (data ")
        parts.setdefault(name, set()).add(key)
    return [
        f"{name} stands for {len(keys)} different data sets, which are shown apart and never averaged."
        for name, keys in parts.items()
        if len(keys) > 1
    ]


def _initial_notes(found: list[Cell]) -> list[str]:
    """Says where seeds do not differ in their initial tensors, so that they are no repetitions."""
    notes = []
    for cell in found:
        same = cell.runs[cell.runs["initial_fingerprint"].duplicated(keep=False)]
        if len(same):
            seeds = ", ".join(str(seed) for seed in same["seed"][:5]) + (" …" if len(same) > 5 else "")
            notes.append(
                f"{cell.config['network']} with {cell.config['activation']}: seeds {seeds} start from the same tensors "
                "and are no repetitions; does the network set a seed of its own (torch.manual_seed)?"
            )
    return notes


def _machine_notes(runs: pd.DataFrame) -> list[str]:
    """Says where runs were computed by different means, so that their numbers may differ by rounding."""
    found: dict[str, set[str]] = {}
    for text in runs["provenance"].unique() if "provenance" in runs else ():
        about = json.loads(text)
        about = [about, about.get("resumed_from", {})]
        for one in about:
            means = {name: one.get(key) for key, name in MACHINE.items()}
            means |= {f"code of {name}": backend for name, backend in one.get("backends", {}).items()}
            means |= {"torch": one.get("versions", {}).get("torch")}
            for name, value in means.items():
                found.setdefault(name, set()).update([] if value is None else [str(value)])
    mixed = [f"{name} ({'; '.join(sorted(values))})" for name, values in found.items() if len(values) > 1]
    if not mixed:
        return []
    return [f"runs of different means are compared, whose numbers may differ by rounding: {', '.join(mixed)}."]


MACHINE = {
    "device": "device",
    "device_name": "processor",
    "threads": "threads",
    "cpu_capability": "CPU capability",
    "blas": "BLAS",
    "onednn": "oneDNN",
}


def _digest_notes(runs: pd.DataFrame) -> list[str]:
    """Says how many records no digest protects."""
    count = 0 if "protected" not in runs else int((~runs["protected"].astype(bool)).sum())
    return [f"{count} records have no digest (an older version wrote them)."] if count else []


def layer_rows(cell: Cell) -> Iterator[Row]:
    """Yields one row per activation layer of a cell, over its seeds."""
    for index, first in enumerate(cell.layers[0] if cell.layers else ()):
        layers = cell.layer(index)
        yield {
            "layer": first.name,
            **alpha_columns(cell.alphas(index)),
            "distance_from_start": mean_of(layer.distance_from_start for layer in layers),
            "distance_from_zero": mean_of(layer.distance_from_zero for layer in layers),
            "distance_from_relu": mean_of(layer.distance_from_relu for layer in layers),
            "share_of_norm": mean_of(share_of_norm(layer.final) for layer in layers),
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
    layers = [layer for layers in cell.layers for layer in layers]
    return mean_of(e.distance_from_start for e in layers), mean_of(e.distance_from_zero for e in layers)


def mean_of(values: Iterable[float | None]) -> float | None:
    """Returns the mean of the values that are known, None where there is none."""
    known = [v for v in values if v is not None and v == v]
    return float(np.mean(known)) if known else None
