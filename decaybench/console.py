"""Turns errors into one sentence on stderr and an exit code, so that no traceback reaches a user."""

import contextlib
import functools
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import typer

from decaybench.errors import DecaybenchError, UsageError, one_line, unknown
from decaybench.registry.user_code import failure, no_exit, place_of

INTERRUPTED = 130
DEVICES = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def guarded(command: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a command so that an error becomes one sentence on stderr, after its traceback with ``--debug``."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        try:
            with no_exit():
                return command(*args, **kwargs)
        except typer.Exit:
            raise
        except SystemExit as error:
            if not isinstance(error.__context__, BrokenPipeError):  # rich's way to end when nobody reads on
                say(f"Error: Own code {failure(error)}")
                code = error.code if isinstance(error.code, int) and error.code else 1
            else:
                code = 0
        except (KeyboardInterrupt, typer.Abort):
            say("Interrupted.")
            code = INTERRUPTED
        except BrokenPipeError:  # the reader of our output, `head` say, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 0
        except Exception as error:
            if kwargs.get("debug"):
                traceback.print_exc()
            say(f"Error: {_sentence(error)}")
            code = error.exit_code if isinstance(error, DecaybenchError) else 1
        except BaseException as error:  # of a user's own code: GeneratorExit, a group of such
            say(f"Error: Own code {failure(error)}")
            code = 1
        raise typer.Exit(code)

    return wrapper


def _sentence(error: Exception) -> str:
    if isinstance(error, DecaybenchError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'The output'}: {error.strerror}."
    if isinstance(error, MemoryError):
        return f"There is not enough memory ({str(error) or 'no more can be had'})."
    if place_of(error) is not None:
        return f"Own code {failure(error)}"
    return f"{type(error).__name__}: {error}. This is a fault of decaybench; --debug shows where."


def say(text: str) -> None:
    """Writes a line to stderr, since stdout is for results."""
    typer.echo(one_line(text), err=True)


@contextlib.contextmanager
def working(text: str) -> Iterator[None]:
    """Shows in a terminal that something is under way, until it is done."""
    from rich.console import Console  # `list` and `--help` need none of it

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(one_line(text)):
        yield


def check_device(name: str) -> None:
    """Checks the name of a device before torch is imported.

    Raises:
        UsageError: When it is none.
    """
    if not DEVICES.fullmatch(name):
        raise UsageError(f"--device {name!r}: allowed are auto, cpu, cuda, cuda:0, cuda:1, … and mps.")


def check_choice(option: str, value: str, allowed: Iterable[str]) -> str:
    """Returns the value of an option that allows some names only.

    Raises:
        UsageError: When it is none of them.
    """
    names = list(allowed)
    if value not in names:
        raise unknown(f"value of --{option}", value, names)
    return value
