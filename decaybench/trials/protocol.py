"""What the study that starts a training script and the trial inside it tell each other, through files in one folder."""

import json
import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

ENVIRONMENT = "DECAYBENCH_TRIAL"  # names the task's file in the script's process, and in what that starts


@dataclass(frozen=True)
class Task:
    """What a trial is asked for.

    Attributes:
        config: The fields of its `ScriptConfig`.
        metrics: What the study compares, each with its direction: it must be logged, or given at the end.
        folder: Where the files of this attempt are.
        pid, host: The process that waits for it.
    """

    config: dict[str, Any]
    metrics: tuple[str, ...]
    folder: str
    pid: int
    host: str

    @property
    def files(self) -> "Files":
        """The files of this attempt."""
        return Files(Path(self.folder))

    def write(self) -> Path:
        """Writes the task where the trial reads it, and returns the path."""
        path = Path(self.folder) / "task.json"
        write_whole(path, json.dumps(asdict(self)).encode())
        return path

    @classmethod
    def here(cls) -> Self | None:
        """Reads the task of this process; None where nothing drives it."""
        path = os.environ.get(ENVIRONMENT)
        if not path:
            return None
        fields = json.loads(Path(path).read_text("utf-8"))
        return cls(**{**fields, "metrics": tuple(fields["metrics"])})

    def is_waited_for(self) -> bool:
        """Tells whether the process that waits is there; on another machine it counts as there."""
        if self.host != platform.node():
            return True
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except OSError:
            return True
        return True


@dataclass(frozen=True)
class Files:
    """The files of one attempt at a run.

    Attributes:
        folder: The folder they are in.
    """

    folder: Path

    @property
    def begun(self) -> Path:
        """An empty file, written when the script makes its trial."""
        return self.folder / "begun"

    @property
    def log(self) -> Path:
        """A line of JSON for each call of `Trial.log`."""
        return self.folder / "log.jsonl"

    @property
    def outcome(self) -> Path:
        """The record, written at once and whole when the trial is finished."""
        return self.folder / "outcome.json"

    @property
    def error(self) -> Path:
        """A sentence on what the script did wrong with its trial."""
        return self.folder / "error.txt"


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file to a temporary name and renames it, so that nobody sees half of it."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
