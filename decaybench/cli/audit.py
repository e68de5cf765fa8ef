"""The command ``decaybench audit``, which shows what a recipe or an optimizer decays of a model."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.console import Console

from decaybench.cli.audit_settings import from_pyproject
from decaybench.cli.options import parse_inputs, parse_pair
from decaybench.console import check_choice, guarded, say
from decaybench.errors import DecaybenchError, UsageError, unknown
from decaybench.parameter_roles.library_rules import Role
from decaybench.registry import RECIPES
from decaybench.report.audit import AUDIT_FORMATS, OF_A_GATE, Shown, print_audit, remarks

if TYPE_CHECKING:
    from decaybench.audit.audit import Audit, AuditedParameter
    from decaybench.registry.recipes import Recipe


@dataclass(frozen=True)
class Request:
    """What is audited, and what must not be.

    Attributes:
        inputs: Name, shape and type of each argument of an example input.
        kwargs: Arguments of the factory.
        recipes: The recipes, by name; not used with an optimizer.
        optimizer: A function from the model to its optimizers.
        forbidden: Roles that must not be decayed.
    """

    inputs: list[tuple[str, tuple[int, ...], str]]
    kwargs: Mapping[str, Any]
    recipes: "Mapping[str, Recipe]"
    optimizer: str | None
    forbidden: list[Role]
    allow_unknown: bool


Texts = list[str] | None
MOST_NAMES = 8  # parameters that one sentence names


@guarded
def audit(
    targets: Annotated[
        Texts,
        typer.Argument(
            metavar="TARGET",
            help="package.module:factory, path/to/file.py:factory, timm:NAME, torchvision:NAME, hf:CONFIG_OR_FOLDER; "
            "without any, what the table tool.decaybench.audit of pyproject.toml says.",
        ),
    ] = None,
    input: Annotated[
        Texts,
        typer.Option(
            metavar="[NAME=]N,C,H,W[:TYPE]",
            help="Shape of one batch, once for each argument: find out unknown roles by running the model.",
        ),
    ] = None,
    kwargs: Annotated[Texts, typer.Option(metavar="KEY=VALUE", help="An argument of the factory.")] = None,
    recipe: Annotated[Texts, typer.Option(metavar="NAME", help=f"Only this recipe: {', '.join(RECIPES)}")] = None,
    rules: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Your own recipes: a TOML table of patterns each.")
    ] = None,
    all_rows: Annotated[
        bool, typer.Option("--all-rows", help="A row for every parameter, also for those that all recipes treat alike.")
    ] = False,
    all_recipes: Annotated[
        bool, typer.Option("--all-recipes", help="A column for every recipe, also for those that do the same.")
    ] = False,
    optimizer: Annotated[
        str | None,
        typer.Option(metavar="TARGET", help="A function from the model to its optimizer(s): audit these instead."),
    ] = None,
    fail_on: Annotated[
        str | None, typer.Option(metavar="ROLES", help="Exit with 1 when such a parameter is decayed: activation,norm")
    ] = None,
    allow_unknown: Annotated[
        bool, typer.Option("--allow-unknown", help="--fail-on passes over parameters of unknown role.")
    ] = False,
    snapshot: Annotated[Path | None, typer.Option(help="Write the audit to this text file, to be committed.")] = None,
    check: Annotated[
        Path | None, typer.Option(help="Exit with 1 when something is decayed that was spared here.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="--check fails on every change, shapes included.")] = False,
    format: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"{', '.join(AUDIT_FORMATS)}; with --fail-on or --check brief, else table."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only what is wrong.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Show which parameters of a model each popular recipe decays. This executes the target's code.

    The line for a continuous integration: decaybench audit my/model.py:make --recipe torch --fail-on activation

    Example: decaybench audit my_model.py:make --recipe exclude-1d --fail-on activation
    """
    given = dict(locals())
    if not targets:
        settings = from_pyproject(Path("pyproject.toml"))
        given |= {key: value for key, value in settings.items() if not given.get(key)}
    chosen: list[str] = given["targets"]
    request = _request(given)
    form = _form(given, request)
    if (snapshot or check) and len(chosen) > 1:
        raise UsageError("--snapshot and --check are about one model: give one target.")
    if snapshot and check and snapshot.resolve() == check.resolve():
        raise UsageError("--snapshot and --check name the same file: check it first, then write it.")
    every = all_recipes or bool(given["recipe"] or given["optimizer"])
    found = [replace(_audited(target, request, check, strict, every), every_row=all_rows) for target in chosen]
    failures = [sentence for shown in found for sentence in shown.failures]
    try:
        _show(found, form, quiet)
        if snapshot and not failures:
            _write(found[0].audit, snapshot)
        for sentence in failures:
            say(f"Error: {sentence}")
    except BrokenPipeError:
        if not failures:
            raise
    if failures:
        raise typer.Exit(1)


