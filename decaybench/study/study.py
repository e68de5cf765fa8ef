"""A study: a grid of runs, from a TOML file or the same fields as options."""

import itertools
import math
import re
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

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
from decaybench.registry.imports import is_target
from decaybench.registry.optimizers import default_lr
from decaybench.registry.spec import Spec, explain, parse
from decaybench.study.config import ADDED_FIELDS, Augmentation, Precision, RunConfig, Split

MAX_RUNS = 100_000
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
# Shorthands for an option of a strategy: the study's field, and the option it sets wherever there is one.
STRATEGY_OPTIONS = ("penalty", "alpha_optimizer", "alpha_lr")


def check_primary(primary: str) -> None:
    """Checks that a contrast names a strategy, with a metric behind it or without.

    Raises:
        UsageError: When it does not.
    """
    label, _, metric = primary.rpartition(":")
    if label in registry.STRATEGIES and metric not in ("accuracy", "loss"):
        raise UsageError(f"primary = {primary!r}: behind the strategy stands accuracy or loss, as in {label}:loss.")
    label = label.split(",")[0]
    # module:loss is a function of somebody's own; a name that can be no module is a misspelt strategy.
    could_be_code = re.fullmatch(r"[\w.]+|.*\.py", label) and label not in registry.STRATEGIES and not is_target(label)
    named = metric in ("accuracy", "loss") and not could_be_code
    name = label if named else primary.split(",")[0]
    if name not in registry.STRATEGIES and not is_target(name):
        raise unknown("strategy", name, registry.STRATEGIES)


# Fields that are no axis of the grid, and that do not make it another study.
APART = {"name", "description", "seeds", "until", "primary"}


