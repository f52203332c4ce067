"""The loop: as many steps as asked for, what happens before and after each, and how far gradients go."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.model.context import Context
from pipeline.model.gpt import cross_entropy
from pipeline.model.recurrence import AddedNoise, ConcatenatedNoise
from tests import tiny
from tests.family import MODERN, RECURRENT, SHARED, STOPPING, THRESHOLD

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3]])
TARGETS = IDS.roll(-1, 1)


def member(**switches: Any) -> Any:
    """A model of the family; its parts are looked into."""
    return tiny.model(**switches)


def by_hand(model: Any, depth: int, detached: int = 0) -> torch.Tensor:
    """Logits of a plain loop; the stream is cut off from its past after the first `detached` steps."""
    trunk = model.trunk
    context = Context()
    x = model.embed(IDS, context)
    for layer_index, block in enumerate(trunk.prelude):
        x = block(x, context, layer_index)
    start = x
    for n in range(depth):
        x = trunk.step(x, start, context, n)
        if n < detached:
            x = x.detach()
    for block in trunk.coda:
        x = block(x, context, -1)
    return model.head(x)


@pytest.mark.parametrize("depth", [1, 2, 3, 7])
@pytest.mark.parametrize("edges", [(0, 0), (2, 0), (1, 2)])
@torch.no_grad()
def test_depth_is_how_often_the_block_is_applied(depth: int, edges: tuple[int, int]) -> None:
    model = member(**RECURRENT, n_layers_prelude=edges[0], n_layers_coda=edges[1])
    calls: list[nn.Module] = []
    for block in (*model.trunk.prelude, model.trunk.step.block, *model.trunk.coda):
        block.register_forward_hook(lambda part, *_: calls.append(part))
    logits = model(IDS, depth=depth)
    expected = [*model.trunk.prelude, *[model.trunk.step.block] * depth, *model.trunk.coda]
    assert calls == expected
    torch.testing.assert_close(logits, by_hand(model, depth), atol=1e-6, rtol=0)


@torch.no_grad()
def test_depth_after_training_is_the_one_trained_for() -> None:
    assert torch.equal((model := member(**RECURRENT))(IDS), model(IDS, depth=3))
    shared = member(**SHARED, n_layer=5)
    assert torch.equal(shared(IDS), shared(IDS, depth=5))
    assert not torch.isclose(shared(IDS), shared(IDS, depth=4)).all()


def test_a_shared_block_is_a_stack_of_equal_ones() -> None:
    """Logits, and the gradient of the one block is the sum of the others'."""
    shared, stack = member(**SHARED), member()
    state = {}
    for name in stack.state_dict():
        _, _, rest = name.partition("trunk.h.")
        state[name] = shared.state_dict()[f"trunk.step.block{rest[1:]}" if rest else name]
    stack.load_state_dict(state)
    torch.testing.assert_close(shared(IDS), stack(IDS))
    for model in (shared, stack):
        model(IDS, targets=TARGETS).total.backward()
    for name, parameter in shared.trunk.step.block.named_parameters():
        gradients = [stack.get_parameter(f"trunk.h.{layer}.{name}").grad for layer in range(3)]
        torch.testing.assert_close(parameter.grad, sum(gradients))


@pytest.mark.parametrize(
    "switches",
    [
        {},
        {"fixed_edge_blocks": True, "recurrent_prelude_injection": True},
        {"recurrent_backprop_depth": 1},
        {"recurrent_backprop_depth": 4},
        {"recurrent_extra_layernorm": True, **MODERN},
        STOPPING,
        {**STOPPING, **THRESHOLD},
        {"sticky_dropout": 0.5},
        {"recurrent_noise_mode": "concat", "recurrent_noise_std": 0.5},
    ],
    ids=str,
)
@torch.no_grad()
def test_each_point_of_the_depth_curve_is_the_model_at_that_depth(switches: dict[str, Any]) -> None:
    model = member(**RECURRENT, **switches)
    assert list(model.depths) == [1, 2, 3, 4, 5, 6]
    for depth, logits in zip(model.depths, model.logits_by_depth(IDS), strict=True):
        assert torch.equal(logits, model(IDS, depth=depth)), depth


