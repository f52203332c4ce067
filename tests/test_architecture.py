"""The house is as CONTRIBUTING.md says: rooms, layers, and parts of the model that know no parameter file."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from typing import Any

import grimp
import pytest

from tests import tiny


@cache
def imports() -> Any:
    """Who imports whom; imports inside functions count too."""
    return grimp.build_graph("pipeline", "stages", "bench")


def rooms() -> set[str]:
    return {path.parent.name for path in (tiny.ROOT / "pipeline").glob("*/__init__.py")}


def test_every_module_of_the_library_is_in_a_room() -> None:
    assert [path.name for path in (tiny.ROOT / "pipeline").glob("*.py")] == ["__init__.py"]


def test_every_room_has_its_layer() -> None:
    """`lint-imports` checks the layers; a room that is missing there would not be checked."""
    with (tiny.ROOT / "pyproject.toml").open("rb") as file:
        (contract,) = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    listed = re.findall(r"pipeline\.(\w+)", " ".join(contract["layers"]))
    assert sorted(listed) == sorted(rooms())


@pytest.mark.parametrize("section", ["pipeline.config.model", "pipeline.config.params"])
def test_no_part_of_the_model_reads_its_switches(section: str) -> None:
    readers = imports().find_modules_that_directly_import(section)
    inside = {name for name in readers if name.startswith("pipeline.model.")}
    assert inside <= {f"pipeline.model.{name}" for name in ("build", "load", "size")}
