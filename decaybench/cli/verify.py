"""The command ``decaybench verify``, which trains strategies side by side and says which are the same."""

import sys
from typing import Annotated

import typer
from rich.console import Console

from decaybench.cli.options import parse_input, parse_pair
from decaybench.console import check_choice, guarded, say
from decaybench.errors import UsageError

FORMATS = ("table", "json")


@guarded
def verify(
    strategy: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A way to compare, two or more; also decoupled and forgotten-half."),
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="TARGET", help="Your model instead of the forum network, as for audit.")
    ] = None,
    input: Annotated[str | None, typer.Option(metavar="N,C,H,W", help="Shape of one batch for it.")] = None,
    kwargs: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="An argument of its factory.")] = None,
    steps: Annotated[int, typer.Option(min=1, max=10_000, help="Steps of training.")] = 20,
    weight_decay: Annotated[float, typer.Option(min=0.0, help="λ")] = 0.01,
    lr: Annotated[float | None, typer.Option(help="Learning rate; without it, each optimizer's own.")] = None,
    format: Annotated[str, typer.Option(metavar="NAME", help=", ".join(FORMATS))] = "table",
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Train every pair of methods side by side in float64 and show which are the same, and where others part.

    Example: decaybench verify --strategy exclude-alpha --strategy loss-penalty
    """
    if (target is None) != (input is None):
        raise UsageError("--target and --input belong together: the model, and the shape of one batch for it.")
    if strategy is not None and len(set(strategy)) < 2:
        raise UsageError("--strategy: a comparison needs two different ones.")
    check_choice("format", format, FORMATS)
    shape = None if input is None else parse_input(input)[1]
    options = dict(parse_pair(text) for text in kwargs or [])
    say("Training ways side by side …")
    import torch

    from decaybench.report import verify as render
    from decaybench.verify import claims as claims
    from decaybench.verify.conditions import conditions
    from decaybench.verify.lockstep import compare
    from decaybench.verify.methods import DEFAULT, method
    from decaybench.verify.model import forum, own

    torch.set_num_threads(1)  # small steps: several threads would wait for each other
    methods = tuple(dict.fromkeys(strategy or DEFAULT))
    for name in methods:
        method(name)  # says at once what is wrong with a name
    tested = (
        forum(steps, weight_decay, lr) if target is None else own(target, options, shape or (), steps, weight_decay, lr)
    )
    if not tested.alphas:
        say("Note: this model has no activation parameters; there is nothing to exclude.")
    rows = [row for condition in conditions(methods) for row in compare(tested, condition)]
    shrunk = claims.shrinkage()
    if format == "json":
        typer.echo(render.verify_to_json(rows + shrunk), nl=False)
        return
    console = Console(width=None if sys.stdout.isatty() else 180, highlight=False)
    render.print_verify(rows, claims.answer(rows), claims.known(rows + shrunk), console)
    legend = "identical: 0 at every step; equal 3e-17: rounding; 2e-02 from 1: different by 0.02, from step 1 on."
    console.print(f"\nλ {weight_decay:g}, {steps} steps in float64; the largest difference of any parameter. {legend}")
