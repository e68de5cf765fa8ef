"""Writes the answer of a study: a sentence for each of the first two metrics, and one about each strategy's best."""

from collections.abc import Sequence

from decaybench.analysis.comparison import ComparisonSettings, Summary, of
from decaybench.analysis.frame import Row
from decaybench.analysis.tuning import tuned
from decaybench.registry.metrics import Metric
from decaybench.report.figure_frames import asked_for, is_asked, methods
from decaybench.report.numbers import format_number, joined
from decaybench.report.titles import Member, apart, titled
from decaybench.report.verdicts import difference_of, difference_text, tuned_tables

COLLAPSED = 0.6  # of the best accuracy of a question
NAMED = 4  # of more comparisons with one verdict only the number is said
ORDER = ("better", "worse", "the same", "never differed", "cannot tell")


def headline(summary: Summary, settings: ComparisonSettings) -> list[str]:
    """Writes the answer: how the contrast that is asked about turned out, in all questions and at all decays.

    Args:
        summary: The summary of a study.
        settings: How cells were compared.

    Returns:
        One sentence for each of the first two metrics, and one about the strategies at their own best, where the study
        has several decays or rates; one that says so where nothing could be compared.
    """
    name = asked_for(summary, settings)
    sentences = [_sentence(summary, settings.baseline, name, metric) for metric in summary.metrics[:2]]
    found = [sentence for sentence in sentences if sentence]
    if found:
        return found + _at_its_best(summary, settings, name)
    single = any(of(row, m, "difference") is not None for row in summary.rows for m in summary.metrics)
    return ["One seed gives no verdict."] if single else [f"Nothing here can be compared with {settings.baseline}."]


def _sentence(summary: Summary, baseline: str, name: str, metric: Metric) -> str:
    found: dict[str, list[tuple[str, str]]] = {}
    lost = diverged = 0
    questions = titled(summary)
    _, short = apart([question.title for question in questions])
    for title, members in questions:
        several = len({row["weight_decay"] for row, _ in members if row["weight_decay"]}) > 1
        for base, (row, _) in methods(members):
            verdict = of(row, metric, "verdict")
            if not is_asked(row, members, name):
                continue
            if verdict is None:
                diverged += bool(name) and row["seeds"] > 1 and of(row, metric, "difference") is None
                continue
            if _both_collapsed(row, members, summary.metrics):
                lost += 1
                continue
            decay = f"λ {format_number(base['decay'])}" if several and base["decay"] else ""
            what = " · ".join(filter(None, (short[title], "" if name else base["strategy"])))
            where = " at ".join(filter(None, (what, decay)))
            found.setdefault(verdict, []).append((where, difference_of(row, metric) + metric.unit))
    if not found:
        return ""
    count = sum(map(len, found.values()))
    verdicts = sorted(found, key=lambda v: next(i for i, start in enumerate(ORDER) if v.startswith(start)))
    clauses = [_clause(verdict, found[verdict], count, baseline if not i else "") for i, verdict in enumerate(verdicts)]
    title = metric.title[:1].upper() + metric.title[1:]
    left_out = [f"{lost} in which both collapsed"] if lost else []
    left_out += [f"{diverged} in which runs diverged or recorded nothing"] if diverged else []
    rest = f" Left out: {joined(left_out)}." if left_out else ""
    return f"{title}: {name or 'each strategy'} {'; '.join(clauses)}.{rest}"


def _both_collapsed(row: Row, members: Sequence[Member], metrics: Sequence[Metric]) -> bool:
    """Tells whether a method and its baseline both are far below the best accuracy of their question."""
    metric = next((m for m in metrics if m.scale == "percent"), None)
    if metric is None or of(row, metric, "") is None or of(row, metric, "baseline") is None:
        return False
    best = max(of(r, metric, "") or 0.0 for r, _ in members)
    return bool(max(of(row, metric, ""), of(row, metric, "baseline")) < COLLAPSED * best)


def _at_its_best(summary: Summary, settings: ComparisonSettings, name: str) -> list[str]:
    """Says how the contrast turns out where each strategy has the decay and rate that validation chose for it."""
    metric = summary.metrics[0]
    questions = tuned(summary.cells, metric, settings.baseline, settings.fixed)
    titles = [title for title, _, _ in tuned_tables(questions, metric, settings.baseline)]
    _, short = apart([title.partition(" · each at its own best")[0] for title in titles])
    found = []
    for title, rows in zip(titles, questions, strict=True):
        where = short[title.partition(" · each at its own best")[0]]
        row = next((r for r in rows if name in r["strategy"].split(" = ")), None)
        if row is not None and row["difference"] is not None:
            ends = (row[f"difference{end}"] for end in ("", "_low", "_high"))
            found.append(f"{where} {difference_text(metric, row['baseline'], *ends)}".strip())
    if not found:
        return []
    return [f"With each at its own best, {metric.title} differs by {joined(found)}{metric.unit}."]


def _clause(verdict: str, places: Sequence[tuple[str, str]], count: int, baseline: str) -> str:
    """Says of one verdict where it holds, and how large differences are, but where they are none."""
    verb, preposition = {
        "never differed": ("never differs", "from"),
        "cannot tell": ("gives no verdict", "against"),
    }.get(verdict, (f"is {verdict}", "than" if verdict in ("better", "worse") else "as"))
    words = f"{verb} {preposition} {baseline}" if baseline else verb
    if len(places) > NAMED:
        return f"{words} in {len(places)} of {count} comparisons"
    sized = verdict in ("better", "worse", "cannot tell") or count == 1
    named = [f"{where} ({change})".strip() if sized else where for where, change in places]
    where = "for " if places[0][0] else ""
    return f"{words} {where}{joined(named)}" if any(named) else words
