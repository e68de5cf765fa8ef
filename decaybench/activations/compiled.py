"""Compiles the C files for this machine when it is first needed, keeps the result, and calls it.

Without a compiler, or with one that fails, there is no library and everything takes torch's path instead.
"""

import ctypes
import hashlib
import logging
import math
import multiprocessing
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from decaybench.activations.kaf.piecewise import Pieces
from decaybench.paths import user_cache

FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
# Calls for fewer numbers than this never start a compiler. It depends on the call alone, not on what was compiled
# before, so that a run gives the same bits whatever ran before it.
MIN_COMPILED_SIZE = 4096
TYPES = {torch.float32: "float", torch.float64: "double"}


class Grid(ctypes.Structure):
    """The `Pieces` of a dictionary in the layout that kaf.c reads."""

    _fields_ = (
        *((name, ctypes.c_int) for name in ("pieces", "width", "D")),
        *((name, ctypes.c_double) for name in ("low", "high", "scale", "inverse", "tail")),
        *((name, ctypes.c_void_p) for name in ("centre", "first", "basis", "turned")),
    )

    def __init__(self, p: Pieces) -> None:
        self._kept = (p.centre, p.first, p.basis, np.ascontiguousarray(p.basis.transpose(0, 2, 1)))
        numbers = (p.count, p.basis.shape[1], p.D, p.low, p.high, p.scale, p.inverse, p.tail)
        super().__init__(*numbers, *(array.ctypes.data for array in self._kept))


def cache_dir() -> Path:
    """Returns the folder of compiled libraries: $DECAYBENCH_CACHE, or the user's cache."""
    return Path(os.environ.get("DECAYBENCH_CACHE") or user_cache())


@lru_cache(maxsize=2)
def library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """Loads the compiled library for a type of numbers, and compiles it first where needed; None without a compiler."""
    compiler = _compiler()
    if dtype not in TYPES or os.environ.get("DECAYBENCH_NATIVE") == "0":
        return None
    if not compiler:
        _say("no C compiler was found")
        return None
    folder = Path(__file__).with_name("c")
    files = [folder / name for name in ("kaf.c", "prelu.c")]
    command = (*compiler, *FLAGS, f"-DREAL={TYPES[dtype]}")
    texts = [f.read_text("utf-8") for f in (*files, folder / "pieces.h", folder / "shape.h")]
    key = hashlib.sha256("\0".join([*command, *texts, _processor()]).encode()).hexdigest()[:16]
    try:
        return _load(cache_dir() / f"native-{key}.so", (*command, *map(str, files)))
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        _say(f"the C compiler {shlex.join(compiler)} does not work here ({type(error).__name__}: {error})")
        return None


def _say(why: str) -> None:
    """Says once, in the main process, that the slower code is used."""
    if multiprocessing.parent_process() is None:
        logging.getLogger("decaybench").warning("PReLU and KAF use torch's operations, which are slower: %s.", why)


def _compiler() -> list[str] | None:
    """Returns the command of the C compiler, which $CC may give with options."""
    if given := os.environ.get("CC"):
        try:
            return shlex.split(given) or None
        except ValueError:
            _say(f"CC is {given!r}, which is no command")
            return None
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    return [found] if found else None


