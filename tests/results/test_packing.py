"""Packing: killed at any point, or by two at once while a driver writes, nothing is lost."""

import multiprocessing
import random
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import decaybench
from decaybench.registry.hashing import config_digest
from decaybench.results import packed
from decaybench.results.record import Record
from decaybench.results.store import StudyFolder
from helpers import finish, tiny


def copies(record: Record, seeds: range) -> list[Record]:
    """The same record under other seeds."""
    configs = [{**record.config, "seed": seed} for seed in seeds]
    return [replace(record, config=config, run_id=config_digest(config)) for config in configs]


@pytest.fixture(scope="module")
def record() -> Record:
    (run,) = tiny(activation="prelu", strategy="exclude-alpha").runs()
    return finish(run)[1]


def contents(folder: StudyFolder) -> dict[str, Record]:
    loaded = folder.load()
    assert all("are whole" in problem for problem in loaded.problems), loaded.problems
    return {r.run_id: r for r in folder.load_records()}


def test_packed_and_loose_are_read_together_loose_first(tmp_path: Path, record: Record) -> None:
    folder = StudyFolder(tmp_path)
    records = copies(record, range(6))
    for one in records[:4]:
        folder.write(one)
    assert folder.pack() == (4, [])
    assert not folder.runs.exists()
    newer = replace(records[0], provenance={"device": "another"})
    for one in (newer, *records[4:]):
        folder.write(one)
    assert all(folder.has(one.run_id) for one in records)
    assert folder.count() == 6
    wanted = {r.run_id: r for r in (newer, *records[1:])}
    assert contents(folder) == wanted
    assert len(folder.load([records[1].run_id, records[5].run_id])) == 2
    assert folder.pack() == (6, [])
    assert contents(folder) == wanted
    assert folder.pack() == (6, [])  # again, with nothing to do
    assert len(decaybench.load(tmp_path)) == 6


def test_a_packed_file_may_go_without_its_layers(tmp_path: Path, record: Record) -> None:
    folder = StudyFolder(tmp_path)
    assert record.layers
    for one in copies(record, range(3)):
        folder.write(one)
    assert folder.pack() == (3, [])
    whole = folder.packed_file.stat().st_size
    assert folder.pack(layers=False) == (3, [])
    assert folder.packed_file.stat().st_size < whole
    assert contents(folder) == {r.run_id: r.without_layers() for r in copies(record, range(3))}


