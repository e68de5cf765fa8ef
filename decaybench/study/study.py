"""A study: a grid of runs, from a TOML file or the same fields as options."""

import itertools
import math
import re
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Self

import tomli_w
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from decaybench import registry
from decaybench.errors import UsageError, unknown
from decaybench.registry.hashing import digest
from decaybench.registry.imports import is_target, script_fingerprint
from decaybench.registry.metrics import TESTED, Metric, kind_of, metric, named, reported
from decaybench.registry.optimizers import default_lr
from decaybench.registry.spec import Scalar, Spec, explain, parse
from decaybench.study.config import ADDED_FIELDS, Augmentation, Precision, RunConfig, ScriptConfig, Split

MAX_RUNS = 100_000
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
# Shorthands for an option of a strategy: the study's field, and the option it sets wherever there is one.
STRATEGY_OPTIONS = ("penalty", "alpha_optimizer", "alpha_lr")


def check_primary(primary: str, metrics: Sequence[str] = ()) -> None:
    """Checks that a contrast names a strategy, with a metric behind it or without.

    Args:
        primary: Such as ``exclude-alpha`` or ``exclude-alpha:loss``.
        metrics: Names of the study's own metrics.

    Raises:
        UsageError: When it does not.
    """
    label, _, which = primary.rpartition(":")
    own = {name.partition(":")[0] for name in metrics}
    is_metric = which in own or f"test_{which}" in own or kind_of(which) is not None
    if label.split(",")[0] in registry.STRATEGIES and not is_metric:
        raise UsageError(f"primary = {primary!r}: behind the strategy stands a metric, as in {label}:loss.")
    label = label.split(",")[0]
    # module:loss is a function of somebody's own; a name that can be no module is a misspelt strategy.
    could_be_code = re.fullmatch(r"[\w.]+|.*\.py", label) and label not in registry.STRATEGIES and not is_target(label)
    name = label if is_metric and not could_be_code else primary.split(",")[0]
    if name not in registry.STRATEGIES and not is_target(name):
        raise unknown("strategy", name, registry.STRATEGIES)


# Fields that are no axis of the grid, and that do not make it another study.
APART = {"name", "description", "seeds", "first_seed", "until", "primary", "metric"}


