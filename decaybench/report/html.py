"""Writes the report as one HTML page without external resources."""

import base64
import hashlib
import json
import re
from html import escape as html_escape
from typing import Any

import pandas as pd

from decaybench.analysis.comparison import ComparisonSettings, Summary, of
from decaybench.analysis.tuning import tuned
from decaybench.errors import DecaybenchError, printable
from decaybench.registry.metrics import Metric
from decaybench.report.figures import draw, save
from decaybench.report.numbers import (
    format_change,
    format_interval,
    format_number,
    format_percent,
    format_value,
    heading,
)
from decaybench.report.reading import how_to_read
from decaybench.report.titles import distinct, titled
from decaybench.report.verdicts import difference_of, plans, tuned_tables, verdicts


def escape(text: str) -> str:
    """Escapes a text for HTML, control characters included."""
    return html_escape(printable(text))


CAPTIONS = {
    "differences": "Differences to the baseline with their intervals; what is clear after Holm's correction is orange.",
    "decay": "Each metric against decay; dotted: the control without decay.",
    "alphas": "Activation parameters in the course of training, mean of seeds: median, 5% and 95% quantile.",
    "functions": "Learned functions, mean of channels and seeds, over the inputs that their layer really gets (grey).",
    "pulls": "How hard decay pulls beside the gradient, for each parameter over the steps.",
}
STYLE = """
:root{color-scheme:light dark;--line:#8884}
body{overflow-wrap:anywhere;font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:auto;padding:1rem}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .6rem;border-bottom:1px solid var(--line);text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}th button{all:unset;cursor:pointer;font-weight:600}
th button:focus-visible{outline:2px solid}th[aria-sort=ascending] button::after{content:" ▲"}
th[aria-sort=descending] button::after{content:" ▼"}input{font:inherit;padding:.2rem .5rem;margin:.5rem 0}
svg{max-width:100%;height:auto}svg text{fill:currentColor}
figure{margin:1rem 0;overflow-x:auto}figcaption{font-size:.85rem;opacity:.8}
@media print{input{display:none}body{max-width:none}}
"""
SCRIPT = """
const value = c => { const t = c.textContent.replace('\\u2212', '-'); const n = parseFloat(t.replace(/^\\[/, ''));
  return Number.isNaN(n) ? t : n; };
document.querySelectorAll('th button').forEach(b => b.addEventListener('click', () => {
  const th = b.closest('th'), table = th.closest('table'), i = [...th.parentNode.children].indexOf(th);
  const up = th.getAttribute('aria-sort') !== 'ascending';
  table.querySelectorAll('th').forEach(h => h.removeAttribute('aria-sort'));
  th.setAttribute('aria-sort', up ? 'ascending' : 'descending');
  const rows = [...table.tBodies[0].rows];
  rows.sort((r, s) => { const a = value(r.cells[i]), b = value(s.cells[i]);
    const order = typeof a === typeof b ? (a < b ? -1 : a > b ? 1 : 0) : typeof a === 'number' ? -1 : 1;
    return up ? order : -order; });
  rows.forEach(r => table.tBodies[0].append(r)); }));
document.querySelector('#filter').addEventListener('input', e => {
  const words = e.target.value.toLowerCase().split(/\\s+/);
  document.querySelectorAll('table.cells tbody tr').forEach(r => {
    const text = (r.closest('section').dataset.title + ' ' + r.textContent).toLowerCase();
    r.hidden = !words.every(w => text.includes(w)); }); });
"""


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title><style>{style}</style></head>
<body>
{body}
<script>{script}</script>
</body></html>
"""


def to_html(summary: Summary, settings: ComparisonSettings, name: str, description: str, command: str) -> str:
    """Writes the whole page.

    Args:
        summary: The summary to show.
        settings: How cells are compared.
        name: Name of the study.
        description: What the study asks.
        command: The command that reproduces the study.
    """
    metrics = summary.metrics
    sections = [_section(title, [row for row, _ in distinct(members)], metrics) for title, members in titled(summary)]
    figures = [_figure(key, caption, summary, settings.baseline) for key, caption in CAPTIONS.items()]
    notes = "".join(f"<li>{escape(note)}</li>" for note in summary.notes)
    body = [
        f"<h1>{escape(name)}</h1><p>{escape(description)}</p>",
        "<h2>Verdict</h2>" + _verdicts(summary, settings) + f"<p>{escape(how_to_read(summary, settings))}</p>",
        _tuned(summary, settings),
        '<h2>Every cell</h2><label>Filter <input id="filter" type="search" placeholder="kaf sgd …"></label>',
        *sections,
        *figures,
        f"<h2>Notes</h2><ul>{notes}</ul>" if notes else "",
        "<h2>Provenance</h2>" + _provenance(summary, command),
    ]
    page = "\n".join(part for part in body if part)
    return PAGE.format(title=escape(printable(name)), style=STYLE, body=page, script=SCRIPT, policy=_policy())


def _policy() -> str:
    """Lets the page load nothing and run its own script only."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    inline = "style-src 'unsafe-inline'"  # the figures' styles
    return f"default-src 'none'; {inline}; script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"


