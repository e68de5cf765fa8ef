"""The command line: one file a command. Heavy imports happen inside the commands that need them."""

from decaybench.cli.app import app

__all__ = ["app"]
