"""Compares strategies each at its own best, chosen on the validation part, with the choice in the uncertainty."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from decaybench.analysis.cells import Cell, method_of_cell, strategy_name
from decaybench.analysis.evidence import NEW_EXAMPLES, NEW_SPLITS, THESE_EXAMPLES
from decaybench.analysis.frame import Row
from decaybench.analysis.pairs import outcomes_of, split_by_seed, test_share
from decaybench.analysis.statistics import TIE_TOLERANCE
from decaybench.registry.metrics import Metric

BOOTSTRAP_SAMPLES = 2000
TUNED_FIELDS = ("lr", "weight_decay")
Floats = npt.NDArray[np.float64]


class Sample(NamedTuple):
    """Resamples of seeds and of test examples.

    Attributes:
        seeds: Their numbers, (B, n).
        examples: How often each example was drawn, (B, m); None where the examples stay.
    """

    seeds: npt.NDArray[np.intp]
    examples: npt.NDArray[np.float32] | None


@dataclass(frozen=True)
class Candidates:
    """One strategy with all its learning rates and decays, on the seeds that every cell of the question has.

    Attributes:
        searched: The cells of the strategy, in the order of the study.
        cells: Those that are candidates, since no run of them diverged.
        validation, test: Last values of what is chosen by, and of what is compared, (cells, seeds).
        outcomes: Values on each test example, (cells, seeds, examples); None where a record does not hold them.
        highest: Whether the highest value of the validation part is the best.
    """

    strategy: str
    searched: list[Cell]
    cells: list[Cell]
    validation: Floats
    test: Floats
    outcomes: npt.NDArray[np.float32] | None
    highest: bool

    @property
    def grid(self) -> set[tuple[float | None, ...]]:
        """The learning rates and decays that were searched."""
        return {tuple(cell.config.get(key) for key in TUNED_FIELDS) for cell in self.searched}

    def best(self, sample: Sample) -> tuple[npt.NDArray[np.intp], Floats]:
        """Chooses a cell for each resample, and returns its index and its value on the test part, both (B,)."""
        seeds = sample.seeds
        means = self.validation[:, seeds].mean(2)  # (cells, B)
        chosen = means.argmax(0) if self.highest else means.argmin(0)  # (B,)
        if self.outcomes is None or sample.examples is None:
            return chosen, self.test[:, seeds].mean(2)[chosen, np.arange(len(seeds))]
        scores = np.empty(len(seeds))
        for cell in np.unique(chosen):
            rows = np.flatnonzero(chosen == cell)
            for part in np.array_split(rows, -(-len(rows) // 100)):
                counts = (seeds[part, :, None] == np.arange(seeds.shape[1])).mean(1, dtype=np.float32)  # (part, n)
                each = counts @ self.outcomes[cell]  # (part, examples)
                scores[part] = (each * sample.examples[part]).mean(1)
        return chosen, scores


def chosen_by(metric: Metric) -> str:
    """Returns the metric of the validation part by which a metric of the test part is chosen."""
    return metric.name.replace("test_", "validation_", 1)


def tuned(found: Iterable[Cell], metric: Metric, baseline: str, fixed: bool = False) -> list[list[Row]]:
    """Compares strategies at their own best: the rows of each question with more than one learning rate or decay.

    No decay at all is a candidate of every strategy, where the study has it. The interval is Student's t with the
    standard error of a bootstrap over seeds and test examples (Owen's pigeonhole bootstrap, 2007, arXiv 0712.1111) in
    which every resample chooses again, so that the optimism of choosing is counted; all strategies share the resamples.
    Where records hold no outcome of each example, seeds alone are resampled, and it speaks about these test examples.
    Only searches over the same rates and decays are compared; a cell of which a run diverged is no candidate. A metric
    that has no counterpart of the validation part is not tuned: what is chosen by must not be what is reported.

    Args:
        found: The cells of a report.
        metric: What is compared; see `chosen_by`.
        baseline: The strategy that the others are compared with.
        fixed: Whether intervals are to be about these test examples.
    """
    if chosen_by(metric) == metric.name:
        return []
    questions: dict[tuple[str, ...], list[Cell]] = {}
    for cell in found:
        key = tuple(f"{k}={v}" for k, v in cell.config.items() if k not in ("strategy", *TUNED_FIELDS))
        questions.setdefault(key, []).append(cell)
    return [rows for cells in questions.values() if (rows := _question(cells, metric, baseline, fixed))]


def _question(cells: list[Cell], metric: Metric, baseline: str, fixed: bool) -> list[Row]:
    cells = [cell for cell in cells if not cell.seeds or (cell.has(metric.name) and cell.has(chosen_by(metric)))]
    groups = _by_method(cells)
    whole = [c for c in cells if _usable(c)]
    if not whole or max(map(len, groups.values())) < 2:
        return []
    seeds = sorted(set.intersection(*(set(c.seeds) for c in whole)))
    if not seeds:
        return []
    none = [c for name, group in groups.items() if name == "no-decay" for c in group]
    searches = {name: group + (none if name != "no-decay" else []) for name, group in groups.items()}
    candidates = [_candidates(name, group, seeds, metric, fixed) for name, group in searches.items()]
    candidates = [c for c in candidates if c.cells]
    resampled = _resamples(candidates, len(seeds))
    references = [c for c in candidates if baseline in c.strategy.split(" = ")]
    references = references or [c for c in candidates if baseline == strategy_name(c.cells[0])]
    reference = references[0] if len(references) == 1 else None
    return [_row(c, metric, reference, resampled) for c in candidates]


def _by_method(cells: list[Cell]) -> dict[str, list[Cell]]:
    """Groups cells by strategy, without those of a strategy that is the same method as an earlier one."""
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(str(cell.config["strategy"]), []).append(cell)
    methods: dict[tuple[str, str], list[str]] = {}
    for name, group in groups.items():
        methods.setdefault(method_of_cell(max(group, key=lambda c: float(c.config["weight_decay"]))), []).append(name)
    return {" = ".join(names): groups[names[0]] for names in methods.values()}


def _usable(cell: Cell) -> bool:
    return bool(cell.seeds) and len(cell.seeds) == len(cell.runs)


def _candidates(name: str, searched: list[Cell], seeds: list[int], metric: Metric, fixed: bool) -> Candidates:
    cells = [cell for cell in searched if _usable(cell)]

    def of(key: str) -> Floats:
        return np.array([cell.values(key, seeds) for cell in cells])

    tables = [None if fixed else outcomes_of(cell, metric.name, seeds) for cell in cells]
    known = [table for table in tables if table is not None]
    whole = bool(known) and len(known) == len(cells) and len({table.shape for table in known}) == 1
    outcomes = np.stack(known).astype(np.float32) if whole else None
    highest = metric.direction == "higher"
    return Candidates(name, searched, cells, of(chosen_by(metric)), of(metric.name), outcomes, highest)


def _resamples(candidates: list[Candidates], n: int) -> Sample:
    """Draws seeds, and test examples where every candidate knows its outcome on the same ones."""
    rng = np.random.default_rng(0)
    seeds = rng.integers(n, size=(BOOTSTRAP_SAMPLES, n))
    counts = {None if c.outcomes is None else c.outcomes.shape[2] for c in candidates}
    m = counts.pop() if len(counts) == 1 else None
    return Sample(seeds, None if m is None else rng.multinomial(m, [1 / m] * m, BOOTSTRAP_SAMPLES).astype(np.float32))


def _row(c: Candidates, metric: Metric, reference: Candidates | None, resampled: Sample) -> Row:
    n = resampled.seeds.shape[1]
    itself = Sample(np.arange(n)[None], None)
    (chosen,), (test,) = c.best(itself)
    again, scores = c.best(resampled)
    best = c.cells[chosen]
    share = test_share(best) if split_by_seed(best) else 0.0
    row = {key: best.config[key] for key in best.config if key not in TUNED_FIELDS}
    row |= {"lr": best.config.get("lr"), "weight_decay": best.config["weight_decay"], "seeds": n}
    row |= {
        "strategy": c.strategy,
        "candidates": len(c.searched),
        "left_out": len(c.searched) - len(c.cells),
        "chosen_again": float((again == chosen).mean()),
    }
    row |= {f"{key}_on_edge": _on_edge(best, c.searched, key) for key in TUNED_FIELDS}
    scope = NEW_SPLITS if share else THESE_EXAMPLES if resampled.examples is None else NEW_EXAMPLES
    row |= {"speaks_about": scope}
    row |= {"validation": float(c.validation[chosen].mean())}
    row |= _interval("test", float(test), scores, n, share, (metric.low, metric.high))
    if reference is None or reference is c or c.grid != reference.grid:
        return row | dict.fromkeys(("baseline", "difference", "difference_low", "difference_high"))
    _, (theirs,) = reference.best(itself)
    differences, most = scores - reference.best(resampled)[1], metric.high - metric.low
    row |= {"baseline": float(theirs)}
    return row | _interval("difference", float(test - theirs), differences, n, share, (-most, most))


def _on_edge(best: Cell, searched: list[Cell], key: str) -> bool:
    """Tells whether nothing larger, or nothing smaller, than the best rate or decay was tried; 0 has nothing below."""
    tried = sorted({cell.config[key] for cell in searched if cell.config.get(key) is not None})
    return len(tried) > 1 and best.config[key] in (tried[0], tried[-1]) and best.config[key] != 0


def _interval(
    key: str, estimate: float, resampled: Floats, n: int, test_share: float, possible: tuple[float, float]
) -> Row:
    """Returns an estimate with its interval; for seeds that have splits of their own as in `over_splits`."""
    if n < 2 or np.ptp(resampled) < TIE_TOLERANCE:
        return {key: estimate, f"{key}_low": None, f"{key}_high": None}
    lacking = n / (n - 1)  # of a bootstrap's variance
    error = float(resampled.std()) * (lacking * (1 + n * test_share)) ** 0.5
    half = float(stdtrit(n - 1, 0.975)) * error
    least, most = possible
    return {key: estimate, f"{key}_low": max(least, estimate - half), f"{key}_high": min(most, estimate + half)}
