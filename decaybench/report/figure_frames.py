"""The data of the figures: one tidy DataFrame a figure, made of what a report knows."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from decaybench.analysis.cells import Cell, is_called
from decaybench.analysis.comparison import ComparisonSettings, Summary, of
from decaybench.analysis.frame import Row
from decaybench.registry.metrics import Metric
from decaybench.report.numbers import format_value, heading
from decaybench.report.titles import Member, by_method, titled
from decaybench.report.verdicts import difference_of
from decaybench.results.record import INPUT_GRID

MAX_STEPS = 120  # columns of a heat map
MAX_PARAMETERS = 40  # rows of a heat map; the record has them all


def methods(members: Sequence[Member]) -> Iterator[tuple[Row, Member]]:
    """Yields each method of a question once: what every row of a figure's data holds of it, and its first cell.

    A method is drawn under the name of its first strategy (``strategy``); ``method`` has all its names.
    """
    for names, (row, cell) in by_method(members):
        yield {"strategy": names[0], "method": " = ".join(names), "decay": row["weight_decay"]}, (row, cell)


def asked_for(summary: Summary, settings: ComparisonSettings) -> str:
    """Returns the strategy whose difference is the answer: the primary contrast, exclude-alpha, or the only one.

    Empty where there are several others, which then are all in the answer.

    Args:
        summary: The summary of a study.
        settings: How cells were compared.
    """
    wanted = (settings.primary or "").rpartition(":")
    for name in (settings.primary or "", wanted[0], "exclude-alpha"):
        if name and any(is_called(cell, name) for cell in summary.cells):
            return name
    compared = {
        str(cell.config["strategy"])
        for row, cell in zip(summary.rows, summary.cells, strict=True)
        if any(of(row, metric, "difference") is not None for metric in summary.metrics)
    }
    return compared.pop() if len(compared) == 1 else ""


def is_asked(row: Row, members: Sequence[Member], name: str) -> bool:
    """Tells whether a cell's method is that of the strategy which is asked about, or whether all are."""
    if not name:
        return True
    key = (row["method"], row["weight_decay"])
    cells = [c for _, c in members]
    return any(is_called(c, name, cells) for r, c in members if (r["method"], r["weight_decay"]) == key)


def differences_frame(summary: Summary, settings: ComparisonSettings) -> pd.DataFrame:
    """Returns every difference to the baseline in the unit in which it is written.

    Args:
        summary: The summary of a study.
        settings: How cells were compared.

    Returns:
        Columns ``question``, ``strategy``, ``method``, ``decay``, ``baseline``, ``metric``, ``unit``, ``margin`` (no
        difference, or missing), ``value``, ``low``, ``high`` (missing for one seed), ``verdict``, ``text``, and
        ``asked``: whether it is the contrast that is asked about.
    """
    name, rows = asked_for(summary, settings), []
    for title, members in titled(summary):
        for base, (row, _) in methods(members):
            asked = is_asked(row, members, name)
            for metric in summary.metrics:
                ends = _shown_difference(row, metric)
                if ends is not None:
                    unit = {"percent": "points", "relative": "% of the baseline's", "plain": ""}[metric.scale]
                    found = {"metric": metric.title, "unit": unit, "margin": metric.margin_shown, **ends}
                    found |= {"verdict": of(row, metric, "verdict"), "text": difference_of(row, metric)}
                    rows.append({"question": title, **base, "baseline": settings.baseline, **found, "asked": asked})
    return pd.DataFrame(rows)


def _shown_difference(row: Row, metric: Metric) -> Row | None:
    baseline, value = of(row, metric, "baseline"), of(row, metric, "difference")
    if value is None or (metric.scale == "relative" and not baseline):
        return None
    unit = metric.amount(1.0, baseline)
    ends = {end: of(row, metric, f"difference_{end}") for end in ("low", "high")}
    return {"value": value / unit} | {end: None if x is None else x / unit for end, x in ends.items()}


def decay_frame(summary: Summary, settings: ComparisonSettings) -> pd.DataFrame:
    """Returns the mean of each metric at each decay, of questions with several decays.

    Args:
        summary: The summary of a study.
        settings: How cells were compared.

    Returns:
        Columns ``question``, ``strategy``, ``method``, ``decay`` (0 for the control), ``metric``, ``scale`` (as in
        `Metric`), ``value``, ``low``, ``high`` (its interval, or missing; fractions in percent) and ``text``.
    """
    rows = []
    for title, members in titled(summary):
        found = list(methods(members))
        if len({base["decay"] for base, _ in found if base["decay"]}) < 2:
            continue
        for metric in summary.metrics:
            scale = 100 if metric.scale == "percent" else 1
            for base, (row, _) in found:
                value, low, high = (of(row, metric, end) for end in ("", "low", "high"))
                if value is not None and np.isfinite(value):
                    ends = {"low": None if low is None else scale * low, "high": None if high is None else scale * high}
                    about = {"metric": heading(metric), "scale": metric.scale, "text": format_value(metric, value)}
                    rows.append({"question": title, **base, **about, "value": scale * value, **ends})
    return pd.DataFrame(rows)


