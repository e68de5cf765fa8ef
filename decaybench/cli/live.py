"""Progress on stderr while a study runs: a live line in a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn

from decaybench.config import RunConfig

if TYPE_CHECKING:
    from decaybench.study import Event


def duration(seconds: float) -> str:
    """Seconds for people."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


class Live:
    """Shows the events of a study.

    Attributes:
        finished: Runs finished since it started.
    """

    def __init__(self, study: str, missing: list[RunConfig], done: int) -> None:
        self._todo, self._done = missing, done
        self._study, self.finished = study, 0
        self._start = time.monotonic()
        self._begun = False
        console = Console(file=sys.stderr)
        columns: list[ProgressColumn] = [MofNCompleteColumn()]
        if console.width >= 120:
            columns = [TextColumn("{task.description}", markup=False), BarColumn(20), *columns]
        text = TextColumn("{task.fields[text]}", markup=False)
        self._progress = Progress(*columns, text, console=console, transient=True) if console.is_terminal else None
        if self._progress is not None:
            total = done + len(missing)
            self._task = self._progress.add_task(study, total=total, completed=done, text="")

    def __enter__(self) -> Self:
        if self._progress is not None:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.stop()

    def message(self, text: str) -> None:
        """Says one thing."""
        if self._progress is None:
            print(
                f"{self._study}: {self._done} runs finished before, {len(self._todo)} to compute. {text}",
                file=sys.stderr,
            )
        else:
            self._progress.update(self._task, text=text)

    def on(self, event: "Event") -> None:
        """Shows one event; the clock starts with the first, when torch and the data are there."""
        if not self._begun:
            self._begun, self._start = True, time.monotonic()
        if event.record is not None:
            self.finished += 1
            self._line(event.config, event)
        elif self._progress is not None:
            self._progress.update(self._task, completed=self._done + self.finished, text=self._now(event))

    def _now(self, event: "Event") -> str:
        parts = (event.config.activation, event.config.strategy, event.config.network, event.config.dataset)
        name = f"seed {event.config.seed} · " + " · ".join(spec.label for spec in parts)
        epoch = event.epoch
        if epoch is None:
            return f"{self._left(0.0)} · {name}"
        scores = f"loss {epoch.scores['train_loss']:.3f} · val {100 * epoch.scores['validation_accuracy']:.1f}%"
        part = epoch.number / event.config.epochs
        return f"{self._left(part)} · epoch {epoch.number}/{event.config.epochs} · {scores} · {name}"

    def _left(self, part: float) -> str:
        share = (self.finished + part) / len(self._todo)
        elapsed = time.monotonic() - self._start
        return f"{duration(elapsed / share - elapsed)} left" if share else "…"

    def _line(self, config: RunConfig, event: "Event") -> None:
        if self._progress is not None:
            self._progress.update(self._task, completed=self._done + self.finished)
            return
        assert event.record is not None
        total = self._done + len(self._todo)
        history, diverged = event.record["history"], event.record["diverged"]
        result = (
            f"diverged in epoch {diverged}"
            if diverged
            else f"validation {100 * history['validation_accuracy'][-1]:.2f}%, loss {history['train_loss'][-1]:.4f}"
        )
        parts = (config.dataset, config.network, config.activation, config.strategy, config.optimizer)
        name = " ".join(spec.label for spec in parts)
        print(
            f"[{self._done + self.finished}/{total}] {name} lr={config.lr:g} weight_decay={config.weight_decay:g} "
            f"seed={config.seed}: {result}; {event.record['provenance']['seconds']:.1f} s, {self._left(0.0)}",
            file=sys.stderr,
            flush=True,
        )
