"""The command ``decaybench report`` with its options; `tabulate` does the work."""

from pathlib import Path
from typing import Annotated

import typer

from decaybench.console import guarded
from decaybench.report.formats import FIGURE_NAMES, FORMATS

FILES = "Files"


@guarded
def report(
    directory: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="A study folder; without it, the one that changed last."),
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help=f"{', '.join(FORMATS)}; without it, what --output ends in.", rich_help_panel=FILES
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="Write it to this file: report.html, figure.pdf, …", rich_help_panel=FILES)
    ] = None,
    figure: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"For png, svg, pdf: {', '.join(FIGURE_NAMES)}.", rich_help_panel=FILES),
    ] = None,
    figure_width: Annotated[
        float | None,
        typer.Option(
            min=1.0,
            max=50.0,
            metavar="INCHES",
            help="3.3 is one column of a paper; without it, 6.5.",
            rich_help_panel=FILES,
        ),
    ] = None,
    font_size: Annotated[
        float | None,
        typer.Option(min=4.0, max=40.0, metavar="POINTS", help="Of a figure; without it, 9.", rich_help_panel=FILES),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A column of the LaTeX table. More: repeat it.", rich_help_panel=FILES),
    ] = None,
    epochs: Annotated[
        bool, typer.Option("--epochs", help="CSV with one line a run and epoch.", rich_help_panel=FILES)
    ] = False,
    layers: Annotated[bool, typer.Option("--layers", help="Show every activation layer.")] = False,
    wide: Annotated[bool, typer.Option("--wide", help="Show every column, however narrow the terminal.")] = False,
    baseline: Annotated[
        str | None, typer.Option(help="The strategy that the others are compared with; without it, decay-all.")
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="What is compared, score:max say; the first comes first. More: a list."),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(min=0.0, metavar="POINTS", help="Differences of the first metric within ±POINTS count as none."),
    ] = None,
    primary: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The contrast that was asked for before; the study's, if it names one."),
    ] = None,
    plan: Annotated[
        float | None,
        typer.Option(min=0.001, metavar="POINTS", help="Say how many seeds and test examples ±POINTS would take."),
    ] = None,
    fixed_test_set: Annotated[
        bool, typer.Option("--fixed-test-set", help="Intervals over seeds only, on these test examples.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--everything", help="Show records that study.toml does not ask for, too.")
    ] = False,
    follow: Annotated[bool, typer.Option("--follow", help="Show it again as runs finish, until all are.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Show what a study found: metrics, differences with intervals, activation parameters.

    Example: decaybench report results/digits --output report.html
    """
    given = dict(locals())
    from decaybench.cli.tabulate import tabulate  # takes half a second, which --help need not wait for

    tabulate(given)
