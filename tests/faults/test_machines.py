"""Rough machines: no home, odd compilers, closed streams, quotas, other start methods, files with standard names."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Cli

from decaybench import native
from decaybench.execution import options, processes
from decaybench.execution.processes import Processes
from decaybench.execution.scheduler import Scheduler
from decaybench.results.store import StudyFolder
from helpers import CPU, REPOSITORY, tiny

KAF = """
import torch
from decaybench.activations import KAF
s = torch.randn(64, 8, 32, requires_grad=True)
out = KAF(8)(s)
out.sum().backward()
print(float(out.sum()))
"""


def python(code: str, folder: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    kept = {k: v for k, v in os.environ.items() if k not in ("HOME", "CC", "DECAYBENCH_CACHE")}
    everything = {**kept, "PYTHONPATH": str(REPOSITORY), **environment}
    return subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=folder, env=everything, capture_output=True, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["gcc -m64", "env gcc -O1", "no-such-compiler", "false", "gcc --no-such-option"])
def test_a_compiler_with_options_works_and_one_that_does_not_is_said_once(tmp_path: Path, compiler: str) -> None:
    done = python(KAF, tmp_path, HOME=str(tmp_path), CC=compiler)
    assert done.returncode == 0, done.stderr
    said = done.stderr.count("which are slower")
    assert said == (0 if compiler in ("gcc -m64", "env gcc -O1") else 1)


def test_without_a_home_a_temporary_folder_is_used(tmp_path: Path) -> None:
    code = "import os, pwd\npwd.getpwuid = lambda n: (_ for _ in ()).throw(KeyError(n))\n" + KAF
    done = python(code, tmp_path, TMPDIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    (folder,) = tmp_path.glob("decaybench-*")
    assert list(folder.glob("native-*.so"))


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "empty": lambda path: path.write_bytes(b""),
    "another library": lambda path: path.write_bytes(Path(torch._C.__file__).read_bytes()[:100_000]),
    "writable by others": lambda path: path.chmod(0o777),
    "a link": lambda path: (path.rename(path.with_name("moved.so")), path.symlink_to(path.with_name("moved.so"))),
    "a folder of others": lambda path: path.parent.chmod(0o777),
    "without its digest": lambda path: path.with_name(f"{path.name}.sha256").unlink(),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", DAMAGE)
def test_a_library_that_is_not_what_was_compiled_here_is_not_loaded(tmp_path: Path, kind: str) -> None:
    cache = tmp_path / "cache"
    seeded = "import torch; torch.manual_seed(0)\n" + KAF
    first = python(seeded, tmp_path, HOME=str(tmp_path), DECAYBENCH_CACHE=str(cache))
    (path,) = cache.glob("native-*.so")
    before = path.read_bytes()
    DAMAGE[kind](path)
    loaded = "import ctypes\nclass CDLL(ctypes.CDLL):\n    def __init__(s, p, *a, **k):\n        print(p)\n"
    loaded += "        super().__init__(p, *a, **k)\nimport torch\nctypes.CDLL = CDLL\n"
    second = python(loaded + seeded, tmp_path, HOME=str(tmp_path), DECAYBENCH_CACHE=str(cache))
    assert second.returncode == 0, second.stderr
    assert second.stdout.splitlines()[-1] == first.stdout.splitlines()[-1]
    if kind == "a folder of others":
        assert str(cache) not in second.stdout  # compiled for this process only
    else:
        assert not path.is_symlink()
        assert path.read_bytes() == before or native._intact(path)
        assert native._intact(path)


SMOKE = ["run", "smoke", "--activation", "prelu", "--strategy", "decay-all", "--seeds", "2"]


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_streams_keep_nothing_from_being_trained(tmp_path: Path, closed: str) -> None:
    command = f"{sys.executable} -m decaybench {' '.join(SMOKE)} --name k {closed}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(REPOSITORY)})
    assert done.returncode == 0
    assert len(StudyFolder(tmp_path / "results/k").load()) == 2


@pytest.mark.slow
@pytest.mark.parametrize("command", ["list", "audit torchvision:resnet18", "report results"])
def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path, command: str) -> None:
    place = str(REPOSITORY / "results" / "first-look")
    line = f"{sys.executable} -m decaybench {command.replace('results', place)} | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", line],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
    )
    assert done.returncode in (0, 141), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["random.py", "queue.py", "copy.py", "profile.py", "torch.py", "numpy.py"])
def test_files_with_the_names_of_modules_in_the_current_folder_are_not_run(tmp_path: Path, cli: Cli, name: str) -> None:
    (tmp_path / name).write_text("open('executed', 'w')\nraise SystemExit('hidden')\n")
    done = cli(*SMOKE, "--executor", "processes")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "ascii"])
def test_a_minus_sign_survives_any_encoding(tmp_path: Path, encoding: str) -> None:
    place = str(REPOSITORY / "results" / "first-look")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": encoding}
    command = [sys.executable, "-m", "decaybench", "report", place]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True)
    # click writes UTF-8 where the locale says ASCII, which no locale of today does
    text = done.stdout.decode("utf-8" if encoding == "ascii" else encoding)
    assert "[-0.19, +0.05]" in text.replace("−", "-")
    assert "?" not in text


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cgroup": "0::/a\n", "fs/a/cpu.max": "150000 100000\n"}, 1),
        ({"cgroup": "0::/a\n", "fs/a/cpu.max": "max 100000\n"}, None),
        ({"cgroup": "0::/\n", "fs/cpu.max": "50000 100000\n"}, 1),
        (
            {
                "cgroup": "4:cpu,cpuacct:/b\n",
                "fs/cpu/b/cpu.cfs_quota_us": "100000",
                "fs/cpu/b/cpu.cfs_period_us": "100000",
            },
            1,
        ),
        ({"cgroup": "4:cpu:/b\n", "fs/cpu/b/cpu.cfs_quota_us": "-1", "fs/cpu/b/cpu.cfs_period_us": "100000"}, None),
        ({"cgroup": "rubbish\n"}, None),
    ],
)
def test_the_cpu_quota_of_a_container_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int | None
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    real = Path.read_text
    place = {Path("/proc/self/cgroup"): tmp_path / "cgroup"}
    monkeypatch.setattr(Path, "read_text", lambda self, *a, **k: real(place.get(self, self), *a, **k))
    monkeypatch.setattr(options, "CGROUPS", tmp_path / "fs")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert options.available_cores() == (8 if cores is None else cores)


@pytest.mark.slow
def test_workers_are_spawned_where_they_cannot_be_forked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows, as far as that can be tried elsewhere."""
    monkeypatch.setattr(processes, "START_METHOD", "spawn")
    processes.start_forkserver()  # does nothing
    runs = tiny(activation=["prelu", "kaf"], seeds=2).runs()
    folder = StudyFolder(tmp_path)
    events = list(Scheduler(Processes(["cpu"], 2, 600.0), folder, CPU, workers=2).run(runs))
    assert len(folder.load()) == len(runs)
    assert not any(event.trouble for event in events)


@pytest.mark.slow
def test_ctrl_c_while_torch_is_imported_is_one_sentence(tmp_path: Path) -> None:
    import signal

    process = subprocess.Popen(
        [sys.executable, "-m", "decaybench", *SMOKE, "--executor", "processes"],
        cwd=tmp_path,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "Starting" in line:
            break
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to every process of the group
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "Error" not in errors
    assert errors.count("Interrupted") == 1


@pytest.mark.slow
def test_the_installed_wheel_works_away_from_the_source(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path)]
    subprocess.run([*build, str(REPOSITORY)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    target = tmp_path / "installed"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "-q", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    work = tmp_path / "work"
    work.mkdir()
    code = "import decaybench, sys; print(decaybench.__file__); from decaybench.__main__ import main; main()"
    for arguments in (["--version"], SMOKE, ["list"], ["verify", "--steps", "2"], ["bench", "--help"]):
        done = subprocess.run(
            [sys.executable, "-P", "-c", code, *arguments],
            cwd=work,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(target)},
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(str(target))
