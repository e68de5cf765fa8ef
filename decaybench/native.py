"""Compiles C files for this machine when they are first needed, and keeps the result.

Without a compiler, or with one that fails, there is no library and whoever asked for it does without.
"""

import ctypes
import hashlib
import logging
import multiprocessing
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch

from decaybench.paths import user_cache

FLAGS = ("-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
TYPES = {torch.float32: "float", torch.float64: "double"}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
Declare = Callable[[ctypes.CDLL], None]


def cache_dir() -> Path:
    """Returns the folder of compiled libraries: $DECAYBENCH_CACHE, or the user's cache."""
    return Path(os.environ.get("DECAYBENCH_CACHE") or user_cache())


def keep_freed_memory() -> None:
    """Has glibc's allocator keep what is freed, up to a gigabyte at a time, for what is allocated next.

    By default it gives large blocks back to the system, which hands them out again page by page: a fifth of a training
    step. Elsewhere than with glibc nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        for option in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            mallopt(option, 1 << 30)


def compiled(folder: Path, names: tuple[str, ...], dtype: torch.dtype, declare: Declare) -> ctypes.CDLL | None:
    """Loads the library of some C files, and compiles it first where needed; None without a working compiler.

    Args:
        folder: Where the files are; the headers there count as part of them.
        names: Names of the C files, which find the type of their numbers in REAL.
        dtype: The type of their numbers.
        declare: Declares the arguments of its functions; an AttributeError means that it is another library.
    """
    compiler = _compiler()
    if dtype not in TYPES or os.environ.get("DECAYBENCH_NATIVE") == "0":
        return None
    if not compiler:
        _say("no C compiler was found")
        return None
    files = [folder / name for name in names]
    command = (*compiler, *FLAGS, f"-DREAL={TYPES[dtype]}")
    texts = [f.read_text("utf-8") for f in (*files, *sorted(folder.glob("*.h")))]
    key = hashlib.sha256("\0".join([*command, *texts, _processor()]).encode()).hexdigest()[:16]
    try:
        return _load(cache_dir() / f"native-{key}.so", (*command, *map(str, files)), declare)
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        _say(f"the C compiler {shlex.join(compiler)} does not work here ({type(error).__name__}: {error})")
        return None


def _say(why: str) -> None:
    """Says once, in the main process, that the slower code is used."""
    if multiprocessing.parent_process() is None:
        logging.getLogger("decaybench").warning("decaybench uses torch's operations, which are slower: %s.", why)


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


def _load(path: Path, command: tuple[str, ...], declare: Declare) -> ctypes.CDLL:
    """Loads a library from the cache, or compiles it: for the cache where that is this user's alone."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        ours = _private(path.parent, directory=True)
    except OSError:
        ours = False
    if ours and _intact(path):
        try:
            return _declared(path, declare)
        except (OSError, AttributeError):  # of another machine, say: compiled anew
            pass
    folder = Path(tempfile.mkdtemp(dir=path.parent if ours else None))
    try:
        made = folder / path.name
        subprocess.run([*command, "-o", str(made)], check=True, capture_output=True, timeout=60)
        if ours:
            _keep(made, path)
            made = path
        return _declared(made, declare)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _declared(path: Path, declare: Declare) -> ctypes.CDLL:
    made = ctypes.CDLL(str(path))
    declare(made)
    return made


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


def _processor() -> str:
    """Describes what -march=native depends on, since machines of several kinds may share a cache."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor() + platform.machine()
    return "\n".join(sorted({line for line in lines if line.startswith(("flags", "Features", "model name"))}))
