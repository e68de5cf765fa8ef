"""Draws the figures: differences, metrics against decay, activation parameters, learned functions."""

import io
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from decaybench.analysis.cells import Cell
from decaybench.analysis.comparison import Summary, of
from decaybench.analysis.frame import Row
from decaybench.errors import DecaybenchError, one_line
from decaybench.registry.metrics import Metric
from decaybench.report.numbers import format_number, format_value, heading
from decaybench.report.titles import Member, distinct, titled
from decaybench.report.verdicts import difference_of
from decaybench.results.record import INPUT_GRID

SMALLEST = 1e-4  # of a pull beside the gradient's; what is less is drawn as this
MAP = mpl.colormaps["viridis"].resampled(20)  # few enough colours that their scale is drawn and no picture
MAX_STEPS = 120  # columns of a heat map
MAX_ROWS = 40  # rows of one figure; the table has them all
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#b8a000", "#8b4513")
STYLE: Any = {
    "text.parse_math": False,  # a dollar in a name is a dollar
    "svg.fonttype": "none",
    "svg.hashsalt": "decaybench",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
}
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")


class Canvas:
    """A figure that is being drawn, with the texts of its tooltips.

    Attributes:
        tips: Texts of tooltips, by the id of a group in the SVG.
    """

    def __init__(self, rows: int, columns: int, size: tuple[float, float], title: str = "") -> None:
        self.figure = Figure(figsize=(size[0] * columns, size[1] * rows))
        self.axes: list[list[Axes]] = [list(r) for r in self.figure.subplots(rows, columns, squeeze=False)]
        self.tips: dict[str, str] = {}
        if title:
            self.figure.suptitle(title, fontsize=9)

    def tip(self, artists: Any, text: str) -> None:
        """Gives some artists a tooltip."""
        for artist in artists if isinstance(artists, list | tuple) else [artists]:
            name = f"tip{len(self.tips)}"
            artist.set_gid(name)
            self.tips[name] = text

    def save(self, format: str) -> bytes:
        """Writes the figure as the content of a file."""
        out = io.BytesIO()
        self.figure.savefig(out, format=format, dpi=200, metadata={"Date": None} if format == "svg" else None)
        return out.getvalue()


def _colors(members: Sequence[Member]) -> dict[str, str]:
    names = dict.fromkeys(str(row["strategy"]) for row, _ in members)
    return {name: COLORS[i % len(COLORS)] for i, name in enumerate(names)}


def differences(summary: Summary, baseline: str) -> Canvas | None:
    """Draws every difference to the baseline with its interval: a row for each question, an axis for each metric."""
    found = [(t, m) for t, members in titled(summary) if (m := _with_intervals(distinct(members), summary.metrics))]
    if not found:
        return None
    longest = max(sum(1 + row["strategy"].count(" = ") for row, _ in members) for _, members in found)
    count = len(summary.metrics)
    canvas = Canvas(len(found) * count, 1, (7.0, 0.9 + 0.19 * longest))
    for number, (title, members) in enumerate(found):
        all_axes = [row[0] for row in canvas.axes[number * count : (number + 1) * count]]
        names = [f"{row['strategy']}  {format_number(row['weight_decay'])}" for row, _ in members]
        for axes, metric in zip(all_axes, summary.metrics, strict=True):
            _intervals(canvas, axes, metric, members, names)
            axes.axvline(0, color="#808080", linewidth=0.8)
            axes.set_yticks(range(len(members)), [name.replace(" = ", "\n= ") for name in names], fontsize=7)
            axes.set_ylim(len(members) - 0.4, -0.6)
            if metric.scale != "plain":
                axes.set_xscale("symlog", linthresh=1.0)
                axes.xaxis.set_major_formatter(PLAIN)
            unit = {"percent": ", points (logarithmic beyond ±1)", "relative": ", % (logarithmic beyond ±1)"}
            axes.set_xlabel(f"{metric.title} − {baseline}{unit.get(metric.scale, '')}")
        all_axes[0].set_title(title, fontsize=9, loc="left")
    return canvas


def _with_intervals(members: Sequence[Member], metrics: Sequence[Metric]) -> list[Member]:
    """Returns the members that have the interval of a difference, at most as many as fit."""
    return [m for m in members if any(of(m[0], metric, "difference_low") is not None for metric in metrics)][:MAX_ROWS]


def _intervals(canvas: Canvas, axes: Axes, metric: Metric, members: Sequence[Member], names: Sequence[str]) -> None:
    for i, (row, _) in enumerate(members):
        baseline = of(row, metric, "baseline")
        found = [of(row, metric, f"difference{end}") for end in ("_low", "", "_high")]
        if any(value is None for value in found) or (metric.scale == "relative" and not baseline):
            continue
        low, middle, high = (value / metric.amount(1.0, baseline) for value in found)
        color = COLORS[1 if of(row, metric, "verdict") in ("better", "worse") else 0]
        line = axes.plot([low, high], [i, i], color=color, linewidth=2)
        dot = axes.plot([middle], [i], "o", color=color, markersize=4)
        tip = f"{names[i]}: {metric.title} {difference_of(row, metric)}{metric.unit}, {of(row, metric, 'verdict')}"
        canvas.tip([*line, *dot], tip)


