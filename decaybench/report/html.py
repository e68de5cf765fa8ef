"""Writes the report as one HTML page without external resources."""

import base64
import gzip
import hashlib
import json
from collections.abc import Sequence
from html import escape as html_escape
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from decaybench.analysis.cells import strategy_name
from decaybench.analysis.comparison import ComparisonSettings, Summary
from decaybench.analysis.tuning import tuned
from decaybench.errors import one_line, printable
from decaybench.execution.progress import duration
from decaybench.registry import STRATEGIES
from decaybench.report.columns import Table, table_of
from decaybench.report.figures import FIGURES, panels
from decaybench.report.headline import headline
from decaybench.report.reading import how_to_read
from decaybench.report.titles import by_method, titled
from decaybench.report.vega import DASHES, ON_PAGE, Panel, Strategies, bundle, config
from decaybench.report.verdicts import plans, tuned_tables, verdicts

SECONDARY = 6  # rank from which columns are shown on demand
HERE = Path(__file__).parent
LEAST = {"functions": "13rem", "pulls": "100%"}  # width from which panels stand side by side
SYMBOLS = {  # of Vega's shapes, in a square from -5 to 5
    "circle": '<circle r="4.5"/>',
    "square": '<rect x="-4" y="-4" width="8" height="8"/>',
    "triangle-up": '<path d="M0-5 5 4H-5Z"/>',
    "diamond": '<path d="M0-5 4 0 0 5-4 0Z"/>',
    "cross": '<path d="M-2-5H2V-2H5V2H2V5H-2V2H-5V-2H-2Z"/>',
    "triangle-down": '<path d="M0 5 5-4H-5Z"/>',
    "triangle-left": '<path d="M-5 0 4-5V5Z"/>',
}
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title><style>{style}</style></head>
<body>
{body}
<script type="application/gzip" id="charts">{charts}</script>
<script>{library}</script>
<script>{script}</script>
</body></html>
"""


def escape(text: str) -> str:
    """Escapes a text for HTML, control characters included."""
    return html_escape(printable(text))


class _Charts:
    """The charts of a page: the places where they are drawn, and their specifications."""

    def __init__(self) -> None:
        self.specs: list[dict[str, Any]] = []

    def place(self, panel: Panel) -> str:
        """Writes the place of a panel, with what it says for those who cannot see it."""
        chart = panel.chart.properties(height=1.5 * ON_PAGE.font_size * panel.height)
        spec = chart.to_dict(validate=False)
        title = panel.title + (f" · λ {panel.decay:g}" if panel.decay else "")
        label = f"{panel.row}: {title}. {panel.told}"
        spec = {k: v for k, v in spec.items() if k not in ("config", "$schema")}
        self.specs.append({"question": panel.row, "spec": spec | {"description": label}})
        decay = "" if panel.decay is None else f' data-decay="{panel.decay:g}"'
        return (
            f'<figure{decay}><h4>{escape(title)}</h4><div class="chart" data-panel="{len(self.specs) - 1}" '
            f'role="img" aria-label="{escape(label)}"></div></figure>'
        )

    def packed(self, summary: Summary) -> str:
        """Writes the specifications as JSON, compressed: they repeat each other."""
        methods = {title: [names for names, _ in by_method(members)] for title, members in titled(summary)}
        whole = {"config": config(ON_PAGE), "panels": self.specs, "methods": methods}
        return base64.b64encode(gzip.compress(json.dumps(whole).encode(), mtime=0)).decode()


def to_html(summary: Summary, settings: ComparisonSettings, name: str, description: str, command: str) -> str:
    """Writes the whole page: the question, the answer, figures, tables, how to read them, provenance.

    Args:
        summary: The summary to show.
        settings: How cells are compared.
        name: Name of the study.
        description: What the study asks.
        command: The command that reproduces the study.
    """
    charts = _Charts()
    found = {key: panels(key, summary, settings, ON_PAGE) for key in FIGURES}
    differences = FIGURES["differences"].frame(summary, settings)
    if len(differences) and differences["asked"].all():
        found["differences"] = []  # the answer shows them all
    notes = "".join(f"<li>{escape(note)}</li>" for note in summary.notes)
    answer = "".join(f'<p class="answer">{escape(sentence)}</p>' for sentence in headline(summary, settings))
    body = [
        f'<h1>{escape(name)}</h1><p class="description">{escape(description)}</p>',
        f"<main><section>{answer}{_panels(charts, found['answer'], '')}{_caption('answer', found)}</section>",
        _tools(summary, settings, found),
        *(_figure(charts, key, found[key]) for key in ("decay", "differences", "functions", "alphas", "pulls")),
        _tables(summary, settings),
        _tuned(summary, settings),
        _verdicts(summary, settings),
        f"<section><h2>How to read it</h2><p>{escape(how_to_read(summary, settings))}</p>",
        f"{_glossary(summary, settings)}</section>",
        f"<section><h2>Notes</h2><ul>{notes}</ul></section>" if notes else "",
        f"<section><h2>Provenance</h2>{_provenance(summary, command)}</section></main>",
    ]
    script, style = ((HERE / f"page.{kind}").read_text(encoding="utf-8") for kind in ("js", "css"))
    library = bundle().replace("</script", "<\\/script")
    page = "\n".join(part for part in body if part)
    whole = {"title": escape(name), "style": style, "body": page, "charts": charts.packed(summary), "script": script}
    return PAGE.format(**whole, library=library, policy=_policy(library, script))


def _policy(*scripts: str) -> str:
    """Lets the page load nothing and run its own scripts only."""
    digests = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    inline = "style-src 'unsafe-inline'"  # the charts' styles
    return f"default-src 'none'; {inline}; script-src {allowed}; base-uri 'none'; form-action 'none'"


def _tools(summary: Summary, settings: ComparisonSettings, found: dict[str, list[Panel]]) -> str:
    """Writes the choices that hold for the whole page: strategies, question and decay."""
    frames = [FIGURES[key].frame(summary, settings) for key in ("decay", "alphas", "differences", "functions")]
    strategies = Strategies(pd.concat([f[["strategy", "method"]] for f in frames if len(f)] or [pd.DataFrame()]))
    buttons = []
    for name in strategies.names:
        color, shape, dash = strategies.mark(name)
        line = (
            "" if dash == DASHES[0] else f'<path d="M-9 0H9" stroke-width="2" stroke-dasharray="{dash[0]} {dash[1]}"/>'
        )
        sign = f'<svg width="20" height="12" viewBox="-10 -6 20 12" aria-hidden="true" fill="{color}" stroke="{color}" '
        sign += f'stroke-width="0">{line}{SYMBOLS[shape]}</svg>'
        text = escape(one_line(" = ".join([name, *_always(name, summary)])))
        buttons.append(
            f'<button type="button" aria-pressed="false" data-strategy="{escape(name)}">{sign}{text}</button>'
        )
    titles = [question.title for question in titled(summary)]
    decays = sorted({p.decay for panels in found.values() for p in panels if p.decay is not None})
    parts = ["".join(buttons)]
    if len(titles) > 1:
        parts.append(_select("question", "Question", [("", "all"), *((title, title) for title in titles)], ""))
    if decays:
        preferred = _most_telling(frames[2], decays)
        parts.append(
            _select("decay", "λ of functions and parameters", [(f"{d:g}", f"{d:g}") for d in decays], f"{preferred:g}")
        )
    return f'<nav class="tools" aria-label="What is shown">{"".join(parts)}</nav>' if "".join(parts) else ""


def _always(name: str, summary: Summary) -> list[str]:
    """Returns the strategies that are one method with a strategy in every question in which they are drawn as it."""
    groups = [names for _, members in titled(summary) for names, _ in by_method(members) if names[0] == name]
    return [other for other in groups[0][1:] if all(other in group for group in groups)] if groups else []


def _most_telling(differences: pd.DataFrame, decays: Sequence[float]) -> float:
    """Returns the decay at which the contrast that is asked about is largest."""
    if len(differences):
        asked = differences[differences["asked"] & (differences["metric"] == differences["metric"].iloc[0])]
        asked = asked[asked["decay"].isin(decays)]
        if len(asked):
            return float(asked["decay"].loc[asked["value"].abs().idxmax()])
    return decays[-1]


def _select(name: str, title: str, options: Sequence[tuple[str, str]], chosen: str) -> str:
    lines = (
        f'<option value="{escape(value)}"{" selected" * (value == chosen)}>{escape(text)}</option>'
        for value, text in options
    )
    return f'<label>{title} <select id="which-{name}">{"".join(lines)}</select></label>'


def _panels(charts: _Charts, found: Sequence[Panel], key: str) -> str:
    """Writes the panels of a figure, those of one question under its title."""
    parts = []
    for title, members in groupby(found, key=lambda panel: panel.row):
        grids = "".join(
            f'<div class="panels" style="--least:{LEAST.get(key, "20rem")}">{"".join(map(charts.place, line))}</div>'
            for _, line in groupby(members, key=lambda panel: (panel.decay, panel.line))
        )
        question = f' data-question="{escape(title)}"' if key else ""
        parts.append(f"<div{question}><h3>{escape(title)}</h3>{grids}</div>")
    return "".join(parts)


def _caption(key: str, found: dict[str, list[Panel]]) -> str:
    return f'<p class="caption">{escape(FIGURES[key].caption)}</p>' if found[key] else ""


def _figure(charts: _Charts, key: str, found: Sequence[Panel]) -> str:
    if not found:
        return ""
    figure = FIGURES[key]
    heading = f'<h2>{escape(figure.title)}</h2><p class="caption">{escape(figure.caption)}</p>'
    return f'<section id="{key}">{heading}{_panels(charts, found, key)}</section>'


def _tables(summary: Summary, settings: ComparisonSettings) -> str:
    """Writes a table for each question; details are shown on demand."""
    parts = []
    for title, members in titled(summary):
        table = table_of(members, summary.metrics, settings.baseline)
        caption = escape(" · ".join([title, *table.common]))
        parts.append(f'<section data-question="{escape(title)}"><h3>{caption}</h3>{_cells(table)}</section>')
    tools = '<label>Filter <input id="filter" type="search" placeholder="kaf sgd …"></label> '
    tools += '<button type="button" class="more" aria-pressed="false">All columns</button>'
    return f'<section><h2>The table</h2><p class="tools" style="position:static">{tools}</p>{"".join(parts)}</section>'


def _glossary(summary: Summary, settings: ComparisonSettings) -> str:
    """Explains strategies and columns."""
    found = {"λ": "weight decay", "α": "the learned parameters of activation functions"}
    names = {strategy_name(cell) for cell in summary.cells}
    found |= {name: entry.summary for name, entry in STRATEGIES.items() if name in names}
    for _, members in titled(summary)[:1]:
        columns = table_of(members, summary.metrics, settings.baseline).columns
        found |= {c.title.rpartition(": ")[2].removesuffix(", %"): c.explained for c in columns if c.explained}
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in found.items()) + "</dl>"


def _cells(table: Table) -> str:
    classes = [' class="detail"' if c.rank >= SECONDARY else "" for c in table.columns]
    head = "".join(
        f'<th scope="col"{kind} title="{escape(c.explained)}"><button type="button">{escape(c.title)}</button></th>'
        for c, kind in zip(table.columns, classes, strict=True)
    )
    lines = []
    for i, names in enumerate(table.names):
        others = f" <small>= {escape(' = '.join(names[1:]))}</small>" if len(names) > 1 else ""
        cells = [f"<td>{escape(names[0])}{others}</td>"]
        for column, kind in zip(table.columns[1:], classes[1:], strict=True):
            verdict = column.verdicts[i] if column.verdicts else ""
            word = {"better": " ▲ better", "worse": " ▼ worse"}.get(verdict, "")
            cells.append(f"<td{f' class={verdict}' if word else kind}>{escape(column.cells[i] + word)}</td>")
        baseline = ' class="baseline"' if table.baseline[i] else ""
        lines.append(f'<tr{baseline} data-strategies="{escape(json.dumps(names))}">{"".join(cells)}</tr>')
    return _wide(f'<table class="cells"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>')


def _wide(table: str) -> str:
    """Lets a table that is wider than the page be scrolled, by keyboard as well."""
    return f'<div class="wide" tabindex="0" role="region" aria-label="table">{table}</div>'


def _tuned(summary: Summary, settings: ComparisonSettings) -> str:
    first = summary.metrics[0]
    rows = tuned(summary.cells, first, settings.baseline, settings.fixed)
    parts = []
    for title, columns, lines in tuned_tables(rows, first, settings.baseline):
        head = "".join(f'<th scope="col"><button type="button">{escape(c)}</button></th>' for c in columns)
        body = "".join("<tr>" + "".join(f"<td>{escape(v)}</td>" for v in line) + "</tr>" for line in lines)
        table = f'<table class="tuned"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
        parts.append(f"<h3>{escape(title)}</h3>{_wide(table)}")
    return f"<section><h2>Each strategy at its own best</h2>{''.join(parts)}</section>" if parts else ""


def _verdicts(summary: Summary, settings: ComparisonSettings) -> str:
    """Writes every verdict in words, on demand."""
    parts = []
    for title, members in titled(summary):
        sentences = verdicts(members, summary.metrics, settings.baseline)
        if settings.plan:
            sentences += plans(members, summary.metrics[0], settings.baseline, settings.plan, settings.fixed)
        items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) or "<li>Nothing to compare.</li>"
        parts.append(f'<div data-question="{escape(title)}"><h3>{escape(title)}</h3><ul>{items}</ul></div>')
    return f"<section><details><summary>Every verdict in words</summary>{''.join(parts)}</details></section>"


def _provenance(summary: Summary, command: str) -> str:
    runs = pd.concat([cell.runs for cell in summary.cells]) if summary.cells else pd.DataFrame()
    about = [json.loads(text) for text in runs["provenance"].unique()] if len(runs) else []
    facts = {"runs": str(len(runs)), "seeds": str(runs["seed"].nunique() if len(runs) else 0), "command": command}
    for key in ("device_name", "platform", "python", "commit"):
        facts[key.replace("_", " ")] = ", ".join(sorted({str(a[key]) for a in about if a.get(key)})) or "not recorded"
    facts["versions"] = ", ".join(sorted({f"{k} {v}" for a in about for k, v in a.get("versions", {}).items()}))
    facts["time of training, all runs"] = duration(runs["seconds"].fillna(0).sum() if len(runs) else 0)
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items()) + "</dl>"
