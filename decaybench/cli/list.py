"""The command ``decaybench list``, which prints what can be named."""

from collections.abc import Mapping
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from decaybench.console import guarded
from decaybench.errors import unknown
from decaybench.registry import EXECUTORS, FAMILIES, RECIPES
from decaybench.registry.entry import Entry
from decaybench.registry.recipes import Recipe
from decaybench.registry.strategies import StrategyEntry
from decaybench.report.numbers import rich_text
from decaybench.study.study import builtin_studies

PLURALS = {
    "strategy": "strategies",
    "activation": "activations",
    "network": "networks",
    "dataset": "datasets",
    "optimizer": "optimizers",
    "schedule": "schedules",
    "loss": "losses",
    "executor": "executors",
    "recipe": "recipes",
}


@guarded
def print_catalog(
    what: Annotated[str | None, typer.Argument(help="strategies, activations, networks …: with their options.")] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """List strategies, activations, networks, data sets, optimizers, schedules, recipes and studies.

    Example: decaybench list strategies
    """
    console = Console(width=None if Console().is_terminal else 120, highlight=False)
    names = [*PLURALS.values(), "studies"]
    if what is not None and what not in names:
        raise unknown("list", what, names)
    for family, plural in PLURALS.items():
        if what in (None, plural):
            others: Mapping[str, Mapping[str, Entry | Recipe]] = {"recipe": RECIPES, "executor": EXECUTORS}
            entries = others[family] if family in others else FAMILIES[family]
            rows = [(name, _describe(entry, detailed=what is not None)) for name, entry in entries.items()]
            _print(console, plural, rows)
    if what in (None, "studies"):
        _print(console, "studies", [(n, str(s.get("description", ""))) for n, s in builtin_studies().items()])
    if what is None:
        console.print(rich_text("Options: decaybench list activations, and so on; give them as kaf,D=8,kernel=relu."))
        console.print(
            rich_text(
                "Your own strategy, activation, network or data set: package.module:factory or path/to/file.py:factory."
            )
        )


def _describe(entry: Entry | Recipe, detailed: bool) -> str:
    if isinstance(entry, Recipe):
        return entry.summary
    decays = f" [decays {entry.decays}]" if isinstance(entry, StrategyEntry) else ""
    options = ", ".join(f"{k}={'…' if v.is_required() else v.default}" for k, v in entry.options.model_fields.items())
    return entry.summary + decays + (f" · {options}" if detailed and options else "")


def _print(console: Console, title: str, rows: list[tuple[str, str]]) -> None:
    table = Table(
        title=rich_text(title, style="bold"), title_justify="left", box=None, show_header=False, pad_edge=False
    )
    table.add_column(no_wrap=True, style="cyan", min_width=16)
    table.add_column()
    for name, summary in rows:
        table.add_row(rich_text(name), rich_text(summary))
    console.print(table)
    console.print()
