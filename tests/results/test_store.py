"""The store: atomic, exact, and honest about what it cannot read."""

import json
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import decaybench
from decaybench.analysis.comparison import summarize
from decaybench.analysis.frame import runs_frame
from decaybench.errors import DecaybenchError, UsageError
from decaybench.results.packed import content_digest
from decaybench.results.record import SCHEMA, DamagedRecordError, Record, decode, dumps, encode, loads
from decaybench.results.store import Loaded, StudyFolder, find_study_folder
from helpers import finish, one


@pytest.fixture(scope="module")
def record() -> Record:
    return replace(finish(one(epochs=1))[1], provenance={"device": "cpu", "seconds": 1.0})


def same(found: list[Record], wanted: list[Record]) -> bool:
    return [content_digest(r) for r in found] == [content_digest(r) for r in wanted]


@given(hnp.arrays(st.sampled_from([np.float32, np.float64, np.uint8]), hnp.array_shapes(min_dims=0, min_side=0)))
def test_arrays_come_back_bit_by_bit(array: np.ndarray) -> None:
    again = decode(json.loads(json.dumps(encode(array))))
    assert again.dtype == array.dtype
    assert again.shape == array.shape
    assert again.tobytes() == array.tobytes()


def test_a_record_comes_back_as_it_was(tmp_path: Path, record: Record) -> None:
    folder = StudyFolder(tmp_path / "study")
    folder.write(record)
    loaded = folder.load()
    assert same(loaded.records, [record])
    assert loaded.problems == []
    assert [p.name for p in folder.runs.iterdir()] == [f"{record.run_id}.json"]
    assert stat.S_IMODE((folder.runs / f"{record.run_id}.json").stat().st_mode) == 0o644  # not a temporary's 0600


def test_a_record_cut_anywhere_is_noticed(record: Record) -> None:
    raw = dumps(record)
    for cut in range(len(raw) - 1):  # without the last newline it is still whole
        with pytest.raises(DamagedRecordError):
            loads(raw[:cut], record.run_id)


@given(st.text() | st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists).map(json.dumps))
def test_no_text_breaks_the_reader(text: str) -> None:
    with pytest.raises(DamagedRecordError):
        loads(text.encode(), "0" * 16)


def unprotected(record: Record) -> dict[str, Any]:
    """The record in the form of before there were digests."""
    body: dict[str, Any] = json.loads(dumps(record))
    for key in ("digest", "schema", "metrics"):
        del body[key]
    del body["fingerprints"]["source"]
    return body


def test_a_record_of_before_there_were_digests_is_read_and_said_to_be_unprotected(record: Record) -> None:
    text = json.dumps(unprotected(record)).encode()
    loaded = loads(text, record.run_id)
    assert not loaded.protected
    assert loaded.history == record.history
    assert summarize(runs_frame(Loaded([loaded]))).notes[-1].startswith("1 records have no digest")


RUBBISH: list[tuple[str, object]] = [
    (key, value)
    for key in ("config", "history", "layers", "fingerprints", "run_id", "provenance", "diverged")
    for value in (None, 3, "x", [], {}, [1], {"a": 1})
]


