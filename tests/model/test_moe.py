"""Experts: routing by hand, dispatch against a loop of masks, balance, and figures."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.model.context import Context
from pipeline.model.gpt import active_params
from pipeline.model.moe import Experts, MixtureOfExperts, Router, Routing
from tests import tiny
from tests.family import MOE

PROBABILITIES = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.25, 0.6, 0.15]])


def mixture(top_k: int = 2, experts: int = 2, width: int = 3, dummy: bool = True, **losses: Any) -> Any:
    """A mixture in training whose every parameter is random; by default with a dummy."""
    torch.manual_seed(0)
    part = MixtureOfExperts(
        "moe0",
        Router(width, experts, top_k, dummy),
        Experts(experts, width, bias=True),
        0.0,
        **losses,
    )
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.normal_(std=0.5)
    return part.train()


def route_by_hand(part: MixtureOfExperts) -> torch.Tensor:
    """Token i is the unit vector i, and the router gives it row i of PROBABILITIES. Returns the tokens."""
    with torch.no_grad():
        part.router.scores.weight.copy_(PROBABILITIES.log().T)
        part.router.scores.bias.zero_()
    return torch.eye(3)[None]  # (1, 3, 3)


def expert(part: Any, index: int, x: torch.Tensor) -> torch.Tensor:
    """What one candidate says, computed by itself; the last one is the dummy."""
    bank = part.experts
    if index == bank.count:
        return x
    hidden = F.gelu(F.linear(x, bank.c_fc.weight[index], bank.c_fc.bias[index]))
    return F.linear(hidden, bank.c_proj.weight[index], bank.c_proj.bias[index])


def by_masks(part: Any, x: torch.Tensor, top_k: int) -> torch.Tensor:
    """The same mixture as a loop over candidates and the tokens that chose them."""
    tokens = x.flatten(0, 1)
    probabilities = F.linear(tokens, part.router.scores.weight, part.router.scores.bias).softmax(-1)
    weights, chosen = probabilities.topk(top_k)
    y = torch.zeros_like(tokens)
    for index in range(part.router.scores.out_features):
        weight = (weights * (chosen == index)).sum(-1, keepdim=True)
        y = y + weight * expert(part, index, tokens)
    return y.view(x.shape)


@torch.no_grad()
def test_routing_by_hand() -> None:
    part = mixture(top_k=2)
    x = route_by_hand(part)
    _, _, chosen, weights = part.router(x[0])
    assert chosen.tolist() == [[0, 1], [2, 1], [1, 0]]
    torch.testing.assert_close(weights, torch.tensor([[0.5, 0.3], [0.7, 0.2], [0.6, 0.25]]))
    # Expert 0 says 1 in every channel, expert 1 says 10, the dummy says what it heard.
    for parameter in part.experts.parameters():
        parameter.zero_()
    part.experts.c_proj.bias.copy_(torch.tensor([[1.0] * 3, [10.0] * 3]))
    by_hand = torch.tensor([[3.5, 3.5, 3.5], [2.0, 2.7, 2.0], [6.25, 6.25, 6.25]])
    torch.testing.assert_close(part(x, Context())[0], by_hand)


@pytest.mark.parametrize(
    ("top_k", "dummy"), [(1, False), (2, False), (4, False), (1, True), (2, True), (5, True)]
)
@pytest.mark.parametrize("length", [7, 90])  # with few tokens, and so many that slices are filled up
def test_dispatch_equals_a_loop_of_masks(top_k: int, dummy: bool, length: int) -> None:
    """Outputs, and every gradient."""
    part = mixture(top_k, experts=4, width=6, dummy=dummy)
    x = torch.randn(2, length, 6, requires_grad=True)
    target = torch.randn(2, length, 6)
    outputs, gradients = [], []
    for y in (part(x, Context()), by_masks(part, x, top_k)):
        outputs.append(y)
        gradients.append(torch.autograd.grad((y * target).sum(), [x, *part.parameters()]))
    torch.testing.assert_close(*outputs)
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


def test_with_every_candidate_chosen_the_weights_are_the_probabilities() -> None:
    part = mixture(top_k=3)
    _, _, chosen, weights = part.router(route_by_hand(part)[0])
    assert chosen.sort(-1).values.tolist() == [[0, 1, 2]] * 3
    torch.testing.assert_close(weights, PROBABILITIES.gather(1, chosen))
    torch.testing.assert_close(weights.sum(-1), torch.ones(3))


class FixedRouter(nn.Module):
    """Always the same choice, with weights of its own."""

    def __init__(self, chosen: torch.Tensor, candidates: int) -> None:
        super().__init__()
        self.top_k, self.dummy = chosen.shape[1], True
        self.chosen = chosen
        self.candidates = candidates
        self.weights = nn.Parameter(torch.rand(chosen.shape, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> Routing:
        nothing = x.new_zeros(len(x), self.candidates)
        return Routing(nothing, nothing, self.chosen, self.weights)


@pytest.mark.parametrize("activation", ["gelu", "swiglu"])
def test_gradients_of_the_dispatch_are_those_of_small_differences(activation: str) -> None:
    """With an expert that has no token, one that has one, and the dummy."""
    torch.manual_seed(0)
    chosen = torch.tensor([[3, 0], [0, 2], [2, 3], [2, 0]])
    router = FixedRouter(chosen, candidates=4)
    experts = Experts(3, 2, bias=True, activation=activation).double()
    for parameter in experts.parameters():
        nn.init.normal_(parameter)
    part = MixtureOfExperts("moe0", router, experts, 0.0).eval()  # type: ignore[arg-type]
    names = [name for name, _ in part.named_parameters()]

    def output(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        values = dict(zip(names, parameters, strict=True))
        return torch.func.functional_call(part, values, (x, Context()))

    x = torch.randn(2, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(output, (x, *part.parameters()))


def test_an_expert_without_tokens_has_no_say_and_a_gradient_of_zero() -> None:
    part = mixture(top_k=1)
    with torch.no_grad():
        part.router.scores.bias[0] = 100.0
    x = torch.randn(2, 3, 3)
    y = part(x, Context())
    torch.testing.assert_close(y, expert(part, 0, x))
    y.sum().backward()
    for parameter in part.experts.parameters():
        assert parameter.grad[0].any()
        assert torch.equal(parameter.grad[1], torch.zeros_like(parameter.grad[1]))


def test_the_dummy_returns_what_it_hears() -> None:
    part = mixture(top_k=1)
    with torch.no_grad():
        part.router.scores.bias[2] = 100.0
    x = torch.randn(2, 3, 3, requires_grad=True)
    y = part(x, Context())
    assert torch.equal(y, x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient, torch.ones_like(x))


def test_hard_routing_trains_its_router() -> None:
    """One expert a token, whatever moe_top_k says; its probability weighs it, and gets a gradient."""
    model = tiny.model(**MOE, moe_dummy=True, moe_hard_routing=True, moe_top_k=3).train()
    ids = torch.arange(16).view(2, 8) % 11
    loss = model(ids, targets=ids.roll(-1, 1))
    assert (loss.figures["moe0_load"].sum() + loss.figures["moe0_dummy"]).item() == pytest.approx(1)
    loss.total.backward()
    for layer in range(3):
        gradient = model.get_parameter(f"trunk.h.{layer}.mlp.router.scores.weight").grad
        assert gradient is not None
        assert gradient.norm() > 1e-4

    part = mixture(top_k=1)
    x = route_by_hand(part)
    said = torch.stack([expert(part, index, x[0, token]) for token, index in enumerate([0, 2, 1])])
    torch.testing.assert_close(part(x, Context())[0], torch.tensor([[0.5], [0.7], [0.6]]) * said)


def test_an_expert_that_the_bias_alone_chose_has_finite_gradients() -> None:
    part = mixture(top_k=1)
    with torch.no_grad():
        part.router.scores.bias[0] = -300.0  # its probability is 0 in float32
    part.router.bias[0] = 2.0
    part(torch.randn(1, 4, 3), Context()).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in part.parameters())


def test_the_bias_moves_against_the_load_of_experts() -> None:
    router = Router(4, experts=2, top_k=1, dummy=True, bias_update_rate=0.01)
    router.record(torch.tensor([5, 1, 90]))
    router.record(torch.tensor([1, 3, 10]))  # a second micro-batch: 6 and 4, where 5 each would be fair
    router.after_step()
    torch.testing.assert_close(router.bias, torch.tensor([-0.01, 0.01, 0.0]))
    router.after_step()  # nothing new
    torch.testing.assert_close(router.bias, torch.tensor([-0.01, 0.01, 0.0]))
    router.record(torch.tensor([4, 6, 2]))
    router.after_step()
    router.record(torch.tensor([5, 5, 0]))  # fair
    router.after_step()
    torch.testing.assert_close(router.bias, torch.tensor([0.0, 0.0, 0.0]))


@torch.no_grad()
def test_the_bias_holds_the_dummy_at_its_share() -> None:
    router = Router(4, experts=2, top_k=1, dummy=True, dummy_share=0.3, bias_update_rate=0.01)
    for dummy, bias in ((4, -0.01), (2, 0.0), (3, 0.0)):  # of ten choices; three are its share
        experts = (10 - dummy) // 2
        router.record(torch.tensor([experts, 10 - dummy - experts, dummy]))
        router.after_step()
        assert router.bias[-1].item() == pytest.approx(bias)


def test_levelling_the_experts_leaves_the_dummy_alone() -> None:
    """Three idle experts and a busy one: their biases move apart, and no nearer to the dummy's or farther."""
    router = Router(4, experts=4, top_k=1, dummy=True, bias_update_rate=0.01)
    router.record(torch.tensor([97, 1, 1, 1, 0]))
    router.after_step()
    torch.testing.assert_close(router.bias, torch.tensor([-0.015, 0.005, 0.005, 0.005, 0.0]))


