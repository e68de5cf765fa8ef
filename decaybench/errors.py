"""The errors that a user can act on, and texts that can be shown to one."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

# Control characters but tab and newline, those that change the direction of writing or end a line, and halves of
# characters, which no encoding can write.
UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
LONGEST = 2000  # characters of a sentence


class DecaybenchError(Exception):
    """A failure that the user can act on; the command line prints it without a traceback.

    Attributes:
        exit_code: What the process ends with: 1 for failures, 2 for usage errors.
    """

    exit_code = 1


class UsageError(DecaybenchError):
    """A wrong name, type, range or file in what was asked for."""

    exit_code = 2


def unknown(what: str, given: str, allowed: Iterable[str]) -> UsageError:
    """Builds the error for a name that does not exist, with the nearest one that does.

    Args:
        what: What the name stands for, such as "strategy".
        given: The name that was given.
        allowed: Every name that exists.
    """
    names = list(allowed)
    near = get_close_matches(given.lower(), [n.lower() for n in names], n=1, cutoff=0.5)
    match = next((n for n in names if near and n.lower() == near[0]), None)
    hint = f"did you mean {match!r}? " if match else ""
    some = names if len(names) <= 40 else get_close_matches(given, names, n=5, cutoff=0.3)
    listing = f"It is one of: {', '.join(names)}." if some is names else f"Near it: {', '.join(some) or 'nothing'}."
    listing = listing if names else "There is none."
    return UsageError(f"Unknown {what} {given!r}: {hint}{listing}")


def printable(text: str) -> str:
    """Shows control characters and changes of writing direction as their escapes: texts come from anywhere."""
    return UNPRINTABLE.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def one_line(text: str) -> str:
    """Shows line breaks, too, as their escapes, so that no name can look like a line of ours; long texts are cut."""
    line = printable(text).replace("\n", "\\n").replace("\t", "\\t")
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} …"
