"""A config that asks for far more than its weights hold is refused before anything of that size is built."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config.errors import UserError
from pipeline.config.model import GPTConfig
from pipeline.model import build
from pipeline.model.gpt import GPT
from pipeline.model.load import load_model
from pipeline.storage.files import write_json
from pipeline.tokens.tokenizers import ByteTokenizer
from pipeline.weights.gpt2 import save_gpt2, to_gpt2
from pipeline.weights.model_folder import save_config, save_weights
from pipeline.weights.nanogpt_checkpoint import write_checkpoint
from tests import tiny
from tests.conftest import Ended

TOO_DEEP = "n_layer = 1000000000: should be less than or equal to 65536"
OTHER_MODEL = "it belongs to another model"

ABSURD: dict[str, tuple[dict[str, Any], str]] = {
    "deep": ({"n_layer": 10**9}, TOO_DEEP),
    "within-the-limits": ({"n_layer": 60_000}, OTHER_MODEL),
    "deep-and-wide": ({"n_layer": 1000, "n_embd": 10**6}, OTHER_MODEL),
    "wide": ({"n_embd": 10**6}, "has the wrong shape for embed.wpe.weight"),
    "vocabulary": ({"vocab_size": 1 << 24}, "has the wrong shape for embed.wte.weight"),
    "experts": ({"moe": True, "moe_num_experts": 60_000}, "lacks trunk.h.0.mlp.experts"),
    "positions": ({"block_size": 1 << 24}, "has the wrong shape for embed.wpe.weight"),
}

each = pytest.mark.parametrize("name", ABSURD)


@pytest.fixture(autouse=True)
def building_nothing_large(monkeypatch: pytest.MonkeyPatch) -> None:
    true = build.build_gpt

    def small(config: GPTConfig) -> GPT:
        assert config.n_layer <= 3
        return true(config)

    monkeypatch.setattr(build, "build_gpt", small)


def saved(folder: Path, **changes: Any) -> Path:
    """A small model with a vocabulary of bytes."""
    config = {"vocab_size": 257, **changes}
    folder.mkdir()
    save_weights(tiny.model(**config).state_dict(), folder)
    save_config(tiny.config(**config), folder)
    ByteTokenizer(end_of_text=True).save(folder)
    return folder


def change(path: Path, **changes: Any) -> None:
    write_json(path, json.loads(path.read_text(encoding="utf-8")) | changes)


@each
def test_a_folder(name: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "model")
    changes, message = ABSURD[name]
    change(folder / "config.json", **changes)
    with pytest.raises(UserError, match=message):
        load_model(folder)


def test_tables_that_exceed_the_memory(tmp_path: Path) -> None:
    """No tensor in the file says how long a context with rotary positions is."""
    folder = saved(tmp_path / "model", position="rotary", n_embd=512, n_head=1)
    change(folder / "config.json", block_size=1 << 24)
    with pytest.raises(UserError, match="block_size = 16777216, position = rotary"):
        load_model(folder)


@pytest.mark.parametrize(
    "changes", [{"n_layer": 10**9}, {"n_layer": 60_000}, {"n_layer": 99, "n_embd": 10**6}]
)
def test_a_model_of_transformers(changes: dict[str, Any], tmp_path: Path) -> None:
    model = tiny.model(vocab_size=257)
    save_gpt2(*to_gpt2(model.state_dict(), tiny.config(vocab_size=257)), tmp_path)
    change(tmp_path / "config.json", **changes)
    with pytest.raises(UserError, match=f"n_layer = 1000000000: should be less|{OTHER_MODEL}"):
        load_model(tmp_path)


@pytest.mark.parametrize("n_layer", [10**9, 60_000])
def test_the_arguments_of_a_checkpoint_of_nanogpt(
    n_layer: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: Callable[..., Ended]
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny.config(vocab_size=257, bias=True)
    write_checkpoint(tiny.model(vocab_size=257).state_dict(), config, 257, "bytes", Path("ckpt.pt"))
    content = torch.load("ckpt.pt", weights_only=True)
    content["model_args"]["n_layer"] = n_layer
    torch.save(content, "ckpt.pt")
    ended = stage("import_checkpoint", "ckpt.pt")
    assert ended.status == 2 and ended.err.count("\n") == 1
    assert f"n_layer = {n_layer}" in ended.err
    assert os.listdir() == ["ckpt.pt"]


@pytest.mark.parametrize(
    "command",
    [
        ("sample", "--model", "model"),
        ("export", "--model", "model"),
        ("eval_baselines", "model"),
        ("start_from", "model"),
        ("check", "-S", "train.init_from=model", "-S", "model.n_layer=60000"),
        ("train", "-S", "train.init_from=model", "-S", "model.n_layer=60000"),
    ],
    ids=lambda command: command[0],
)
def test_every_command_that_names_a_model(
    command: tuple[str, ...], tiny_project: Path, stage: Callable[..., Ended]
) -> None:
    folder = saved(Path("model"))
    change(folder / "config.json", n_layer=60_000)
    before = sorted(Path().rglob("*"))
    ended = stage(*command)
    assert ended.status == 2 and ended.err.startswith("error: ") and ended.err.count("\n") == 1
    assert [path for path in sorted(Path().rglob("*")) if path.name != "results"] == before