def _learned(summary: Summary) -> Iterator[tuple[Row, Cell]]:
    """Yields each method that learns activation parameters, at each decay that is not 0; the control at all of them."""
    for title, members in titled(summary):
        found = [(base, member) for base, member in methods(members) if member[1].layer(0)]
        decays = sorted({base["decay"] for base, _ in found if base["decay"]}) or [0.0]
        for decay in decays:
            for base, (_, cell) in found:
                if base["decay"] in (decay, 0.0):
                    yield {"question": title, **base, "decay": decay}, cell


def _layers(cell: Cell) -> Iterator[tuple[str, list[Any]]]:
    for index, layer in enumerate(cell.layers[0]):
        name = "" if layer.name.isdigit() else f" ({layer.name})"
        yield f"layer {index + 1}{name}", cell.layer(index)


def functions_frame(summary: Summary, settings: ComparisonSettings) -> pd.DataFrame:
    """Returns the learned functions of each layer, over the inputs of `INPUT_GRID`.

    Args:
        summary: The summary of a study.
        settings: How cells were compared.

    Returns:
        Columns ``question``, ``strategy``, ``method``, ``decay``, ``layer``, ``input``, and, each the mean of seeds:
        ``mean`` of the channels, ``low`` and ``high`` (5% and 95% of them), ``start`` (the mean before training),
        ``density`` (share of the layer's inputs in the bin, of the largest share). ``channels`` holds some channels of
        the first seed, where they were recorded.
    """
    rows = []
    for base, cell in _learned(summary):
        for name, layers in _layers(cell):
            curves = [layer.curve for layer in layers if layer.curve and layer.curve.get("end")]
            if not curves:
                continue
            found = {key: _mean([c["end"][key] for c in curves]) for key in ("mean", "low", "high")}
            starts = [c["start"]["mean"] for c in curves if c.get("start") and c["start"]["mean"] is not None]
            found["start"] = _mean(starts) if starts else np.full(len(INPUT_GRID), np.nan)
            seen = [layer.inputs for layer in layers if layer.inputs is not None]
            found["density"] = np.full(len(INPUT_GRID), np.nan)  # a compiled activation's inputs are not seen
            if seen:
                density = _mean(seen)  # of the bins, one fewer than points
                found["density"] = np.append(density, density[-1]) / max(np.nanmax(density), 1e-12)
            channels: list[Any] = next((c["channels"] for c in curves if c.get("channels")), [])
            columns = {key: values for key, values in found.items() if len(values) == len(INPUT_GRID)}
            for i, x in enumerate(INPUT_GRID):
                point = {key: float(values[i]) for key, values in columns.items()}
                rows.append({**base, "layer": name, "input": x, **point, "channels": [line[i] for line in channels]})
    return pd.DataFrame(rows)


def _mean(values: Sequence[Any]) -> Any:
    return np.array(values, dtype=float).mean(0)


def alphas_frame(summary: Summary, settings: ComparisonSettings) -> pd.DataFrame:
    """Returns the quantiles of the activation parameters of each layer in the course of training.

    Args:
        summary: The summary of a study.
        settings: How cells were compared.

    Returns:
        Columns ``question``, ``strategy``, ``method``, ``decay``, ``layer``, ``epoch`` (0 is before training; of
        scripts, how often was logged), ``q05``, ``median``, ``q95``: means of seeds.
    """
    rows = []
    for base, cell in _learned(summary):
        for name, layers in _layers(cell):
            series = [layer.quantiles for layer in layers if layer.quantiles is not None]
            if not series:
                continue
            length = max(map(len, series), key=[len(s) for s in series].count)  # scripts may stop early
            q = _mean([s for s in series if len(s) == length])  # (epochs + 1, 5)
            time = {"clock": "times logged" if "script" in cell.config else "epoch"}
            rows += [
                {**base, "layer": name, **time, "epoch": i, "q05": a, "median": b, "q95": c}
                for i, (a, b, c) in enumerate(q[:, [0, 2, 4]].tolist())
            ]
    return pd.DataFrame(rows)


def pulls_frame(summary: Summary, settings: ComparisonSettings) -> pd.DataFrame:
    """Returns, for trainings that were watched, how hard decay pulls beside the gradient.

    Args:
        summary: The summary of a study.
        settings: How cells were compared.

    Returns:
        Columns ``question``, ``parameter``, ``role``, ``step``, ``until`` (the next step that is drawn) and ``ratio``.
    """
    rows = []
    for title, members in titled(summary):
        for _, cell in members:
            found = cell.runs["watched"].iloc[0] if "watched" in cell.runs else None
            if not found:
                continue
            steps = found["steps"]
            chosen = np.unique(np.linspace(0, len(steps) - 1, MAX_STEPS).round().astype(int))
            shown = [steps[i] for i in chosen]
            ends = [*shown[1:], 2 * shown[-1] - shown[-2] if len(shown) > 1 else shown[-1] + 1]
            parameters = sorted(found["parameters"], key=lambda row: row["role"] != "activation")[:MAX_PARAMETERS]
            rows += [
                {"question": title, "parameter": p["name"], "role": p["role"], "step": step, "until": end, "ratio": r}
                for p in parameters
                for step, end, r in zip(shown, ends, (p["ratio"][i] for i in chosen), strict=True)
            ]
    return pd.DataFrame(rows)
