"""Turns records into rows and compares each cell with its baseline. Never imports torch."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from decaybench.analysis.cells import Cell, cells, method_of_cell, same_seeds, strategy_name
from decaybench.analysis.evidence import (
    ACCURACY_MARGIN,
    LOSS_MARGIN,
    NEW_IMAGES,
    THESE_IMAGES,
    Evidence,
    judged,
    watched,
)
from decaybench.analysis.frame import ALPHA_COLUMNS, FINGERPRINTS, Row, alpha_columns, config_of
from decaybench.analysis.questions import questions
from decaybench.analysis.statistics import (
    Estimate,
    components,
    correlation,
    crossed,
    examples_needed,
    over_seeds,
    paired_win_rate,
    seeds_needed,
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
    *("method", "seeds", "diverged", "test_accuracy", "test_accuracy_low", "test_accuracy_high"),
    *("difference", "difference_low", "difference_high"),
    *("p_holm", "improvement", "pairing", "detectable", "verdict"),
    *("test_loss", "test_loss_low", "test_loss_high"),
    *("loss_difference", "loss_difference_low", "loss_difference_high"),
    *("loss_p_holm", "loss_detectable", "loss_verdict"),
    *("difference_seeds_low", "difference_seeds_high", "speaks_about"),
    *ALPHA_COLUMNS,
)
METRICS = ("accuracy", "loss")


@dataclass(frozen=True)
class ComparisonSettings:
    """How cells are compared.

    Attributes:
        baseline: The strategy that the others are compared with.
        margin: What counts as no difference in accuracy, a fraction.
        loss_margin: What counts as no difference in loss, a share of the baseline's.
        anytime: Whether seeds were added until the intervals were narrow enough, so that they must allow for looking.
        fixed_test_set: Whether intervals are to be over seeds only, so that they speak about these test images.
        primary: The contrast that was named before the runs, a strategy with ``:loss`` or ``:accuracy`` behind it; it
            is not corrected for the others; several (at several decays, say) are corrected for each other.
        plan: Half-width of an interval, a fraction; how many seeds and images it would take is then said.
    """

    baseline: str = "decay-all"
    margin: float = ACCURACY_MARGIN
    loss_margin: float = LOSS_MARGIN
    anytime: bool = False
    fixed_test_set: bool = False
    primary: str | None = None
    plan: float | None = None


def summarize(runs: pd.DataFrame, settings: ComparisonSettings | None = None) -> Summary:
    """Groups runs into cells and compares each method with the baseline strategy, seed by seed and image by image.

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
    rows = []
    for part in questions(found):
        for cell, compared in zip(found[part], _compared(found[part], settings, notes), strict=True):
            row = {**_row(cell, settings, notes), **_columns(compared)}
            row["speaks_about"] = row["speaks_about"] or _scope(cell, settings)
            rows.append({**{key: row[key] for key in COLUMNS}, **{k: cell.config.get(k) for k in varying}})
    if found and not any(settings.baseline in (strategy_name(cell), cell.config["strategy"]) for cell in found):
        notes.append(f"no difference is shown, since no run has the strategy {settings.baseline}.")
    if settings.anytime and settings.primary:
        notes.append("a primary contrast means nothing with --until: all that was watched is corrected together.")
    notes += [*_data_notes(found), *_initial_notes(found), *_machine_notes(runs), *_digest_notes(runs)]
    return Summary(rows, found, list(dict.fromkeys(notes)))


@dataclass(frozen=True)
class Compared:
    """A cell beside its baseline.

    Attributes:
        method: The name of the method that its strategy is.
        pairs: What both have.
        evidence: Of accuracy and of loss, that of the method's first cell.
    """

    method: str
    pairs: "Pairs | None"
    evidence: dict[str, Evidence]


def _compared(found: list[Cell], settings: ComparisonSettings, notes: list[str]) -> list[Compared]:
    """Compares the cells of one question with their baselines; of each method only its first cell is tested."""
    keys = [(method_of_cell(cell), cell.config["weight_decay"]) for cell in found]
    pairs = [_pairs(cell, found, settings.baseline, notes) for cell in found]
    chosen = _tested(keys, pairs, {method_of_cell(cell) for cell in found if _is_baseline(cell, settings.baseline)})
    family = [_evidence(pairs[i], metric, settings) for i in chosen for metric in METRICS]
    names = {i: [cell for key, cell in zip(keys, found, strict=True) if key == keys[i]] for i in chosen}
    named = [any(_is_primary(c, metric, settings) for c in names[i]) for i in chosen for metric in METRICS]
    if settings.primary and not any(named):
        about = f"{found[0].config['network']} with {found[0].config['activation']}"
        notes.append(f"{about}: nothing is the contrast {settings.primary}, so all differences are corrected together.")
    tested = watched(family) if settings.anytime else judged(family, named)
    of: dict[Any, dict[str, Evidence]] = {}
    for number, i in enumerate(chosen):
        both = zip(METRICS, tested[2 * number : 2 * number + 2], strict=True)
        of[keys[i]] = {metric: evidence for metric, evidence in both if evidence is not None}
    first = {key: found[i].config["strategy"] for key, i in reversed([*zip(keys, range(len(found)), strict=True)])}
    return [Compared(str(first[key]), pair, of.get(key, {})) for key, pair in zip(keys, pairs, strict=True)]


