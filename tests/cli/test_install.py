"""What cannot be installed is said in one line, by whatever Python there is."""

from __future__ import annotations

import ast
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cli import install
from pipeline.storage.files import write_text
from tests import tiny


def test_an_old_python_is_named_with_the_way_out() -> None:
    assert install.what_is_missing((3, 11)) == install.what_is_missing((3, 14)) == ""
    problem = install.what_is_missing((3, 9))
    assert "is Python 3.9, older than 3.11; name another: make PYTHON3=" in problem


def test_windows_is_told_to_use_wsl() -> None:
    assert "run this in WSL" in install.what_is_missing(system="nt")


@pytest.mark.parametrize(
    ("build", "index"),
    [("cpu", "whl/cpu"), ("cu128", "whl/cu128"), ("rocm6.4", "whl/rocm6.4"), ("xpu", "whl/xpu")],
)
def test_a_build_of_pytorch_is_asked_for_by_its_full_name_at_its_own_index(build: str, index: str) -> None:
    arguments = install.pip_arguments("torchvision==1\ntorch==2.13.0\n", build, "")
    assert arguments[-5:] == [
        "--extra-index-url",
        f"https://download.pytorch.org/{index}",
        f"torch==2.13.0+{build}",
        "-e",
        ".",
    ]
    assert install.wrong_build(build, "linux") == ""


def test_without_a_build_pip_asks_its_own_index_for_the_pinned_versions() -> None:
    arguments = install.pip_arguments("torch==2.13.0\n", "", "hub")
    assert not [argument for argument in arguments if "torch" in argument]
    assert arguments[-4:] == ["-c", "constraints.txt", "-e", ".[hub]"]


@pytest.mark.parametrize("build", ["cuda", "cu12.8", "gpu", "rocm", "../cpu", "cpu; rm -r x"])
def test_a_build_that_pytorch_does_not_have_is_refused_with_those_it_has(build: str) -> None:
    problem = install.wrong_build(build, "linux")
    assert problem.startswith(f"TORCH={build}: ") and "cu128 for CUDA 12.8" in problem


def test_a_mac_has_one_build() -> None:
    assert install.wrong_build("", "darwin") == ""
    assert "leave TORCH out" in install.wrong_build("cpu", "darwin")


def test_an_extra_that_does_not_exist_is_refused_with_those_that_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny.ROOT)
    assert install.unknown_extra("") == install.unknown_extra("lm-eval") == ""
    assert install.unknown_extra("hubs") == "EXTRAS=hubs: no such extra; there are browser, dev, hub, lm-eval"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["TORCH=cuda"], "error: TORCH=cuda: no build of PyTorch"),
        (["EXTRAS=all"], "error: EXTRAS=all: no such"),
    ],
)
def test_make_refuses_a_wrong_variable_in_one_line(
    installed_copy: Path, arguments: list[str], expected: str
) -> None:
    command = ["make", "-s", "--no-print-directory", "install", *arguments]
    ended = subprocess.run(command, cwd=installed_copy, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    said = [line for line in ended.stderr.splitlines() if not line.startswith("make")]  # make[1] inside make
    assert len(said) == 1 and said[0].startswith(expected)


def test_the_build_is_kept_for_what_is_installed_later(
    installed_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    called: list[list[str]] = []

    def pip(status: int) -> None:
        def call(command: list[str]) -> int:
            called.append(command)
            return status

        monkeypatch.setattr(subprocess, "call", call)

    monkeypatch.chdir(installed_copy)
    monkeypatch.setattr(install, "_has_pip", lambda python: True)
    monkeypatch.setattr(sys, "platform", "linux")
    pip(status=0)
    stamp = Path(".venv") / install.STAMP
    assert install.main(stamp, "rocm6.4") == 0
    assert install.main(Path(f"{stamp}-hub")) == install.main(stamp) == 0
    assert all(any(word.endswith("+rocm6.4") for word in command) for command in called)
    pip(status=1)
    capsys.readouterr()
    assert install.main(stamp, "cu999") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: TORCH=cu999: was not installed; ") and err.count("\n") == 1
    assert stamp.read_text(encoding="utf-8") == "rocm6.4"


def test_what_is_needed_and_missing_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stamps = list[str]()

    def installed(stamp: Path) -> int:
        stamps.append(stamp.name)
        return len(stamps) - 1

    monkeypatch.setattr(install, "main", installed)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    install.add_if_missing("no_such_module", "hub")
    (tmp_path / install.STAMP).touch()
    install.add_if_missing("pytest", "dev")
    assert stamps == []
    install.add_if_missing("no_such_module", "hub")
    assert stamps == [".installed-hub"]
    with pytest.raises(SystemExit) as ended:
        install.add_if_missing("no_such_module", "hub")
    assert ended.value.code == 1


def test_make_installs_another_build_again_and_remembers_it(installed_copy: Path) -> None:
    def planned(*arguments: str) -> str:
        command = ["make", "-n", "--no-print-directory", "install", *arguments]
        return subprocess.run(command, cwd=installed_copy, capture_output=True, text=True, check=True).stdout

    write_text(installed_copy / ".venv" / install.STAMP, "cu128")
    assert "pipeline.cli.install" not in planned()
    assert "pipeline.cli.install" not in planned("TORCH=cu128")
    assert "pipeline.cli.install .venv/.installed cpu" in planned("TORCH=cpu")
    assert "pipeline.cli.install .venv/.installed-hub" in planned("EXTRAS=hub")


@pytest.mark.parametrize(
    ("target", "extra"),
    [("test", "dev"), ("check", "dev"), ("format", "dev"), ("bench", "dev"), ("lm-eval", "lm-eval")],
)
def test_targets_install_the_extra_that_they_need(installed_copy: Path, target: str, extra: str) -> None:
    command = ["make", "-n", "--no-print-directory", target]
    planned = subprocess.run(command, cwd=installed_copy, capture_output=True, text=True, check=True).stdout
    assert f"pipeline.cli.install .venv/.installed-{extra}\n" in planned
    write_text(installed_copy / ".venv" / f"{install.STAMP}-{extra}", "")
    again = subprocess.run(command, cwd=installed_copy, capture_output=True, text=True, check=True).stdout
    assert "pipeline.cli.install" not in again


@pytest.fixture
def installed_copy(tmp_path: Path) -> Path:
    """A folder in which make believes that the dependencies are installed, without any extra."""
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copyfile(tiny.ROOT / name, tmp_path / name)
    (tmp_path / "pipeline").symlink_to(tiny.ROOT / "pipeline")
    write_text(tmp_path / ".venv" / install.STAMP, "")
    return tmp_path


def test_a_python_without_venv_is_named_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert install.main(tmp_path / ".installed") == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "apt install python3-venv" in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["install", "commands", "clean"])
def test_what_make_runs_first_is_read_by_an_old_python(name: str) -> None:
    source = (tiny.ROOT / "pipeline" / "cli" / f"{name}.py").read_text(encoding="utf-8")
    ast.parse(source, feature_version=(3, 8))
    imported = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not [ast.unparse(node) for node in imported if "pipeline" in ast.unparse(node)]


def test_make_says_which_python_is_not_there() -> None:
    command = [
        "make",
        "-s",
        "--no-print-directory",
        "PYTHON3=no-such-python",
        "-W",
        "pyproject.toml",
        ".venv/.installed",
    ]
    ended = subprocess.run(command, cwd=tiny.ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: no no-such-python; name another: make PYTHON3=")
