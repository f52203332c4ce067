"""What is made from the code is current, and reads as the code means it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]
from ruamel.yaml import YAML

from pipeline.cli.generate import files
from pipeline.config.model import HEADINGS, Model
from pipeline.config.params import load_params
from pipeline.config.params_yaml import params_yaml, yaml_value
from pipeline.config.presets import FOLDER, compose, names
from tests import tiny


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny.ROOT)


def test_what_is_checked_in_is_current() -> None:
    stale = [str(path) for path, text in files().items() if path.read_text(encoding="utf-8") != text]
    assert stale == [], "run `make generate`"


@pytest.mark.parametrize("name", names(tiny.ROOT / FOLDER))
def test_a_parameter_file_says_the_same_to_us_and_to_dvc(name: str, tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    text = compose(name)
    path.write_text(text, encoding="utf-8")
    params = load_params(path=path)
    assert yaml.safe_load(text) == params.model_dump()  # PyYAML's dialect, in which DVC reads it
    assert params_yaml(params, text.splitlines()[1].removeprefix("# ")) == text


def test_dvc_would_lay_it_out_alike() -> None:
    """`dvc exp run -S` rewrites the file with ruamel."""
    rewriter, stream = YAML(), io.StringIO()
    rewriter.width = 10**4
    rewriter.dump(rewriter.load(compose("default")), stream)
    assert stream.getvalue() == compose("default")


@pytest.mark.parametrize(
    "value",
    [0.0, 1.0, 0.1, 0.95, 1e-3, 3e-4, 1e-5, 2.5e-5, 1e-8, 123456.0, 1e6, 1.5e30, -2e-3, 1 / 3, 1e-4 / 3],
)
def test_a_float_is_read_back_as_it_was(value: float) -> None:
    check(value)


@pytest.mark.parametrize(
    "value",
    [True, None, 7, "gpt2", "\n", "user/model@v1", "true", "No", "1.0", "", " a", "é: #", [], ["a", "b c"]],
)
def test_a_value_is_read_back_as_it_was(value: Any) -> None:
    check(value)


def check(value: Any) -> None:
    for reader in (yaml.safe_load, YAML(typ="safe").load):
        read = reader(f"key: {yaml_value(value)}\n")["key"]
        assert read == value and type(read) is type(value)


def test_headings_begin_at_a_switch() -> None:
    assert set(HEADINGS) <= set(Model.model_fields)
    text = compose("default")
    for name, heading in HEADINGS.items():
        assert f"  # {heading}\n  {name}:" in text