def _tested(keys: list[Any], pairs: "list[Pairs | None]", baselines: set[tuple[str, str]]) -> list[int]:
    """Chooses the cell of each method and decay that is tested: of those with a pair, the one with most seeds."""
    first: dict[Any, int] = {}
    for i, (key, pair) in enumerate(zip(keys, pairs, strict=True)):
        if pair is not None and key[0] not in baselines:
            best = pairs[first.setdefault(key, i)]
            if best is not None and len(pair.seeds) > len(best.seeds):
                first[key] = i
    return list(first.values())


def _is_baseline(cell: Cell, baseline: str) -> bool:
    return baseline in (strategy_name(cell), cell.config["strategy"])


def _is_primary(cell: Cell, metric: str, settings: ComparisonSettings) -> bool:
    name, which = settings.primary or "", "accuracy"
    if name.endswith((":accuracy", ":loss")):
        name, _, which = name.rpartition(":")
    return name in (strategy_name(cell), cell.config["strategy"]) and metric == which


def _evidence(pairs: "Pairs | None", metric: str, settings: ComparisonSettings) -> Evidence | None:
    if pairs is None or not pairs.seeds:
        return None
    ours, theirs = (pairs.ours, pairs.theirs) if metric == "accuracy" else (pairs.our_losses, pairs.their_losses)
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    table = None if settings.fixed_test_set or settings.anytime else pairs.outcomes(metric)
    baseline = float(np.mean(theirs))
    if not np.isfinite(differences).all():
        return None
    if table is not None and not np.isfinite(table).all():
        table = None
    several = len(differences) > 1
    estimate = over_seeds(differences) if table is None else crossed(table) if several else None
    margin = settings.margin if metric == "accuracy" else settings.loss_margin * baseline
    return Evidence(metric, differences, baseline, estimate, THESE_IMAGES if table is None else NEW_IMAGES, margin)


def _columns(compared: Compared) -> Row:
    """Returns the columns of a row that come from the comparison with the baseline."""
    row: Row = dict.fromkeys(COLUMNS[len(CONFIG_COLUMNS) :])
    row["method"] = compared.method
    for metric, prefix in (("accuracy", ""), ("loss", "loss_")):
        e = compared.evidence.get(metric)
        if e is None:
            continue
        row |= {f"{prefix}difference": e.difference, f"{prefix}p_holm": e.p, f"{prefix}verdict": e.verdict}
        row |= {f"{prefix}difference_low": e.low, f"{prefix}difference_high": e.high}
        row |= {f"{prefix}detectable": e.detectable}
        row["speaks_about"] = THESE_IMAGES if THESE_IMAGES in (row["speaks_about"], e.scope) else e.scope
    if compared.evidence and (pairs := compared.pairs) is not None:
        seeds = over_seeds(pairs.differences)
        low, high = seeds.interval() if seeds is not None else (None, None)
        row |= {"difference_seeds_low": low, "difference_seeds_high": high}
        row |= {"improvement": paired_win_rate(pairs.differences), "pairing": correlation(pairs.ours, pairs.theirs)}
    return {key: row[key] for key in row if key not in ROW_COLUMNS}


ROW_COLUMNS = {
    *("seeds", "diverged", "test_accuracy", "test_accuracy_low", "test_accuracy_high"),
    *("test_loss", "test_loss_low", "test_loss_high", *ALPHA_COLUMNS),
}


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


def _row(cell: Cell, settings: ComparisonSettings, notes: list[str]) -> Row:
    diverged = cell.runs["diverged"].dropna()
    if len(diverged):
        epochs = ", ".join(str(int(epoch)) for epoch in diverged)
        notes.append(f"{describe(cell)}: {len(diverged)} of {len(cell.runs)} runs diverged (epoch {epochs}).")
    return {
        **{key: cell.config[key] for key in CONFIG_COLUMNS},
        "seeds": len(cell.runs),
        "diverged": len(diverged),
        **_mean(cell, "accuracy", settings),
        **_mean(cell, "loss", settings),
        **alpha_columns(cell.alphas()),
    }


def _mean(cell: Cell, metric: str, settings: ComparisonSettings) -> Row:
    """Returns the mean of a metric with its interval: over seeds and test images where both are known."""
    key, values = f"test_{metric}", cell.values(f"test_{metric}")
    if not values:
        return dict.fromkeys((key, f"{key}_low", f"{key}_high"))
    table = None if settings.fixed_test_set or settings.anytime else outcomes_of(cell, metric, cell.seeds)
    estimate = over_seeds(values) if table is None or len(values) < 2 else crossed(table)
    low, high = _clipped(estimate, metric)
    return {key: float(np.mean(values)), f"{key}_low": low, f"{key}_high": high}


