"""Turns records into rows and compares each cell with its baseline. Never imports torch."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from decaybench.analysis.cells import Cell, cells, is_called, method_of_cell
from decaybench.analysis.evidence import (
    ACCURACY_MARGIN,
    LOSS_MARGIN,
    NEW_IMAGES,
    NEW_SPLITS,
    THESE_IMAGES,
    Evidence,
    judged,
    watched,
)
from decaybench.analysis.frame import ALPHA_COLUMNS, Row, alpha_columns, config_of
from decaybench.analysis.notes import data_notes, digest_notes, initial_notes, machine_notes
from decaybench.analysis.pairs import (
    Pairs,
    describe,
    outcomes_of,
    paired,
    split_by_seed,
    test_share,
    tested,
)
from decaybench.analysis.questions import questions
from decaybench.analysis.statistics import Estimate, correlation, crossed, over_seeds, over_splits, paired_win_rate
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
    *("baseline_loss", "loss_difference", "loss_difference_low", "loss_difference_high"),
    *("loss_p_holm", "loss_detectable", "loss_verdict"),
    *("pairs", "difference_seeds_low", "difference_seeds_high", "speaks_about", "loss_speaks_about"),
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

    @property
    def fixed(self) -> bool:
        """Whether intervals speak about these test images, whatever the records hold."""
        return self.fixed_test_set or self.anytime


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
            row["speaks_about"] = row["speaks_about"] or _scope(cell, "accuracy", settings)
            row["loss_speaks_about"] = row["loss_speaks_about"] or _scope(cell, "loss", settings)
            rows.append({**{key: row[key] for key in COLUMNS}, **{k: cell.config.get(k) for k in varying}})
    if found and not any(is_called(cell, settings.baseline) for cell in found):
        notes.append(f"no difference is shown, since no run has the strategy {settings.baseline}.")
    if settings.anytime and settings.primary:
        notes.append("a primary contrast means nothing with --until: all that was watched is corrected together.")
    own_splits = sum(map(split_by_seed, found))
    if own_splits and settings.fixed_test_set:
        notes.append(
            f"--fixed-test-set has no effect on {own_splits} cells: each of their seeds has its own test images."
        )
    notes += [*data_notes(found), *initial_notes(found), *machine_notes(runs), *digest_notes(runs)]
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
    pairs: Pairs | None
    evidence: dict[str, Evidence]


def _compared(found: list[Cell], settings: ComparisonSettings, notes: list[str]) -> list[Compared]:
    """Compares the cells of one question with their baselines; of each method only its first cell is tested."""
    keys = [(method_of_cell(cell), cell.config["weight_decay"]) for cell in found]
    pairs = [paired(cell, found, settings.baseline, notes) for cell in found]
    chosen = tested(keys, pairs, {method_of_cell(cell) for cell in found if is_called(cell, settings.baseline)})
    family = [_evidence(pairs[i], metric, settings) for i in chosen for metric in METRICS]
    names = {i: [cell for key, cell in zip(keys, found, strict=True) if key == keys[i]] for i in chosen}
    named = [any(_is_primary(c, metric, settings) for c in names[i]) for i in chosen for metric in METRICS]
    if settings.primary and not any(named):
        about = f"{found[0].config['network']} with {found[0].config['activation']}"
        notes.append(f"{about}: nothing is the contrast {settings.primary}, so all differences are corrected together.")
    judgements = watched(family) if settings.anytime else judged(family, named)
    of: dict[Any, dict[str, Evidence]] = {}
    for number, i in enumerate(chosen):
        both = zip(METRICS, judgements[2 * number : 2 * number + 2], strict=True)
        of[keys[i]] = {metric: evidence for metric, evidence in both if evidence is not None}
    first = {key: found[i].config["strategy"] for key, i in reversed([*zip(keys, range(len(found)), strict=True)])}
    return [Compared(str(first[key]), pair, of.get(key, {})) for key, pair in zip(keys, pairs, strict=True)]


def _is_primary(cell: Cell, metric: str, settings: ComparisonSettings) -> bool:
    name, _, which = (settings.primary or "").rpartition(":")
    if which in METRICS and is_called(cell, name):
        return metric == which
    return metric == "accuracy" and is_called(cell, settings.primary or "")


def _evidence(pairs: Pairs | None, metric: str, settings: ComparisonSettings) -> Evidence | None:
    if pairs is None or not pairs.seeds:
        return None
    ours, theirs = (pairs.ours, pairs.theirs) if metric == "accuracy" else (pairs.our_losses, pairs.their_losses)
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    table = None if settings.fixed else pairs.outcomes(metric)
    baseline = float(np.mean(theirs))
    if not np.isfinite(differences).all():
        return None
    if table is not None and not np.isfinite(table).all():
        table = None
    estimate = _estimate(pairs.first, differences, table)
    margin = settings.margin if metric == "accuracy" else settings.loss_margin * baseline
    scope = NEW_SPLITS if split_by_seed(pairs.first) else THESE_IMAGES if table is None else NEW_IMAGES
    return Evidence(metric, differences, baseline, estimate, scope, margin)


def _estimate(cell: Cell, values: list[float], table: npt.NDArray[np.float64] | None) -> Estimate | None:
    """Estimates a mean of a cell, or of its difference, by what its seeds and test images allow."""
    if split_by_seed(cell):
        return over_splits(values, test_share(cell))
    return over_seeds(values) if table is None or len(values) < 2 else crossed(table)


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
        row |= {f"{prefix}speaks_about": e.scope}
    if "loss" in compared.evidence:
        row["baseline_loss"] = compared.evidence["loss"].baseline
    if compared.evidence and (pairs := compared.pairs) is not None:
        seeds = None if split_by_seed(pairs.first) else over_seeds(pairs.differences)
        low, high = seeds.interval() if seeds is not None else (None, None)
        row |= {"pairs": len(pairs.seeds), "difference_seeds_low": low, "difference_seeds_high": high}
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
    table = None if settings.fixed else outcomes_of(cell, metric, cell.seeds)
    estimate = _estimate(cell, values, table)
    low, high = _clipped(estimate, metric)
    return {key: float(np.mean(values)), f"{key}_low": low, f"{key}_high": high}


def _scope(cell: Cell, metric: str, settings: ComparisonSettings) -> str | None:
    """Returns what images the mean of a cell speaks about."""
    if not cell.seeds:
        return None
    if split_by_seed(cell):
        return NEW_SPLITS
    fixed = settings.fixed or outcomes_of(cell, metric, cell.seeds) is None
    return THESE_IMAGES if fixed else NEW_IMAGES


def _clipped(estimate: Estimate | None, metric: str) -> tuple[float | None, float | None]:
    if estimate is None:
        return None, None
    low, high = estimate.interval()
    return max(low, 0.0), min(high, 1.0) if metric == "accuracy" else high
