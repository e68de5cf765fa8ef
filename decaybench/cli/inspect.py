"""The command ``decaybench inspect``, which shows the activation parameters in a checkpoint."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from decaybench.cli.options import parse_inputs, parse_pair
from decaybench.console import check_choice, guarded, say
from decaybench.errors import DecaybenchError, UsageError
from decaybench.report.inspect import INSPECT_FORMATS, Inspected, print_inspected

Texts = list[str] | None
GUESS = (
    "Found by shape and name (one-dimensional weights without a bias beside them, and names that activations use), so "
    "a norm without bias may be among them: --target or --parameter says exactly which."
)


@guarded
def inspect(
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="CHECKPOINT", help=".safetensors, or a file of torch.save; no code in it is executed."),
    ],
    against: Annotated[Path | None, typer.Option(metavar="OTHER", help="Another checkpoint, to compare with.")] = None,
    target: Annotated[
        str | None, typer.Option(help="The model it is of, as for audit; this executes its code.")
    ] = None,
    kwargs: Annotated[Texts, typer.Option(metavar="KEY=VALUE", help="An argument of the model's factory.")] = None,
    input: Annotated[
        Texts, typer.Option(metavar="[NAME=]N,C,H,W[:TYPE]", help="Shape of one batch for the model, as for audit.")
    ] = None,
    parameter: Annotated[Texts, typer.Option(metavar="PATTERN", help="These names, such as '*.prelu?.weight'.")] = None,
    lr: Annotated[
        float | None, typer.Option(min=0.0, help="With --weight-decay and --steps: how far decay shrinks.")
    ] = None,
    weight_decay: Annotated[float | None, typer.Option(min=0.0, help="λ.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Optimizer steps.")] = None,
    format: Annotated[str, typer.Option(metavar="NAME", help=", ".join(INSPECT_FORMATS))] = "table",
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Show what the learned activation parameters of a trained model look like, layer by layer.

    Example: decaybench inspect model.safetensors
    """
    check_choice("format", format, INSPECT_FORMATS)
    if target and parameter:
        raise UsageError("--target and --parameter exclude each other: the model decides, or the names do.")
    if (kwargs or input) and not target:
        raise UsageError("--kwargs and --input are about the model: give its --target, too.")
    asked = (lr, weight_decay, steps)
    if any(value is not None for value in asked) and None in asked:
        raise UsageError("--lr, --weight-decay and --steps belong together.")
    from decaybench.audit.checkpoint import learned_layers, load_state, shrink
    from decaybench.audit.models import Input, build, example

    model = batch = None
    if target:
        model = build(target, dict(parse_pair(text) for text in kwargs or []), shapes_only=not input)
        inputs = [Input(shape, name, kind) for name, shape, kind in parse_inputs(input or [])]
        batch = example(model, inputs) if inputs else None
    layers = learned_layers(load_state(checkpoint), parameter or (), model, batch)
    if not layers:
        raise DecaybenchError(
            f"{checkpoint} has no activation parameters that can be told; name them with --parameter."
        )
    others = None
    if against:
        there = load_state(against)
        common = [x.name for x in layers if x.name in there]
        if not common:
            raise UsageError(f"{against} has none of these names: {', '.join(x.name for x in layers[:3])} …")
        others = {layer.name: layer for layer in learned_layers(there, common)}
    remarks = [] if target or parameter else [GUESS]
    if lr is not None and weight_decay is not None and steps is not None:
        factor = shrink(lr, weight_decay, steps)
        remarks.append(
            f"With lr {lr:g}, λ {weight_decay:g} and {steps:,} steps, decay alone shrinks a parameter without gradient "
            f"to ×{factor:.3g} (SGD without momentum, and AdamW, at a constant rate)."
        )
    wrong = {layer.name: layer.not_finite for layer in layers if layer.not_finite}
    if wrong:
        listed = ", ".join(f"{count} in {name}" for name, count in wrong.items())
        remarks.append(f"Not finite, and left out of the numbers: {listed}.")
    found = Inspected(layers, others, remarks)
    if format == "table" and sys.stdout.isatty():
        print_inspected(found, Console(highlight=False))
    else:
        typer.echo(INSPECT_FORMATS[format](found), nl=False)
        for remark in remarks if format in ("csv", "json") else ():
            say(f"Note: {remark}")