class Grid(BaseModel):
    """What every study has: strategies at several decays, and seeds.

    Attributes:
        seeds: Their number.
        first_seed: The first of them; another than 0 for seeds that no earlier study has used.
        until: Half-width, in the unit in which differences of the first metric are written, to which every difference
            to decay-all is to be known; seeds are then added where they are needed, up to ``seeds``.
        primary: The contrast that is asked for, named before the runs and not corrected for the others: a strategy, and
            ``:loss`` behind it where it is about another metric than the first.
        metric: What is compared, the first one first; empty means what the runs record of the test part.
        penalty, alpha_optimizer, alpha_lr: Options of the strategies that have them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str
    description: str = ""
    strategy: list[Spec]
    weight_decay: list[NonNegativeFloat]
    penalty: list[str] = []
    alpha_optimizer: list[str] = []
    alpha_lr: list[PositiveFloat] = []
    seeds: Annotated[int, Field(ge=1, le=100_000)]
    first_seed: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    until: PositiveFloat | None = None
    metric: list[str] = []
    primary: str | None = None

    @field_validator("metric")
    @classmethod
    def _metrics(cls, names: list[str]) -> list[str]:
        for name in names:
            metric(name)
        return names

    @model_validator(mode="after")
    def _contrast(self) -> Self:
        if self.primary is not None:
            check_primary(self.primary, self.metric)
        return self

    @field_validator("name")
    @classmethod
    def _folder_name(cls, name: str) -> str:
        if not SAFE_NAME.fullmatch(name):
            raise ValueError("a name becomes a folder: letters, digits and . _ + - only, 100 at most")
        return name

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """Turns single values into lists of one, names into Specs, and shorthands into options of strategies."""
        whole = APART - {"metric"} | {"script", "launcher", "args"}
        out: dict[str, Any] = {}
        for key, value in fields.items():
            items = value if key in whole or isinstance(value, list) else [value]
            if key in registry.FAMILIES:
                items = [spec for item in items for spec in ([None] if item in (None, "none") else parse(key, item))]
            if key in ("clip_norm", "train_limit"):
                items = [None if item == "none" else item for item in items]
            if any(isinstance(item, bool) for item in (items if isinstance(items, list) else [items])):
                raise UsageError(f"{key} = {str(value).lower()}: a truth value is not allowed here.")
            if (
                isinstance(items, list)
                and not items
                and key not in whole
                and key not in ("lr", "metric", *STRATEGY_OPTIONS)
            ):
                raise UsageError(f"{key} = []: a study needs at least one {key}.")
            out[key] = items
        return _with_shorthands(out)

    def grid_id(self) -> str:
        """Hashes what is compared, whatever the name and the number of seeds."""
        silent = {key for key, value in ADDED_FIELDS.items() if getattr(self, key, [value]) == [value]}
        return digest(self.model_dump(exclude=APART | silent))

    @property
    def seed_range(self) -> range:
        """The seeds of the study."""
        return range(self.first_seed, self.first_seed + self.seeds)

    def _check_size(self, runs: int) -> None:
        if runs > MAX_RUNS:
            raise UsageError(f"The study {self.name} asks for {runs:,} runs; at most {MAX_RUNS:,} are possible.")

    @property
    def differences_in(self) -> Metric:
        """What ``until`` is about: the first metric."""
        return metric(self.metric[0]) if self.metric else TESTED[0]


class Study(Grid):
    """A grid of runs that are trained here: the product of all fields, each a list, and the seeds.

    Attributes:
        lr: Learning rates; empty means each optimizer's own default.
        validation: Share of the training part that is held out, the same for every seed.
        train_limit: Number of training examples that are used; None means all.
        split: ``fixed``, the data set's own test part; ``seed``, training and test part joined and divided anew for
            each seed, the same for all strategies.
        loss: What is trained with; None means the loss of the data set's task.
    """

    dataset: list[Spec]
    network: list[Spec]
    activation: list[Spec]
    optimizer: list[Spec]
    schedule: list[Spec]
    lr: list[PositiveFloat] = []
    epochs: list[PositiveInt]
    batch_size: list[PositiveInt]
    clip_norm: list[PositiveFloat | None] = [None]
    augment: list[Augmentation]
    validation: list[Annotated[float, Field(gt=0, lt=1)]]
    train_limit: list[PositiveInt | None] = [None]
    split: list[Split] = ["fixed"]
    precision: list[Precision] = ["float32"]
    loss: list[Spec | None] = [None]

    @model_validator(mode="after")
    def _no_until_over_splits(self) -> "Study":
        if self.until is not None and "seed" in self.split:
            raise UsageError("until needs split = fixed: seeds whose splits overlap are not independent.")
        return self

    @property
    def differences_in(self) -> Metric:
        """What ``until`` is about: the first metric, or what the data set's task records first."""
        entry = registry.DATASETS.get(self.dataset[0].name)
        recorded = registry.TASKS["classification" if entry is None else entry.task].recorded
        if self.metric:
            return named(self.metric[:1], recorded, list(recorded) if entry is not None else ())[0]
        return reported(recorded)[0]

    def runs(self) -> list[RunConfig]:
        """Lists the runs without repetitions, seed by seed so that an interrupted study is balanced."""
        axes: dict[str, list[Any]] = {key: getattr(self, key) for key in AXES}
        self._check_size(math.prod(map(len, axes.values())) * self.seeds * max(1, len(self.lr)))
        unique: dict[str, RunConfig] = {}
        for seed in self.seed_range:
            for values in itertools.product(*axes.values()):
                fields = dict(zip(axes, values, strict=True))
                if fields["strategy"].name == "no-decay":
                    fields["weight_decay"] = 0.0  # whatever the decay, the control is one and the same run
                for lr in self.lr or [default_lr(fields["optimizer"].name)]:
                    run = RunConfig(**fields, lr=lr, seed=seed)
                    unique.setdefault(run.run_id, run)
        return list(unique.values())


# The axes of a grid in the order in which its runs are listed.
AXES = (
    *("dataset", "network", "activation", "strategy", "optimizer", "schedule", "weight_decay", "epochs", "batch_size"),
    *("clip_norm", "augment", "validation", "train_limit", "split", "precision", "loss"),
)


