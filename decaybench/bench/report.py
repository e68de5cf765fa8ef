"""Times the report of many runs: made-up records of the usual size, reported by a process of its own."""

import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from decaybench.registry.hashing import digest
from decaybench.results.store import StudyFolder
from decaybench.study.study import read_study
from decaybench.training.data import load
from decaybench.training.trainer import Finished, train

Row = dict[str, Any]
CPU = torch.device("cpu")


def write_made_up_records(folder: StudyFolder, count: int) -> None:
    """Writes records of a small study with many seeds, whose accuracies are drawn at random."""
    study = read_study("smoke", {"seeds": 1})
    templates = []
    for run in study.runs()[:20]:
        (record,) = [e.record for e in train([run], load(run, CPU)) if isinstance(e, Finished)]
        templates.append({**record, "provenance": {"seconds": 1.0}})
    generator = random.Random(0)
    for number in range(count):
        record = dict(templates[number % len(templates)])
        record["config"] = {**record["config"], "seed": number // len(templates)}
        record["run_id"] = digest(record["config"])
        accuracies = [round(0.9 + generator.gauss(0, 0.01), 4) for _ in record["history"]["test_accuracy"]]
        record["history"] = {**record["history"], "test_accuracy": accuracies}
        folder.write(record)


CHILD = """
import sys, time
start = time.perf_counter()
from decaybench.cli import app
try:
    app(sys.argv[1:], standalone_mode=False)
finally:
    peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
    print(time.perf_counter() - start, peak, file=sys.stderr)
"""


def reports(counts: tuple[int, ...]) -> Iterator[Row]:
    """Measures the seconds of ``decaybench report`` once Python has started, and its peak memory."""
    with tempfile.TemporaryDirectory() as place:
        for count in counts:
            write_made_up_records(StudyFolder(Path(place)), count)
            command = [sys.executable, "-c", CHILD, "report", place]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            seconds, peak = done.stderr.splitlines()[-1].split()
            yield {"runs": count, "seconds": float(seconds), "peak MiB": int(peak) / 1024}
