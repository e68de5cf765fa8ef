"""``decaybench bench …``."""

import sys
from typing import Annotated, Any

import typer
from rich.console import Console

from decaybench.console import check_choice, check_device, guarded, say

FORMATS = ("table", "json")
FormatName = Annotated[str, typer.Option(metavar="NAME", help=", ".join(FORMATS))]

bench = typer.Typer(
    help="Measure speed, side by side with the plain alternative.", no_args_is_help=True, add_completion=False
)


@bench.callback()
def _several() -> None:
    """Measure speed, side by side with the plain alternative. Nothing else should compute meanwhile."""


@bench.command()
@guarded
def activations(
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu, cuda, cuda:1, mps")] = "cpu",
    rounds: Annotated[int, typer.Option(min=1, help="Times each is measured; the best counts.")] = 20,
    format: FormatName = "table",
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Learned activations against torch's own and against their definition, forward and backward."""
    check_device(device)
    check_choice("format", format, FORMATS)
    say("Measuring, about a minute …")
    import torch

    from decaybench.bench import activations as measure
    from decaybench.execution.device import resolve
    from decaybench.training.provenance import device_name

    where = resolve(device)
    rate = measure.copy_rate(where, rounds)
    costs = list(measure.costs(where, rounds, rate))
    found = {
        "goals": list(measure.goals(costs, where)),
        "forward + backward": costs,
        "growth with D, with the kernel, with the input": list(measure.growth(where, rounds)),
        "memory": list(measure.memory(where)),
        "first call in a new process": list(measure.first_calls()),
    }
    about = (
        f"{device_name(where)}, {torch.get_num_threads()} threads, torch {torch.__version__}, {measure.timestamp()}; "
    )
    about += f"a copy moves {rate:.3g} GB/s"
    _show(about, found, format)


@bench.command()
@guarded
def study(
    epochs: Annotated[int, typer.Option(min=1, help="Of every run, on a GPU.")] = 10,
    rounds: Annotated[int, typer.Option(min=1, help="Times that contenders take turns.")] = 3,
    device: Annotated[str, typer.Option(metavar="NAME", help="cpu, cuda, cuda:1")] = "cpu",
    format: FormatName = "table",
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Whole studies against the scripts a user would write, every contender in a process of its own."""
    check_device(device)
    check_choice("format", format, FORMATS)
    say("Measuring, a quarter of an hour …")
    import torch

    from decaybench.bench import study as measure
    from decaybench.execution.device import resolve
    from decaybench.execution.options import available_cores
    from decaybench.training.provenance import device_name

    where = resolve(device)
    about = f"{device_name(where)}, torch {torch.__version__}"
    if where.type != "cpu":
        _show(about, {"a whole study and a script": [measure.whole(where, epochs)]}, format)
        return
    found = {
        "a step of a run, one thread": list(measure.steps(rounds)),
        "an epoch of a run, all cores": list(measure.contest(available_cores(), rounds)),
        "cost beyond training": [measure.overhead()],
        "growth with the number of runs": list(measure.growth()),
    }
    _show(about, found, format)


@bench.command()
@guarded
def report(
    runs: Annotated[list[int] | None, typer.Option(min=1, help="How many runs; several times for several.")] = None,
    format: FormatName = "table",
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """The report of very many runs."""
    check_choice("format", format, FORMATS)
    say("Measuring, some minutes …")
    from decaybench.bench.report import reports
    from decaybench.training.provenance import processor

    _show(processor(), {"decaybench report": list(reports(tuple(runs or (1000, 10_000))))}, format)


@bench.command()
@guarded
def verdicts(
    seeds: Annotated[int, typer.Option(min=20, help="Seeds of every null and every contrast.")] = 100,
    format: FormatName = "table",
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """What verdicts and intervals promise, on real runs: false alarms where nothing differs, and coverage."""
    check_choice("format", format, FORMATS)
    say("Training some thousand runs, a quarter of an hour …")
    from decaybench.bench import verdicts as measure
    from decaybench.training.provenance import processor

    found = {
        "false alarms, nominally 0.05": list(measure.false_alarms(seeds)),
        "coverage of new seeds and new images, nominally 0.95": list(measure.coverage(seeds)),
    }
    _show(f"{processor()}, {seeds} seeds", found, format)


def _show(about: str, found: dict[str, list[dict[str, Any]]], format: str) -> None:
    from decaybench.bench.tables import print_rows, to_json

    if format == "json":
        typer.echo(to_json({"machine": about, **found}), nl=False)
        return
    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    console.print(about)
    for title, rows in found.items():
        print_rows(title, rows, console)
