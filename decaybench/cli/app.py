"""The commands. Each is imported when it is called, so that ``--help`` answers at once."""

import re
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from decaybench import __version__

# Where each command is, and its line in the list of commands: the first line of its docstring.
COMMANDS = {
    "run": ("decaybench.cli.run:run", "Train identical networks under several strategies and tabulate what changed."),
    "report": (
        "decaybench.cli.report:report",
        "Show what a study found: metrics, differences with intervals, activation parameters.",
    ),
    "status": ("decaybench.cli.status:status", "Show how far a study is that is running or was left."),
    "pack": (
        "decaybench.cli.pack:pack",
        "Put the records of finished studies into one file each: runs.parquet, which pandas and DuckDB read.",
    ),
    "import": (
        "decaybench.cli.import_table:import_table",
        "Make a study of runs from elsewhere, a W&B export say, so that report and its page serve them, too.",
    ),
    "audit": (
        "decaybench.cli.audit:audit",
        "Show which parameters of a model each popular recipe decays. This executes the target's code.",
    ),
    "inspect": (
        "decaybench.cli.inspect:inspect",
        "Show what the learned activation parameters of a trained model look like, layer by layer.",
    ),
    "verify": (
        "decaybench.cli.verify:verify",
        "Train every pair of methods side by side in float64 and show which are the same, and where others part.",
    ),
    "bench": ("decaybench.bench.command:bench", "Measure speed, side by side with the plain alternative."),
    "list": (
        "decaybench.cli.list:print_catalog",
        "List strategies, activations, networks, data sets, optimizers, schedules, recipes and studies.",
    ),
}
SETTINGS: dict[str, Any] = {"context_settings": {"help_option_names": ["-h", "--help"]}}


class Command(TyperCommand):
    """A command that says how an option gets several values, where a word is left over."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Reads the words behind the command."""
        words = list(args)
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            extra = re.search(r"unexpected extra argument\S* \(([^\s)]+)", str(getattr(error, "message", "")))
            before = words[: words.index(extra[1])] if extra and extra[1] in words else []
            option = next((word for word in reversed(before) if word.startswith("--")), "")
            if option:
                error.message += f". Is it for {option}? Repeat it for each value: {option} {extra[1]}"  # type: ignore[attr-defined,index]
            raise


class Commands(TyperGroup):
    """The group of all commands."""

    brief = False  # whether one line about each is enough

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = {name: TyperCommand(name, help=line) for name, (_, line) in COMMANDS.items()}

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Imports a command; where only the list of commands is asked for, gives its name and line."""
        if self.brief or cmd_name not in COMMANDS:
            return self.commands.get(cmd_name)
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        found = getattr(import_module(module), attribute)
        if not isinstance(found, typer.Typer):
            alone = typer.Typer(add_completion=False, **SETTINGS)
            alone.command(cmd_name, cls=Command)(found)
            found = alone
        command = typer.main.get_command(found)
        command.name = cmd_name
        return command

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Writes the list of commands without importing them."""
        self.brief = True
        super().format_help(ctx, formatter)
        self.brief = False


app = typer.Typer(
    cls=Commands,
    help="What weight decay does to learned activation functions.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    **SETTINGS,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"decaybench {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """What weight decay does to learned activation functions."""