def test_the_bias_changes_who_is_chosen_but_no_weight() -> None:
    part = mixture(top_k=1)
    x = route_by_hand(part)
    part.router.bias.copy_(torch.tensor([-0.3, 0.0, 0.0]))  # 0.5, 0.3, 0.2 are ranked as 0.2, 0.3, 0.2
    _, _, chosen, weights = part.router(x[0])
    assert chosen[0].tolist() == [1]
    torch.testing.assert_close(weights[0], torch.tensor([0.3]))


@pytest.mark.parametrize("top_k", [1, 2])
@torch.no_grad()
def test_steps_even_out_a_skewed_load(top_k: int) -> None:
    part = mixture(top_k, experts=4, width=8)
    part.router.scores.bias.copy_(torch.tensor([2.0, 1.0, 0.0, 0.0, 0.0]))
    part.router.bias_update_rate = 0.01
    ratios = []
    for _ in range(150):
        context = Context()
        part(torch.randn(4, 64, 8), context)
        part.router.after_step()
        load = context.report.means()["moe0_load"]
        ratios.append(float(load.max() / load.mean()))
    assert ratios[0] > 1.7
    assert sum(ratios[-20:]) / 20 < 1.25
    assert max(ratios[-20:]) < 1.5


def test_evaluation_leaves_balance_and_figures_alone() -> None:
    part = mixture(aux_loss_weight=0.1).eval()
    context = Context()
    part(torch.randn(2, 3, 3), context)
    part.router.after_step()
    assert not part.router.bias.any()
    assert not context.report.means()
    assert not context.report.losses