def test_a_shared_blocks_depth_curve_ends_where_training_does() -> None:
    assert list(member(**SHARED).depths) == [1, 2, 3]


# Noise, injection, norm


def test_added_noise_has_its_deviation_in_training_only() -> None:
    torch.manual_seed(0)
    noise = AddedNoise(0.3)
    x = torch.randn(50, 40, 16)
    added = noise.train()(x) - x
    assert added.std().item() == pytest.approx(0.3, rel=0.02)
    assert added.mean().item() == pytest.approx(0, abs=0.01)
    assert not torch.equal(noise(x), noise(x))
    assert torch.equal(noise.eval()(x), x)


def test_concatenated_noise_has_its_deviation_in_training_only() -> None:
    torch.manual_seed(0)
    noise = ConcatenatedNoise(16, 5, 0.3, bias=True)
    heard: list[torch.Tensor] = []
    noise.mix.register_forward_pre_hook(lambda part, given: heard.append(given[0]))
    x = torch.randn(50, 40, 16)
    y = noise.train()(x)
    assert heard[0].shape == (50, 40, 21)
    assert torch.equal(heard[0][..., :16], x)
    assert heard[0][..., 16:].std().item() == pytest.approx(0.3, rel=0.02)
    torch.testing.assert_close(y, x + noise.mix(heard[0]))
    y = noise.eval()(x)
    assert not heard[-1][..., 16:].any()
    torch.testing.assert_close(y, x + x @ noise.mix.weight[:, :16].T + noise.mix.bias)


@pytest.mark.parametrize("mode", ["add", "concat"])
def test_every_step_draws_its_own_noise_from_the_seed(mode: str) -> None:
    model = member(**RECURRENT, recurrent_noise_mode=mode, recurrent_noise_std=0.5).train()
    changes: list[torch.Tensor] = []
    with torch.no_grad():
        if mode == "concat":
            model.trunk.step.noise.mix.weight[:, :16] = 0
        model.trunk.step.noise.register_forward_hook(lambda part, given, y: changes.append(y - given[0]))
        for _ in range(2):
            torch.manual_seed(5)
            model(IDS)
    assert len(changes) == 6
    for one, other in pairwise(changes[:3]):
        assert not torch.isclose(one, other).all()
    for one, again in zip(changes[:3], changes[3:], strict=True):
        assert torch.equal(one, again)


@torch.no_grad()
def test_every_step_sees_the_preludes_output() -> None:
    model = member(**RECURRENT, fixed_edge_blocks=True, recurrent_prelude_injection=True)
    trunk = model.trunk
    outputs: list[torch.Tensor] = []
    heard: list[tuple[torch.Tensor, ...]] = []
    entered: list[torch.Tensor] = []
    trunk.prelude[0].register_forward_hook(lambda part, given, made: outputs.append(made))
    trunk.step.injection.register_forward_pre_hook(lambda part, given: heard.append(given))
    trunk.step.block.register_forward_pre_hook(lambda part, given: entered.append(given[0]))
    model(IDS, depth=4)
    assert len(outputs) == 1
    assert len(heard) == 4
    adapter = trunk.step.injection.adapter
    for (stream, start), into_block in zip(heard, entered, strict=True):
        assert torch.equal(start, outputs[0])
        mixed = stream @ adapter.weight[:, :16].T + start @ adapter.weight[:, 16:].T + adapter.bias
        torch.testing.assert_close(into_block, stream + mixed)
    assert torch.equal(heard[0][0], outputs[0])
    assert not torch.isclose(heard[1][0], outputs[0]).all()


@torch.no_grad()
def test_the_extra_norm_ends_every_step() -> None:
    model = member(**RECURRENT, recurrent_extra_layernorm=True)
    trunk = model.trunk
    trunk.step.norm.weight.fill_(2.0)
    trunk.step.norm.bias.fill_(1.0)
    context = Context()
    x = model.embed(IDS, context)
    for state in trunk._states(x, context, 4):
        torch.testing.assert_close(state.mean(-1), torch.ones(2, 8))
        torch.testing.assert_close(state.var(-1, unbiased=False), torch.full((2, 8), 4.0), atol=1e-2, rtol=0)