def decay(summary: Summary, baseline: str) -> Canvas | None:
    """Draws each metric against decay, a line for each strategy."""
    found = [
        (t, distinct(m))
        for t, m in titled(summary)
        if len({row["weight_decay"] for row, _ in m if row["weight_decay"]}) > 1
    ]
    if not found:
        return None
    count = len(summary.metrics)
    canvas = Canvas(len(found) * count, 1, (7.0, 3.0))
    for number, (title, members) in enumerate(found):
        all_axes = [row[0] for row in canvas.axes[number * count : (number + 1) * count]]
        for axes, metric in zip(all_axes, summary.metrics, strict=True):
            for name, color in _colors(members).items():
                _against_decay(canvas, axes, metric, [r for r, _ in members if r["strategy"] == name], name, color)
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(PLAIN)
            axes.set_xlabel("decay λ")
            axes.set_ylabel(heading(metric))
        all_axes[0].set_title(title, fontsize=9, loc="left")
    _legend(canvas.axes[0][0], 6)
    return canvas


def _against_decay(canvas: Canvas, axes: Axes, metric: Metric, rows: list[Row], name: str, color: str) -> None:
    scale = 100 if metric.scale == "percent" else 1
    rows = sorted((r for r in rows if of(r, metric, "") is not None), key=lambda r: r["weight_decay"])
    known = [r for r in rows if r["weight_decay"]]
    if known:
        x, y = [r["weight_decay"] for r in known], [scale * of(r, metric, "") for r in known]
        line = axes.plot(x, y, "o-", color=color, markersize=3, linewidth=1, label=one_line(name))
        values = zip(x, (format_value(metric, of(r, metric, "")) for r in known), strict=True)
        canvas.tip(line, name + ": " + ", ".join(f"{a:g} → {b}" for a, b in values))
    elif rows:
        value = of(rows[0], metric, "")
        flat = axes.axhline(scale * value, color=color, linestyle=":", label=one_line(name))
        canvas.tip(flat, f"{name}: {format_value(metric, value)}")


