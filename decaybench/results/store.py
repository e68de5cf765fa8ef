"""The only reader and writer of a study folder.

``results/NAME/study.toml`` says what was asked for, ``results/NAME/runs/RUN_ID.json`` holds one finished run.
"""

import contextlib
import gc
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from decaybench.errors import DecaybenchError, UsageError
from decaybench.results.record import DamagedRecordError, dumps, loads

Record = dict[str, Any]
STALE_SECONDS = 3600.0  # seconds


@dataclass(frozen=True)
class Loaded:
    """The records of a study folder, and a sentence for each that could not be read."""

    records: list[Record]
    problems: list[str]


@dataclass(frozen=True)
class StudyFolder:
    """A study folder, with all its paths."""

    path: Path

    @property
    def study_file(self) -> Path:
        return self.path / "study.toml"

    @property
    def runs(self) -> Path:
        return self.path / "runs"

    @property
    def progress_file(self) -> Path:
        return self.path / "progress.json"

    def _record(self, run_id: str) -> Path:
        return self.runs / f"{run_id}.json"

    def _checkpoint(self, name: str) -> Path:
        return self.path / "checkpoints" / f"{name}.pt"

    def has(self, run_id: str) -> bool:
        """Tells whether there is a record of a run."""
        return self._record(run_id).exists()

    def write_study(self, text: str) -> None:
        """Writes study.toml.

        Raises:
            DecaybenchError: When the folder cannot be written.
        """
        self._write(self.study_file, text)

    def write(self, record: Record) -> None:
        """Commits one finished run: written to a temporary name, then renamed.

        Raises:
            DecaybenchError: When the folder cannot be written.
        """
        self._write(self._record(record["run_id"]), dumps(record))

    def write_checkpoint(self, name: str, content: bytes) -> None:
        """Writes a checkpoint.

        Raises:
            DecaybenchError: When the folder cannot be written.
        """
        self._write(self._checkpoint(name), content)

    def checkpoints(self) -> dict[str, bytes]:
        """Reads the checkpoints, by name."""
        found = {}
        for path in sorted((self.path / "checkpoints").glob("*.pt")):
            with contextlib.suppress(OSError):
                found[path.stem] = path.read_bytes()
        return found

    def remove_checkpoint(self, name: str) -> None:
        """Removes a checkpoint, and the folder of checkpoints with the last one."""
        with contextlib.suppress(OSError):
            self._checkpoint(name).unlink(missing_ok=True)
            self._checkpoint(name).parent.rmdir()

    def sweep(self) -> None:
        """Removes temporary files that are older than an hour, left by processes that were killed."""
        for path in (*self.path.glob(".*.tmp"), *self.path.glob("*/.*.tmp")):
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    path.unlink()

    def write_progress(self, text: str) -> None:
        """Writes the progress of a study; failing to is no error."""
        with contextlib.suppress(DecaybenchError):
            self._write(self.progress_file, text)

    def _write(self, path: Path, content: str | bytes) -> None:
        temporary = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=".tmp")
            with os.fdopen(descriptor, "wb") as file:
                file.write(content if isinstance(content, bytes) else content.encode())
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o644)
            Path(temporary).replace(path)  # the commit point
        except OSError as error:
            if temporary:
                with contextlib.suppress(OSError):
                    Path(temporary).unlink()
            raise DecaybenchError(
                f"Cannot write {path}: {error.strerror}; make room or name another folder with --results, "
                "then run the same command again: finished runs are kept."
            ) from error

    def load(self, run_ids: Iterable[str] | None = None, set_aside: bool = True, pictures: bool = True) -> Loaded:
        """Reads the records, of these runs or of all.

        A damaged one is named and, with ``set_aside``, renamed to ``….json.damaged``, so that its run is
        computed again. Without ``pictures``, what only figures need is left out: ten thousand records fit into
        memory.
        """
        records, problems = [], []
        wanted = None if run_ids is None else set(run_ids)
        before = list(self.runs.glob("*.json.damaged"))
        with _no_collection():
            for path in sorted(self.runs.glob("*.json")):
                if wanted is not None and path.stem not in wanted:
                    continue
                try:
                    record = loads(path.read_bytes(), path.stem)
                    records.append(record if pictures else _slim(record))
                except OSError as error:  # the file may be whole
                    problems.append(f"{path} cannot be read: {error.strerror}; it is left out.")
                except DamagedRecordError as error:
                    done = self._set_aside(path) if set_aside else "it is left out"
                    problems.append(f"{path} cannot be read: {error}; {done}.")
        earlier = {p.name.partition(".")[0] for p in before} - {record["run_id"] for record in records}
        problems += [
            f"{self._record(run_id)} was damaged and set aside earlier; its run is left out."
            for run_id in sorted(earlier if wanted is None else earlier & wanted)
        ]
        return Loaded(records, problems)

    def _set_aside(self, path: Path) -> str:
        aside = path.with_name(f"{path.name}.damaged")
        try:
            path.rename(aside)
        except OSError:
            return "it is left out"
        return f"it is set aside as {aside.name}"

    def clear(self) -> None:
        """Deletes every record and the study file; the folder itself and anything else in it stays.

        Raises:
            DecaybenchError: When something cannot be deleted.
        """
        try:
            if self.runs.exists():
                shutil.rmtree(self.runs)
            for path in (self.study_file, self.progress_file):
                path.unlink(missing_ok=True)
            for name in self.checkpoints():
                self.remove_checkpoint(name)
        except OSError as error:
            raise DecaybenchError(f"Cannot delete {error.filename}: {error.strerror}.") from error


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Turns the garbage collector off, which takes a third of the time of loading thousands of records."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _slim(record: Record) -> Record:
    """Removes curves, inputs, trajectories and initial values from a record."""
    drawn = ("curve", "inputs", "quantiles", "initial")
    layers = [{key: value for key, value in layer.items() if key not in drawn} for layer in record["layers"]]
    return {**record, "layers": layers}


def find_study_folder(directory: Path | None, results: Path = Path("results")) -> StudyFolder:
    """Finds the study folder to report on: the one named, or the one below ``results`` that changed last.

    Raises:
        UsageError: When there is none.
    """
    if directory is None:
        folders = [p.parent for p in results.glob("*/runs") if any(p.glob("*.json"))]
        if not folders:
            raise UsageError(f"There is no finished run below {results}/; start with: decaybench run.")
        return StudyFolder(max(folders, key=lambda f: (f / "runs").stat().st_mtime))
    if not (directory / "runs").is_dir():
        below = sorted(p.parent.name for p in directory.glob("*/runs"))
        hint = f"; it has studies below: {', '.join(below)}" if below else ""
        raise UsageError(f"{directory} is no study folder (it has no folder runs){hint}.")
    return StudyFolder(directory)