def _verdicts(summary: Summary, settings: ComparisonSettings) -> str:
    parts = []
    for title, members in titled(summary):
        sentences = verdicts(members, summary.metrics, settings.baseline)
        if settings.plan:
            sentences += plans(members, summary.metrics[0], settings.baseline, settings.plan, settings.fixed)
        items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) or "<li>Nothing to compare.</li>"
        parts.append(f"<p><b>{escape(title)}</b></p><ul>{items}</ul>")
    return "".join(parts)


def _table(columns: tuple[str, ...] | list[str], lines: list[list[str]], kind: str) -> str:
    head = "".join(f'<th scope="col"><button type="button">{escape(c)}</button></th>' for c in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(v)}</td>" for v in line) + "</tr>" for line in lines)
    return f'<div class="wide"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _section(title: str, rows: list[dict[str, Any]], metrics: tuple[Metric, ...]) -> str:
    has_lr = any(row["lr"] is not None for row in rows)
    columns = ["strategy", "decay", *(["lr"] if has_lr else []), "seeds"]
    for metric in metrics:
        columns += [heading(metric), "95% interval", "difference", "p (Holm)", "better in %", "pairing r"]
        columns += ["would have shown", "verdict"]
    table = _table([*columns, "α mean", "≈0 %"], [_line(row, metrics, has_lr) for row in rows], "cells")
    return f'<section data-title="{escape(title)}"><h3>{escape(title)}</h3>{table}</section>'


def _line(row: dict[str, Any], metrics: tuple[Metric, ...], has_lr: bool) -> list[str]:
    return [
        *(format_number(row[key]) for key in ("strategy", "weight_decay", *(["lr"] if has_lr else []))),
        f"{row['seeds']}" + (f" ({row['diverged']} diverged)" if row["diverged"] else ""),
        *(text for metric in metrics for text in _of_metric(row, metric)),
        format_number(row["alpha_mean"]),
        format_percent(row["alpha_near_zero"]),
    ]


def _of_metric(row: dict[str, Any], metric: Metric) -> list[str]:
    better = of(row, metric, "improvement")
    return [
        format_value(metric, of(row, metric, "")),
        format_interval(metric, of(row, metric, "low"), of(row, metric, "high")),
        difference_of(row, metric),
        format_number(of(row, metric, "p_holm")),
        "–" if better is None else f"{100 * better:.0f}",
        format_number(of(row, metric, "pairing")),
        format_change(metric, of(row, metric, "detectable"), of(row, metric, "baseline"), signed=False),
        of(row, metric, "verdict") or "–",
    ]


def _tuned(summary: Summary, settings: ComparisonSettings) -> str:
    first = summary.metrics[0]
    rows = tuned(summary.cells, first, settings.baseline, settings.fixed)
    tables = tuned_tables(rows, first, settings.baseline)
    parts = [f"<h3>{escape(title)}</h3>" + _table(columns, lines, "tuned") for title, columns, lines in tables]
    return ("<h2>Each strategy at its own best</h2>" + "".join(parts)) if parts else ""


def _figure(key: str, caption: str, summary: Summary, baseline: str) -> str:
    """Writes a figure as SVG with tooltips, in the colours of the page, described in words."""
    try:
        canvas = draw(key, summary, baseline)
    except DecaybenchError as error:  # too much for one figure
        return f"<p>{escape(str(error))}</p>"
    if canvas is None:
        return ""
    svg = save(canvas, "svg").decode()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'<g id="(tip\d+)">', lambda m: f"<g><title>{escape(canvas.tips[m[1]])}</title>", svg)
    # Ids of several figures on one page; a colour begins with the same character as a reference does.
    svg = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{key}-", svg)
    svg = (
        svg.replace("#000000", "currentColor")
        .replace("fill: #ffffff", "fill: none")
        .replace("<svg ", '<svg role="img" ', 1)
    )
    label = f'aria-label="{escape(caption)}"'
    return f"<figure>{svg.replace('<svg ', f'<svg {label} ', 1)}<figcaption>{escape(caption)}</figcaption></figure>"


def _provenance(summary: Summary, command: str) -> str:
    runs = pd.concat([cell.runs for cell in summary.cells]) if summary.cells else pd.DataFrame()
    about = [json.loads(text) for text in runs["provenance"].unique()] if len(runs) else []
    facts = {"runs": str(len(runs)), "seeds": str(runs["seed"].nunique() if len(runs) else 0), "command": command}
    for key in ("device_name", "platform", "python", "commit"):
        facts[key] = ", ".join(sorted({str(a.get(key)) for a in about}))
    facts["versions"] = ", ".join(sorted({f"{k} {v}" for a in about for k, v in a.get("versions", {}).items()}))
    facts["hours of training"] = f"{sum(a.get('seconds') or 0 for a in about) / 3600:.2f}"
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items()) + "</dl>"
