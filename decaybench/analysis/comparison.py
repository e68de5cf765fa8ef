"""Turns records into rows and compares each cell with its baseline. Never imports torch."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from decaybench.analysis.cells import Cell, cells, is_called, method_of_cell
from decaybench.analysis.evidence import NEW_EXAMPLES, NEW_SPLITS, THESE_EXAMPLES, Evidence, judged, watched
from decaybench.analysis.frame import ALPHA_COLUMNS, Row, alpha_columns, config_of, recorded_metrics
from decaybench.analysis.notes import data_notes, digest_notes, initial_notes, layer_notes, machine_notes
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
from decaybench.errors import UsageError
from decaybench.registry.hashing import config_digest
from decaybench.registry.metrics import Metric, reported

CONFIG_COLUMNS = ("dataset", "network", "activation", "strategy", "optimizer", "lr", "weight_decay", "epochs")
SUBJECTS = 3  # cells that are named in a note about several
# Of each metric, behind its name: its mean with its interval, and the difference to the baseline.
OF_METRIC = (
    *("", "low", "high", "speaks_about", "baseline", "difference", "difference_low", "difference_high"),
    *("seeds_low", "seeds_high", "p_holm", "detectable", "verdict", "improvement", "pairing"),
)


def column(metric: Metric, what: str) -> str:
    """Returns the name of a column: that of a metric, and what of `OF_METRIC` it holds."""
    return f"{metric.name}_{what}" if what else metric.name


def of(row: Row, metric: Metric, what: str) -> Any:
    """Returns what a row holds about a metric; None where the row's study did not record it."""
    return row.get(column(metric, what))


@dataclass(frozen=True)
class Summary:
    """What a report shows.

    Attributes:
        rows: One per cell; the keys of `columns`, and every other field in which the cells differ.
        cells: The cells, in the same order.
        notes: A sentence for everything a reader must know: what diverged, what could not be paired.
        metrics: What is compared; the first is the one that is asked about.
        varying: The other fields in which the cells differ.
    """

    rows: list[Row]
    cells: list[Cell]
    notes: list[str]
    metrics: tuple[Metric, ...]
    varying: tuple[str, ...] = ()


def columns(metrics: tuple[Metric, ...]) -> tuple[str, ...]:
    """Returns the keys that every row has: configuration, seeds, each metric, activation parameters."""
    of_metrics = (column(metric, what) for metric in metrics for what in OF_METRIC)
    return (*CONFIG_COLUMNS, "method", "seeds", "diverged", "pairs", *of_metrics, *ALPHA_COLUMNS)


@dataclass(frozen=True)
class ComparisonSettings:
    """How cells are compared.

    Attributes:
        baseline: The strategy that the others are compared with.
        metrics: What is compared, with what counts as no difference; None means what `reported` chooses.
        anytime: Whether seeds were added until the intervals were narrow enough, so that they must allow for looking.
        fixed_test_set: Whether intervals are to be over seeds only, so that they speak about these test examples.
        primary: The contrast that was named before the runs, a strategy with a metric behind it, as ``:loss``; it
            is not corrected for the others; several (at several decays, say) are corrected for each other.
        plan: Half-width of an interval, in the unit in which differences are written; how many seeds and examples it
            would take is then said.
    """

    baseline: str = "decay-all"
    metrics: tuple[Metric, ...] | None = None
    anytime: bool = False
    fixed_test_set: bool = False
    primary: str | None = None
    plan: float | None = None

    @property
    def fixed(self) -> bool:
        """Whether intervals speak about these test examples, whatever the records hold."""
        return self.fixed_test_set or self.anytime


