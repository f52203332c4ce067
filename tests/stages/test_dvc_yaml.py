"""Both dvc.yaml name real files, real parameters, and for training the code that a run is keyed by."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.config.params import Params
from pipeline.config.validation import known_names, read_yaml
from pipeline.train.runs import SOURCES

ROOT = Path(__file__).parents[2]
STAGES: dict[str, dict[str, Any]] = {
    **read_yaml(ROOT / "dvc.yaml")["stages"],
    **read_yaml(ROOT / "stages" / "dvc.yaml")["stages"],
}


@pytest.mark.parametrize("name", STAGES)
def test_stage_depends_on_files_that_exist(name: str) -> None:
    code = [dep for dep in STAGES[name]["deps"] if dep.startswith(("pipeline/", "stages/"))]
    module = STAGES[name]["cmd"].split()[2]
    assert module.replace(".", "/") + ".py" in code
    assert [dep for dep in code if not (ROOT / dep).exists()] == []


@pytest.mark.parametrize("name", STAGES)
def test_stage_depends_on_known_parameters_that_determine_results(name: str) -> None:
    params = STAGES[name].get("params", [])
    assert set(params) <= set(known_names(Params))
    assert not any(param.startswith(("runtime", "log")) for param in params)


def test_dvc_retrains_when_the_run_key_changes_and_only_then() -> None:
    code = {dep for dep in STAGES["train"]["deps"] if dep.startswith("pipeline/")}
    assert code == {f"pipeline/{source}" for source in SOURCES}