@pytest.mark.parametrize(("key", "value"), RUBBISH, ids=str)
def test_a_record_with_rubbish_inside_is_either_whole_or_noticed(record: Record, key: str, value: object) -> None:
    text = json.dumps({**unprotected(record), key: value}).encode()
    try:
        loaded = loads(text, record.run_id)
    except DamagedRecordError:
        return
    summarize(runs_frame(Loaded([loaded])))  # whatever is let through can be reported


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda r: r["config"].pop("augment"), "not the one of its run"),
        (lambda r: r["config"].update(extra=1), "not the one of its run"),
        (lambda r: r["config"].update(extra={"a": 1}), "extra is no name"),
        (lambda r: r["config"].update(seed=10**400), "seed"),
        (lambda r: r["provenance"].update(backends=["x"]), "backends"),
        (lambda r: r["provenance"].update(resumed_from={"versions": [1]}), "resumed_from"),
        (lambda r: r["layers"][0].update(curve=0), "drawn functions"),
        (lambda r: r["layers"][0].update(curve=True), "drawn functions"),
        (lambda r: r["layers"][0].update(inputs=[10**400] * 48), "inputs"),
        (lambda r: r["history"].update(test_loss=[10**400]), "something else than numbers"),
        (lambda r: r["config"].update(lr=7.0), "not the one of its run"),
        (lambda r: r["config"].update(seed=True), "seed"),
        (lambda r: r["history"].update(extra=5), "something else than numbers"),
        (lambda r: r["history"].update(test_accuracy=["0.9"]), "something else than numbers"),
        (lambda r: r["history"].update(test_accuracy=[True]), "something else than numbers"),
        (lambda r: r["history"].update(test_accuracy=[1.5]), "no fraction"),
        (lambda r: r["history"].update(test_accuracy=[None]), "no fraction"),
        (lambda r: r["history"].update(test_accuracy=[0.9, 0.9]), "1 epochs"),
        (lambda r: r["history"].pop("test_loss"), "lacks test_loss"),
        (lambda r: r["fingerprints"].update(initial="abc"), "initial"),
        (lambda r: r["provenance"].update(seconds="long"), "seconds"),
        (lambda r: r["provenance"].update(versions=3), "versions"),
        (lambda r: r["layers"][0].update(quantiles=[[0.1]]), "quantiles"),
        (lambda r: r["layers"][0].update(inputs=[0.5]), "inputs"),
        (lambda r: r["layers"][0]["curve"].update(end={"mean": [1.0]}), "low"),
        (lambda r: r["layers"][0].update(distance_from_zero="far"), "distance_from_zero"),
        (lambda r: r["layers"][0]["final"].update(shape=[10**9]), "array"),
        (lambda r: r["layers"][0]["final"].update(dtype="|O"), "array"),
    ],
)
def test_a_record_that_cannot_be_believed_is_named_and_left_out(
    tmp_path: Path, record: Record, damage: Callable[[dict[str, Any]], object], reason: str
) -> None:
    changed = json.loads(json.dumps(unprotected(record)))
    damage(changed)
    folder = StudyFolder(tmp_path)
    folder.runs.mkdir()
    path = folder.runs / f"{record.run_id}.json"
    path.write_text(json.dumps(changed))
    loaded = folder.load()
    assert loaded.records == []
    assert f"{path} cannot be read" in loaded.problems[0]
    assert reason in loaded.problems[0]
    assert path.exists()  # reading never writes


def test_what_a_newer_version_writes_is_kept_or_named_and_never_damage(tmp_path: Path, record: Record) -> None:
    more = {**unprotected(record), "notes": {"a": 1}}
    more["history"] = {**more["history"], "test_f1": [0.5]}
    loaded = loads(json.dumps(more).encode(), record.run_id)
    assert loaded.extra == {"notes": {"a": 1}}
    assert loaded.final("test_f1") == 0.5
    folder = StudyFolder(tmp_path)
    folder.runs.mkdir()
    (folder.runs / f"{record.run_id}.json").write_text(json.dumps({**more, "schema": SCHEMA + 1}))
    found = folder.load()
    assert found.newer == {record.run_id}
    assert "a newer decaybench wrote it" in found.problems[0]
    assert folder.set_aside_damaged([record.run_id]) == []
    assert folder.has(record.run_id)  # so that it is not computed again


def test_nesting_without_end_is_no_crash() -> None:
    with pytest.raises(DamagedRecordError):
        loads(b"[" * 100_000, "0" * 16)


