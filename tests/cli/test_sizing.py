"""`gpt-pipeline sizing` prints what a preset, or params.yaml, needs; it builds and writes nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config.presets import names
from tests import tiny
from tests.conftest import Ended


def numbers(ended: Ended) -> dict[str, str]:
    """{row: the figure in it} of all tables."""
    assert ended.status == 0, ended.err
    lines = [line.split("  ") for line in ended.out.splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    return {row[0]: row[1] for row in cells if len(row) > 1 and row[0] != "all"}


@pytest.mark.parametrize("preset", names(tiny.ROOT / "presets"))
def test_every_preset_has_its_table(
    preset: str, stage: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny.ROOT)
    ended = stage("sizing", "--preset", preset)
    rows = numbers(ended)
    assert {"attention", "feed-forward", "norms", "gradients", "optimizer", "a checkpoint"} <= rows.keys()
    assert ended.err == ""


def test_gpt2_medium_has_its_known_size(stage: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny.ROOT)
    shape = {"n_layer": 24, "n_head": 16, "n_embd": 1024, "bias": "true", "activation": "gelu_new"}
    overrides = [f"model.{name}={value}" for name, value in shape.items()] + ["train.init_from=gpt2-medium"]
    ended = stage("sizing", "--preset", "gpt2", *(word for one in overrides for word in ("-S", one)))
    assert "354,823,168" in ended.out
    assert numbers(ended)["token embedding"] == f"{50257 * 1024:,}"


def test_what_is_there_is_counted(tiny_project: Path, stage: Callable[..., Ended]) -> None:
    rows = numbers(stage("sizing"))
    shards = sum(path.stat().st_size for path in Path("data/tiny/char").glob("*.bin"))
    assert rows["data/tiny/char"] == f"{shards / 1024:.1f} KiB"
    assert sorted(path.name for path in tiny_project.iterdir()) == ["data", "params.yaml"]


def test_a_vocabulary_that_is_not_known_yet_is_not_counted(
    tiny_project: Path, stage: Callable[..., Ended]
) -> None:
    ended = stage("sizing", "-S", "data.dataset=other")
    assert ended.out.startswith("note: not counted is the vocabulary of char")
    assert numbers(ended)["token embedding"] == "16"


def test_flops_by_part_are_all_of_them(tiny_project: Path, stage: Callable[..., Ended]) -> None:
    lines = stage("sizing").out.partition("compute")[2].splitlines()
    rows = {line[:25].strip(): line[25:].split()[-2:] for line in lines if line}
    names = ("matrices of the blocks", "scores of attention", "output projection")
    shares = [float(rows[name][1].rstrip("%")) for name in names]
    assert sum(shares) == pytest.approx(100, abs=0.2) and min(shares) > 0
    assert float(rows["scores of attention"][0]) == pytest.approx(12 * 2 * 16 * 8, rel=0.01)


def test_it_says_how_many_experts_compute_a_token(tiny_project: Path, stage: Callable[..., Ended]) -> None:
    row = "experts that compute a token"
    assert row not in numbers(stage("sizing"))
    assert numbers(stage("sizing", "-S", "model.moe=true"))[row] == "2"
    dummy = ("-S", "model.moe_dummy=true", "-S", "model.moe_dummy_share=0.25", "-S", "model.n_layer=5")
    assert numbers(stage("sizing", "-S", "model.moe=true", *dummy))[row] == "1.5"


def test_a_mistake_is_one_line(stage: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny.ROOT)
    for arguments in (("--preset", "gtp2"), ("-S", "model.n_layer=0"), ("-S", "train.init_from=nowhere")):
        ended = stage("sizing", *arguments)
        assert ended.status == 2 and ended.err.startswith("error: ") and ended.err.count("\n") == 1
