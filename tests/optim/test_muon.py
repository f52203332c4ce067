"""Muon's updates are orthogonal, matrix by matrix, and what the schedule and the resumed state make them."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save

from pipeline.model.build import build_gpt
from pipeline.model.gpt import GPT
from pipeline.model.kinds import kind_of
from pipeline.optim.build import build_optimizer
from pipeline.optim.muon import Muon, matrices, orthogonalize
from pipeline.optim.optimizer import Optimizer
from pipeline.optim.state import load_named_state, named_state
from tests import tiny
from tests.optim.test_adamw import take_steps

TRAIN = tiny.params("train.optimizer=muon", "train.weight_decay=0.1").train


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 8, 40)])
def test_singular_values_come_near_1_in_the_same_directions(shape: tuple[int, ...]) -> None:
    stack = random(*shape)
    u, _, v = torch.linalg.svd(stack, full_matrices=False)
    result = orthogonalize(stack)
    values = (u.mT @ result @ v.mT).diagonal(dim1=-2, dim2=-1)
    assert values.min() > 0.8 and values.max() < 1.2
    torch.testing.assert_close(result, (u * values[:, None, :]) @ v, atol=1e-3, rtol=0)


def test_bfloat16_is_close_enough() -> None:
    stack = random(4, 32, 64)
    difference = orthogonalize(stack, torch.bfloat16).float() - orthogonalize(stack)
    assert difference.norm() < 0.05 * orthogonalize(stack).norm()


def test_a_stack_is_updated_as_each_matrix_alone() -> None:
    stack = random(3, 8, 24)
    alone = torch.cat([orthogonalize(matrix[None]) for matrix in stack])
    torch.testing.assert_close(orthogonalize(stack), alone)


def test_queries_keys_values_and_experts_are_matrices_of_their_own() -> None:
    assert [tuple(m.shape) for m in matrices("h.0.attn.c_attn.weight", random(24, 8))] == [(8, 8)] * 3
    grouped = [tuple(m.shape) for m in matrices("h.0.attn.c_attn.weight", random(16, 8))]
    assert grouped == [(8, 8), (4, 8), (4, 8)]
    assert len(list(matrices("mlp.experts.c_fc.weight", random(5, 16, 8)))) == 5


def test_an_update_by_hand() -> None:
    """The first step keeps the gradient's direction; a tall matrix moves by sqrt(rows / columns)."""
    parameter = torch.nn.Parameter(random(32, 8))
    before, gradient = parameter.detach().clone(), random(32, 8) * 100
    group = {"params": [parameter], "param_names": ["w"], "lr": 0.1, "weight_decay": 0.5, "rule": Muon(0.9)}
    optimizer = Optimizer([group])
    parameter.grad = gradient
    optimizer.step()
    u, _, v = torch.linalg.svd(gradient, full_matrices=False)
    update = (before * (1 - 0.1 * 0.5) - parameter.detach()) / 0.1
    assert (update - 2 * u @ v).norm() < 0.2 * update.norm()
    torch.testing.assert_close(optimizer.state[parameter]["momentum"], 0.1 * gradient)


def test_muon_takes_the_matrices_of_the_blocks() -> None:
    config = tiny.config(moe=True, tie_word_embeddings=False, value_embeddings=True)
    kinds = {name: kind_of(name, parameter) for name, parameter in build_gpt(config).named_parameters()}
    assert kinds["embed.wte.weight"] == kinds["embed.vte.weight"] == kinds["embed.wpe.weight"] == "embedding"
    assert kinds["head.lm_head.weight"] == kinds["trunk.h.0.mlp.router.scores.weight"] == "head"
    for name in ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.experts.c_fc.weight"):
        assert kinds[f"trunk.h.0.{name}"] == "matrix"
    for name in ("ln_1.weight", "attn.c_attn.bias", "mlp.experts.c_fc.bias", "attn.value_mix.weight"):
        assert kinds[f"trunk.h.0.{name}"] == "vector"


def test_each_kind_has_its_learning_rate() -> None:
    groups = build_optimizer(tiny.model(), TRAIN).param_groups
    rates = {
        group["param_names"][0]: pytest.approx(group["lr_scale"] * TRAIN.learning_rate) for group in groups
    }
    assert rates["embed.wte.weight"] == TRAIN.embedding_learning_rate
    assert rates["trunk.h.0.attn.c_attn.weight"] == TRAIN.muon_learning_rate
    assert rates["trunk.h.0.ln_1.weight"] == TRAIN.learning_rate


def test_state_comes_back_exactly() -> None:
    def resumed(model: GPT, saved: bytes) -> tuple[GPT, Optimizer]:
        other = tiny.model()
        other.load_state_dict(model.state_dict())
        optimizer = build_optimizer(other, TRAIN)
        load_named_state(optimizer, load(saved).items())
        return other, optimizer

    model = tiny.model()
    optimizer = build_optimizer(model, TRAIN)
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    take_steps(model, optimizer, 3)
    other, restored = resumed(model, save(named_state(optimizer)))
    for group in restored.param_groups:
        group["lr"] = 0.01
    take_steps(model, optimizer, 2)
    take_steps(other, restored, 2)
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two), name


def test_a_parameter_without_a_gradient_stays() -> None:
    """As those of a block that no sequence went through."""
    model = tiny.model()
    optimizer = build_optimizer(model, TRAIN)
    model(torch.tensor([[1, 2, 3]]), targets=torch.tensor([[2, 3, 4]])).total.backward()
    idle = model.get_parameter("trunk.h.0.mlp.c_fc.weight")
    idle.grad = None
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer.step()
    unchanged = [name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])]
    assert unchanged == ["trunk.h.0.mlp.c_fc.weight"]
