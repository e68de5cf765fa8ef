"""What is in the folder of a study before it runs: another study, finished runs of others, data that changed since."""

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path

import typer

from decaybench.console import say
from decaybench.errors import DecaybenchError, UsageError
from decaybench.results.record import Record
from decaybench.results.store import StudyFolder
from decaybench.study.config import AnyConfig, RunConfig
from decaybench.study.study import COMPARED, AnyStudy, read_study, to_fields


def check_folder(folder: StudyFolder, asked: AnyStudy, runs: Sequence[AnyConfig], fresh: bool) -> None:
    """Notices that the folder holds another study.

    Raises:
        UsageError: When the two have no run in common.
    """
    if fresh or not folder.study_file.exists() or not folder.count():
        return
    try:
        there = read_study(str(folder.study_file), {})
        other = {run.run_id for run in there.runs()}
    except DecaybenchError as error:  # damaged, of another version, or code that it names has moved
        say(f"Note: {folder.study_file} cannot be read and is written anew: {error}")
        return
    ids = {run.run_id for run in runs}
    fields = [key for key in COMPARED if repr(to_fields(there).get(key)) != repr(to_fields(asked).get(key))]
    if not fields or other <= ids:
        return
    if not other & ids:
        raise UsageError(
            f"{folder.path} holds another study, which differs in {', '.join(fields)}; give --name for another folder, "
            "or --fresh to delete what is there."
        )
    say(f"Note: {folder.path} held a study that differs in {', '.join(fields)}; its other runs stay there.")


def _data_now(run: RunConfig, known: dict[str, str]) -> str:
    """Computes the fingerprint of the data of a run, whose data set is the user's own code."""
    key = repr(run.data_key())
    if key not in known:
        import torch

        from decaybench.training.data import load

        with redirect_stdout(sys.stderr):
            known[key] = load(run, torch.device("cpu")).fingerprint
    return known[key]


def check_own_data(runs: Sequence[AnyConfig], finished: dict[str, str], folder: StudyFolder) -> None:
    """Checks that the data of the user's own code are those that finished runs were trained on.

    Raises:
        UsageError: When they are not.
    """
    known: dict[str, str] = {}
    for run in runs:
        if not isinstance(run, RunConfig) or not run.dataset.source or run.run_id not in finished:
            continue
        if finished[run.run_id] != _data_now(run, known):
            raise folder.changed_data(run.dataset.label, finished[run.run_id], _data_now(run, known))


def take_over(folder: StudyFolder, results: Path, runs: Sequence[AnyConfig]) -> None:
    """Copies records of these runs from other studies below the same folder: a run is the same wherever it was done.

    Not those whose data are of the user's own code and have changed since, and none that was packed without layers.
    """

    def is_same(run: AnyConfig, record: Record) -> bool:
        own = isinstance(run, RunConfig) and run.dataset.source is not None
        return not record.lacks_layers and (not own or record.fingerprints["data"] == _data_now(run, known))  # type: ignore[arg-type]

    known: dict[str, str] = {}
    by_id = {run.run_id: run for run in runs}
    wanted = {run_id for run_id in by_id if not folder.has(run_id)}
    for path in sorted(results.glob("*")):
        other = StudyFolder(path)
        if not wanted or path == folder.path or not any(other.has(run_id) for run_id in wanted):
            continue
        found = [record for record in other.load_records(wanted) if is_same(by_id[record.run_id], record)]
        for record in found:
            folder.write(record)
        wanted -= {record.run_id for record in found}
        if found:
            say(f"{len(found)} runs are taken over from {path}.")


def confirm_fresh(folder: StudyFolder, yes: bool) -> None:
    """Says what ``--fresh`` will delete, and asks for confirmation."""
    count = folder.count()
    if not count:
        return
    say(f"--fresh deletes {count} finished runs in {folder.path}.")
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("--fresh asks before it deletes, and there is no terminal to ask on: add --yes.")
        if not typer.confirm("Delete them?", err=True):
            raise typer.Exit(1)