def test_auxiliary_loss_by_hand() -> None:
    """Switch Transformer's: N Σ f P, of each expert's part in load and in probability; 1 in balance.

    The dummy is not one of the experts.
    """
    part = mixture(top_k=1, aux_loss_weight=0.01)
    x = route_by_hand(part)
    with torch.no_grad():  # turned by one place from token to token
        turned = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.3, 0.2, 0.5]])
        part.router.scores.weight.copy_(turned.log().T)
    context = Context()
    part(x, context)
    assert [loss.item() for loss in context.report.losses] == pytest.approx([0.01])

    context = Context()
    part(x[:, [0, 0]], context)  # all tokens go to candidate 0, which has probability 1/2
    assert [loss.item() for loss in context.report.losses] == pytest.approx([0.01 * 2 * 0.5 / 0.8])
    context.report.losses[0].backward()
    gradient = part.router.scores.bias.grad
    # Of 0.02 q, with q = p0 / (p0 + p1) = 5/8, by the logits: 0.02 q (1 − q).
    torch.testing.assert_close(gradient, 0.02 * 0.625 * 0.375 * torch.tensor([1.0, -1.0, 0.0]))


def test_auxiliary_loss_with_two_choices_is_one_in_balance() -> None:
    part = mixture(top_k=2, aux_loss_weight=1.0)
    x = route_by_hand(part)
    with torch.no_grad():
        turned = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.3, 0.2, 0.5]])
        part.router.scores.weight.copy_(turned.log().T)
    context = Context()
    part(x, context)
    assert context.report.losses[0].item() == pytest.approx(1.0)


