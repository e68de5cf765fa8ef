"""What every report format must do: write something that is what it says, whatever the study holds."""

import pytest

from decaybench.analysis.comparison import ComparisonSettings
from decaybench.report.formats import FORMATS, Report
from made_records import made, summary_of

STARTS = {"pdf": b"%PDF", "png": b"\x89PNG", "svg": b"<svg", "html": b"<!doctype html>", "json": b"["}


def report_of(seeds: int, figure: str = "decay") -> Report:
    strategies = ("decay-all", "exclude-alpha")
    records = [
        made(0.5 + 0.01 * seed + 0.05 * k, strategy=name, seed=seed, weight_decay=decay)
        for k, name in enumerate(strategies)
        for seed in range(seeds)
        for decay in (0.01, 0.1)
    ]
    settings = ComparisonSettings("decay-all")
    return Report(summary_of(records), settings, figure=figure, name="study", command="decaybench run")


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_writes_what_it_says(name: str, seeds: int) -> None:
    content = FORMATS[name].write(report_of(seeds))
    content = content if isinstance(content, bytes) else content.encode()
    assert content.startswith(STARTS.get(name, b""))
    if name not in ("pdf", "png"):
        assert b"exclude-alpha" in content
