"""A shortened model is the depth curve's, for every variant, and the model that it came from stays whole."""

from __future__ import annotations

import pytest
import torch

from pipeline.evaluate.at_depth import at_depth
from pipeline.serve.sampling import TokenSampler, generate
from tests import tiny
from tests.family import RECURRENT, VARIANTS

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_its_logits_are_those_of_this_depth(name: str) -> None:
    model = tiny.model(**VARIANTS[name])
    names = list(model.state_dict())
    for depth, logits in zip(model.depths, list(model.logits_by_depth(IDS)), strict=True):
        torch.testing.assert_close(at_depth(model, depth)(IDS), logits, atol=1e-5, rtol=0)
    assert list(model.state_dict()) == names and model.depth == 3


def test_it_writes_from_a_cache_what_it_writes_without() -> None:
    model = at_depth(tiny.model(position="rotary"), 2)
    ids = IDS[0, :3]
    written = [int(token) for token in generate(model, [ids], 5, TokenSampler(greedy=True), 11)]
    for position in range(5):
        seen = torch.cat([ids, torch.tensor(written[:position], dtype=torch.long)])
        assert int(model.next_logits(seen[None]).argmax()) == written[position]


@pytest.mark.parametrize("changes", [{}, RECURRENT])
def test_fewer_steps_cost_less(changes: dict[str, object]) -> None:
    model = tiny.model(**changes)
    costs = [at_depth(model, depth).flops_per_token() for depth in (1, 2, 3)]
    assert costs[2] == model.flops_per_token()
    assert costs[1] - costs[0] == costs[2] - costs[1] > 0
