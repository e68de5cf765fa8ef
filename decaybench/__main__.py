"""The entry point of ``python -m decaybench`` and of the console script."""

import contextlib
import os
import sys

_EXIT = os._exit


def _safe_path() -> None:
    """Moves the current folder, which ``python -m`` puts first, to the end: it hides no module of Python or others."""
    here = os.getcwd()  # noqa: PTH109
    if not sys.flags.safe_path and sys.path and sys.path[0] in ("", here):
        sys.path.pop(0)
        sys.path.append(here)


def _streams() -> None:
    """Makes stdout and stderr take any text, also where they are closed or know few characters."""
    import codecs

    plain = {
        "−": "-",
        "–": "-",
        "λ": "lambda",
        "α": "alpha",
        "×": "x",
        "·": "|",
        "…": "...",
        "≈": "~",
        "Δ": "d",
        "→": "->",
        "±": "+/-",
    }
    plain |= dict(zip("▁▂▃▄▅▆▇█", "12345678", strict=True))  # the bars of a small histogram

    def simpler(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeEncodeError)
        return "".join(plain.get(c, "?") for c in error.object[error.start : error.end]), error.end

    codecs.register_error("decaybench", simpler)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started this
            setattr(sys, name, open("/dev/null" if sys.platform != "win32" else "nul", "w", encoding="utf-8"))  # noqa: SIM115, PTH123
        else:
            stream.reconfigure(errors="decaybench")


def main() -> None:
    """Runs the command line, and ends quietly on Ctrl-C while modules are still being imported."""
    try:
        _safe_path()
        _streams()
        from decaybench.cli import app

        app(prog_name="decaybench")
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit as ended:
        _end(ended.code)


def _end(code: object) -> None:
    """Ends the process, after a failure at once: what own code registered for the end could change the exit code."""
    if code in (None, 0):
        return
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    _EXIT(code if isinstance(code, int) else 1)


if __name__ == "__main__":
    main()