def test_z_loss_by_hand() -> None:
    """The mean square of the logits' log-sum-exp, which is 0 for log-probabilities."""
    part = mixture(z_loss_weight=0.1)
    x = route_by_hand(part)
    with torch.no_grad():
        part.router.scores.weight[:, 1] += 2.0
        part.router.scores.weight[:, 2] -= 1.0
    context = Context()
    part(x, context)
    assert [loss.item() for loss in context.report.losses] == pytest.approx([0.1 * (0 + 4 + 1) / 3])


def test_figures_by_hand() -> None:
    part = mixture(top_k=2)
    context = Context()
    part(route_by_hand(part), context)
    figures = context.report.means()
    torch.testing.assert_close(figures["moe0_load"], torch.tensor([2 / 3, 1.0]))
    assert figures["moe0_dummy"].item() == pytest.approx(1 / 3)
    entropies = [-sum(p * math.log(p) for p in row) for row in PROBABILITIES.tolist()]
    assert figures["moe0_entropy"].item() == pytest.approx(sum(entropies) / 3)


@pytest.mark.parametrize(
    ("switches", "each"),
    [
        ({"moe_top_k": 1}, 1),
        ({}, 2),
        ({"moe_dummy": True}, 2),
        ({"moe_dummy": True, "moe_top_k": 4}, 4),
        ({"moe_top_k": 3, "moe_hard_routing": True}, 1),
    ],
)
def test_loads_and_dummy_sum_to_the_experts_a_token_uses(switches: dict[str, Any], each: int) -> None:
    model = tiny.model(**MOE, **switches).train()
    ids = torch.arange(16).view(2, 8) % 11
    figures = model(ids, targets=ids).figures
    for layer in range(3):
        assert figures[f"moe{layer}_load"].shape == (3,)
        assert (f"moe{layer}_dummy" in figures) == ("moe_dummy" in switches)
        total = figures[f"moe{layer}_load"].sum() + figures.get(f"moe{layer}_dummy", 0)
        assert total.item() == pytest.approx(each)


