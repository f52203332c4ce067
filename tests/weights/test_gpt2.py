"""What is exported gives the same logits in Hugging Face's own GPT-2, or one line says why it cannot."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2LMHeadModel

from pipeline.config.errors import UserError
from pipeline.weights.gpt2 import save_gpt2, to_gpt2
from tests import tiny
from tests.family import RECURRENT, SHARED, VARIANTS

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3]])

# What can be unrolled into plain layers; every other variant has to be refused.
PLAIN = {"dense", "no-bias", "untied", "layer-dropout-plain"}
UNROLLED = {
    "shared",
    "shared-edges",
    "shared-noise",
    "layer-dropout",
    "sticky-dropout",
    "recurrent",
    "recurrent-uniform",
    "recurrent-prelude-coda",
    "recurrent-noise-add",
    "recurrent-backprop",
    "recurrent-layer-dropout",
    "recurrent-sticky",
    "recurrent-sticky-scaled",
}


@torch.no_grad()
def exported(folder: Path, depth: int | None = None, **switches: Any) -> tuple[GPT2LMHeadModel, float]:
    """The model as transformers loads it, and how far its logits are from ours at most."""
    model = tiny.model(**switches)
    save_gpt2(*to_gpt2(model.state_dict(), tiny.config(**switches), depth), folder)
    loading: Any = GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
    loaded, report = loading
    assert not any(report.values()), report
    return loaded, (loaded(IDS).logits - model(IDS, depth=depth)).abs().max().item()


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_has_equal_logits_or_names_what_is_in_the_way(name: str, tmp_path: Path) -> None:
    if name in PLAIN | UNROLLED:
        _, difference = exported(tmp_path, **VARIANTS[name])
        assert difference <= 1e-5
        return
    with pytest.raises(UserError) as error:
        exported(tmp_path, **VARIANTS[name])
    switch = re.match(r"model\.(\w+) = (\S+): Hugging Face's GPT-2 does not support it", str(error.value))
    assert switch and str(VARIANTS[name][switch[1]]).lower() == switch[2]
    assert "\n" not in str(error.value)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("depth", [1, 2, 3, 7])
@pytest.mark.parametrize(
    ("edges", "switches"),
    [
        (0, SHARED),
        (2, {**SHARED, "fixed_edge_blocks": True, "bias": False}),
        (0, RECURRENT),
        (2, {**RECURRENT, "fixed_edge_blocks": True, "bias": False}),
        (3, {**RECURRENT, "n_layers_prelude": 2, "n_layers_coda": 1, "layer_dropout": 0.2}),
        (0, {**RECURRENT, "tie_word_embeddings": False}),
    ],
)
def test_a_loop_becomes_as_many_layers_as_asked_for(
    depth: int, edges: int, switches: dict[str, Any], tmp_path: Path
) -> None:
    loaded, difference = exported(tmp_path, depth, **switches)
    assert loaded.config.n_layer == edges + depth
    assert difference <= 1e-5


def test_as_many_heads_of_keys_as_of_queries_are_gpt2s(tmp_path: Path) -> None:
    _, difference = exported(tmp_path, n_kv_head=2)
    assert difference <= 1e-5


def test_the_config_says_all_that_readers_ask_for(tmp_path: Path) -> None:
    exported(tmp_path, dropout=0.1, tie_word_embeddings=False)
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.n_positions, config.n_ctx, config.vocab_size) == (8, 8, 11)
    assert (config.activation_function, config.tie_word_embeddings) == ("gelu", False)
    assert (config.resid_pdrop, config.embd_pdrop, config.attn_pdrop) == (0.1, 0.1, 0.1)
    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path), GPT2LMHeadModel)


def test_others_may_read_what_is_written(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        exported(tmp_path)
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"config.json": 0o640, "model.safetensors": 0o640}


@torch.no_grad()
def test_a_deep_loop_copies_and_leaves_the_model_alone() -> None:
    model = tiny.model(**RECURRENT)
    _, tensors = to_gpt2(model.state_dict(), tiny.config(**RECURRENT))
    before = model(IDS)
    for tensor in tensors.values():
        tensor.zero_()
    assert torch.equal(model(IDS), before)
