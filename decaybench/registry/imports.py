"""Finds, hashes and imports what ``package.module:name`` and ``path/to/file.py:name`` name.

A user's own code is identified by the content of every file of hers that it imports, found by reading and not by
importing. A study pins these contents when it begins: what its workers import later is what was hashed, whatever has
been edited meanwhile.
"""

import ast
import hashlib
import importlib
import importlib.util
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from decaybench.errors import UsageError, unknown
from decaybench.registry.user_code import is_own, short_path, user_code

Sources = Mapping[str, bytes]  # contents of files by their absolute paths
_PATH = (*sys.path,)  # as it was given, PYTHONPATH included; own code may change it, which must change no hash
_pinned: dict[str, bytes] = {}
SMALL_FILE = 1 << 20  # bytes of a file that may be the settings of a script


def is_target(text: str) -> bool:
    """Tells whether a text names an object in a user's own code."""
    return ":" in text


def split_target(target: str) -> tuple[str, str]:
    """Splits a target at its last colon into module or file, and attribute."""
    module, _, attribute = target.rpartition(":")
    return module, attribute


def _look_here() -> None:
    """Puts the current folder on the path, at the end: nothing in it hides a module of Python or of a package."""
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)


def _origin(module: str) -> Path | None:
    """Finds the source file of a module without importing it."""
    if module.endswith(".py"):
        path = Path(module)
        return path if path.is_file() or str(path.resolve()) in _pinned else None
    _look_here()
    top, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(top)  # of a top-level name: nothing is imported for it
    except (ImportError, ValueError):
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for folder in map(Path, spec.submodule_search_locations or ()):
        base = folder.joinpath(*rest)
        for file in (base.with_name(f"{base.name}.py"), base / "__init__.py"):
            if file.is_file() or str(file.resolve()) in _pinned:
                return file
    return None


def source_files(target: str) -> Sources:
    """Reads the file of a target and every file of the user's that it imports, directly or not.

    Imports are found by parsing, also those inside functions and those of `importlib.import_module` with a literal
    name. Files of installed packages and of the standard library are no part of it.

    Raises:
        UsageError: When there is no such module or file.
    """
    module, _ = split_target(target)
    path = _origin(module)
    if path is None:
        where = "no such file" if module.endswith(".py") else f"looked in {Path.cwd()} and the installed packages"
        raise UsageError(f"Cannot find {module!r} of {target!r}: {where}.")
    roots = _roots(module, path.absolute())
    found: dict[str, bytes] = {}
    waiting = [path.absolute(), *([] if module.endswith(".py") else _packages(path.absolute(), roots))]
    while waiting:
        file = waiting.pop()
        if (key := str(file.resolve())) not in found:
            found[key] = _read(file, target) if file.is_file() or key not in _pinned else _pinned[key]
            for imported in _imported(file, found[key], roots):
                waiting += [imported, *_packages(imported, roots)]
    return found


def script_files(line: str) -> Sources:
    """Reads the files of a training script: every Python file it is started with and what they import, and small files.

    Args:
        line: A command line, such as ``python train.py --config small.yaml`` or ``python -m package.train``. Small
            files that are named in it count, too, since they are settings.

    Raises:
        UsageError: When none of its words is a file or a module.
    """
    found: dict[str, bytes] = {}
    words = shlex.split(line)
    for before, word in zip(["", *words], words, strict=False):
        path = Path(word)
        module = _origin(word) if before == "-m" else None
        if (module is not None and is_own(module.resolve())) or (word.endswith(".py") and path.is_file()):
            found |= source_files(f"{word}:main")
        elif path.is_file() and path.stat().st_size <= SMALL_FILE and is_own(path.resolve()):
            content = _read(path, line)
            if b"\0" not in content:  # no program
                found[str(path.resolve())] = content
    if not found:
        raise UsageError(
            f"script {line!r}: no word of it is a file in {Path.cwd()}, or a module behind -m; write it as you would "
            "start it here, such as 'python train.py --size small'."
        )
    return found


def changed_files(before: Sources, line: str) -> list[str]:
    """Returns the names of files of a script that are no longer what they were, or are new, or gone."""
    now = script_files(line)
    return [short_path(file) for file in sorted({*before, *now}) if before.get(file) != now.get(file)]