def summarize(runs: pd.DataFrame, settings: ComparisonSettings | None = None) -> Summary:
    """Groups runs into cells and compares each method with the baseline strategy, seed by seed and example by example.

    Args:
        runs: One row a run, as `decaybench.analysis.frame.runs_frame` makes it.
        settings: How cells are compared.
    """
    settings = settings or ComparisonSettings()
    metrics = settings.metrics or reported(recorded_metrics(runs))
    if not metrics and len(runs):
        raise UsageError("Nothing says in which direction a metric is better; name one: --metric NAME:max.")
    runs, notes = _one_version(runs)
    found = cells(runs)
    metrics = _told_apart(tuple(_settled(metric, found, notes) for metric in metrics))
    keys = columns(metrics)
    varying = {  # an option of a script may be called as a metric is
        f"args.{key}" if key in keys else key: key
        for key in dict.fromkeys(k for c in found for k in c.config)
        if key not in CONFIG_COLUMNS and len({str(c.config.get(key)) for c in found}) > 1
    }
    rows = []
    for part in questions(found):
        for cell, compared in zip(found[part], _compared(found[part], metrics, settings, notes), strict=True):
            row = {**_row(cell, metrics, settings, notes), **_columns(compared)}
            others = {name: cell.config.get(key) for name, key in varying.items()}
            rows.append({key: row.get(key) for key in keys} | others)
    watched = "watched" in runs and runs["watched"].notna().any()
    if found and not watched and not any(is_called(cell, settings.baseline) for cell in found):
        notes.append(f"no difference is shown, since no run has the strategy {settings.baseline}.")
    if settings.anytime and settings.primary:
        notes.append("a primary contrast means nothing with --until: all that was watched is corrected together.")
    own_splits = sum(map(split_by_seed, found))
    if own_splits and settings.fixed_test_set:
        notes.append(
            f"--fixed-test-set has no effect on {own_splits} cells: each of their seeds has its own test examples."
        )
    notes += [*data_notes(found), *initial_notes(found), *machine_notes(runs), *layer_notes(runs), *digest_notes(runs)]
    return Summary(rows, found, _grouped(notes), metrics, tuple(varying))


def _grouped(notes: list[str]) -> list[str]:
    """Says once what notes say of several cells."""
    found: dict[str, list[str]] = {}
    for note in dict.fromkeys(notes):
        subject, colon, text = note.partition(": ")
        found.setdefault(text if colon else note, []).append(subject if colon else "")
    out = []
    for text, subjects in found.items():
        more = f" and {len(subjects) - SUBJECTS} more" if len(subjects) > SUBJECTS else ""
        named = ", ".join(subjects[:SUBJECTS]) + more
        out.append(f"{named}: {text}" if subjects[0] else text)
    return out


def _told_apart(metrics: tuple[Metric, ...]) -> tuple[Metric, ...]:
    """Says the parts of metrics that would be called the same."""
    titles = [metric.title for metric in metrics]
    return tuple(replace(metric, whole=titles.count(metric.title) > 1) for metric in metrics)


def _settled(metric: Metric, found: list[Cell], notes: list[str]) -> Metric:
    """Gives up shares of the baseline's for a metric near zero, and says where one was not recorded."""
    lacking = [cell for cell in found if len(cell.completed) and not cell.has(metric.name)]
    if lacking and len(lacking) < len(found):
        notes.append(f"{metric.name} was not recorded by every run of {describe(lacking[0])}, which shows none of it.")
    values = [value for cell in found if cell.has(metric.name) for value in cell.values(metric.name)]
    if metric.scale == "relative" and values and min(values) < 0 < max(values):
        return replace(metric, scale="plain", margin=None)
    return metric


@dataclass(frozen=True)
class Compared:
    """A cell beside its baseline.

    Attributes:
        method: The name of the method that its strategy is.
        pairs: What both have.
        evidence: Of each metric, that of the method's first cell.
    """

    method: str
    pairs: Pairs | None
    evidence: dict[Metric, Evidence]


def _compared(
    found: list[Cell], metrics: tuple[Metric, ...], settings: ComparisonSettings, notes: list[str]
) -> list[Compared]:
    """Compares the cells of one question with their baselines; of each method only its first cell is tested."""
    keys = [(method_of_cell(cell), cell.config["weight_decay"]) for cell in found]
    pairs = [paired(cell, found, settings.baseline, notes) for cell in found]
    chosen = tested(keys, pairs, {method_of_cell(cell) for cell in found if is_called(cell, settings.baseline, found)})
    family = [_evidence(pairs[i], metric, settings) for i in chosen for metric in metrics]
    names = {i: [cell for key, cell in zip(keys, found, strict=True) if key == keys[i]] for i in chosen}
    named = [any(_is_primary(c, found, m, metrics, settings) for c in names[i]) for i in chosen for m in metrics]
    if settings.primary and not any(named):
        notes.append(
            f"{_about(found[0])}: nothing is the contrast {settings.primary}, so all differences are corrected "
            "together."
        )
    judgements = watched(family) if settings.anytime else judged(family, named)
    by_key: dict[Any, dict[Metric, Evidence]] = {}
    for number, i in enumerate(chosen):
        several = judgements[len(metrics) * number : len(metrics) * (number + 1)]
        by_key[keys[i]] = {m: evidence for m, evidence in zip(metrics, several, strict=True) if evidence is not None}
    first = {key: found[i].config["strategy"] for key, i in reversed([*zip(keys, range(len(found)), strict=True)])}
    return [Compared(str(first[key]), pair, by_key.get(key, {})) for key, pair in zip(keys, pairs, strict=True)]


