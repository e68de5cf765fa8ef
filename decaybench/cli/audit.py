"""The command ``decaybench audit``, which shows what a recipe or an optimizer decays of a model."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.console import Console

from decaybench.cli.options import parse_pair, parse_shape
from decaybench.console import check_choice, guarded, say
from decaybench.errors import DecaybenchError, UsageError, unknown
from decaybench.parameter_roles.library_rules import Role
from decaybench.registry import RECIPES
from decaybench.report.audit import AUDIT_FORMATS, print_audit, remarks

if TYPE_CHECKING:
    from decaybench.audit.audit import Audit


@guarded
def audit(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="package.module:factory, path/to/file.py:factory, timm:NAME, torchvision:NAME, hf:CONFIG_OR_FOLDER.",
        ),
    ],
    input: Annotated[
        str | None,
        typer.Option(metavar="N,C,H,W", help="Shape of one batch: classify unknown modules by what they do."),
    ] = None,
    kwargs: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="An argument of the factory.")] = None,
    recipe: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help=f"Only this recipe: {', '.join(RECIPES)}")
    ] = None,
    optimizer: Annotated[
        str | None,
        typer.Option(metavar="TARGET", help="A function from the model to its optimizer(s): audit these instead."),
    ] = None,
    fail_on: Annotated[
        str | None, typer.Option(metavar="ROLES", help="Exit with 1 when such a parameter is decayed: activation,norm")
    ] = None,
    allow_unknown: Annotated[
        bool, typer.Option("--allow-unknown", help="--fail-on passes over modules of unknown type.")
    ] = False,
    snapshot: Annotated[Path | None, typer.Option(help="Write the audit to this text file, to be committed.")] = None,
    check: Annotated[Path | None, typer.Option(help="Exit with 1 when the audit is no longer as in this file.")] = None,
    format: Annotated[str, typer.Option(metavar="NAME", help=", ".join(AUDIT_FORMATS))] = "table",
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Show which parameters of a model each popular recipe decays. This executes the target's code.

    The line for a continuous integration: decaybench audit my/model.py:make --recipe torch --fail-on activation
    """
    check_choice("format", format, AUDIT_FORMATS)
    shape = parse_shape(input)
    options = dict(parse_pair(text) for text in kwargs or [])
    for name in recipe or []:
        if name not in RECIPES:
            raise unknown("recipe", name, RECIPES)
    if recipe and optimizer:
        raise UsageError("--recipe and --optimizer exclude each other: audit one or the other.")
    forbidden = _roles(fail_on)
    if forbidden and len(recipe or []) != 1 and not optimizer:
        raise UsageError("--fail-on needs the one --recipe, or the --optimizer, that you use.")
    done = _audit(target, options, shape, recipe or list(RECIPES), optimizer)
    _show(done, format)
    failures = _violations(done, forbidden, allow_unknown) if forbidden else []
    failures += _compare(done, check) if check else []
    if snapshot:
        _write(done, snapshot)
    if failures:
        raise DecaybenchError("\n".join(failures))


def _audit(
    target: str, options: dict[str, Any], shape: tuple[int, ...] | None, recipes: list[str], optimizer: str | None
) -> "Audit":
    from decaybench.audit.audit import audit as run_audit
    from decaybench.audit.audit import audit_optimizer
    from decaybench.audit.models import build, example, optimizers_of

    model = build(target, options, shapes_only=shape is None)
    batch = None if shape is None else example(model, shape)
    if optimizer:
        return audit_optimizer(model, optimizers_of(optimizer, model), batch)
    return run_audit(model, recipes, batch)


def _roles(text: str | None) -> list[Role]:
    allowed = get_args(Role)
    given = [part.strip() for part in (text or "").split(",") if part.strip()]
    for role in given:
        if role not in allowed:
            raise unknown("role", role, allowed)
    return given  # type: ignore[return-value]


def _show(done: "Audit", format: str) -> None:
    if format == "table" and sys.stdout.isatty():
        print_audit(done, Console(highlight=False))
        return
    typer.echo(AUDIT_FORMATS[format](done), nl=False)
    if format in ("csv", "json"):
        for remark in remarks(done):
            say(f"Note: {remark}")


def _violations(done: "Audit", forbidden: list[Role], allow_unknown: bool) -> list[str]:
    """Describes each thing that ``--fail-on`` forbids, a sentence each."""
    (recipe,) = done.recipes
    roles = forbidden if allow_unknown or "unknown" in forbidden else [*forbidden, "unknown"]
    found = []
    for role in roles:
        if hit := done.decayed(recipe, role):
            names = ", ".join(row.name for row in hit[:8]) + (" …" if len(hit) > 8 else "")
            advice = " Give --input to classify them, or --allow-unknown." if role == "unknown" else ""
            found.append(f"{recipe} decays {len(hit)} parameters of role {role}: {names}.{advice}")
    if done.missing:
        found.append(f"The optimizer lacks {', '.join(done.missing)}.")
    if done.repeated:
        found.append(f"The optimizer has more than once: {', '.join(done.repeated)}.")
    return found


def _compare(done: "Audit", path: Path) -> list[str]:
    from decaybench.audit.snapshot import Snapshot

    before, now = Snapshot.read(path), Snapshot.of(done)
    if before.recipes != now.recipes:
        raise UsageError(f"{path} is about {', '.join(before.recipes)}, this audit about {', '.join(now.recipes)}.")
    changes = before.changes(now)
    if not changes:
        return []
    return [f"The audit is no longer as in {path}; accept it with --snapshot {path}.", *changes]


def _write(done: "Audit", path: Path) -> None:
    from decaybench.audit.snapshot import Snapshot

    try:
        path.write_text(Snapshot.of(done).text(), encoding="utf-8")
    except OSError as error:
        raise DecaybenchError(f"--snapshot {path} cannot be written: {error.strerror}.") from error
