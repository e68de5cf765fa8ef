"""What happens while a study runs: the events that its progress is made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from decaybench.results.record import Record
from decaybench.study.config import AnyConfig


class Scores(Protocol):
    """The scores of one epoch of a run: its number, of how many, where that is known, and each metric."""

    @property
    def config(self) -> AnyConfig: ...
    @property
    def number(self) -> float: ...
    @property
    def of(self) -> int | None: ...
    @property
    def scores(self) -> Mapping[str, float]: ...


@dataclass(frozen=True)
class Event:
    """An event of a running study.

    Attributes:
        worker: Name of the worker.
        configs: The runs that the event is about.
        epochs: Epochs that ended.
        records: Records of runs that are finished and written.
        trouble: A sentence about what went wrong; the study goes on.
        details: The traceback, or the last lines of the output, of what went wrong.
        failed: A run that is given up.
        ended: Whether the worker is done with these runs.
    """

    worker: str
    configs: Sequence[AnyConfig]
    epochs: Sequence[Scores] = ()
    records: tuple[Record, ...] = ()
    trouble: str | None = None
    details: str = ""
    failed: AnyConfig | None = None
    ended: bool = False