def _about(cell: Cell) -> str:
    """Names what the cells of a question have in common, in a few words."""
    return (
        str(cell.config["script"]) if "script" in cell.config else "{network} with {activation}".format(**cell.config)
    )


def _is_primary(
    cell: Cell, found: list[Cell], metric: Metric, metrics: tuple[Metric, ...], settings: ComparisonSettings
) -> bool:
    """Tells whether a cell, one of a question's, and a metric are the contrast that was asked for."""
    name, _, which = (settings.primary or "").rpartition(":")
    if any(m.is_called(which) for m in metrics) and is_called(cell, name, found):
        return metric.is_called(which)
    return metric is metrics[0] and is_called(cell, settings.primary or "", found)


def _evidence(pairs: Pairs | None, metric: Metric, settings: ComparisonSettings) -> Evidence | None:
    if pairs is None or not pairs.seeds or not pairs.have(metric.name):
        return None
    table = None if settings.fixed else pairs.outcomes(metric.name)
    differences = pairs.differences(metric.name)
    baseline = float(np.mean(pairs.second.values(metric.name, pairs.seeds)))
    if not np.isfinite(differences).all():
        return None
    if table is not None and not np.isfinite(table).all():
        table = None
    estimate = _estimate(pairs.first, differences, table)
    scope = NEW_SPLITS if split_by_seed(pairs.first) else THESE_EXAMPLES if table is None else NEW_EXAMPLES
    return Evidence(metric, differences, baseline, estimate, scope, metric.margin_at(baseline))


def _estimate(cell: Cell, values: list[float], table: npt.NDArray[np.float64] | None) -> Estimate | None:
    """Estimates a mean of a cell, or of its difference, by what its seeds and test examples allow."""
    if split_by_seed(cell):
        return over_splits(values, test_share(cell))
    return over_seeds(values) if table is None or len(values) < 2 else crossed(table)


def _columns(compared: Compared) -> Row:
    """Returns the columns of a row that come from the comparison with the baseline."""
    row: Row = {"method": compared.method}
    pairs = compared.pairs
    for metric, e in compared.evidence.items():
        found: Row = {"difference": e.difference, "difference_low": e.low, "difference_high": e.high}
        found |= {"p_holm": e.p, "verdict": e.verdict, "detectable": e.detectable, "speaks_about": e.scope}
        found |= {"baseline": e.baseline}
        if pairs is not None:
            ours, theirs = (cell.values(metric.name, pairs.seeds) for cell in (pairs.first, pairs.second))
            differences = pairs.differences(metric.name)
            seeds = None if split_by_seed(pairs.first) else over_seeds(differences)
            found["seeds_low"], found["seeds_high"] = seeds.interval() if seeds is not None else (None, None)
            gains = differences if metric.direction == "higher" else [-d for d in differences]
            found |= {"improvement": paired_win_rate(gains), "pairing": correlation(ours, theirs)}
        row |= {column(metric, what): value for what, value in found.items()}
    if compared.evidence and pairs is not None:
        row["pairs"] = len(pairs.seeds)
    return row


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


def _row(cell: Cell, metrics: tuple[Metric, ...], settings: ComparisonSettings, notes: list[str]) -> Row:
    diverged = cell.runs["diverged"].dropna()
    if len(diverged):
        epochs = ", ".join(str(int(epoch)) for epoch in diverged)
        notes.append(f"{describe(cell)}: {len(diverged)} of {len(cell.runs)} runs diverged (epoch {epochs}).")
    row = {key: cell.config.get(key) for key in CONFIG_COLUMNS}
    row |= {"seeds": len(cell.runs), "diverged": len(diverged)}
    for metric in metrics:
        row |= _mean(cell, metric, settings)
    return row | alpha_columns(cell.alphas())


def _mean(cell: Cell, metric: Metric, settings: ComparisonSettings) -> Row:
    """Returns the mean of a metric with its interval: over seeds and test examples where both are known."""
    values = cell.values(metric.name) if cell.has(metric.name) else []
    if not values:
        return {}
    table = None if settings.fixed else outcomes_of(cell, metric.name, cell.seeds)
    estimate = _estimate(cell, values, table)
    low, high = (None, None) if estimate is None else estimate.interval()
    scope = NEW_SPLITS if split_by_seed(cell) else THESE_EXAMPLES if table is None else NEW_EXAMPLES
    row = {"": float(np.mean(values)), "speaks_about": scope}
    row |= {"low": None if low is None else max(low, metric.low)}
    row |= {"high": None if high is None else min(high, metric.high)}
    return {column(metric, what): value for what, value in row.items()}
