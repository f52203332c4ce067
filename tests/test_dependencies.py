"""What is imported is declared in pyproject.toml, and what is declared is imported."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from functools import cache
from importlib.metadata import packages_distributions

import pytest

from tests import tiny

INSTALLED = ("pipeline", "stages")
# What these import although it is installed with an extra only: {package: extra}.
OPTIONAL = {"datasets": "hub", "lm_eval": "lm-eval"}
# Declared, but imported nowhere: they are commands, or used by another package.
NOT_IMPORTED = {
    "import-linter": "a command of make check, `lint-imports`",
    "mypy": "a command of make check",
    "pytest-xdist": "a plugin of pytest",
    "ruff": "a command of make check",
    "types-tqdm": "types that mypy reads",
}
# Imported, but brought along by a package that is declared, of which they are a part.
PART_OF = {"dvc-render": "dvc", "pydantic-core": "pydantic"}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@cache
def declared(*extras: str) -> frozenset[str]:
    """The packages that pyproject.toml names for running, or for these extras; not this project itself."""
    with (tiny.ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    groups = {"": project["dependencies"], **project["optional-dependencies"]}
    named = [requirement for extra in extras or [""] for requirement in groups[extra]]
    names = {canonical(re.split(r"[^A-Za-z0-9._-]", requirement)[0]) for requirement in named}
    return frozenset(names - {"gpt-pipeline"})


def everything() -> frozenset[str]:
    return declared("", "dev", "browser", *OPTIONAL.values())


@cache
def imported(*folders: str) -> frozenset[tuple[str, str]]:
    """The (file, top-level package) of each import, also of those inside functions."""
    ours = {"pipeline", "stages", "bench", "tests", *sys.stdlib_module_names}
    found = set()
    for folder in folders:
        for path in (tiny.ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names = [node.module]
                found |= {(str(path.relative_to(tiny.ROOT)), name.partition(".")[0]) for name in names}
    return frozenset((path, name) for path, name in found if name not in ours)


def packages(*folders: str) -> set[str]:
    """The installed packages that the code of `folders` imports."""
    owners = packages_distributions()
    of_namespaces = {"ruamel": "ruamel-yaml"}  # several packages may share a namespace
    names = {name for _, name in imported(*folders)}
    return {canonical(of_namespaces.get(name) or owners[name][0]) for name in names}


def test_what_runs_imports_what_is_declared_for_running_and_all_of_it() -> None:
    assert packages(*INSTALLED) - declared(*OPTIONAL.values()) == declared() - set(NOT_IMPORTED)


@pytest.mark.parametrize(("package", "extra"), OPTIONAL.items())
def test_an_extra_is_imported_by_what_runs_in_functions_only(package: str, extra: str) -> None:
    assert declared(extra) == {canonical(package)}
    importers = {path for path, name in imported(*INSTALLED) if name == package}
    assert importers
    for path in importers - {"pipeline/evaluate/lm_eval.py"}:  # which only `lm-eval` imports
        tree = ast.parse((tiny.ROOT / path).read_text(encoding="utf-8"))
        at_start = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not [line for line in at_start if package in line.split()], path


def test_tests_and_benchmarks_import_what_is_declared_and_all_of_it() -> None:
    whole = {PART_OF.get(name, name) for name in packages("bench", "tests")}
    assert whole <= everything()
    assert declared("dev") <= whole | set(NOT_IMPORTED)


def test_no_reason_is_left_over() -> None:
    assert set(NOT_IMPORTED) <= everything()
    assert set(PART_OF.values()) <= everything()


def test_every_declared_package_has_its_pinned_version() -> None:
    pinned = re.findall(r"^([\w.-]+)==", (tiny.ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)
    assert everything() <= set(map(canonical, pinned))
