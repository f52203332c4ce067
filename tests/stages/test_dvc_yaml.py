"""Both dvc.yaml name real files and parameters, and for each stage the rooms that its script imports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config.params import Params
from pipeline.config.validation import known_names, read_yaml
from tests.test_architecture import imports

ROOT = Path(__file__).parents[2]
STAGES: dict[str, dict[str, Any]] = {
    f"{path}:{name}": stage
    for path in ("dvc.yaml", "stages/dvc.yaml")
    for name, stage in read_yaml(ROOT / path)["stages"].items()
}
CACHED = [name for name in STAGES if not STAGES[name].get("always_changed")]


def script(name: str) -> str:
    """The module that a stage runs."""
    module: str = STAGES[name]["cmd"].split()[3]
    return module


def test_every_script_is_a_stage_and_is_called_as_it() -> None:
    scripts = {f"stages.{path.stem}" for path in (ROOT / "stages").glob("[a-z]*.py")}
    assert {script(name) for name in STAGES} == scripts
    assert all(name.partition(":")[2].startswith(script(name).removeprefix("stages.")) for name in STAGES)


def test_only_the_check_always_runs() -> None:
    assert set(STAGES) - set(CACHED) == {"dvc.yaml:check"}


@pytest.mark.parametrize("name", CACHED)
def test_a_stage_depends_on_its_script_and_on_the_rooms_that_it_reaches(name: str) -> None:
    """Imports inside functions count: what runs late determines the result too."""
    reached = imports().find_upstream_modules(script(name))
    rooms = {"/".join(module.split(".")[:2]) for module in reached if module.count(".")}
    code = {dep for dep in STAGES[name]["deps"] if dep.startswith(("pipeline/", "stages/"))}
    assert code == {*rooms, script(name).replace(".", "/") + ".py"}


@pytest.mark.parametrize("name", CACHED)
def test_a_stage_comes_after_the_check(name: str) -> None:
    """It depends on what `check` writes, or on what another stage made that does."""
    made = ("results/checked/", "results/model", "data/${data.dataset}/${tokenizer.name}")
    assert any(dep.startswith(made) for dep in STAGES[name]["deps"])


@pytest.mark.parametrize("name", [name for name in STAGES if name.startswith("stages/dvc.yaml:")])
def test_dvc_does_not_miss_what_was_never_asked_for(name: str) -> None:
    """Before each experiment it warns of outputs in its cache that were never made."""
    assert all(out[path] == {"cache": False} for out in STAGES[name]["outs"] for path in out)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_depends_on_known_parameters_that_determine_results(name: str) -> None:
    params = STAGES[name].get("params", [])
    assert set(params) <= set(known_names(Params))
    assert not any(param.startswith(("runtime", "log")) for param in params)
