"""No changed bit of a record, a packed file or a checkpoint changes a number unnoticed."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from decaybench.execution.inline import Inline
from decaybench.execution.scheduler import Scheduler
from decaybench.results import packed
from decaybench.results.record import DamagedRecordError, OtherVersionError, Record, dumps, loads
from decaybench.results.store import StudyFolder
from helpers import CPU, finish, one, tiny


@pytest.fixture(scope="module")
def record() -> Record:
    outcomes = {"test_accuracy": np.arange(50) % 3 > 0, "test_loss": np.linspace(0, 2, 50).astype(np.float16)}
    about = {"device": "cpu", "seconds": 1.25}
    return replace(finish(one(epochs=2, activation="kaf"))[1], provenance=about, outcomes=outcomes)


def flips(content: bytes, count: int) -> Iterator[bytes]:
    """The content with one bit changed, at random places."""
    generator = random.Random(0)
    for _ in range(count):
        changed = bytearray(content)
        changed[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
        yield bytes(changed)


def test_two_thousand_flipped_bits_of_a_record_are_noticed(record: Record) -> None:
    content, noticed = dumps(record), 0
    for changed in flips(content, 2000):
        try:
            assert loads(changed, record.run_id) == record  # nothing else may be let through
        except (DamagedRecordError, OtherVersionError):
            noticed += 1
    assert noticed >= 1999  # all but perhaps the newline at the end


def test_a_record_comes_back_from_a_packed_file_as_it_was(tmp_path: Path, record: Record) -> None:
    plain = replace(record, outcomes={}, extra={"notes": [1, {"a": None}]})
    diverged = finish(one(lr=1e20, epochs=5))[1]
    bare = replace(finish(one(epochs=1))[1], layers=())
    older = replace(finish(one(epochs=3))[1], protected=False)
    records = [replace(record, run_id="0" * 16), plain, diverged, bare, older]
    path = tmp_path / "runs.parquet"
    packed.write(packed.to_table(records), path)
    again, damaged = packed.records_of(packed.read(path), check=True)
    assert damaged == []
    assert sorted(again, key=hash) == sorted(records, key=hash)


@pytest.mark.slow
def test_two_hundred_flipped_bits_of_a_packed_file_are_noticed(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    for run in tiny(activation="prelu", seeds=2).runs():
        folder.write(finish(run)[1])
    folder.pack()
    whole = {record.run_id: record for record in folder.load_records()}
    content, noticed = folder.packed_file.read_bytes(), 0
    for changed in flips(content, 200):
        folder.packed_file.write_bytes(changed)
        loaded = folder.load()
        assert loaded.packed is None
        assert all(record == whole[record.run_id] for record in loaded.records)
        noticed += bool(loaded.problems)
    folder.packed_file.write_bytes(content)
    assert len(folder.load()) == len(whole)
    assert noticed == 200


def trained(folder: StudyFolder, runs: list[Any]) -> dict[str, Record]:
    list(Scheduler(Inline(CPU), folder, CPU).run([run for run in runs if not folder.has(run.run_id)]))
    assert not folder.checkpoints()
    return {r.run_id: replace(r, provenance={}) for r in folder.load_records()}


def test_four_hundred_flipped_bits_of_a_checkpoint_change_no_number(tmp_path: Path) -> None:
    """Those that are resumed give the numbers of an undisturbed study, and those that are not begin anew."""
    runs = tiny(activation="prelu", epochs=3, seeds=1, strategy="exclude-alpha").runs()
    undisturbed = trained(StudyFolder(tmp_path / "whole"), runs)
    stopped = StudyFolder(tmp_path / "stopped")
    going = Scheduler(Inline(CPU), stopped, CPU, checkpoint_seconds=0.0).run(runs)
    next(event for event in going if event.epochs and event.epochs[-1].number == 2)
    going.close()  # type: ignore[attr-defined]
    (path,) = (stopped.path / "checkpoints").iterdir()
    content, noticed = path.read_bytes(), 0
    for changed in flips(content, 400):
        path.write_bytes(changed)
        noticed += not any(value is not None for value in stopped.checkpoints().values())
    assert noticed == 400
    for number, changed in enumerate(flips(content, 5)):
        folder = StudyFolder(tmp_path / str(number))
        (folder.path / "checkpoints").mkdir(parents=True)
        (folder.path / "checkpoints" / path.name).write_bytes(changed)
        assert trained(folder, runs) == undisturbed


def test_files_of_others_among_the_checkpoints_stay_and_are_not_read(tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    foreign = tmp_path / "checkpoints" / "best_model.pt"
    foreign.write_bytes(b"PK\x03\x04 somebody's weights")
    runs = tiny(activation="prelu", seeds=1, strategy="exclude-alpha").runs()
    list(Scheduler(Inline(CPU), folder, CPU).run(runs))
    assert foreign.exists()
    folder.clear()
    assert foreign.exists()
