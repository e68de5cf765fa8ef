"""Audits as text files to commit, and what changed since. Never imports torch."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

from decaybench.errors import DecaybenchError, UsageError

if TYPE_CHECKING:
    from decaybench.audit.audit import Audit

HEAD = "# decaybench audit: name, shape, role, decayed by"
NOT_DECAYED = "-"


@dataclass(frozen=True)
class Line:
    """One parameter of a snapshot."""

    name: str
    shape: str
    role: str
    decayed: tuple[str, ...]

    def __str__(self) -> str:
        return "\t".join([self.name, self.shape, self.role, ",".join(self.decayed) or NOT_DECAYED])


@dataclass(frozen=True)
class Snapshot:
    """The lines of an audit, and the recipes it was about."""

    recipes: tuple[str, ...]
    lines: dict[str, Line]

    @classmethod
    def of(cls, audit: "Audit") -> Self:
        """Makes the snapshot of an audit."""
        lines = {
            row.name: Line(
                row.name,
                "×".join(map(str, row.shape)) or "()",
                row.role,
                tuple(r for r in audit.recipes if row.decayed[r]),
            )
            for row in audit.rows
        }
        return cls(tuple(audit.recipes), lines)

    def text(self) -> str:
        """Writes the file: one line per parameter, so that a diff of two files can be read."""
        return "\n".join([f"{HEAD} {', '.join(self.recipes)}", *map(str, self.lines.values())]) + "\n"

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a file that `text` wrote.

        Raises:
            DecaybenchError: When there is no such file.
            UsageError: When it is something else.
        """
        try:
            head, *rest = path.read_text("utf-8").splitlines() or [""]
        except OSError as error:
            raise DecaybenchError(f"{path}: {error.strerror}; write it first with --snapshot {path}.") from error
        except UnicodeDecodeError as error:
            raise UsageError(f"{path} is no audit snapshot; write it anew with --snapshot {path}.") from error
        cut = [line.split("\t") for line in rest]
        if not head.startswith(HEAD) or any(len(fields) != 4 for fields in cut):
            raise UsageError(f"{path} is no audit snapshot; write it anew with --snapshot {path}.")
        lines = {
            name: Line(name, shape, role, tuple(d for d in decayed.split(",") if d != NOT_DECAYED))
            for name, shape, role, decayed in cut
        }
        return cls(tuple(head.removeprefix(HEAD).strip().split(", ")), lines)

    def changes(self, now: "Snapshot") -> tuple[list[str], list[str]]:
        """Describes every parameter that has changed since, a sentence each: what is newly decayed, and the rest."""
        decayed: list[str] = []
        other: list[str] = []
        spared = {line.role for line in self.lines.values()} - {x.role for x in self.lines.values() if x.decayed}
        for name in dict.fromkeys([*self.lines, *now.lines]):
            before, after = self.lines.get(name), now.lines.get(name)
            if before is None and after is not None:
                about = f"{name} ({after.role}, {after.shape}) is new; decayed by {_listed(after.decayed)}"
                harm = bool(after.decayed) and (after.role in ("activation", "unknown") or after.role in spared)
                (decayed if harm else other).append(f"{'!' if harm else '+'} {about}")
            elif after is None:
                other.append(f"- {name} is gone")
            elif before is not None:
                if before.shape != after.shape:
                    other.append(f"~ {name}: shape {before.shape} became {after.shape}")
                if before.role != after.role:
                    other.append(f"~ {name}: role {before.role} became {after.role}")
                if anew := [r for r in after.decayed if r not in before.decayed]:
                    decayed.append(f"! {name} ({after.role}) was spared and is now decayed by {_listed(anew)}")
                if released := [r for r in before.decayed if r not in after.decayed]:
                    other.append(f"~ {name} ({after.role}) is no longer decayed by {_listed(released)}")
        return decayed, other


def _listed(recipes: Iterable[str]) -> str:
    return ", ".join(recipes) or "none"