# Gradients and loss


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("switches", [{}, {"fixed_edge_blocks": True, "recurrent_prelude_injection": True}])
def test_truncated_gradients_are_those_of_a_stream_cut_off(k: int, switches: dict[str, Any]) -> None:
    model = member(**RECURRENT, **switches, recurrent_backprop_depth=k, tie_word_embeddings=False).train()
    parts = [*model.trunk.step.parameters(), *model.trunk.coda.parameters(), *model.head.parameters()]
    loss = model(IDS, targets=TARGETS, depth=5)
    cut_off = cross_entropy(by_hand(model, 5, detached=5 - k), TARGETS)
    torch.testing.assert_close(loss.total, cut_off)
    gradients = torch.autograd.grad(loss.total, parts, retain_graph=True)
    torch.testing.assert_close(gradients, torch.autograd.grad(cut_off, parts, retain_graph=True))
    if k < 5:
        whole = torch.autograd.grad(cross_entropy(by_hand(model, 5), TARGETS), parts)
        assert not torch.isclose(gradients[0], whole[0]).all()
    # What comes before the loop is trained too, as if the steps cut off were not there.
    (embedding,) = torch.autograd.grad(loss.total, [model.embed.wte.weight])
    assert embedding.any(dim=1).nonzero()[:, 0].tolist() == IDS.unique().tolist()


def test_truncated_steps_keep_no_activations() -> None:
    """What autograd saves does not grow with the depth."""
    sizes = []
    for depth in (2, 3, 12):
        model = member(**RECURRENT, recurrent_backprop_depth=1).train()
        saved: list[int] = []

        def keep(tensor: torch.Tensor, saved: list[int] = saved) -> torch.Tensor:
            saved.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(IDS, targets=TARGETS, depth=depth)
        sizes.append(sum(saved))
    assert sizes[0] == sizes[1] == sizes[2]


def test_truncated_gradients_survive_autocast() -> None:
    """The weights that autocast rounds for the steps without gradient must not serve the others."""
    gradients = []
    for cache in (True, False):
        model = member(**RECURRENT, recurrent_backprop_depth=1).train()
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cache):
            loss = model(IDS, targets=TARGETS, depth=4)
        loss.total.backward()
        gradients.append(model.get_parameter("trunk.step.block.mlp.c_fc.weight").grad)
    assert gradients[0] is not None
    assert gradients[0].any()
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("n", [1, 2, 4])
def test_the_loss_is_scaled_by_the_steps_taken(n: int) -> None:
    recurrent = {**RECURRENT, "recurrent_depth": 4}
    scaled = member(**recurrent, scale_loss_by_n_layer=True).train()(IDS, targets=TARGETS, depth=n)
    plain = member(**recurrent).train()(IDS, targets=TARGETS, depth=n)
    assert torch.equal(scaled.cross_entropy, plain.cross_entropy)
    assert scaled.total.item() == pytest.approx(plain.total.item() * n / 4)
    assert plain.figures["mean_depth"].item() == scaled.figures["mean_depth"].item() == n


def test_scaling_draws_uniformly_and_otherwise_depth_varies() -> None:
    recurrent = {**RECURRENT, "recurrent_depth": 4}
    uniform = member(**recurrent, scale_loss_by_n_layer=True).depth_distribution
    assert uniform is not None
    assert uniform.probabilities.tolist() == [0.25] * 4
    normal = member(**recurrent).depth_distribution
    assert normal is not None
    assert len(normal.probabilities) == 8  # twice the mean
    assert (normal.probabilities > 0.01).sum() >= 6  # small depths vary too
    capped = member(**recurrent, recurrent_max_depth=5).depth_distribution
    assert capped is not None
    assert len(capped.probabilities) == 5
    assert member(**SHARED).depth_distribution is None