def _form(given: Mapping[str, Any], request: Request) -> str:
    """Returns the format: a brief one where something can fail, which makes no sense otherwise."""
    gate = bool(request.forbidden or given["check"])
    form = given["format"] or ("brief" if gate else "table")
    check_choice("format", form, AUDIT_FORMATS)
    if form in OF_A_GATE and not gate:
        raise UsageError(f"--format {form} says what is wrong, which only --fail-on or --check decides.")
    return str(form)


def _audited(target: str, request: Request, check: Path | None, strict: bool, every: bool) -> Shown:
    """Audits one target, and finds what is wrong with it.

    Raises:
        DecaybenchError: When it cannot be audited.
    """
    try:
        done, place = _audit(target, request)
    except BrokenPipeError as error:  # the model's own, which must not look like a reader that has seen enough
        raise DecaybenchError(f"{target} cannot be audited: its code raises BrokenPipeError.") from error
    wrong = _violations(done, target, request) if request.forbidden else []
    wrong += _compare(done, target, check, strict) if check else []
    gate = "--fail-on" if request.forbidden else f"as in {check}"
    return Shown(done, target, every, tuple(wrong), place, gate)


def _request(given: Mapping[str, Any]) -> Request:
    """Checks the options that belong together, from the command line or pyproject.toml."""
    names: list[str] = given["recipe"] or []
    known: dict[str, Recipe] = dict(RECIPES)
    if given["rules"]:
        from decaybench.audit.recipes import read_rules

        own = read_rules(Path(given["rules"]))
        known |= own
        names = names or (list(own) if given["fail_on"] else [])
    for name in names:
        if name not in known:
            raise unknown("recipe", name, known)
    if names and given["optimizer"]:
        raise UsageError("--recipe and --optimizer exclude each other: audit one or the other.")
    forbidden = _roles(given["fail_on"])
    if given["fail_on"] is not None and not forbidden:
        raise UsageError(f"--fail-on {given['fail_on']!r} names no role; allowed are {', '.join(get_args(Role))}.")
    if forbidden and len(names) != 1 and not given["optimizer"]:
        raise UsageError("--fail-on needs the one --recipe, or the --optimizer, that you use.")
    return Request(
        parse_inputs(given["input"] or []),
        dict(parse_pair(text) for text in given["kwargs"] or []),
        {name: known[name] for name in names or known},
        given["optimizer"],
        forbidden,
        bool(given["allow_unknown"]),
    )


def _audit(target: str, request: Request) -> "tuple[Audit, tuple[str, int] | None]":
    from decaybench.audit.audit import audit as run_audit
    from decaybench.audit.audit import audit_optimizer
    from decaybench.audit.models import Input, build, example, place_of_target
    from decaybench.audit.optimizers import optimizers_of

    place = place_of_target(target)  # before the target's code runs, which may change the folder
    of_optimizer = place_of_target(request.optimizer) if request.optimizer else None
    model = build(target, request.kwargs, shapes_only=not request.inputs)
    inputs = [Input(shape, name, kind) for name, shape, kind in request.inputs]
    batch = example(model, inputs) if inputs else None
    if request.optimizer:
        return audit_optimizer(model, optimizers_of(request.optimizer, model), batch), of_optimizer or place
    return run_audit(model, request.recipes, batch), place


