"""A name with its options, such as ``kaf``, ``kaf,D=8,kernel=relu`` or ``my_module:Swish,beta=2``."""

import itertools
import json
import math
import re
from collections.abc import Mapping
from difflib import get_close_matches
from functools import lru_cache
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from decaybench import registry
from decaybench.errors import UsageError, unknown
from decaybench.registry import imports

MAX_COMBINATIONS = 10_000  # of the options of one table
Scalar = bool | int | float | str | None


class Spec(BaseModel):
    """A name of one family of the registry, with every option it has, defaults included.

    Attributes:
        name: An entry of the registry, or ``package.module:factory`` for a user's own code.
        options: All options, so that a changed default is a different run; without those that were added later and
            have their default.
        source: For a user's own code, a hash of its source.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    options: dict[str, Scalar] = {}
    source: str | None = None

    @classmethod
    def make(cls, family: str, name: str, options: Mapping[str, Any]) -> Self:
        """Checks a name and its options.

        Raises:
            UsageError: For an unknown name or option, or a value of the wrong type or range.
        """
        if imports.is_target(name):
            if not all(imports.split_target(name)):
                raise UsageError(f"{family} {name!r}: write package.module:name or path/to/file.py:name.")
            return cls(name=name, options=_own_options(family, name, options), source=imports.source_fingerprint(name))
        if name not in registry.FAMILIES[family]:
            raise unknown(family, name, registry.FAMILIES[family])
        schema = registry.FAMILIES[family][name].options
        for option in options:
            if option not in schema.model_fields:
                raise unknown(f"option of {name}", option, schema.model_fields)
        try:
            checked = {k: _plain(v) for k, v in schema(**options).model_dump().items()}
        except ValidationError as error:
            raise UsageError(explain(error, f"{family} {name}, option ")) from error
        silent = {k for k in schema.added if checked[k] == schema.model_fields[k].default}
        return cls(name=name, options={k: v for k, v in checked.items() if k not in silent})

    @property
    def chosen(self) -> dict[str, Scalar]:
        """The options that are not defaults."""
        entry = next((family[self.name] for family in registry.FAMILIES.values() if self.name in family), None)
        defaults = {k: f.default for k, f in entry.options.model_fields.items()} if entry else {}
        return {k: v for k, v in self.options.items() if k not in defaults or defaults[k] != v}

    @property
    def label(self) -> str:
        """The name and the options that are not defaults, as a person writes them."""
        return ",".join([self.name, *(f"{k}={self._shown(v)}" for k, v in self.chosen.items())])

    def _shown(self, value: Scalar) -> str:
        """Writes a value; a text of a user's own option that would be read as something else, in quotes."""
        own_text = self.source is not None and isinstance(value, str)
        return repr(value) if own_text and not isinstance(plain_value(str(value)), str) else str(value)

    def as_toml(self) -> str | dict[str, Scalar]:
        """Returns a TOML value that `parse` reads as this Spec."""
        options = {k: v for k, v in self.chosen.items() if v is not None}
        return {"name": self.name, **options} if options else self.name


def _plain(value: Any) -> Any:
    """Removes the sign of −0.0, which is the same number as 0.0."""
    return value + 0.0 if isinstance(value, float) else value


def _own_options(family: str, name: str, options: Mapping[str, Any]) -> dict[str, Scalar]:
    """Checks the options of a user's own code, which no schema describes, and sorts them."""
    for key, value in options.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{family} {name}, option {key} = {value}: a number must be finite.")
    return {key: _plain(options[key]) for key in sorted(options)}


def label_of(value: Mapping[str, Any]) -> str:
    """Writes a Spec of a record as text; a user's own code with the hash of its source, since versions of it differ."""
    options, source = value["options"], value["source"]
    return _text(value["name"], json.dumps(options, sort_keys=source is not None), source)


@lru_cache(maxsize=4096)
def _text(name: str, options: str, source: str | None) -> str:
    # The options as JSON, since Python takes True, 1 and 1.0 for one key.
    spec = Spec.model_construct(name=name, options=json.loads(options), source=source)
    return f"{spec.label}@{spec.source[:6]}" if spec.source else spec.label


def parse(family: str, value: object) -> list[Spec]:
    """Reads one entry of a study: text ``name,key=value,…`` or a table ``{name = …, key = …}``.

    An option of a table may be a list: one Spec for each combination.

    Raises:
        UsageError: When it is neither, or says something impossible.
    """
    if isinstance(value, Spec):
        return [value]
    if isinstance(value, str):
        name, *pairs = (part.strip() for part in value.split(","))
        if family == "optimizer" and name.startswith("timm:"):
            name, pairs = "timm", [f"name={name.removeprefix('timm:')}", *pairs]
        if bad := [p for p in pairs if "=" not in p]:
            raise UsageError(f"{family} {value!r}: {bad[0]!r} is not key=value; write {name},key=value.")
        options = [_pair(family, name, p) for p in pairs]
        if twice := {k for k, _ in options if [key for key, _ in options].count(k) > 1}:
            raise UsageError(f"{family} {value!r}: {min(twice)} is given twice; in a file a list gives several.")
        return [Spec.make(family, name, dict(options))]
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        name = value["name"]
        keys = [k for k in value if k != "name"]
        if empty := [k for k in keys if value[k] == []]:
            raise UsageError(f"{family} {name}: {empty[0]} = [] needs at least one value.")
        choices = [v if isinstance(v, list) else [v] for v in (value[k] for k in keys)]
        if math.prod(map(len, choices)) > MAX_COMBINATIONS:
            raise UsageError(f"{family} {name}: its lists of options make more than {MAX_COMBINATIONS:,} combinations.")
        return [
            Spec.make(family, name, dict(zip(keys, combination, strict=True)))
            for combination in itertools.product(*choices)
        ]
    raise UsageError(f"{family} = {value!r} is neither a name nor a table with a name, such as {{name = 'kaf'}}.")


def _pair(family: str, name: str, text: str) -> tuple[str, Scalar]:
    """Reads ``key=value``; a schema converts the value, a user's own code gets plain types."""
    key, _, value = (part.strip() for part in text.partition("="))
    if value.lower() == "none":
        return key, None
    return key, (plain_value(value) if imports.is_target(name) else value)


def plain_value(text: str) -> Scalar:
    """Returns a number or a truth value where the text is one, otherwise the text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _nearest(problem: Any) -> str:
    """Returns a hint where the value is nearly one of those that are allowed."""
    allowed = re.findall(r"'([^']+)'", str(problem.get("ctx", {}).get("expected", "")))
    near = get_close_matches(str(problem["input"]), allowed, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def explain(error: ValidationError, prefix: str = "") -> str:
    """Writes one sentence for each error that pydantic found: the field, the value, what is allowed."""
    sentences = []
    for problem in error.errors():
        field = ".".join(part for part in problem["loc"] if isinstance(part, str)) or "value"
        if problem["type"] == "extra_forbidden":
            sentences.append(f"{prefix}{field}: there is no such field.")
            continue
        if problem["type"] == "missing":
            sentences.append(f"{prefix}{field} is missing.")
            continue
        message = problem["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:] + _nearest(problem)
        if problem["loc"]:
            sentences.append(f"{prefix}{field} = {problem['input']!r}: {message}".rstrip("?.") + ".")
        else:
            sentences.append(f"{prefix.removesuffix(', option ')}: {message}.")
    return "\n".join(sentences)
