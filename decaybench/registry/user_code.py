"""Calls a user's own code: whatever it does becomes one sentence with her file and line."""

import contextlib
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from decaybench.errors import DecaybenchError, UsageError

_PACKAGE = Path(__file__).resolve().parents[1]
_STANDARD = {Path(p).resolve() for k, p in sysconfig.get_paths().items() if k.endswith(("lib", "stdlib"))}


ENDS = ("_exit", "execv", "execve")
EXIT = os._exit  # the real one, whatever own code is kept from


def is_own(file: Path) -> bool:
    """Tells whether a file is the user's: of no installed package, not of Python itself, and not of this package."""
    if any(part in ("site-packages", "dist-packages") for part in file.parts):
        return False
    return not any(file.is_relative_to(folder) for folder in (_PACKAGE, *_STANDARD))


def short_path(file: Path | str) -> str:
    """Writes a path as a person does: relative where it lies below the current folder."""
    path = Path(file).resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


@contextlib.contextmanager
def user_code(what: str, error: type[DecaybenchError] = UsageError) -> Iterator[None]:
    """Runs a user's own code, whose output goes to stderr.

    Args:
        what: What is called, for the sentence, such as "The network net.py:make".
        error: The error to raise.

    Raises:
        DecaybenchError: For whatever the code raises, `SystemExit` included, with the user's file and line. What this
            package raises itself passes as it is, and so does Ctrl-C.
    """
    try:
        with no_exit(), contextlib.redirect_stdout(sys.stderr):
            yield
    except (DecaybenchError, KeyboardInterrupt):
        raise
    except BaseException as raised:
        raise error(f"{what} {failure(raised)}") from raised


def failure(raised: BaseException) -> str:
    """Describes what went wrong in a user's code: the error, and the file and line of hers that it came from."""
    place = place_of(raised)
    where = f" at {place}" if place else ""
    if isinstance(raised, SystemExit):
        return f"ends the program{where} (sys.exit({raised.code!r})), which code that is called here must not."
    reason = _text(raised).strip().partition("\n")[0].rstrip(".")
    if not (reason or where) and (elsewhere := _last_place(raised)):
        where = f" at {elsewhere}"
    return f"fails{where}: {type(raised).__name__}{': ' + reason if reason else ''}."


def _text(raised: BaseException) -> str:
    """Returns the text of an error, which may itself be a user's code."""
    try:
        with no_exit():
            return str(raised)
    except BaseException:
        return "(an error without a text)"


def place_of(raised: BaseException) -> str | None:
    """Finds the last line of a user's own in a traceback, as ``file.py:9``; None where there is none."""
    error: BaseException | None = raised
    while error is not None:
        if place := _last_line(error.__traceback__):
            return place
        if isinstance(error, SyntaxError) and error.filename and _is_own_code(error.filename):
            return f"{short_path(error.filename)}:{error.lineno}"
        error = error.__cause__ or error.__context__
    return None


def _last_place(raised: BaseException) -> str | None:
    """Finds the last line of an installed package in a traceback, for errors that no code of the user's raises."""
    found, trace = None, raised.__traceback__
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        if "site-packages" in file.parts:
            short = "/".join(file.parts[file.parts.index("site-packages") + 1 :])
            found = f"{short}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found


def _is_own_code(file: str) -> bool:
    path = Path(file)  # compiled libraries name files that are not there, as in pandas/_libs/index.pyx
    return not file.startswith("<") and path.is_file() and is_own(path.resolve())


def _last_line(trace: TracebackType | None) -> str | None:
    found = None
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if _is_own_code(file):
            found = f"{short_path(file)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found


@contextlib.contextmanager
def no_exit() -> Iterator[None]:
    """Makes `os._exit` and `os.exec…` raise `SystemExit`, so that no code ends the program unseen with exit code 0."""
    real, process = {name: getattr(os, name) for name in ENDS}, os.getpid()
    exit = sys.exit

    def refuse(name: str) -> Callable[..., Any]:
        def ended(*arguments: Any) -> NoReturn:
            if os.getpid() != process:  # a child that forked off, and rightly ends so
                real[name](*arguments)
            raise SystemExit(arguments[0] if name == "_exit" else name)

        return ended

    for name in ENDS:
        setattr(os, name, refuse(name))
    try:
        yield
    finally:
        for name, function in real.items():
            setattr(os, name, function)
        sys.exit = exit