def script_fingerprint(line: str) -> str:
    """Hashes the files of a training script to 12 hexadecimal digits.

    Raises:
        UsageError: When none of its words is a file or a module.
    """
    files = script_files(line)
    parts = sorted(
        (_relative(Path(f), [Path.cwd()]), hashlib.sha256(content).hexdigest()) for f, content in files.items()
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def check_names(targets: Iterable[str]) -> None:
    """Checks that every name which the user's files import is the name of one module.

    Raises:
        UsageError: When two files of hers would need two modules of one name, of which Python keeps the first.
    """
    meant: dict[str, tuple[Path, str]] = {}
    for target in dict.fromkeys(targets):
        for name, file, found in _names_of_files(target):
            first, by = meant.setdefault(name, (found, target))
            if found.resolve() != first.resolve():
                raise UsageError(
                    f"{name!r}, which {short_path(file)} imports, is both {short_path(first)} (for {by}) and "
                    f"{short_path(found)} (for {target}), and Python loads only one module of a name: rename one, or "
                    "make packages of them."
                )


def _names_of_files(target: str) -> Iterator[tuple[str, str, Path]]:
    """Yields each top-level name that the files of a target import, the file, and what of the user's it may name."""
    roots = _roots(*_place(target))
    for file, content in source_files(target).items():
        for name in sorted(_top_level_names(Path(file), content)):
            found = (next(_module_files(root, [name]), None) for root in roots)
            yield from ((name, file, one) for one in found if one is not None and is_own(one))


def _top_level_names(file: Path, content: bytes) -> set[str]:
    names = {name.partition(".")[0] for base, name in _names(_parse(content), file) if base is None}
    return names - sys.stdlib_module_names


def unseen() -> set[str]:
    """Returns the files of imported modules that are the user's own and were not found by reading her code."""
    files = {str(Path(f).resolve()) for m in list(sys.modules.values()) if (f := getattr(m, "__file__", None))}
    return {file for file in files if file.endswith(".py") and file not in _pinned and is_own(Path(file))}


def source_fingerprint(target: str) -> str:
    """Hashes the source of a target, with everything of the user's that it imports, to 12 hexadecimal digits.

    Raises:
        UsageError: When there is no such module or file.
    """
    return fingerprint_of(target, source_files(target))


def fingerprint_of(target: str, files: Sources) -> str:
    """Hashes the files of a target, as `source_files` returns them, to 12 hexadecimal digits."""
    if len(files) == 1:
        (content,) = files.values()
        return hashlib.sha256(content).hexdigest()[:12]
    roots = _roots(*_place(target))
    parts = sorted(
        (_relative(Path(file), roots), hashlib.sha256(content).hexdigest()) for file, content in files.items()
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def pin(sources: Sources) -> None:
    """Makes every later import of these files use these contents, whatever the files hold or held."""
    changed = any(_pinned.get(file) != content for file, content in sources.items())
    _pinned.update(sources)
    for name, module in list(sys.modules.items()) if changed else ():
        file = getattr(module, "__file__", None)
        if file and name != "__main__" and str(Path(file).resolve()) in sources:
            del sys.modules[name]  # imported before, perhaps from another edit
    if not any(isinstance(finder, _PinnedFinder) for finder in sys.meta_path):
        sys.meta_path.insert(sys.meta_path.index(PathFinder), _PinnedFinder())


def load(target: str) -> Any:
    """Imports what a target names, which runs the code of its module.

    Raises:
        UsageError: When the module does not import, with its own error, or has no such attribute.
    """
    module_name, attribute = split_target(target)
    path = _origin(module_name)
    where = "" if path else f" (looked in {Path.cwd()} and the installed packages)"
    with user_code(f"Importing {module_name!r} of {target!r}{where}"):
        module = _import_file(path) if path and module_name.endswith(".py") else importlib.import_module(module_name)
    found: Any = module
    for number, part in enumerate(parts := attribute.split(".")):  # a method, as Class.method
        if not hasattr(found, part):
            owner = ".".join([module_name, *parts[:number]])
            raise unknown(f"attribute of {owner}", part, [n for n in vars(found) if not n.startswith("_")])
        found = getattr(found, part)
    return found


def _import_file(path: Path) -> ModuleType:
    """Imports a file once, under a unique module name; its folder comes last on the path."""
    path = path.resolve()
    name = f"decaybench_user_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}.{path.stem}"
    if name in sys.modules:
        return sys.modules[name]
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(name, path, loader=_PinnedLoader(name, str(path)))
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


class _PinnedLoader(SourceFileLoader):
    """Loads a module from its pinned content, if there is one."""

    def get_data(self, path: str) -> bytes:
        pinned = _pinned.get(str(Path(path).resolve()))
        return super().get_data(path) if pinned is None else pinned

    def get_code(self, fullname: str) -> CodeType | None:
        if str(Path(self.path).resolve()) not in _pinned:
            return super().get_code(fullname)
        return self.source_to_code(self.get_data(self.path), self.path)  # no cached bytecode: it may be of another edit


class _PinnedFinder:
    """Finds modules as `PathFinder` does, also pinned ones whose files are not on this machine."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is None:
            return self._absent(fullname, sys.path if path is None else path)
        if spec.origin and str(Path(spec.origin).resolve()) in _pinned:
            spec.loader = _PinnedLoader(fullname, spec.origin)
        return spec

    def _absent(self, fullname: str, path: Sequence[str]) -> ModuleSpec | None:
        name = fullname.rpartition(".")[2]
        for entry in path:
            for file, package in ((Path(entry, f"{name}.py"), None), (Path(entry, name, "__init__.py"), [entry])):
                if str(file) in _pinned:
                    inside = None if package is None else [str(file.parent)]
                    return importlib.util.spec_from_file_location(
                        fullname, file, loader=_PinnedLoader(fullname, str(file)), submodule_search_locations=inside
                    )
        return None


def _place(target: str) -> tuple[str, Path]:
    module, _ = split_target(target)
    path = _origin(module)
    assert path is not None, "its files were found before"
    return module, path.absolute()


def _roots(module: str, path: Path) -> list[Path]:
    """Returns the folders in which imports of the user's own modules are looked for; the first names the files."""
    first = path.parent if module.endswith(".py") else path.parents[module.count(".") + (path.name == "__init__.py")]
    others = [Path(entry) for entry in _PATH if entry and Path(entry).is_dir() and is_own(Path(entry, "x"))]
    return list(dict.fromkeys([first, Path.cwd(), *others]))


def _packages(file: Path, roots: Sequence[Path]) -> list[Path]:
    """Returns the files of the packages that a module is in, which are run before it."""
    found = []
    for folder in file.parents:
        if folder in roots or not (folder / "__init__.py").is_file():
            break
        found.append(folder / "__init__.py")
    return found


def _relative(file: Path, roots: Sequence[Path]) -> str:
    """Names a file by its place below the folder in which it was found, wherever that is on this machine."""
    root = next((r.resolve() for r in roots if file.is_relative_to(r.resolve())), file.parent)
    return file.relative_to(root).as_posix()


def _read(file: Path, target: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UsageError(f"{file}, which {target!r} needs, cannot be read: {error.strerror}.") from error


def _imported(file: Path, content: bytes, roots: Sequence[Path]) -> list[Path]:
    """Finds the files of the user's that a file imports."""
    found: list[Path] = []
    for base, name in _names(_parse(content), file):
        if base is None and name.partition(".")[0] in sys.stdlib_module_names:
            continue
        for root in [base] if base else roots:
            found += _module_files(root, name.split("."))
            if base is None and _is_there(root, name.partition(".")[0]):
                break  # as Python does: what other folders have of that name is not imported
    # An installed package may import itself; what other packages it imports is no user's code.
    return [f for f in found if is_own(f) or (not is_own(file) and f.is_relative_to(roots[0]))]


def _is_there(root: Path, name: str) -> bool:
    """Tells whether a folder has a module or a package of a name; several may have parts of one without __init__.py."""
    return (root / f"{name}.py").is_file() or (root / name / "__init__.py").is_file()


def _parse(content: bytes) -> ast.AST:
    try:
        return ast.parse(content)
    except (SyntaxError, ValueError, MemoryError, RecursionError):  # importing it will say so
        return ast.Module([], [])


def _names(tree: ast.AST, file: Path) -> Iterator[tuple[Path | None, str]]:
    """Yields the dotted names that are imported, with the folder of relative ones; the last may be ``*``."""
    calls = {"import_module", "__import__"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((None, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = [node.module] if node.module else []
            yield from ((_base(file, node.level), ".".join([*prefix, alias.name])) for alias in node.names)
            calls |= {alias.asname for alias in node.names if alias.name == "import_module" and alias.asname}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _name_of(node.func) in calls:
            for value in [*node.args[:1], *(k.value for k in node.keywords if k.arg == "name")]:
                if isinstance(value, ast.Constant) and isinstance(value.value, str) and value.value.strip("."):
                    name = value.value.lstrip(".")
                    yield _base(file, len(value.value) - len(name)), name


def _base(file: Path, level: int) -> Path | None:
    """Returns the folder in which an import of so many dots looks; None for one without."""
    return file.parents[level - 1] if 0 < level <= len(file.parents) else None


def _name_of(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _module_files(root: Path, parts: Sequence[str]) -> Iterator[Path]:
    """Yields the files below a folder that importing a dotted name would run."""
    folder = root
    if (root / "__init__.py").is_file() and parts == ["*"]:
        yield root / "__init__.py"
    for part in parts:
        if part == "*":  # its __all__ may name any module that is in the package
            yield from sorted(folder.glob("*.py")) if (folder / "__init__.py").is_file() else ()
            return
        module, package = folder / f"{part}.py", folder / part / "__init__.py"
        if package.is_file():
            yield package
        elif module.is_file():
            yield module
            return
        folder = folder / part
        if not folder.is_dir():
            return
