"""Machine code gives the same loss and gradients; a block is compiled once for all layers and depths."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from pipeline.model.cache import KVCache
from pipeline.model.gpt import GPT
from pipeline.runtime.compiled import compiled
from tests import tiny
from tests.family import MODERN, MOE, RECURRENT, STOPPING

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3]])
TARGETS = IDS.roll(-1, 1)

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="there is no C++ compiler"
)


@needs_compiler
@pytest.mark.parametrize("switches", [{}, MOE, RECURRENT], ids=["gpt2", "moe", "recurrent"])
def test_machine_code_computes_the_same(
    switches: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    results = []
    for fast in (False, True):
        model = tiny.model(n_layer=1, **switches).train()
        loss = compiled(model) if fast else model
        result = loss(IDS, targets=TARGETS, depth=2 if model.depth_distribution else None)
        result.total.backward()
        results.append((result.total, [parameter.grad for parameter in model.parameters()]))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)


@pytest.fixture(autouse=True)
def nothing_is_compiled_yet() -> None:
    torch.compiler.reset()
    counters.clear()


def graphs_of(forward: GPT, steps: int) -> list[int]:
    """How many graphs were compiled after each of so many steps."""
    counts = []
    for _ in range(steps):
        forward(IDS, targets=TARGETS).total.backward()
        counts.append(counters["stats"]["unique_graphs"])
    return counts


@pytest.mark.parametrize(
    ("switches", "graphs"),
    [({}, 2), (MODERN, 2), (MOE, 6), ({**MOE, "share_moe_experts": True}, 6)],
    ids=["gpt2", "modern", "experts", "shared-experts"],
)
@pytest.mark.parametrize("layers", [2, 6])
def test_a_block_is_compiled_once_for_all_layers(layers: int, switches: dict[str, Any], graphs: int) -> None:
    """And the head once. A graph that counts experts is in pieces."""
    model = tiny.model(**switches, n_layer=layers).train()
    assert graphs_of(compiled(model, "aot_eager"), steps=3) == [graphs] * 3


@pytest.mark.parametrize(
    "switches",
    [{}, STOPPING, {"recurrent_backprop_depth": 2}, {"fixed_edge_blocks": True}, {"sticky_dropout": 0.3}],
    ids=["plain", "stopping", "backprop", "edges", "sticky"],
)
def test_a_loop_is_compiled_once_for_all_depths(switches: dict[str, Any]) -> None:
    model, other = (tiny.model(**RECURRENT, **switches).train() for _ in range(2))
    loss = compiled(model, "aot_eager")
    graphs = []
    for depth in (1, 2, 3, 4, 7, 12):
        torch.manual_seed(0)
        expected = other(IDS, targets=TARGETS, depth=depth).total
        torch.manual_seed(0)
        found = loss(IDS, targets=TARGETS, depth=depth).total
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert graphs[3:] == [graphs[3]] * 3  # from the fourth on, nothing new


def test_a_model_in_evaluation_is_not_compiled() -> None:
    model = compiled(tiny.model(), "aot_eager")
    cache = KVCache(model.block_size, batch=2)
    assert torch.equal(model(IDS, cache), tiny.model()(IDS))
    assert model(IDS, targets=TARGETS).total.isfinite()
    assert not counters["stats"]["unique_graphs"]


def test_compiling_keeps_the_names_of_parameters() -> None:
    model, names = tiny.model(), list(tiny.model().state_dict())
    assert list(compiled(model, "aot_eager").state_dict()) == names


def test_machine_code_is_kept_in_the_users_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "own"))
    compiled(tiny.model())
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "own")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setattr("pipeline.runtime.compiled.user_cache_path", lambda name: tmp_path / name)
    compiled(tiny.model())
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "gpt-pipeline" / "compiled")
    assert (tmp_path / "gpt-pipeline" / "compiled").is_dir()