class ScriptStudy(Grid):
    """A grid of runs of a training script.

    Attributes:
        script: Its command line; ``{seed}``, ``{strategy}`` and ``{weight_decay}`` in it become those of the run.
        launcher: What stands before it, such as ``torchrun --nproc-per-node 8``, in place of the interpreter.
        args: Options of the script, each a value or several: axes of the grid.
    """

    script: Annotated[str, Field(min_length=1)]
    launcher: str = ""
    args: dict[str, list[Scalar]] = {}

    @model_validator(mode="after")
    def _until_names_a_metric(self) -> Self:
        if self.until is not None and not self.metric:
            raise UsageError("until needs a metric (--metric NAME), whose differences are to be known so well.")
        return self

    @field_validator("script", "launcher")
    @classmethod
    def _words(cls, line: str) -> str:
        try:
            shlex.split(line)
        except ValueError as error:
            raise ValueError(f"it is no command line: {error}") from error
        return line

    @field_validator("args", mode="before")
    @classmethod
    def _several(cls, args: Any) -> Any:
        if not isinstance(args, Mapping):
            raise ValueError("it is a table of the script's options, such as {size = ['small', 'large']}")
        for key, value in args.items():
            if key in _GIVEN:
                raise ValueError(f"{key} is what the run has already; {{{key}}} in the command line stands for it")
            if not ARGUMENT.fullmatch(key):
                raise ValueError(f"{key!r} is no option of a script, such as size")
            several = value if isinstance(value, list) else [value]
            if not several or not all(isinstance(v, bool | int | float | str) and _is_finite(v) for v in several):
                raise ValueError(f"{key} = {value!r}: it is a number, a text or a truth value, or a list of them")
        return {key: value if isinstance(value, list) else [value] for key, value in args.items()}

    def runs(self) -> list[ScriptConfig]:
        """Lists the runs without repetitions, seed by seed so that an interrupted study is balanced.

        Raises:
            UsageError: When a file of the script cannot be found.
        """
        self._check_size(
            len(self.strategy) * len(self.weight_decay) * math.prod(map(len, self.args.values())) * self.seeds
        )
        unique: dict[str, ScriptConfig] = {}
        script = self.script if not self.launcher else f"{self.launcher} {_without_interpreter(self.script)}"
        source = script_fingerprint(script)
        for seed in self.seed_range:
            for values in itertools.product(*self.args.values()):
                for strategy, decay in itertools.product(self.strategy, self.weight_decay):
                    run = ScriptConfig(
                        script=script,
                        source=source,
                        args=dict(zip(self.args, values, strict=True)),
                        strategy=strategy,
                        weight_decay=0.0 if strategy.name == "no-decay" else decay,
                        seed=seed,
                    )
                    unique.setdefault(run.run_id, run)
        return list(unique.values())


def _is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _without_interpreter(script: str) -> str:
    """Leaves out the interpreter of a command line, which a launcher starts itself."""
    first, _, rest = script.partition(" ")
    return rest.strip() if first in ("python", "python3") else script


AnyStudy = Study | ScriptStudy
_GIVEN = {"script", "source", "strategy", "weight_decay", "seed", "metric", "launcher"}
ARGUMENT = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,99}")
# What makes a study another one: not its name, and not how many seeds it has.
COMPARED = tuple(dict.fromkeys(key for kind in (Study, ScriptStudy) for key in kind.model_fields if key not in APART))


def _with_shorthands(fields: dict[str, Any]) -> dict[str, Any]:
    for option in STRATEGY_OPTIONS:
        if values := fields.pop(option, []):
            fields["strategy"] = [new for s in fields["strategy"] for new in _each(s, option, values)]
    return fields


def _check_shorthands(overrides: Mapping[str, Any], strategies: list[Spec]) -> None:
    """Checks that a strategy of the study takes each option given for strategies on the command line."""
    for option in STRATEGY_OPTIONS:
        if overrides.get(option) and not any(option in s.options for s in strategies):
            owner = next(n for n, e in registry.STRATEGIES.items() if option in e.options.model_fields)
            raise UsageError(f"{option}: no strategy of this study has it; it belongs to {owner}.")


def _each(spec: Spec, option: str, values: list[Any]) -> list[Spec]:
    if option not in spec.options:
        return [spec]
    return [Spec.make("strategy", spec.name, {**spec.options, option: value}) for value in values]


def builtin_studies() -> dict[str, Mapping[str, Any]]:
    """Reads the studies that come with the package, by name."""
    folder = resources.files("decaybench") / "study" / "builtin"
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    return {f.name.removesuffix(".toml"): tomllib.loads(f.read_text("utf-8")) for f in files}


def default_fields() -> dict[str, Any]:
    """Reads the fields of every study that leaves them out."""
    return tomllib.loads((resources.files("decaybench") / "study" / "defaults.toml").read_text("utf-8"))


