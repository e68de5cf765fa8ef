"""The entry point of ``python -m decaybench`` and of the console script."""

import sys


def main() -> None:
    """Runs the command line, and ends quietly on Ctrl-C while modules are still being imported."""
    try:
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
        from decaybench.cli import app

        app(prog_name="decaybench")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