def test_pandas_and_sha256sum_read_it_without_decaybench(tmp_path: Path, record: Record) -> None:
    folder = StudyFolder(tmp_path)
    for one in copies(record, range(3)):
        folder.write(one)
    folder.pack()
    frame = pd.read_parquet(folder.packed_file)
    assert list(frame["seed"]) == [0, 1, 2]
    assert frame["strategy"].unique().tolist() == ["exclude-alpha"]
    assert frame["test_accuracy"].tolist() == [record.final("test_accuracy")] * 3
    assert frame["history"][0] is not None
    done = subprocess.run(["sha256sum", "--check", folder.packed_digest_file.name], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0


def test_a_damaged_record_stays_where_it_is(tmp_path: Path, record: Record) -> None:
    folder = StudyFolder(tmp_path)
    for one in copies(record, range(2)):
        folder.write(one)
    bad = folder.runs / "0123456789abcdef.json"
    bad.write_text("{")
    count, problems = folder.pack()
    assert count == 2
    assert "0123456789abcdef" in problems[0]
    assert [path.name for path in folder.runs.iterdir()] == [bad.name]


def test_a_damaged_packed_file_is_kept_aside_when_it_is_written_anew(tmp_path: Path, record: Record) -> None:
    folder = StudyFolder(tmp_path)
    first, second = copies(record, range(2))
    folder.write(first)
    folder.pack()
    folder.packed_file.write_bytes(b"rubbish")
    folder.write(second)
    assert "runs.parquet cannot be read" in folder.load().problems[0]
    folder.pack()
    (aside,) = tmp_path.glob("runs.parquet.*.damaged")
    assert aside.read_bytes() == b"rubbish"
    assert contents(folder) == {second.run_id: second}


def test_a_damaged_row_is_computed_again_and_the_others_stay(tmp_path: Path, record: Record) -> None:
    folder = StudyFolder(tmp_path)
    first, second = copies(record, range(2))
    for one in (first, second):
        folder.write(one)
    folder.pack()
    table = packed.read(folder.packed_file)
    rows = table.to_pylist(maps_as_pydicts="strict")
    rows[0]["history"]["test_accuracy"][-1] += 0.001
    lost, kept = rows[0]["run_id"], rows[1]["run_id"]
    pq.write_table(
        pa.Table.from_pylist([{**row, "history": list(row["history"].items())} for row in rows], table.schema),
        folder.packed_file,
    )
    assert not folder.has(lost)
    assert folder.has(kept)
    assert folder.load().run_ids() == {kept}
    folder.write({first.run_id: first, second.run_id: second}[lost])
    assert folder.load().problems == []
    folder.pack()
    assert folder.load().run_ids() == {lost, kept}
    assert list(tmp_path.glob("runs.parquet.*.damaged"))


def test_what_a_record_lacks_or_has_more_survives_packing(tmp_path: Path, record: Record) -> None:
    folder = StudyFolder(tmp_path)
    old = replace(record, protected=False, fingerprints={**record.fingerprints, "weights": "w"})
    folder.write(old)
    assert not folder.load().records[0].protected  # writing it anew gives it a digest, and no past
    folder.pack()
    (again,) = folder.load_records()
    assert not again.protected
    assert again.fingerprints == old.fingerprints


@pytest.mark.parametrize("place", [31, 6446, 900, 3000])
def test_a_text_that_does_not_decode_is_no_crash(tmp_path: Path, record: Record, place: int) -> None:
    folder = StudyFolder(tmp_path)
    for one in copies(record, range(3)):
        folder.write(one)
    folder.pack()
    content = bytearray(folder.packed_file.read_bytes())
    for bit in range(8):
        content[place % len(content)] ^= 1 << bit
        folder.packed_file.write_bytes(bytes(content))
        assert len(folder.load().run_ids()) <= 3
        folder.has("x")
        content[place % len(content)] ^= 1 << bit


def _pack(path: str) -> None:
    StudyFolder(Path(path)).pack()


@pytest.mark.slow
def test_killed_at_thirty_random_moments_nothing_is_lost(tmp_path: Path, record: Record) -> None:
    context = multiprocessing.get_context("fork")
    generator, killed = random.Random(0), 0
    folder = StudyFolder(tmp_path)
    wanted: dict[str, Record] = {}
    seed = 0
    while killed < 30:
        for one in copies(record, range(seed, seed + 20)):
            folder.write(one)
            wanted[one.run_id] = one
        seed += 20
        process = context.Process(target=_pack, args=(str(tmp_path),))
        process.start()
        process.join(timeout=0.3 * generator.random())
        if process.is_alive():
            process.kill()
            killed += 1
        process.join()
        assert contents(folder) == wanted
    folder.pack()
    assert contents(folder) == wanted
    assert not list(folder.runs.glob("*.json"))


@pytest.mark.slow
def test_two_packers_and_a_writer_at_once_lose_nothing(tmp_path: Path, record: Record) -> None:
    context = multiprocessing.get_context("fork")
    folder = StudyFolder(tmp_path)
    records = copies(record, range(150))
    folder.write(records[0])
    packers = [context.Process(target=_keep_packing, args=(str(tmp_path),)) for _ in range(2)]
    for process in packers:
        process.start()
    for one in records[1:]:
        folder.write(one)
        assert folder.has(one.run_id)
        assert folder.has(records[0].run_id)
    (tmp_path / "stop").touch()
    for process in packers:
        process.join(timeout=60)
        assert process.exitcode == 0
    folder.pack()
    assert contents(folder) == {r.run_id: r for r in records}


def _keep_packing(path: str) -> None:
    while not (Path(path) / "stop").exists():
        _pack(path)


@pytest.mark.slow
def test_the_command(tmp_path: Path, record: Record, cli: Callable[..., Any]) -> None:
    folder = StudyFolder(tmp_path / "results" / "mine")
    for one in copies(record, range(2)):
        folder.write(one)
    done = cli("pack", "results/mine")
    assert done.returncode == 0, done.stderr
    assert "results/mine/runs.parquet: 2 runs" in done.stdout
    before = cli("report", "results/mine").stdout
    assert "exclude-alpha" in before
    assert cli("pack", "nowhere").returncode == 2