def test_damaged_records_are_named_and_the_rest_is_read(tmp_path: Path, record: Record) -> None:
    folder = StudyFolder(tmp_path)
    folder.write(record)
    bad = folder.runs / "0123456789abcdef.json"
    bad.write_bytes(dumps(record)[:100])
    foreign = folder.runs / "fedcba9876543210.json"
    foreign.write_bytes(dumps(record))
    for _ in range(2):
        loaded = folder.load()
        assert [r.run_id for r in loaded.records] == [record.run_id]
        assert len(loaded.problems) == 2
        assert f"{bad} cannot be read" in loaded.problems[0]
        assert f"it holds run '{record.run_id}'" in loaded.problems[1]
    said = folder.set_aside_damaged([bad.stem, foreign.stem, record.run_id])
    assert len(said) == 2
    assert not bad.exists()
    assert bad.with_name(bad.name + ".damaged").exists()
    again = folder.load().problems  # said until the run is there again
    assert len(again) == 2
    assert all("was damaged and set aside earlier" in problem for problem in again)
    assert folder.load([record.run_id]).problems == []


def test_a_record_that_only_cannot_be_opened_stays_where_it_is(tmp_path: Path, record: Record, monkeypatch) -> None:
    folder = StudyFolder(tmp_path)
    folder.write(record)

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        assert "Permission denied; it is left out" in folder.load().problems[0]
    assert same(folder.load().records, [record])


def test_a_failed_write_leaves_the_old_record_and_no_rubbish(tmp_path: Path, record: Record, monkeypatch) -> None:
    folder = StudyFolder(tmp_path)
    folder.write(record)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DecaybenchError, match="No space left on device; make room"):
        folder.write(replace(record, provenance={"device": "other"}))
    assert same(folder.load().records, [record])
    assert len(list(folder.runs.iterdir())) == 1


def test_a_temporary_file_of_a_killed_process_is_no_record(tmp_path: Path, record: Record) -> None:
    folder = StudyFolder(tmp_path)
    folder.write(record)
    (folder.runs / ".0123456789abcdef.json-x.tmp").write_text("{")
    assert folder.load().problems == []


def test_what_a_killed_process_was_writing_is_swept_away_later(tmp_path: Path, record: Record) -> None:
    folder = StudyFolder(tmp_path)
    folder.write(record)
    old, young = folder.runs / ".a.json-x.tmp", tmp_path / ".study.toml-y.tmp"
    for path in (old, young):
        path.write_text("{")
    folder.sweep()
    assert old.exists()
    os.utime(old, (0, 0))
    folder.sweep()
    assert not old.exists()
    assert young.exists()
    assert same(folder.load().records, [record])


def test_find_says_what_is_missing(tmp_path: Path, record: Record) -> None:
    with pytest.raises(UsageError, match="start with: decaybench run"):
        find_study_folder(None, tmp_path)
    for age, name in ((100, "old"), (10, "new")):
        folder = StudyFolder(tmp_path / name)
        folder.write(record)
        os.utime(folder.runs, (1e9 - age, 1e9 - age))
    assert find_study_folder(None, tmp_path).path.name == "new"
    with pytest.raises(UsageError, match="it has studies below: new, old"):
        find_study_folder(tmp_path)


def test_clear_deletes_only_what_is_its_own(tmp_path: Path, record: Record) -> None:
    folder = StudyFolder(tmp_path)
    folder.write(record)
    folder.write_study("x = 1\n")
    (tmp_path / "README.md").write_text("mine")
    folder.clear()
    assert [p.name for p in tmp_path.iterdir()] == ["README.md"]


def test_load_gives_one_row_per_run(tmp_path: Path, record: Record) -> None:
    StudyFolder(tmp_path).write(record)
    frame = decaybench.load(tmp_path)
    assert len(frame) == 1
    row = frame.iloc[0]
    assert (row["run_id"], row["activation"], row["seed"]) == (record.run_id, "prelu", 0)
    assert row["test_accuracy"] == record.final("test_accuracy")
    alphas = np.concatenate([layer.final for layer in record.layers])
    assert row["alpha_q50"] == pytest.approx(float(np.median(alphas)))
    (tmp_path / "runs" / "0123456789abcdef.json").write_text("{")
    for _ in range(2):  # named each time, and never in the way of the others
        with pytest.warns(UserWarning, match="0123456789abcdef"):
            assert len(decaybench.load(tmp_path)) == 1