class Study(BaseModel):
    """A grid of runs: the product of all fields, each a list, and the seeds 0 … seeds − 1.

    Attributes:
        lr: Learning rates; empty means each optimizer's own default.
        validation: Share of the training part that is held out, the same for every seed.
        train_limit: Number of training examples that are used; None means all.
        split: ``fixed``, the data set's own test part; ``seed``, training and test part joined and divided anew for
            each seed, the same for all strategies.
        until: Half-width, in percentage points, to which every difference to decay-all is to be known; seeds are then
            added where they are needed, up to ``seeds``.
        primary: The contrast that is asked for, named before the runs and not corrected for the others: a strategy, and
            ``:loss`` behind it where it is about test loss.
        penalty, alpha_optimizer, alpha_lr: Options of the strategies that have them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str
    description: str = ""
    dataset: list[Spec]
    network: list[Spec]
    activation: list[Spec]
    strategy: list[Spec]
    optimizer: list[Spec]
    schedule: list[Spec]
    lr: list[PositiveFloat] = []
    weight_decay: list[NonNegativeFloat]
    epochs: list[PositiveInt]
    batch_size: list[PositiveInt]
    clip_norm: list[PositiveFloat | None] = [None]
    augment: list[Augmentation]
    validation: list[Annotated[float, Field(gt=0, lt=1)]]
    train_limit: list[PositiveInt | None] = [None]
    split: list[Split] = ["fixed"]
    precision: list[Precision] = ["float32"]
    penalty: list[str] = []
    alpha_optimizer: list[str] = []
    alpha_lr: list[PositiveFloat] = []
    seeds: Annotated[int, Field(ge=1, le=100_000)]
    until: PositiveFloat | None = None
    primary: str | None = None

    @field_validator("primary")
    @classmethod
    def _contrast(cls, primary: str | None) -> str | None:
        if primary is not None:
            check_primary(primary)
        return primary

    @model_validator(mode="after")
    def _no_until_over_splits(self) -> "Study":
        if self.until is not None and "seed" in self.split:
            raise UsageError("until needs split = fixed: seeds whose splits overlap are not independent.")
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
        whole = APART
        out: dict[str, Any] = {}
        for key, value in fields.items():
            items = value if key in whole or isinstance(value, list) else [value]
            if key in registry.FAMILIES:
                items = [spec for item in items for spec in parse(key, item)]
            if key in ("clip_norm", "train_limit"):
                items = [None if item == "none" else item for item in items]
            if any(isinstance(item, bool) for item in (items if isinstance(items, list) else [items])):
                raise UsageError(f"{key} = {str(value).lower()}: a truth value is not allowed here.")
            if isinstance(items, list) and not items and key not in ("lr", *STRATEGY_OPTIONS):
                raise UsageError(f"{key} = []: a study needs at least one {key}.")
            out[key] = items
        return _with_shorthands(out)

    def runs(self) -> list[RunConfig]:
        """Lists the runs without repetitions, seed by seed so that an interrupted study is balanced."""
        axes = {
            key: getattr(self, key) for key in type(self).model_fields if key not in (*APART, "lr", *STRATEGY_OPTIONS)
        }
        size = math.prod(len(values) for values in axes.values()) * self.seeds * max(1, len(self.lr))
        if size > MAX_RUNS:
            raise UsageError(f"The study {self.name} asks for {size:,} runs; at most {MAX_RUNS:,} are possible.")
        unique: dict[str, RunConfig] = {}
        for seed in range(self.seeds):
            for values in itertools.product(*axes.values()):
                fields = dict(zip(axes, values, strict=True))
                if fields["strategy"].name == "no-decay":
                    fields["weight_decay"] = 0.0  # whatever the decay, the control is one and the same run
                for lr in self.lr or [default_lr(fields["optimizer"].name)]:
                    run = RunConfig(**fields, lr=lr, seed=seed)
                    unique.setdefault(run.run_id, run)
        return list(unique.values())

    def grid_id(self) -> str:
        """Hashes what is compared, whatever the name and the number of seeds."""
        silent = {key for key, value in ADDED_FIELDS.items() if getattr(self, key) == [value]}
        return digest(self.model_dump(exclude=APART | silent))


# What makes a study another one: not its name, and not how many seeds it has.
COMPARED = tuple(key for key in Study.model_fields if key not in APART)


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


def read_study(study: str | None, overrides: Mapping[str, Any]) -> Study:
    """Builds a study from a built-in name or a TOML file, and options that override it.

    Args:
        study: Name of a built-in study or path of a TOML file; None means ``digits``.
        overrides: Fields of `Study`; absent ones are left as the file has them.

    Raises:
        UsageError: For a file that cannot be read, and for any field that is wrong.
    """
    builtin = builtin_studies()
    if study is None or study in builtin:
        name, fields, where = study or "digits", builtin[study or "digits"], ""
    else:
        name, fields, where = _folder_name(study), _read_toml(study, builtin), f"{study}: "
    fields = {**default_fields(), "name": name, "description": "", **fields}
    for key in (*fields, *overrides):
        if key not in Study.model_fields:
            raise unknown(f"field of {study or 'a study'}", key, Study.model_fields)
    try:
        merged = Study.model_validate({**fields, **overrides})
        original = Study.model_validate(fields) if overrides else merged
        _check_shorthands(overrides, merged.strategy)
    except ValidationError as error:
        raise UsageError(explain(error, where)) from error
    except UsageError as error:
        raise UsageError(f"{where}{error}") from error
    if "name" not in overrides and merged.grid_id() != original.grid_id():
        # Options made it another study: it gets a folder of its own, the same one every time.
        prefix = original.name if study or len(merged.dataset) > 1 else merged.dataset[0].name.rpartition(":")[2]
        merged = merged.model_copy(update={"name": f"{prefix}-{merged.grid_id()[:6]}"})
    return merged if merged.grid_id() == original.grid_id() else merged.model_copy(update={"description": ""})


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


def to_fields(study: Study) -> dict[str, Any]:
    """Writes the study as plain values that `read_study` reads as the same study."""
    fields: dict[str, Any] = {}
    for key in type(study).model_fields:
        value = getattr(study, key)
        if value in ([], None) or (key, value) == ("description", "") or value == [ADDED_FIELDS.get(key)]:
            continue
        if isinstance(value, list):
            value = ["none" if v is None else v.as_toml() if isinstance(v, Spec) else v for v in value]
            value = value[0] if len(value) == 1 else value
        fields[key] = value
    return fields


def to_toml(study: Study) -> str:
    """Writes the study as a file that `read_study` reads as the same study."""
    return tomli_w.dumps(to_fields(study))