@lru_cache(maxsize=1)
def compiler_version() -> str:
    """Returns the first line of what the compiler says of its version."""
    command = [*(_compiler() or ["cc"]), "--version"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown compiler"
    return done.stdout.partition("\n")[0]


def _load(path: Path, command: tuple[str, ...]) -> ctypes.CDLL:
    """Loads a library from the cache, or compiles it: for the cache where that is this user's alone."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        ours = _private(path.parent, directory=True)
    except OSError:
        ours = False
    if ours and _intact(path):
        try:
            return _declared(ctypes.CDLL(str(path)))
        except (OSError, AttributeError):  # of another machine, say: compiled anew
            pass
    folder = Path(tempfile.mkdtemp(dir=path.parent if ours else None))
    try:
        made = folder / path.name
        subprocess.run([*command, "-o", str(made)], check=True, capture_output=True, timeout=60)
        if ours:
            _keep(made, path)
            made = path
        return _declared(ctypes.CDLL(str(made)))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _private(path: Path, directory: bool = False) -> bool:
    """Tells whether a file or folder is this user's own and nobody else can write to it."""
    if not hasattr(os, "getuid"):
        return True
    found = path.lstat()
    kind = stat.S_ISDIR(found.st_mode) if directory else stat.S_ISREG(found.st_mode)
    return kind and found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


def _digest_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _intact(path: Path) -> bool:
    """Tells whether a library is what was compiled: loading a damaged one would kill the process."""
    try:
        if not (_private(path) and _private(_digest_file(path))):
            return False
        return _digest_file(path).read_text() == hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, UnicodeDecodeError):
        return False


def _keep(made: Path, path: Path) -> None:
    """Moves a library into the cache, with its digest, so that a power cut leaves nothing half."""
    made.chmod(0o700)
    digest = made.with_suffix(".sha256")
    digest.write_text(hashlib.sha256(made.read_bytes()).hexdigest())
    digest.chmod(0o600)
    for file in (made, digest):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    made.replace(path)
    digest.replace(_digest_file(path))


def _declared(made: ctypes.CDLL) -> ctypes.CDLL:
    """Declares the arguments of the C functions: tensors, (outer, C, inner), the grid of a KAF, threads."""
    for name, tensors in (("kaf_forward", 3), ("kaf_backward", 5), ("prelu_forward", 3), ("prelu_backward", 5)):
        grid = [ctypes.c_void_p] if name.startswith("kaf") else []
        function = getattr(made, name)
        function.argtypes = [*[ctypes.c_void_p] * tensors, *[ctypes.c_long] * 3, *grid, ctypes.c_int]
        function.restype = ctypes.c_int if grid else None
    return made


def _processor() -> str:
    """Describes what -march=native depends on, since machines of several kinds may share a cache."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))


_any_size = False


@contextmanager
def any_size() -> Iterator[None]:
    """Uses the compiled code for small inputs as well, so that a run's bits do not depend on what trains beside it."""
    global _any_size
    before, _any_size = _any_size, True
    try:
        yield
    finally:
        _any_size = before


def large_enough(s: Tensor) -> bool:
    """Tells whether a tensor is large enough to start a compiler for."""
    return s.numel() >= (1 if _any_size else max(MIN_COMPILED_SIZE, 1))


def usable(s: Tensor) -> ctypes.CDLL | None:
    """Returns the library for a tensor that is on the CPU and large enough, otherwise None."""
    return library(s.dtype) if s.device.type == "cpu" and large_enough(s) else None


def layout(s: Tensor, *others: Tensor) -> tuple[Tensor, tuple[int, int, int]]:
    """Returns a tensor (N, C, …) without gaps in memory, and its layout there as (outer, C, inner).

    Raises:
        RuntimeError: When another tensor is on another device, whose memory we would otherwise read as if it were here.
    """
    for other in others:
        if other.device != s.device:
            raise RuntimeError(f"the input is on {s.device}, the activation's parameters on {other.device}")
    n, c, *more = s.shape
    rest = math.prod(more)
    if s.is_contiguous():
        return s, (n, c, rest)
    if s.movedim(0, -1).is_contiguous():
        return s, (1, c, n * rest)
    if s.ndim in (4, 5):
        form = torch.channels_last if s.ndim == 4 else torch.channels_last_3d
        if s.is_contiguous(memory_format=form):
            return s, (n * rest, c, 1)
    return s.contiguous(), (n, c, rest)


def call(function: Any, *tensors: Tensor, shape: tuple[int, int, int], grid: Any = None) -> int:
    """Calls a C function with as many threads as torch uses."""
    more = () if grid is None else (grid,)
    found: int = function(*(t.data_ptr() for t in tensors), *shape, *more, torch.get_num_threads())
    return found
