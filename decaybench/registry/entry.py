"""An entry of the registry: a summary, where its code is, and the options it takes."""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0, lt=1)]


class Options(BaseModel):
    """The options of one entry: their names, types, ranges and defaults.

    Attributes:
        added: Options that runs did not always have: they are no part of a run while they have their default, so that
            the runs from before stay the same runs.
    """

    added: ClassVar[frozenset[str]] = frozenset()
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True)
class Entry:
    """A name that a study, or an audit, can use.

    Attributes:
        summary: One line for ``decaybench list``.
        target: ``package.module:attribute``, imported when it is first used.
        options: The options it takes, passed to the target as keywords.
    """

    summary: str
    target: str
    options: type[Options] = Options
