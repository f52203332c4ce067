"""A model's size is known from its config, exactly, without building it."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config.gpt2_models import PUBLISHED
from pipeline.model import size
from pipeline.model.build import build_on_meta
from pipeline.model.gpt import GPT
from pipeline.model.size import model_size
from tests import tiny
from tests.family import VARIANTS


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_has_the_size_of_the_built_model(name: str) -> None:
    deep = {"n_layer": 7, "block_size": 24} | VARIANTS[name]
    for field, least in (("recurrent_depth", 6), ("n_layers_prelude", 4), ("n_layers_coda", 5)):
        if field in deep:
            deep[field] = least
    for config in (tiny.config(**VARIANTS[name]), tiny.config(**deep)):
        model, found = build_on_meta(config), model_size(config)
        saved = model.state_dict()
        assert found.parameters == model.num_params()
        assert found.tensors == len(saved)
        assert found.values == sum(tensor.numel() for tensor in saved.values())
        assert found.flops_per_token == model.flops_per_token()
        assert found.applications == len(model.trunk.blocks())
        unsaved = sum(table.nbytes for key, table in model.named_buffers() if key not in saved)
        assert found.table_bytes == unsaved
        assert size.OTHER not in found.parts


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
    ],
)
def test_the_published_models_have_the_published_sizes(name: str, parameters: int) -> None:
    """What `num_parameters()` of transformers says of each."""
    assert model_size(PUBLISHED[name].config).parameters == parameters


def test_the_parts_of_gpt2_by_hand() -> None:
    width, layers = 768, 12
    assert model_size(PUBLISHED["gpt2"].config).parts == {
        "token embedding": 50257 * width,
        "position embedding": 1024 * width,
        "attention": layers * (4 * width**2 + 4 * width),
        "feed-forward": layers * (8 * width**2 + 5 * width),
        "norms": (2 * layers + 1) * 2 * width,
    }


def test_depth_and_context_cost_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    built_layers = []

    def counting(config: Any) -> GPT:
        built_layers.append(config.n_layer + config.block_size)
        return build_on_meta(config)

    monkeypatch.setattr(size, "build_on_meta", counting)
    deep = tiny.config(n_layer=60_000, block_size=1 << 20, position="rotary", n_embd=10_000)
    assert model_size(deep).parameters > 60_000 * 12 * 10_000**2
    assert max(built_layers) <= 6