def _roles(text: str | None) -> list[Role]:
    allowed = get_args(Role)
    given = [part.strip() for part in (text or "").split(",") if part.strip()]
    for role in given:
        if role not in allowed:
            raise unknown("role", role, allowed)
    return given  # type: ignore[return-value]


def _show(found: Sequence[Shown], form: str, quiet: bool) -> None:
    if form == "table" and sys.stdout.isatty():
        for shown in found:
            if len(found) > 1:
                typer.echo(f"{shown.target}\n")
            print_audit(shown, Console(highlight=False))
    elif not (quiet and form == "brief"):
        typer.echo(AUDIT_FORMATS[form](found), nl=False)
    if form in ("csv", "json", *OF_A_GATE) and not quiet:
        for shown in found:
            for remark in remarks(shown.audit):
                say(f"Note: {remark}")


def _violations(done: "Audit", target: str, request: Request) -> list[str]:
    """Describes each thing that ``--fail-on`` forbids and how to mend it, a sentence or two each."""
    (recipe,) = done.recipes
    found = []
    decayed = [role for role in request.forbidden if role != "unknown" and done.decayed(recipe, role)]
    for role in decayed:
        hit = done.decayed(recipe, role)
        advice = _advice(decayed, request) if role == decayed[-1] else ""
        found.append(f"{target}: {recipe} decays {_named(hit, role)}.{advice}")
    unknown = done.decayed(recipe, "unknown")
    if unknown and (not request.allow_unknown or "unknown" in request.forbidden):
        first = "Mark those that are" if done.ran else "Give --input to find out what they are, mark those that are"
        found.append(
            f"{target}: {recipe} decays {_named(unknown, 'unknown')}. {first} an activation's "
            "(decaybench.mark_activation(model, 'name')), or pass over them with --allow-unknown."
        )
    return found + _wrong_groups(done, target)


def _named(hit: "Sequence[AuditedParameter]", role: Role) -> str:
    names = _capped([f"{row.name} ({row.module})" for row in hit])
    return f"{len(hit)} parameter{'s' * (len(hit) != 1)} of role {role}: {names}"


def _capped(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_NAMES]) + (f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else "")


def _wrong_groups(done: "Audit", target: str) -> list[str]:
    found = []
    if done.missing:
        found.append(f"{target}: the optimizer lacks {_capped(done.missing)}.")
    if done.repeated:
        found.append(f"{target}: the optimizer has more than once: {_capped(done.repeated)}.")
    return found


def _advice(roles: Sequence[Role], request: Request) -> str:
    more = "" if roles == ["activation"] else f", exclude={tuple(dict.fromkeys(['activation', *roles]))!r}"
    if request.optimizer or "timm" not in request.recipes:
        how = f"hand the optimizer decaybench.param_groups(model, weight_decay=…{more})"
        return f" To spare them, {how}, with extra=[…] for names of your own."
    return (
        f" To spare them, name them in the model's no_weight_decay(), or use decaybench.param_groups(model, …{more})."
    )


def _compare(done: "Audit", target: str, path: Path, strict: bool) -> list[str]:
    from decaybench.audit.snapshot import Snapshot

    before, now = Snapshot.read(path), Snapshot.of(done)
    if before.recipes != now.recipes:
        raise UsageError(f"{path} is about {', '.join(before.recipes)}, this audit about {', '.join(now.recipes)}.")
    worse, other = before.changes(now)
    if not strict:
        for sentence in other:
            say(f"Note: {sentence}")
        other = []
    found = [*worse, *other, *_wrong_groups(done, target)]
    return [f"{target} is no longer as in {path}; accept it with --snapshot {path}.", *found] if found else []


def _write(done: "Audit", path: Path) -> None:
    from decaybench.audit.snapshot import Snapshot

    try:
        path.write_text(Snapshot.of(done).text(), encoding="utf-8")
    except OSError as error:
        raise DecaybenchError(f"--snapshot {path} cannot be written: {error.strerror}.") from error