def _legend(axes: Axes, size: int) -> None:
    """Draws a legend, unless there is nothing to name: every run may have diverged."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=size)


def _learned(summary: Summary) -> list[tuple[str, list[Member]]]:
    """Returns the cells that learn activation parameters, apart for every question and decay; a title says which."""
    chosen: list[tuple[str, list[Member]]] = []
    for title, members in titled(summary):
        members = [m for m in distinct(members) if m[1].layer(0)]
        decays = sorted({row["weight_decay"] for row, _ in members if row["weight_decay"]})
        for decay in decays or [0.0]:
            of = [m for m in members if m[0]["weight_decay"] in (decay, 0.0)]
            chosen.append((f"{title} · decay {format_number(decay)}", of))
    return [(title, members) for title, members in chosen if members]


Panel = Callable[[Canvas, Axes, list[Member], int], None]


def _panels(titles: list[tuple[str, list[Member]]], label: str, panel: Panel) -> Canvas | None:
    """Lays out panels: a row for each question and decay, a panel for each layer of its network."""
    if len(titles) > MAX_ROWS:
        raise DecaybenchError(f"{len(titles)} questions and decays are too many for one figure (at most {MAX_ROWS}).")
    layers = max((len(m[1].layers[0]) for _, members in titles for m in members), default=0)
    if not layers:
        return None
    canvas = Canvas(len(titles), layers, (2.6, 2.2))
    for row_axes, (title, group) in zip(canvas.axes, titles, strict=True):
        for index, axes in enumerate(row_axes):
            panel(canvas, axes, group, index)
            axes.set_title(f"layer {index + 1}", fontsize=7, loc="left")
        row_axes[0].set_ylabel(label)
        row_axes[0].set_title(f"{title}\nlayer 1", fontsize=6, loc="left")
    _legend(canvas.axes[0][0], 5)
    return canvas


def _lines(group: list[Member]) -> Iterator[tuple[Cell, str, str]]:
    """Yields a cell, its name and its color for each strategy."""
    for name, color in _colors(group).items():
        yield next(c for r, c in group if r["strategy"] == name), name, color


def alphas(summary: Summary, baseline: str) -> Canvas | None:
    """Draws the quantiles of the activation parameters over the epochs, layer by layer."""

    def panel(canvas: Canvas, axes: Axes, group: list[Member], index: int) -> None:
        for cell, name, color in _lines(group):
            _trajectory(canvas, axes, cell, index, name, color)
        axes.set_xlabel("times logged" if "script" in group[0][1].config else "epoch")

    return _panels(_learned(summary), "α: median, 5 and 95%", panel)


def _trajectory(canvas: Canvas, axes: Axes, cell: Cell, index: int, name: str, color: str) -> None:
    series = [layer.quantiles for layer in cell.layer(index) if layer.quantiles is not None]
    if not series:
        return
    length = max(map(len, series), key=[len(s) for s in series].count)  # scripts may stop early
    q = np.array([s for s in series if len(s) == length], dtype=float).mean(0)  # (epochs + 1, 5)
    lines = axes.plot(q[:, 2], color=color, linewidth=1.2, label=one_line(name))
    lines += axes.plot(q[:, 0], color=color, linewidth=0.6) + axes.plot(q[:, 4], color=color, linewidth=0.6)
    canvas.tip(lines, f"{name}: median {q[0, 2]:.3g} → {q[-1, 2]:.3g}, 5% {q[-1, 0]:.3g}, 95% {q[-1, 4]:.3g}")


def functions(summary: Summary, baseline: str) -> Canvas | None:
    """Draws the learned functions over the inputs they get, layer by layer."""

    def panel(canvas: Canvas, axes: Axes, group: list[Member], index: int) -> None:
        for cell, name, color in _lines(group):
            drawn = _curves(cell, index)
            if drawn is not None:
                line = axes.plot(INPUT_GRID, drawn, color=color, linewidth=1, label=one_line(name))
                canvas.tip(line, f"{name}: f(−2) = {drawn[16]:.3g}, f(0) = {drawn[24]:.3g}, f(2) = {drawn[32]:.3g}")
        _density(axes, group[0][1], index)

    drawable = [(t, [m for m in members if _curves(m[1], 0) is not None]) for t, members in _learned(summary)]
    return _panels([(t, members) for t, members in drawable if members], "f(s), mean of channels", panel)


def _curves(cell: Cell, index: int) -> Any:
    ends = [layer.curve.get("end") for layer in cell.layer(index) if layer.curve is not None]
    drawn = [end["mean"] for end in ends if end is not None]
    return np.array(drawn, dtype=float).mean(0) if drawn else None


def _density(axes: Axes, cell: Cell, index: int) -> None:
    """Draws the inputs of a layer, in grey, on an axis of its own."""
    seen = [layer.inputs for layer in cell.layer(index) if layer.inputs is not None]
    if seen:
        other = axes.twinx()
        other.stairs(np.array(seen, dtype=float).mean(0), INPUT_GRID, fill=True, color="#808080", alpha=0.25)
        other.set_yticks([])


def pulls(summary: Summary, baseline: str) -> Canvas | None:
    """Draws, for trainings that were watched, how hard decay pulls beside the gradient: parameters × steps."""
    watched = [
        (title, cell.runs["watched"].iloc[0])
        for title, members in titled(summary)
        for _, cell in members
        if "watched" in cell.runs and cell.runs["watched"].iloc[0]
    ]
    if not watched:
        return None
    heights = [min(MAX_ROWS, len(found["parameters"])) for _, found in watched]
    canvas = Canvas(len(watched), 1, (7.0, 1.2 + 0.16 * max(heights)))
    for (axes,), (title, found) in zip(canvas.axes, watched, strict=True):
        rows = sorted(found["parameters"], key=lambda row: row["role"] != "activation")[:MAX_ROWS]
        chosen = np.unique(np.linspace(0, len(found["steps"]) - 1, MAX_STEPS).round().astype(int))
        ratios = np.array([[_drawn_ratio(row["ratio"][i]) for i in chosen] for row in rows])
        steps = np.array(found["steps"])[chosen]
        edges = np.append(steps, 2 * steps[-1] - steps[-2] if len(steps) > 1 else steps[-1] + 1)
        image = axes.pcolormesh(edges, np.arange(len(rows) + 1), np.log10(ratios), cmap=MAP, vmin=-4, vmax=1)
        axes.invert_yaxis()
        axes.set_yticks(np.arange(len(rows)) + 0.5, [one_line(f"{r['name']} ({r['role']})") for r in rows], fontsize=6)
        axes.set_xlabel("step")
        axes.set_title(f"{title}: pull of decay / pull of the gradient", fontsize=8, loc="left")
        bar = canvas.figure.colorbar(image, ax=axes)
        bar.set_ticks([-4, -3, -2, -1, 0, 1], labels=["0.0001", "0.001", "0.01", "0.1", "1", "10"])
    return canvas


def _drawn_ratio(value: float | None) -> float:
    return float("nan") if value is None else max(value, SMALLEST)


FIGURES: dict[str, Callable[[Summary, str], Canvas | None]] = {
    "differences": differences,
    "decay": decay,
    "alphas": alphas,
    "functions": functions,
    "pulls": pulls,
}


def draw(name: str, summary: Summary, baseline: str) -> Canvas | None:
    """Draws one figure; None where the study has nothing to show in it."""
    with mpl.rc_context(STYLE):
        return FIGURES[name](summary, baseline)


def save(canvas: Canvas, format: str) -> bytes:
    """Writes a figure as png, svg or pdf."""
    with mpl.rc_context(STYLE):
        return canvas.save(format)
