"""The only reader and writer of a study folder.

``results/NAME/study.toml`` says what was asked for. ``results/NAME/runs/RUN_ID.json`` holds one finished run, and
``results/NAME/runs.parquet`` those that `StudyFolder.pack` has put together. Reading never writes.
"""

import contextlib
import gc
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

from decaybench.errors import DecaybenchError, UsageError
from decaybench.results.record import (
    MAX_TEXT,
    DamagedRecordError,
    OtherVersionError,
    Record,
    dumps,
    loads,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from decaybench.results.packed import Detail

CHECKPOINT_HEADER = b"decaybench checkpoint\n"
BESIDE = ("attempts", "output", "weights", "errors", "slurm")  # folders with what belongs to records
STALE_SECONDS = 3600.0  # after which a temporary file is of a process that was killed


@dataclass
class Loaded:
    """The records of a study folder.

    Attributes:
        records: Those that could be read, one by one.
        packed: The rows of ``runs.parquet`` that are not among them; None where there is no such file.
        problems: A sentence for each record that could not be read.
        newer: Run ids of records that a newer version wrote.
    """

    records: list[Record] = field(default_factory=list)
    packed: "pa.Table | None" = None
    problems: list[str] = field(default_factory=list)
    newer: set[str] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.records) + (0 if self.packed is None else self.packed.num_rows)

    def run_ids(self) -> set[str]:
        """Returns the ids of all runs that were read."""
        packed = [] if self.packed is None else self.packed["run_id"].to_pylist()
        return {record.run_id for record in self.records} | set(packed)


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
    def packed_file(self) -> Path:
        return self.path / "runs.parquet"

    @property
    def packed_digest_file(self) -> Path:
        return self.path / "runs.parquet.sha256"

    @property
    def progress_file(self) -> Path:
        return self.path / "progress.json"

    def _record(self, run_id: str) -> Path:
        return self.runs / f"{run_id}.json"

    def _checkpoint(self, name: str) -> Path:
        return self.path / "checkpoints" / f"{name}.pt"

    def has(self, run_id: str) -> bool:
        """Tells whether there is a record of a run."""
        return self._record(run_id).is_file() or run_id in self._packed_ids()

    def count(self) -> int:
        """Counts the records, without reading them."""
        return len({path.stem for path in self.runs.glob("*.json")} | self._packed_ids())

    def _packed_ids(self) -> frozenset[str]:
        """Reads which runs are packed and can be read; once for each version of the file."""
        try:
            stat = self.packed_file.stat()
        except OSError:
            return frozenset()
        key = (str(self.packed_file), stat.st_mtime_ns, stat.st_size, stat.st_ino)
        if key not in _IDS:
            from decaybench.results import packed

            _IDS.clear()
            _IDS[key] = packed.ids_of(self.packed_file, self._digest_agrees())
        return _IDS[key]

    def changed_data(self, label: str, before: str, now: str) -> UsageError:
        """Builds the error for a data set that is not what the runs of this study were trained on.

        Args:
            label: The data set.
            before: Fingerprint of its content when those were trained.
            now: Fingerprint of its content now.
        """
        return UsageError(
            f"The data set {label} is not the one that finished runs in {self.path} were trained on (fingerprint "
            f"{before} then, {now} now); give --name for another folder, or --fresh to compute every run again."
        )

    def write_study(self, text: str) -> None:
        """Writes study.toml, which says what was asked for.

        Raises:
            DecaybenchError: When the folder cannot be written.
        """
        self._write(self.study_file, text.encode())

    def write(self, record: Record) -> None:
        """Commits one finished run: written to a temporary name, then renamed.

        Raises:
            DecaybenchError: When the folder cannot be written.
        """
        self._write(self._record(record.run_id), dumps(record))

    def write_weights(self, run_id: str, content: bytes) -> None:
        """Writes the weights of a run to ``weights/RUN_ID.safetensors``.

        Raises:
            DecaybenchError: When the folder cannot be written.
        """
        self._write(self.path / "weights" / f"{run_id}.safetensors", content)

    def write_checkpoint(self, name: str, content: bytes) -> None:
        """Writes a checkpoint, with its digest in front.

        Raises:
            DecaybenchError: When the folder cannot be written.
        """
        self._write(self._checkpoint(name), CHECKPOINT_HEADER + hashlib.sha256(content).digest() + content)

    def checkpoints(self) -> dict[str, bytes | None]:
        """Reads the checkpoints, by name; None for one that is damaged. Files of others are passed over."""
        found: dict[str, bytes | None] = {}
        for path in sorted((self.path / "checkpoints").glob("*.pt")):
            try:
                text = path.read_bytes() if path.is_file() else b""
            except OSError:
                continue
            head, rest = text[: len(CHECKPOINT_HEADER)], text[len(CHECKPOINT_HEADER) :]
            wrong = sum(a != b for a, b in zip(head, CHECKPOINT_HEADER, strict=False))
            if len(head) < len(CHECKPOINT_HEADER) or wrong > 1:
                continue  # with one wrong byte it is a damaged checkpoint, with more a file of somebody else
            digest, content = rest[:32], rest[32:]
            found[path.stem] = content if not wrong and hashlib.sha256(content).digest() == digest else None
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

    def write_error(self, run_id: str, text: str) -> Path | None:
        """Writes the traceback of a run that failed; failing to is no error."""
        path = self.path / "errors" / f"{run_id}.txt"
        try:
            self._write(path, text.encode("utf-8", "replace"))
        except DecaybenchError:
            return None
        return path

    def write_progress(self, text: str) -> None:
        """Writes the progress of a study; failing to is no error."""
        with contextlib.suppress(DecaybenchError):
            self._write(self.progress_file, text.encode())

    def _write(self, path: Path, content: bytes) -> None:
        with _writing(path) as temporary, temporary.open("wb") as file:
            file.write(content)
            _flush(file)

    def load(self, run_ids: Iterable[str] | None = None, detail: "Detail" = "all") -> Loaded:
        """Reads the records, of these runs or of all. Nothing is changed in the folder.

        Args:
            run_ids: The runs to read; None means all.
            detail: What to read of each: what a table needs (``summary``), also what figures need (``figures``), or
                ``all``.
        """
        loaded, wanted = Loaded(), None if run_ids is None else set(run_ids)
        with _no_collection():
            # One by one first: what is packed meanwhile is still found afterwards.
            for path in self._loose(wanted):
                self._load_one(path, loaded, detail)
            self._load_packed(loaded, wanted, detail)
        there = loaded.run_ids()
        for path in sorted(self.runs.glob("*.json.damaged")):
            run_id = path.name.partition(".")[0]
            if run_id not in there and (wanted is None or run_id in wanted):
                loaded.problems.append(
                    f"{self._record(run_id)} was damaged and set aside earlier; its run is left out."
                )
        return loaded

    def load_records(self, run_ids: Iterable[str] | None = None) -> list[Record]:
        """Reads records of these runs, or of all, one by one, also those that are packed."""
        loaded = self.load(run_ids)
        if loaded.packed is None:
            return loaded.records
        from decaybench.results import packed

        return loaded.records + packed.records_of(loaded.packed, check=False)[0]

    def _loose(self, wanted: set[str] | None) -> list[Path]:
        return sorted(p for p in self.runs.glob("*.json") if wanted is None or p.stem in wanted)

    def _load_one(self, path: Path, loaded: Loaded, detail: "Detail") -> None:
        try:
            record = loads(_content(path), path.stem)
            loaded.records.append(_without_curves(record) if detail == "summary" else record)
        except FileNotFoundError:
            return  # packed since it was listed
        except OSError as error:  # the file may be whole
            loaded.problems.append(f"{path} cannot be read: {error.strerror}; it is left out.")
        except OtherVersionError as error:
            loaded.newer.add(path.stem)
            loaded.problems.append(f"{path} is left out: {error}.")
        except DamagedRecordError as error:
            loaded.problems.append(f"{path} cannot be read: {error}; it is left out.")

    def _load_packed(self, loaded: Loaded, wanted: set[str] | None, detail: "Detail") -> None:
        if not self.packed_file.is_file():
            return
        import pyarrow as pa

        from decaybench.results import packed

        loose = {record.run_id for record in loaded.records}
        try:
            whole = self._digest_agrees()
            columns = packed.columns_for(detail, self.packed_file) if whole else None
            table = packed.read(self.packed_file, columns)
        except DamagedRecordError as error:
            loaded.problems.append(f"{self.packed_file} cannot be read: {error}; its runs are left out.")
            return
        if not whole:  # row by row
            records, damaged = packed.records_of(table, check=True)
            chosen = [r for r in records if r.run_id not in loose and (wanted is None or r.run_id in wanted)]
            loaded.records += [_without_curves(r) for r in chosen] if detail == "summary" else chosen
            loaded.problems += [
                f"run {run_id} in {self.packed_file} cannot be read: its content was changed; it is left out."
                for run_id in damaged
                if run_id not in loose and (wanted is None or run_id in wanted)
            ]
            if not damaged:
                loaded.problems.append(
                    f"{self.packed_file} is not the file that {self.packed_digest_file.name} belongs to; its "
                    f"{len(records)} runs were checked one by one and are whole. decaybench pack writes it anew."
                )
            return
        ids = table["run_id"].to_pylist()
        keep = [i not in loose and (wanted is None or i in wanted) for i in ids]
        loaded.packed = table if all(keep) else table.filter(pa.array(keep))

    def _digest_agrees(self) -> bool:
        from decaybench.results import packed

        try:
            said = self.packed_digest_file.read_text("utf-8").split()[0]
        except (OSError, IndexError, UnicodeDecodeError):
            return False
        return said == packed.file_digest(self.packed_file)

    def set_aside_damaged(self, run_ids: Iterable[str]) -> list[str]:
        """Renames damaged records to ``….json.damaged``, so that their runs are computed again.

        Returns:
            A sentence for each.

        Raises:
            DecaybenchError: When one cannot be renamed.
        """
        said = []
        for path in self._loose(set(run_ids)):
            try:
                loads(_content(path), path.stem)
            except DamagedRecordError as error:
                aside = path.with_name(f"{path.name}.damaged")
                try:
                    path.rename(aside)
                except OSError as problem:
                    raise DecaybenchError(
                        f"{path} cannot be read ({error}), nor set aside as {aside.name}: {problem.strerror}; "
                        "move it away."
                    ) from problem
                said.append(f"{path} cannot be read: {error}; it is set aside as {aside.name}.")
            except (OSError, OtherVersionError):
                continue
        return said

    def pack(self, layers: bool = True) -> tuple[int, list[str]]:
        """Puts all records into ``runs.parquet``. At any point it may be killed, and others may write meanwhile.

        Args:
            layers: Whether the file keeps what became of each activation, the larger part of it.

        Returns:
            The number of records in the file, and a sentence for each that could not be packed.

        Raises:
            DecaybenchError: When the folder cannot be written.
        """
        from decaybench.results import packed

        with self._locked():
            before = {path: path.read_bytes() for path in self._loose(None) if path.is_file()}
            loaded = self.load()
            if not loaded.records and (layers or loaded.packed is None):
                return self.count(), loaded.problems
            old = [] if loaded.packed is None else packed.records_of(loaded.packed, check=False)[0]
            records = loaded.records + old
            table = packed.to_table(records if layers else [record.without_layers() for record in records])
            there = set(table["run_id"].to_pylist())
            if self.packed_file.exists() and (self._packed_ids() - there or self._unreadable()):
                digest = packed.file_digest(self.packed_file)
                shutil.copy2(self.packed_file, self.path / f"runs.parquet.{digest[:8]}.damaged")
            with _writing(self.packed_file) as temporary:
                digest = packed.write(table, temporary)
                again, damaged = packed.records_of(packed.read(temporary), check=True)
                if damaged or len(again) != table.num_rows:
                    raise DecaybenchError(f"Cannot pack {self.path}: what was written reads differently.")
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
            self._write(self.packed_digest_file, f"{digest}  {self.packed_file.name}\n".encode())
            for path, content in before.items():
                with contextlib.suppress(OSError):
                    if path.stem in there and path.read_bytes() == content:
                        path.unlink()
            with contextlib.suppress(OSError):
                self.runs.rmdir()
            return table.num_rows, loaded.problems

    def _unreadable(self) -> bool:
        """Tells whether a row of the packed file cannot be read."""
        from decaybench.results import packed

        try:
            return not self._digest_agrees() and bool(packed.records_of(packed.read(self.packed_file), check=True)[1])
        except DamagedRecordError:
            return True

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keeps others from packing; the lock ends with the process, however it ends."""
        try:
            descriptor = _lock(self.path)
        except OSError as error:
            raise DecaybenchError(f"Cannot pack {self.path}: {error.strerror}.") from error
        try:
            yield
        finally:
            os.close(descriptor)

    def clear(self) -> None:
        """Deletes every record, what belongs to records, and the study file; anything else in the folder stays.

        Raises:
            DecaybenchError: When something cannot be deleted.
        """
        try:
            if self.runs.is_symlink():
                self.runs.unlink()
            elif self.runs.exists():
                shutil.rmtree(self.runs)
            for path in (self.packed_file, self.packed_digest_file, self.study_file, self.progress_file):
                path.unlink(missing_ok=True)
            for name in BESIDE:
                if (self.path / name).is_dir() and not (self.path / name).is_symlink():
                    shutil.rmtree(self.path / name)
            for name in self.checkpoints():
                self.remove_checkpoint(name)
        except OSError as error:
            raise DecaybenchError(f"Cannot delete {error.filename}: {error.strerror}.") from error


_IDS: dict[tuple[str, int, int, int], frozenset[str]] = {}


def _lock(folder: Path) -> int:
    """Locks a folder, or on Windows a file in it, and returns the descriptor that holds the lock."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        descriptor = os.open(folder / ".pack.lock", os.O_RDWR | os.O_CREAT)
        msvcrt.locking(descriptor, msvcrt.LK_LOCK, 1)  # type: ignore[attr-defined]
        return descriptor
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[Path]:
    """Gives a temporary name beside a file, which becomes the file at the end: the commit point.

    Raises:
        DecaybenchError: When the folder cannot be written.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-", suffix=".tmp")
        os.close(descriptor)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    except OSError as error:
        raise DecaybenchError(
            f"Cannot write {path}: {error.strerror}; make room or name another folder with --results, "
            "then run the same command again: finished runs are kept."
        ) from error
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink()


def _flush(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _content(path: Path) -> bytes:
    """Reads a record file.

    Raises:
        OSError: When it cannot be read.
        DamagedRecordError: When it is no ordinary file or far too large.
    """
    if not path.is_file():
        if path.exists():
            raise DamagedRecordError("it is no ordinary file")
        raise FileNotFoundError(path)
    if path.stat().st_size > MAX_TEXT:
        raise DamagedRecordError(f"it is larger than {MAX_TEXT} bytes")
    return path.read_bytes()


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


def _without_curves(record: Record) -> Record:
    """Removes curves, inputs, trajectories and initial values from a record."""
    layers = tuple(replace(layer, initial=None, quantiles=None, inputs=None, curve=None) for layer in record.layers)
    return replace(record, layers=layers)


def find_study_folder(directory: Path | None, results: Path = Path("results")) -> StudyFolder:
    """Finds the study folder to report on: the one named, or the one below ``results`` that changed last.

    Raises:
        UsageError: When there is none.
    """
    if directory is None:
        folders = [f for p in results.glob("*") if p.is_dir() and (f := StudyFolder(p)).count()]
        if not folders:
            raise UsageError(f"There is no finished run below {results}/; start with: decaybench run.")
        return max(folders, key=_changed)
    folder = StudyFolder(directory)
    if not folder.runs.is_dir() and not folder.packed_file.is_file():
        below = sorted({p.parent.name for p in (*directory.glob("*/runs"), *directory.glob("*/runs.parquet"))})
        hint = f"; it has studies below: {', '.join(below)}" if below else ""
        raise UsageError(f"{directory} is no study folder (it has no folder runs and no runs.parquet){hint}.")
    return folder


def _changed(folder: StudyFolder) -> float:
    return max(path.stat().st_mtime for path in (folder.runs, folder.packed_file) if path.exists())
