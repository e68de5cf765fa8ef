"""The progress of a study, shown by ``decaybench run`` and by ``decaybench status`` in another terminal."""

import json
import os
import platform
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from decaybench.results.record import Record
from decaybench.study.config import RunConfig

if TYPE_CHECKING:
    from decaybench.execution.scheduler import Event


def duration(seconds: float) -> str:
    """Writes seconds for people, such as ``2 min 5 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def run_label(config: RunConfig) -> str:
    """Describes a run in a few words."""
    return " ".join(s.label for s in (config.dataset, config.network, config.activation, config.strategy))


@dataclass
class Progress:
    """The state of a study that is running.

    Attributes:
        study: Name of the study.
        cells: Number of cells.
        total: Number of runs of the study.
        before: Number of runs that were finished before.
        finished: Number of runs finished since.
        failed: Number of runs given up.
        seconds: Seconds since the start.
        share: Share of the missing runs that is done, counting epochs.
        workers: What each worker does, by its name.
        best, worst: Validation accuracy and name of a finished run.
    """

    study: str
    cells: int
    total: int
    before: int
    finished: int = 0
    failed: int = 0
    seconds: float = 0.0
    share: float = 0.0
    workers: dict[str, str] = field(default_factory=dict)
    best: tuple[float, str] | None = None
    worst: tuple[float, str] | None = None
    pid: int = field(default_factory=os.getpid)
    host: str = field(default_factory=platform.node)

    def __post_init__(self) -> None:
        self._start = time.monotonic()
        self._epochs: dict[str, float] = {}  # of each run under way, the share that is done

    def start(self) -> None:
        """Starts the clock: torch and the data are loaded."""
        self._start = time.monotonic()

    def on(self, event: "Event") -> None:
        """Updates the state by an event."""
        self.seconds = time.monotonic() - self._start
        for epoch in event.epochs:
            self._epochs[epoch.config.run_id] = epoch.number / epoch.config.epochs
        for record in event.records:
            self._epochs[record.run_id] = 1.0
            self._finished(record)
        self.failed += event.failed is not None
        self.share = min(1.0, sum(self._epochs.values()) / max(1, self.total - self.before))
        self._tell(event)

    def _finished(self, record: Record) -> None:
        self.finished += 1
        entry = (record.final("validation_accuracy"), run_label(RunConfig.model_validate(record.config)))
        self.best = max(self.best or entry, entry, key=lambda e: e[0])
        self.worst = min(self.worst or entry, entry, key=lambda e: e[0])

    def _tell(self, event: "Event") -> None:
        if event.ended:
            self.workers.pop(event.worker, None)
        elif event.epochs:
            last, first = event.epochs[-1], event.configs[0]
            many = f"{len(event.configs)} runs of " if len(event.configs) > 1 else ""
            parts = (first.dataset, first.network, first.activation, *(() if many else (first.strategy,)))
            loss = f"loss {last.scores['train_loss']:.3f}, validation {100 * last.scores['validation_accuracy']:.1f}%"
            text = f"{many}{' '.join(s.label for s in parts)}: epoch {last.number}/{first.epochs}, {loss}"
            self.workers[event.worker] = text

    @property
    def rate(self) -> str:
        """Runs per minute, and the time left, as text."""
        if not self.share:
            return "…"
        left = self.seconds / self.share - self.seconds
        per_minute = 60 * self.finished / self.seconds if self.seconds else 0.0
        return f"{per_minute:.0f} runs/min · {duration(left)} left"

    def lines(self) -> list[str]:
        """Writes the state as lines for people."""
        done = self.before + self.finished
        first = f"{self.study}: {done} of {self.total} runs ({self.cells} cells) · {self.rate}"
        lines = [first + (f" · {self.failed} failed" if self.failed else "")]
        if self.best and self.worst:
            named = [
                f"{what} {100 * a:.1f}% ({name})" for what, (a, name) in (("best", self.best), ("worst", self.worst))
            ]
            lines.append("validation: " + ", ".join(named))
        return lines + [f"{worker}: {text}" for worker, text in sorted(self.workers.items())]

    def dumps(self) -> str:
        """Writes the state as JSON."""
        return json.dumps(asdict(self), ensure_ascii=False) + "\n"


def loads(text: str) -> Progress:
    """Reads what `Progress.dumps` wrote.

    Raises:
        ValueError, TypeError: When it is something else.
    """
    return Progress(**json.loads(text))
