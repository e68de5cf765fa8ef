"""Sentences about the runs of a report that a reader must know."""

import json

import pandas as pd

from decaybench.analysis.cells import Cell
from decaybench.results.record import LEFT_OUT


def data_notes(found: list[Cell]) -> list[str]:
    """Says where one name stands for several data sets."""
    parts: dict[str, set[str]] = {}
    for cell in found:
        name, _, key = str(cell.config.get("dataset")).partition(" (data ")
        parts.setdefault(name, set()).add(key)
    return [
        f"{name} stands for {len(keys)} different data sets, which are shown apart and never averaged."
        for name, keys in parts.items()
        if len(keys) > 1
    ]


def initial_notes(found: list[Cell]) -> list[str]:
    """Says where seeds do not differ in their initial tensors, so that they are no repetitions."""
    notes = []
    for cell in found:
        known = cell.runs[cell.runs["initial_fingerprint"].notna()]
        same = known[known["initial_fingerprint"].duplicated(keep=False)]
        if len(same) and "script" in cell.config:
            notes.append(
                f"{cell.config['script']}: seeds start from the same tensors, as in fine-tuning; they differ in what "
                "training draws only."
            )
        elif len(same):
            seeds = ", ".join(str(seed) for seed in same["seed"][:5]) + (" …" if len(same) > 5 else "")
            notes.append(
                f"{cell.config['network']} with {cell.config['activation']}: seeds {seeds} start from the same tensors "
                "and are no repetitions; does the network set a seed of its own (torch.manual_seed)?"
            )
    return notes


def layer_notes(runs: pd.DataFrame) -> list[str]:
    """Says how many runs were packed without what became of their activations."""
    texts = runs.get("provenance", ())
    lacking = sum(json.loads(text).get("layers") == LEFT_OUT for text in texts)
    if not lacking:
        return []
    return [
        f"{lacking} of {len(runs)} runs were packed without layers, so that columns and figures of α leave them out."
    ]


def machine_notes(runs: pd.DataFrame) -> list[str]:
    """Says where runs were computed by different means, so that their numbers may differ by rounding."""
    found: dict[str, set[str]] = {}
    for text in runs["provenance"].unique() if "provenance" in runs else ():
        about = json.loads(text)
        about = [about, about.get("resumed_from", {})]
        for one in about:
            means = {name: one.get(key) for key, name in MACHINE.items()}
            means |= {f"code of {name}": backend for name, backend in one.get("backends", {}).items()}
            means |= {"torch": one.get("versions", {}).get("torch")}
            for name, value in means.items():
                found.setdefault(name, set()).update([] if value is None else [str(value)])
    mixed = [f"{name} ({'; '.join(sorted(values))})" for name, values in found.items() if len(values) > 1]
    if not mixed:
        return []
    return [f"runs of different means are compared, whose numbers may differ by rounding: {', '.join(mixed)}."]


MACHINE = {
    "device": "device",
    "device_name": "processor",
    "threads": "threads",
    "cpu_capability": "CPU capability",
    "blas": "BLAS",
    "onednn": "oneDNN",
}


def digest_notes(runs: pd.DataFrame) -> list[str]:
    """Says how many records no digest protects."""
    count = 0 if "protected" not in runs else int((~runs["protected"].astype(bool)).sum())
    return (
        [f"{count} records have no digest (an older version wrote them), so nothing shows whether they were changed."]
        if count
        else []
    )