def _scope(cell: Cell, settings: ComparisonSettings) -> str | None:
    """Returns what images the mean of a cell speaks about."""
    if not cell.seeds:
        return None
    fixed = settings.fixed_test_set or settings.anytime or outcomes_of(cell, "accuracy", cell.seeds) is None
    return THESE_IMAGES if fixed else NEW_IMAGES


def _clipped(estimate: Estimate | None, metric: str) -> tuple[float | None, float | None]:
    if estimate is None:
        return None, None
    low, high = estimate.interval()
    return max(low, 0.0), min(high, 1.0) if metric == "accuracy" else high


def outcomes_of(cell: Cell, metric: str, seeds: list[int]) -> npt.NDArray[np.float64] | None:
    """Returns what each run made of each test image, (seeds, images); None where a record does not hold it."""
    column = {"accuracy": "test_correct", "loss": "test_losses"}[metric]
    if column not in cell.completed:
        return None
    arrays = list(cell.completed.loc[seeds, column])
    if not arrays or any(a is None or len(a) != len(arrays[0]) for a in arrays):
        return None
    return np.stack(arrays).astype(np.float64)


def describe(cell: Cell) -> str:
    """Describes a cell in a few words, for a note."""
    return f"{cell.config['activation']} with {cell.config['strategy']}"


def baseline_of(cell: Cell, found: list[Cell], baseline: str, notes: list[str]) -> Cell | None:
    """Finds the one cell that differs in the strategy only; the control, which has no decay, fits any decay."""
    candidates = []
    for other in found:
        control = "no-decay" in (strategy_name(cell), strategy_name(other))
        but = ("strategy", "weight_decay") if control else ("strategy",)
        if _is_baseline(other, baseline) and cell.matches(other, *but):
            candidates.append(other)
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

    @property
    def ours(self) -> list[float]:
        return self.first.values("test_accuracy", self.seeds)

    @property
    def theirs(self) -> list[float]:
        return self.second.values("test_accuracy", self.seeds)

    @property
    def our_losses(self) -> list[float]:
        return self.first.values("test_loss", self.seeds)

    @property
    def their_losses(self) -> list[float]:
        return self.second.values("test_loss", self.seeds)

    @property
    def differences(self) -> list[float]:
        return [a - b for a, b in zip(self.ours, self.theirs, strict=True)]

    def outcomes(self, metric: str) -> npt.NDArray[np.float64] | None:
        """Returns the difference of each seed on each test image, (seeds, images)."""
        ours, theirs = (outcomes_of(cell, metric, self.seeds) for cell in (self.first, self.second))
        if ours is None or theirs is None or ours.shape != theirs.shape:
            return None
        return ours - theirs


def _pairs(cell: Cell, found: list[Cell], baseline: str, notes: list[str]) -> Pairs | None:
    """Pairs a cell with its baseline; None for the baseline itself, and without runs whose fingerprints agree."""
    other = baseline_of(cell, found, baseline, notes)
    if other is None or other is cell:
        return None
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
    return Pairs(seeds, cell, other) if seeds else None


def pairs_of(found: list[Cell], baseline: str) -> list[Pairs]:
    """Pairs each distinct method of one question with the baseline."""
    methods = [(method_of_cell(cell), cell.config["weight_decay"]) for cell in found]
    pairs = [_pairs(cell, found, baseline, []) for cell in found]
    baselines = {method_of_cell(cell) for cell in found if _is_baseline(cell, baseline)}
    return [pairs[i] for i in _tested(methods, pairs, baselines)]  # type: ignore[misc]


class Needed(NamedTuple):
    """What an interval of a wanted width would take for one method.

    Attributes:
        strategy, weight_decay: The method's first cell.
        seeds: Seeds with as many test images as now; None where images are the limit.
        images: Test images with as many seeds as now; None where seeds are the limit.
    """

    strategy: str
    weight_decay: float
    seeds: float | None
    images: float | None


def plan(found: list[Cell], baseline: str, half: float) -> list[Needed]:
    """Estimates what each difference in accuracy of one question would take to be known to ±half, a fraction.

    Each interval is taken by itself, with normal quantiles. Methods whose records hold no outcome of each image, or
    only one seed, are left out.
    """
    needed = []
    for pairs in pairs_of(found, baseline):
        table = pairs.outcomes("accuracy")
        parts = None if table is None else components(table)
        if table is None or parts is None:
            continue
        seeds, images = table.shape
        cell = pairs.first.config
        both = seeds_needed(parts, images, half), examples_needed(parts, seeds, half)
        needed.append(Needed(str(cell["strategy"]), cell["weight_decay"], *both))
    return needed


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