def test_shared_experts_are_one_bank_with_a_router_for_each_layer() -> None:
    model, own = tiny.model(**MOE, share_moe_experts=True), tiny.model(**MOE)
    names = [name for name in model.state_dict() if "experts" in name]
    assert {name.split(".experts.")[0] for name in names} == {"trunk.h.0.mlp"}
    assert sum("router.scores.weight" in name for name in model.state_dict()) == 3
    bank = 3 * (2 * 16 * 64 + 64 + 16)
    assert own.num_params() - model.num_params() == 2 * bank

    ids = torch.arange(16).view(2, 8) % 11
    unshared = tiny.model(**MOE)
    state = model.state_dict()
    for name in names:
        for layer in (1, 2):
            state[name.replace("h.0", f"h.{layer}")] = state[name]
    unshared.load_state_dict(state)
    assert torch.equal(model(ids), unshared(ids))
    for each in (model, unshared):
        each(ids, targets=ids.roll(-1, 1)).total.backward()
    name = "trunk.h.0.mlp.experts.c_fc.weight"
    gradients = [unshared.get_parameter(name.replace("h.0", f"h.{layer}")).grad for layer in range(3)]
    total = sum(gradient for gradient in gradients if gradient is not None)
    torch.testing.assert_close(model.get_parameter(name).grad, total)


def test_a_token_meets_its_share_of_the_experts() -> None:
    """2 experts; or 2 of the 4 candidates, of which a quarter of the choices, or 0.45, are the dummy's."""
    one_expert = 2 * 16 * 64 + 64 + 16
    cases: list[tuple[dict[str, Any], float]] = [
        ({}, 2),
        ({"moe_dummy": True}, 1.5),
        ({"moe_dummy": True, "moe_dummy_share": 0.45}, 1.1),
    ]
    for switches, used in cases:
        router = (4 if switches else 3) * (16 + 1)
        for shared in (False, True):
            model = tiny.model(**MOE, share_moe_experts=shared, **switches)
            for block in model.trunk.blocks():
                expected = router + used * one_expert
                assert active_params(block.mlp) == pytest.approx(expected, abs=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "switches", [{}, {"moe_hard_routing": True}, {"activation": "swiglu", "bias": False}]
)
def test_bfloat16_autocast(switches: dict[str, Any]) -> None:
    ids = torch.arange(16).view(2, 8) % 11
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny.model(**MOE, **switches).train()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            loss = model(ids, targets=ids.roll(-1, 1))
        loss.total.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        assert all(
            gradient is not None and gradient.dtype == torch.float32 for gradient in gradients.values()
        )
        assert all(gradient.isfinite().all() for gradient in gradients.values() if gradient is not None)
        results.append((loss, gradients["trunk.h.2.mlp.experts.c_proj.weight"]))
    (exact, exact_gradient), (rounded, rounded_gradient) = results
    assert exact_gradient is not None
    assert rounded.total.item() == pytest.approx(exact.total.item(), rel=0.02)
    torch.testing.assert_close(
        rounded_gradient, exact_gradient, atol=0.1 * float(exact_gradient.std()), rtol=0.1
    )


@pytest.mark.parametrize("dummy", [False, True])
def test_the_grouped_product_equals_one_expert_after_the_other(dummy: bool) -> None:
    """In bfloat16 and in float32: outputs and every gradient, with an expert that has no token."""
    part = mixture(experts=4, width=16, dummy=dummy)
    with torch.no_grad():
        part.router.scores.bias[1] = -100.0
    x = torch.randn(2, 90, 16, requires_grad=True)
    target = torch.randn(2, 90, 16)
    results = []
    for grouped in (True, False):
        part.experts._aligned = grouped
        with torch.autocast("cpu", torch.bfloat16):
            y = part(x, Context())
        results.append([y, *torch.autograd.grad((y * target).sum(), [x, *part.parameters()])])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=0.05 * float(other.detach().std()) + 1e-6, rtol=0.03)


def test_in_bfloat16_the_compiler_meets_nothing_that_it_cannot_compile() -> None:
    """So no step waits for a GPU to say how many tokens each expert has."""
    torch.compiler.reset()
    experts = mixture(experts=4, width=16).experts.to(torch.bfloat16)
    x, sizes = torch.randn(96, 16, dtype=torch.bfloat16), torch.tensor([32, 0, 64, 0])
    together = torch.compile(experts, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(together(x, sizes), experts(x, sizes))
