"""Machine code gives the same loss and gradients, and a loop is compiled once for all depths."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from pipeline.runtime.compiled import compiled
from tests import tiny
from tests.family import MOE, RECURRENT, STOPPING

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
    torch.compiler.reset()
    results = []
    for fast in (False, True):
        model = tiny.model(n_layer=1, **switches).train()
        loss = compiled(model) if fast else model
        result = loss(IDS, targets=TARGETS, depth=2 if model.depth_distribution else None)
        result.total.backward()
        results.append((result.total, [parameter.grad for parameter in model.parameters()]))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "switches",
    [{}, STOPPING, {"recurrent_backprop_depth": 2}, {"fixed_edge_blocks": True}],
    ids=["plain", "stopping", "backprop", "edges"],
)
def test_a_loop_is_compiled_once_for_all_depths(switches: dict[str, Any]) -> None:
    torch.compiler.reset()
    model = tiny.model(**RECURRENT, **switches).train()
    loss = compiled(model, "aot_eager")
    graphs = []
    for depth in (1, 2, 3, 4, 7, 12):
        torch.testing.assert_close(
            loss(IDS, targets=TARGETS, depth=depth).total,
            model(IDS, targets=TARGETS, depth=depth).total,
            atol=1e-5,
            rtol=0,
        )
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] > 0
    assert graphs[2:] == [graphs[2]] * 4  # from the third on, nothing new
