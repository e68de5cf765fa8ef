"""On real data: the whole Fashion-MNIST."""

import json

import pytest
from conftest import Cli

pytestmark = pytest.mark.slow


def test_forum_network_reaches_86_percent_in_two_epochs(cli: Cli) -> None:
    arguments = ["--dataset", "fashion-mnist", "--strategy", "exclude-alpha", "--activation", "prelu"]
    done = cli("run", *arguments, "--seeds", "1", "--epochs", "2")
    assert done.returncode == 0, done.stderr
    assert "fashion-mnist · forum · prelu" in done.stdout
    (row,) = json.loads(cli("report", "--format", "json").stdout)
    assert row["test_accuracy"] >= 0.86
