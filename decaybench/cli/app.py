"""The commands and their options."""

from typing import Annotated

import typer

from decaybench import __version__
from decaybench.bench.command import bench
from decaybench.cli.audit import audit
from decaybench.cli.import_table import import_table
from decaybench.cli.inspect import inspect
from decaybench.cli.list import print_catalog
from decaybench.cli.pack import pack
from decaybench.cli.report import report
from decaybench.cli.run import run
from decaybench.cli.status import status
from decaybench.cli.verify import verify

app = typer.Typer(
    help="What weight decay does to learned activation functions.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(run)
app.command()(report)
app.command()(status)
app.command()(pack)
app.command("import")(import_table)
app.command()(audit)
app.command()(inspect)
app.command()(verify)
app.add_typer(bench, name="bench")
app.command("list")(print_catalog)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"decaybench {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """What weight decay does to learned activation functions."""
