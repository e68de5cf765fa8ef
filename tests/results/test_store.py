"""The store: atomic, exact, and honest about what it cannot read."""

import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import decaybench
from decaybench.errors import DecaybenchError, UsageError
from decaybench.results.record import DamagedRecordError, decode, dumps, encode, loads
from decaybench.results.store import StudyFolder, find_study_folder
from helpers import finish, one


@pytest.fixture(scope="module")
def record() -> dict:
    return {**finish(one(epochs=1))[1], "provenance": {"device": "cpu", "seconds": 1.0}}


@given(hnp.arrays(st.sampled_from([np.float32, np.float64, np.int64]), hnp.array_shapes(min_dims=0, min_side=0)))
def test_arrays_come_back_bit_by_bit(array: np.ndarray) -> None:
    again = decode(json.loads(json.dumps(encode(array))))
    assert again.dtype == array.dtype
    assert again.shape == array.shape
    assert again.tobytes() == array.tobytes()


def test_a_record_comes_back_as_it_was(tmp_path: Path, record: dict) -> None:
    folder = StudyFolder(tmp_path / "study")
    folder.write(record)
    loaded = folder.load()
    assert loaded.records == [record]
    assert loaded.problems == []
    assert [p.name for p in folder.runs.iterdir()] == [f"{record['run_id']}.json"]
    assert stat.S_IMODE((folder.runs / f"{record['run_id']}.json").stat().st_mode) == 0o644  # not a temporary's 0600


def test_a_record_cut_anywhere_is_noticed(record: dict) -> None:
    raw = dumps(record).encode()
    for cut in range(len(raw) - 1):  # without the last newline it is still whole
        with pytest.raises((DamagedRecordError, UnicodeDecodeError)):
            loads(raw[:cut].decode(), record["run_id"])


@given(st.text() | st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists).map(json.dumps))
def test_no_text_breaks_the_reader(text: str) -> None:
    with pytest.raises(DamagedRecordError):
        loads(text, "0" * 16)


@pytest.mark.parametrize("key", ["config", "history", "layers", "fingerprints", "run_id", "provenance", "diverged"])
@pytest.mark.parametrize("value", [None, 3, "x", [], {}, [1], {"a": 1}], ids=str)
def test_a_record_with_rubbish_inside_is_either_whole_or_noticed(
    record: dict, key: str, value: object, tmp_path
) -> None:
    text = json.dumps({**record, key: value})
    try:
        loaded = loads(text, record["run_id"])
    except DamagedRecordError:
        return
    # Whatever is let through can be reported.
    from decaybench.analysis.comparison import summarize
    from decaybench.analysis.frame import frame

    summarize([loaded])
    frame([loaded])


@pytest.mark.parametrize(
    "damage",
    [
        lambda r: r["config"].pop("augment"),
        lambda r: r["config"].update(extra={"a": 1}),
        lambda r: r["config"].update(lr=7.0),
        lambda r: r["history"].update(extra=5),
        lambda r: r["history"].pop("test_loss"),
    ],
)
def test_a_record_that_is_not_that_of_its_run_is_set_aside(tmp_path: Path, record: dict, damage) -> None:
    changed = json.loads(json.dumps(record))
    damage(changed)
    folder = StudyFolder(tmp_path)
    folder.write(changed)
    loaded = folder.load()
    assert loaded.records == []
    assert "it is set aside" in loaded.problems[0]


def test_nesting_without_end_is_no_crash() -> None:
    with pytest.raises(DamagedRecordError):
        loads("[" * 100_000, "0" * 16)


def test_damaged_records_are_named_set_aside_and_the_rest_is_read(tmp_path: Path, record: dict) -> None:
    folder = StudyFolder(tmp_path)
    folder.write(record)
    bad = folder.runs / "0123456789abcdef.json"
    bad.write_text(dumps(record)[:100])
    foreign = folder.runs / "fedcba9876543210.json"
    foreign.write_text(dumps(record))
    loaded = folder.load()
    assert [r["run_id"] for r in loaded.records] == [record["run_id"]]
    assert len(loaded.problems) == 2
    assert str(bad) in loaded.problems[0]
    assert "not valid JSON" in loaded.problems[0]
    assert f"it holds run '{record['run_id']}'" in loaded.problems[1]
    assert not bad.exists()
    assert bad.with_name(bad.name + ".damaged").exists()
    again = folder.load().problems  # said until the run is there again
    assert len(again) == 2
    assert all("was damaged and set aside earlier" in problem for problem in again)
    assert folder.load([record["run_id"]]).problems == []


def test_a_record_that_only_cannot_be_opened_stays_where_it_is(tmp_path: Path, record: dict, monkeypatch) -> None:
    folder = StudyFolder(tmp_path)
    folder.write(record)

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refuse)
        assert "Permission denied; it is left out" in folder.load().problems[0]
    assert folder.load().records == [record]


def test_a_failed_write_leaves_the_old_record_and_no_rubbish(tmp_path: Path, record: dict, monkeypatch) -> None:
    folder = StudyFolder(tmp_path)
    folder.write(record)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DecaybenchError, match="No space left on device; make room"):
        folder.write({**record, "provenance": {"device": "other"}})
    assert folder.load().records == [record]
    assert len(list(folder.runs.iterdir())) == 1


def test_a_temporary_file_of_a_killed_process_is_no_record(tmp_path: Path, record: dict) -> None:
    folder = StudyFolder(tmp_path)
    folder.write(record)
    (folder.runs / ".0123456789abcdef.json-x.tmp").write_text("{")
    assert folder.load().problems == []


def test_what_a_killed_process_was_writing_is_swept_away_later(tmp_path: Path, record: dict) -> None:
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
    assert folder.load().records == [record]


def test_find_says_what_is_missing(tmp_path: Path, record: dict) -> None:
    with pytest.raises(UsageError, match="start with: decaybench run"):
        find_study_folder(None, tmp_path)
    for age, name in ((100, "old"), (10, "new")):
        folder = StudyFolder(tmp_path / name)
        folder.write(record)
        os.utime(folder.runs, (1e9 - age, 1e9 - age))
    assert find_study_folder(None, tmp_path).path.name == "new"
    with pytest.raises(UsageError, match="it has studies below: new, old"):
        find_study_folder(tmp_path)


def test_clear_deletes_only_what_is_its_own(tmp_path: Path, record: dict) -> None:
    folder = StudyFolder(tmp_path)
    folder.write(record)
    folder.write_study("x = 1\n")
    (tmp_path / "README.md").write_text("mine")
    folder.clear()
    assert [p.name for p in tmp_path.iterdir()] == ["README.md"]


def test_load_gives_one_row_per_run(tmp_path: Path, record: dict) -> None:
    StudyFolder(tmp_path).write(record)
    frame = decaybench.load(tmp_path)
    assert len(frame) == 1
    row = frame.iloc[0]
    assert (row["run_id"], row["activation"], row["seed"]) == (record["run_id"], "prelu", 0)
    assert row["test_accuracy"] == record["history"]["test_accuracy"][-1]
    alphas = np.concatenate([decode(layer["final"]) for layer in record["layers"]])
    assert row["alpha_q50"] == pytest.approx(float(np.median(alphas)))
    (tmp_path / "runs" / "0123456789abcdef.json").write_text("{")
    for _ in range(2):  # named each time, and never in the way of the others
        with pytest.warns(UserWarning, match="0123456789abcdef"):
            assert len(decaybench.load(tmp_path)) == 1
