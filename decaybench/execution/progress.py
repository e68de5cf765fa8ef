"""The progress of a study, shown by ``decaybench run`` and by ``decaybench status`` in another terminal."""

import json
import math
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from decaybench.registry.metrics import metric, shown
from decaybench.results.record import Record
from decaybench.study.config import read_config

if TYPE_CHECKING:
    from decaybench.execution.event import Event


SETTLED, SETTLING = 0.05, 10.0  # share and seconds, one of which is done before the time left is guessed


def _coarse(seconds: float) -> float:
    """Rounds a time that is left to what can be known of it: to 5 seconds, to minutes beyond five of them."""
    step = 5 if seconds < 300 else 60
    return step * round(seconds / step)


def duration(seconds: float) -> str:
    """Writes seconds for people, such as ``2 min 5 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


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
        watched: The metric that is shown, with its direction, such as ``validation_accuracy:max``.
        workers: What each worker does, by its name.
        best, worst: Value of that metric and name of a finished run.
    """

    study: str
    cells: int
    total: int
    before: int
    finished: int = 0
    failed: int = 0
    seconds: float = 0.0
    share: float = 0.0
    watched: str = "validation_accuracy:max"
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
            self._epochs[epoch.config.run_id] = epoch.number / epoch.of if epoch.of else 0.0
        for record in event.records:
            self._epochs[record.run_id] = 1.0
            self._finished(record)
        self.failed += event.failed is not None
        self.share = min(1.0, sum(self._epochs.values()) / max(1, self.total - self.before))
        self._tell(event)

    def _finished(self, record: Record) -> None:
        self.finished += 1
        watched = metric(self.watched)
        if watched.name not in record.history:
            return
        value = record.final(watched.name)
        if math.isfinite(value):
            entries = [entry for entry in (self.best, self.worst) if entry]
            config = read_config(record.config)
            entries.append((value, f"{config.name} {config.details}"))
            entries.sort(key=lambda entry: entry[0], reverse=watched.direction == "higher")
            self.best, self.worst = entries[0], entries[-1]

    def _tell(self, event: "Event") -> None:
        if event.ended:
            self.workers.pop(event.worker, None)
        elif event.epochs:
            last, first = event.epochs[-1], event.configs[0]
            many = f"{len(event.configs)} runs like " if len(event.configs) > 1 else ""
            of = f"/{last.of}" if last.of else ""
            self.workers[event.worker] = f"{many}{first.name}: epoch {last.number}{of}, {scores_text(last.scores)}"

    @property
    def rate(self) -> str:
        """Runs per minute, and the time left, as text."""
        if not self.share or (self.share < SETTLED and self.seconds < SETTLING):
            return "…"
        left = _coarse(self.seconds / self.share - self.seconds)
        per_minute = 60 * self.finished / self.seconds if self.seconds else 0.0
        return f"{per_minute:.0f} runs/min · {duration(left)} left"

    def lines(self) -> list[str]:
        """Writes the state as lines for people."""
        done = self.before + self.finished
        first = f"{self.study}: {done} of {self.total} runs ({self.cells} cells) · {self.rate}"
        lines = [first + (f" · {self.failed} failed" if self.failed else "")]
        if self.best and self.worst:
            watched = metric(self.watched)
            both = (("best", self.best), ("worst", self.worst))
            lines += [f"{what} {watched.title} {watched.text(value)}: {name}" for what, (value, name) in both]
        return lines + [f"{worker}: {text}" for worker, text in sorted(self.workers.items())]

    def dumps(self) -> str:
        """Writes the state as JSON."""
        return json.dumps(asdict(self), ensure_ascii=False) + "\n"


def scores_text(scores: Mapping[str, float]) -> str:
    """Writes what an epoch gave: what is not of the test part, the loss of training first."""
    names = sorted((n for n in scores if not n.startswith("test_")), key=lambda n: n != "train_loss")
    chosen = [n for n in names if n == "train_loss" or not n.startswith("train_")][:4]
    return ", ".join(f"{n.replace('_', ' ')} {shown(n).text(scores[n])}" for n in chosen)


def loads(text: str) -> Progress:
    """Reads what `Progress.dumps` wrote.

    Raises:
        ValueError, TypeError: When it is something else.
    """
    return Progress(**json.loads(text))
