"""Times the report of many runs: made-up records of the usual size, reported by a process of its own."""

import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from decaybench.registry.hashing import config_digest, digest
from decaybench.results.record import Record
from decaybench.results.store import StudyFolder
from decaybench.study.study import read_grid
from decaybench.training.data import load
from decaybench.training.trainer import Finished, train

Row = dict[str, Any]
CPU = torch.device("cpu")


def write_made_up_records(folder: StudyFolder, count: int) -> None:
    """Writes packed records of a small study with many seeds, whose accuracies are drawn at random."""
    from decaybench.results import packed

    study = read_grid("smoke", {"seeds": 1})
    templates: list[Record] = []
    for run in study.runs()[:20]:
        (record,) = [e.record for e in train([run], load(run, CPU)) if isinstance(e, Finished)]
        templates.append(replace(record, provenance={"seconds": 1.0}))
    generator = random.Random(0)
    records = []
    for number in range(count):
        template = templates[number % len(templates)]
        config = {**template.config, "seed": number // len(templates)}
        accuracies: list[float | None] = [
            round(0.9 + generator.gauss(0, 0.01), 4) for _ in template.history["test_accuracy"]
        ]
        prints = {**template.fingerprints, "initial": digest(config["seed"]), "batches": digest(config["seed"])}
        history = {**template.history, "test_accuracy": accuracies}
        records.append(
            replace(template, run_id=config_digest(config), config=config, history=history, fingerprints=prints)
        )
    folder.path.mkdir(parents=True, exist_ok=True)
    said = packed.write(packed.to_table(records), folder.packed_file)
    folder.packed_digest_file.write_text(f"{said}  {folder.packed_file.name}\n")


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


FORMATS = ("table", "json", "csv", "markdown", "latex")


def reports(counts: tuple[int, ...]) -> Iterator[Row]:
    """Measures the seconds of ``decaybench report`` once Python has started, and its peak memory, in each format."""
    for count in counts:
        with tempfile.TemporaryDirectory() as place:
            write_made_up_records(StudyFolder(Path(place)), count)
            for format in (*FORMATS, "html"):
                command = [sys.executable, "-c", CHILD, "report", place, "--format", format]
                command += ["--output", f"{place}/report.html"] if format == "html" else []
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                seconds, peak = done.stderr.splitlines()[-1].split()
                yield {"runs": count, "format": format, "seconds": float(seconds), "peak MiB": int(peak) / 1024}
