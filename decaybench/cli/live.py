"""Shows progress on stderr while a study runs: live in a terminal, plain lines elsewhere."""

import re
import sys
import time
from collections import Counter
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.live import Live as Screen
from rich.text import Text

from decaybench.console import say
from decaybench.errors import one_line
from decaybench.execution.progress import Progress, scores_text
from decaybench.results.record import Record
from decaybench.results.store import StudyFolder
from decaybench.study.config import read_config

if TYPE_CHECKING:
    from decaybench.execution.event import Event

PROGRESS_SECONDS = 1.0  # seconds between two notes for ``decaybench status``


class Live:
    """Shows the events of a study, and keeps them in a file for ``decaybench status``."""

    def __init__(self, progress: Progress, folder: StudyFolder, debug: bool = False) -> None:
        self.progress, self._folder, self._debug = progress, folder, debug
        self._said: Counter[str] = Counter()
        console = Console(file=sys.stderr)
        self._screen = Screen(console=console, transient=True) if console.is_terminal else None
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
            self._screen.update(Text("\n".join(self.progress.lines()), overflow="ellipsis", no_wrap=True))
        else:
            for i, record in enumerate(event.records, start=1 - len(event.records)):
                self._print(self._line(record, self.progress.before + self.progress.finished + i))
        if time.monotonic() - self._noted > PROGRESS_SECONDS:
            self._noted = time.monotonic()
            self._folder.write_progress(self.progress.dumps())

    def _say(self, trouble: str, details: str) -> None:
        """Says what went wrong, once for all runs in which it is the same but for seed and step."""
        _before, fails, after = trouble.partition(" fails")
        kind = re.sub(r" (The traceback|Its output) is in .*", "", f"{fails.strip()}{after}" if fails else trouble)
        self._said[kind] += 1
        if self._said[kind] == 1:
            self._print(f"Warning: {trouble}")
            if self._debug and details:
                self._print(details.rstrip())

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