def read_study(study: str | None, overrides: Mapping[str, Any]) -> AnyStudy:
    """Builds a study from a built-in name or a TOML file, and options that override it.

    Args:
        study: Name of a built-in study or path of a TOML file; None means ``digits``, or the script in ``overrides``.
        overrides: Fields of `Study`, or of `ScriptStudy`; absent ones are left as the file has them.

    Raises:
        UsageError: For a file that cannot be read, and for any field that is wrong.
    """
    builtin = builtin_studies()
    if study is None and "script" in overrides:
        name, where = _script_name(str(overrides["script"])), ""
        fields: Mapping[str, Any] = {}
    elif study is None or study in builtin:
        name, fields, where = study or "digits", builtin[study or "digits"], ""
    else:
        name, fields, where = _folder_name(study), _read_toml(study, builtin), f"{study}: "
    kind: type[AnyStudy] = ScriptStudy if "script" in {**fields, **overrides} else Study
    fields = {
        **(SCRIPT_DEFAULTS if kind is ScriptStudy else default_fields()),
        "name": name,
        "description": "",
        **fields,
    }
    if "imported" in fields:
        raise UsageError(f"{where}its runs come from {fields['imported']}, so that nothing here can compute them.")
    for key in (*fields, *overrides):
        if key not in kind.model_fields:
            _check_kind(key, kind)
            raise unknown(f"field of {study or 'a study'}", key, kind.model_fields)
    try:
        merged = kind.model_validate({**fields, **overrides})
        needed = {key for key, field in kind.model_fields.items() if field.is_required()}
        original = kind.model_validate(fields) if needed <= fields.keys() else None
        _check_shorthands(overrides, merged.strategy)
    except ValidationError as error:
        raise UsageError(explain(error, where)) from error
    except UsageError as error:
        raise UsageError(f"{where}{error}") from error
    if original is not None and merged.grid_id() == original.grid_id():
        return merged
    if "name" not in overrides:
        # Options made it another study: it gets a folder of its own, the same one every time.
        prefix = merged.name
        if study is None and isinstance(merged, Study) and len(merged.dataset) == 1:
            prefix = merged.dataset[0].name.rpartition(":")[2]
        merged = merged.model_copy(update={"name": f"{prefix}-{merged.grid_id()[:6]}"})
    return merged.model_copy(update={"description": ""})


def read_grid(study: str | None, overrides: Mapping[str, Any]) -> Study:
    """Builds a study whose runs are trained here, as `read_study` does.

    Raises:
        UsageError: Also when it is one of a script.
    """
    grid = read_study(study, overrides)
    if not isinstance(grid, Study):
        raise UsageError(f"{study} is a study of a script.")
    return grid


# What a study of a script has where nothing else is said; a decay has no default, since it is that of the script.
SCRIPT_DEFAULTS = {"strategy": ["decay-all", "exclude-alpha"], "seeds": 5}


def _check_kind(key: str, kind: type[AnyStudy]) -> None:
    """Says which fields belong to the other kind of study.

    Raises:
        UsageError: When this one does.
    """
    if kind is ScriptStudy and key in Study.model_fields:
        raise UsageError(
            f"{key}: the script decides it itself; to vary an option of the script, give --arg {key}=… or [args]."
        )
    if kind is Study and key in ScriptStudy.model_fields:
        raise UsageError(f"{key} belongs to a study of a script; add script = 'python train.py', or --script.")


def _script_name(script: str) -> str:
    """Names a study after its script."""
    words = [word for word in script.split() if word.endswith(".py")] or script.split() or ["script"]
    return _folder_name(words[0])


def plain_fields(path: Path) -> dict[str, Any]:
    """Reads the fields of a study file as they are written, whether or not the code that they name is still there.

    Raises:
        UsageError: For a file that is not there or is no TOML.
    """
    return _read_toml(str(path), {})


def _folder_name(study: str) -> str:
    """Turns the name of a study file into that of a folder."""
    stem = re.sub(r"[^A-Za-z0-9._+-]", "-", Path(study).stem).lstrip("._+-")
    return stem[:100] or "study"


def _read_toml(study: str, builtin: Mapping[str, Any]) -> dict[str, Any]:
    path = Path(study)
    if not path.is_file():
        if path.suffix == ".toml" or "/" in study:
            raise UsageError(f"There is no study file {study!r} (looked in {Path.cwd()}).")
        raise unknown("study", study, builtin)
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{study} is not valid TOML: {error}.") from error
    except RecursionError as error:
        raise UsageError(f"{study} is not valid TOML: it is nested too deeply.") from error
    except UnicodeDecodeError as error:
        before = error.object[: error.start]
        line, column = before.count(b"\n") + 1, len(before) - before.rfind(b"\n")
        raise UsageError(f"{study} is not valid TOML: it is not UTF-8 (at line {line}, column {column}).") from error
    except ValueError as error:  # a number of thousands of digits
        raise UsageError(f"{study} is not valid TOML: {error}.") from error
    except OSError as error:
        raise UsageError(f"{study} cannot be read: {error.strerror}.") from error


def to_fields(study: AnyStudy) -> dict[str, Any]:
    """Writes the study as plain values that `read_study` reads as the same study."""
    fields: dict[str, Any] = {}
    for key in type(study).model_fields:
        value = getattr(study, key)
        if value in ([], {}, None, "") or (key, value) == ("first_seed", 0) or value == [ADDED_FIELDS.get(key)]:
            continue
        if isinstance(value, list):
            value = ["none" if v is None else v.as_toml() if isinstance(v, Spec) else v for v in value]
            value = value[0] if len(value) == 1 else value
        fields[key] = value
    return fields


def to_toml(study: AnyStudy) -> str:
    """Writes the study as a file that `read_study` reads as the same study."""
    return tomli_w.dumps(to_fields(study))
