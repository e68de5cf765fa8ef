"""Shows progress on stderr while a study runs: live in a terminal, plain lines elsewhere."""

import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.live import Live as Screen
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from decaybench.console import say
from decaybench.errors import one_line
from decaybench.execution.progress import Progress, scores_text
from decaybench.registry.metrics import metric
from decaybench.results.record import Record
from decaybench.results.store import StudyFolder
from decaybench.study.config import read_config

if TYPE_CHECKING:
    from decaybench.execution.event import Event

PROGRESS_SECONDS = 1.0  # seconds between two notes for ``decaybench status``


class Live:
    """Shows the events of a study, and keeps them in a file for ``decaybench status``."""

    def __init__(self, progress: Progress, folder: StudyFolder, debug: bool = False, loudness: int = 0) -> None:
        """Prepares to show a study.

        Args:
            progress: Its state.
            folder: Where it is kept.
            debug: Whether tracebacks are shown.
            loudness: -1 shows what goes wrong only, 1 a line for each run.
        """
        self.progress, self._folder, self._debug, self._loudness = progress, folder, debug, loudness
        self._said: Counter[str] = Counter()
        console = Console(file=sys.stderr)
        shown = console.is_terminal and loudness >= 0
        self._screen = Screen(console=console, transient=True) if shown else None
        self._noted = -PROGRESS_SECONDS
        self._begun = False

    def __enter__(self) -> Self:
        if self._screen is not None:
            self._screen.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._screen is not None:
            self._screen.stop()
        for trouble, count in self._said.items():
            if count > 1:
                self._print(f"Warning: the same {count - 1} more times: {trouble.strip()}")
        if self._begun:
            self._folder.write_progress(self.progress.dumps())

    def message(self, text: str) -> None:
        """Shows a message about the start of the study."""
        p = self.progress
        if self._loudness < 0:
            return
        if self._screen is None:
            self._print(f"{p.study}: {p.before} runs finished before, {p.total - p.before} to compute. {text}")
        else:
            self._screen.update(Text(text))

    def begin(self) -> None:
        """Starts the clock: torch and the data are loaded."""
        self._begun = True
        self.progress.start()

    def on(self, event: "Event") -> None:
        """Shows one event of the study."""
        self.progress.on(event)
        if event.trouble is not None:
            self._say(event.trouble, event.details)
        if self._screen is not None:
            self._screen.update(self.picture())
        elif self._loudness == 0 and len(event.records) > 1:
            self._print(self._cohort(event.records))
        if self._loudness > 0 or (self._loudness == 0 and self._screen is None and len(event.records) == 1):
            for i, record in enumerate(event.records, start=1 - len(event.records)):
                self._print(self._line(record, self.progress.before + self.progress.finished + i))
        if time.monotonic() - self._noted > PROGRESS_SECONDS:
            self._noted = time.monotonic()
            self._folder.write_progress(self.progress.dumps())

    def picture(self) -> Table:
        """Returns what a terminal shows: a bar, how far the study is, the best and the worst run, each worker."""
        whole = Table.grid(expand=True)
        whole.add_row(ProgressBar(total=1.0, completed=self.progress.share))
        for line in self.progress.lines():
            whole.add_row(Text(line, overflow="ellipsis", no_wrap=True))
        return whole

    def _say(self, trouble: str, details: str) -> None:
        """Says what went wrong, once for all runs in which it is the same but for seed and step."""
        _before, fails, after = trouble.partition(" fails")
        kind = re.sub(r" (The traceback|Its output) is in .*", "", f"{fails.strip()}{after}" if fails else trouble)
        self._said[kind] += 1
        if self._said[kind] == 1:
            self._print(f"Warning: {trouble}")
            if self._debug and details:
                self._print(details.rstrip())

    def _cohort(self, records: Sequence[Record]) -> str:
        """Writes one line about runs that were trained together."""
        names = [read_config(record.config).name for record in records]
        watched = metric(self.progress.watched)
        found = [r.final(watched.name) for r in records if r.diverged is None and watched.name in r.history]
        ends = sorted({watched.text(min(found)), watched.text(max(found))}) if found else []
        result = [f"{watched.title} {' to '.join(ends)}"] if ends else []
        diverged = sum(record.diverged is not None for record in records)
        result += [f"{diverged} diverged"] if diverged else []
        several = (
            f"{len(records)} runs, the first {names[0]}"
            if len(set(names)) > 1
            else f"{len(records)} runs of {names[0]}"
        )
        done = f"[{self.progress.before + self.progress.finished}/{self.progress.total}]"
        return f"{done} {several}: {', '.join(result) or 'finished'}; {self.progress.rate}"

    def _line(self, record: Record, number: int) -> str:
        result = scores_text({name: record.final(name) for name in record.history})
        if record.diverged is not None:
            result = f"diverged in epoch {record.diverged}"
        config = read_config(record.config)
        return (
            f"[{number}/{self.progress.total}] {config.name} {config.details} "
            f"seed={config.seed}: {result}; {record.provenance['seconds']:.1f} s, {self.progress.rate}"
        )

    def _print(self, line: str) -> None:
        if self._screen is not None:
            self._screen.console.print(Text(one_line(line)))
        else:
            say(line)
