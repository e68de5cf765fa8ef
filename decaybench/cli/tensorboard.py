"""Writes what epochs give as event files of TensorBoard."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from decaybench.errors import UsageError

if TYPE_CHECKING:
    from decaybench.execution.event import Event


class Board:
    """Writes a folder of events for each run.

    Args:
        folder: The folder that TensorBoard is pointed at; None writes nothing.

    Raises:
        UsageError: Without the package tensorboard.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._writers: dict[str, Any] = {}
        if folder is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UsageError("--tensorboard needs the package: pip install tensorboard.") from error
        self._make = SummaryWriter

    def on(self, event: "Event") -> None:
        """Writes the scores of the epochs of an event, and closes the files of runs that are finished."""
        folder = self._folder
        if folder is None:
            return
        for epoch in event.epochs:
            config = epoch.config
            if config.run_id not in self._writers:
                name = f"{config.name} {config.details} seed={config.seed}".replace("/", "_")
                self._writers[config.run_id] = self._make(str(folder / f"{name[:200]} {config.run_id[:6]}"))
            for metric, value in epoch.scores.items():
                self._writers[config.run_id].add_scalar(metric, value, epoch.number)
        for record in event.records:
            self._close(record.run_id)
        if event.failed is not None:
            self._close(event.failed.run_id)

    def close(self) -> None:
        """Closes all files."""
        for run_id in list(self._writers):
            self._close(run_id)

    def _close(self, run_id: str) -> None:
        if (writer := self._writers.pop(run_id, None)) is not None:
            writer.close()
