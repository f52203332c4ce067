"""AdamW decays matrices only, computes what its paper says, and comes back exactly."""

from __future__ import annotations

import math
import subprocess
import sys

import torch
from safetensors.torch import load, save

from pipeline.model.gpt import GPT
from pipeline.optim.build import build_optimizer
from pipeline.optim.schedule import set_learning_rate
from pipeline.optim.state import load_named_state, named_state
from tests import tiny

TRAIN = tiny.params("train.learning_rate=0.01", "train.weight_decay=0.1", "train.beta2=0.95").train
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def test_matrices_and_embeddings_decay_and_nothing_else() -> None:
    model = tiny.model()
    for parameter in model.parameters():  # without a gradient's pull, only decay moves a parameter
        parameter.grad = torch.zeros_like(parameter)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    build_optimizer(model, TRAIN).step()
    for name, parameter in model.named_parameters():
        vector = name.endswith("bias") or ".ln_" in name
        factor = 1.0 if vector else 1 - 0.01 * 0.1
        torch.testing.assert_close(parameter.detach(), before[name] * factor, msg=name)


def test_two_updates_by_hand() -> None:
    """Loshchilov and Hutter 2019, algorithm 2, with a schedule multiplier of 1."""
    weight = torch.nn.Parameter(torch.tensor([[1.0, -2.0]]))
    bias = torch.nn.Parameter(torch.tensor([0.5]))
    module = torch.nn.Module()
    module.weight, module.bias = weight, bias
    optimizer = build_optimizer(module, TRAIN)

    def update(p: float, m: float, v: float, g: float, t: int, decay: float) -> tuple[float, float, float]:
        m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g * g
        m_hat, v_hat = m / (1 - 0.9**t), v / (1 - 0.95**t)
        return p - 0.01 * (m_hat / (math.sqrt(v_hat) + 1e-8) + decay * p), m, v

    expected = [(1.0, 0.0, 0.0), (-2.0, 0.0, 0.0), (0.5, 0.0, 0.0)]
    for step, gradients in enumerate([(0.3, -4.0, 0.1), (-0.2, 1.0, 0.4)], start=1):
        weight.grad, bias.grad = torch.tensor([gradients[:2]]), torch.tensor([gradients[2]])
        optimizer.step()
        expected = [
            update(*known, gradient, step, decay)
            for known, gradient, decay in zip(expected, gradients, (0.1, 0.1, 0.0), strict=True)
        ]
        found = torch.cat([weight.detach()[0], bias.detach()])
        torch.testing.assert_close(found, torch.tensor([p for p, _, _ in expected]), atol=1e-6, rtol=0)


def take_steps(model: GPT, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        model(IDS, targets=IDS.roll(-1, 1)).total.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_state_comes_back_exactly() -> None:
    model = tiny.model()
    optimizer = build_optimizer(model, TRAIN)
    take_steps(model, optimizer, 3)
    saved = save(named_state(optimizer))

    other = tiny.model()
    other.load_state_dict(model.state_dict())
    restored = build_optimizer(other, TRAIN)
    load_named_state(restored, load(saved).items())
    assert save(named_state(restored)) == saved

    take_steps(model, optimizer, 2)
    take_steps(other, restored, 2)
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two), name


def test_state_is_named_after_the_parameters() -> None:
    model = tiny.model()
    optimizer = build_optimizer(model, TRAIN)
    assert named_state(optimizer) == {}
    take_steps(model, optimizer, 1)
    state = named_state(optimizer)
    quantities = {key.rsplit("/", 1)[1] for key in state}
    assert quantities == {"step", "exp_avg", "exp_avg_sq"}
    assert {key.rsplit("/", 1)[0] for key in state} == {name for name, _ in model.named_parameters()}


def test_it_equals_pytorchs_own_to_the_bit() -> None:
    models = tiny.model(), tiny.model()
    ours = build_optimizer(models[0], TRAIN)
    groups = [
        {"params": group["params"], "weight_decay": group["weight_decay"]}
        for group in build_optimizer(models[1], TRAIN).param_groups
    ]
    theirs = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.95), fused=True)
    set_learning_rate(ours, 0.01)
    for model, optimizer in zip(models, (ours, theirs), strict=True):
        take_steps(model, optimizer, 5)
    for (name, one), two in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, two), name


def test_it_does_not_import_the_compiler() -> None:
    """Which would cost 75 MB and a second at every start."""
    program = """
import sys, torch
from pipeline.optim.build import build_optimizer
from pipeline.optim.optimizer import Optimizer
from pipeline.optim.schedule import set_learning_rate
from pipeline.optim.state import named_state
from tests import tiny
model = tiny.model()
optimizer = build_optimizer(model, tiny.params().train)
model(torch.zeros(1, 8, dtype=torch.long), targets=torch.zeros(1, 8, dtype=torch.long)).total.backward()
optimizer.step()
optimizer.zero_grad()
named_state(optimizer)
sys.exit("torch._dynamo" in sys.modules)
"""
    command = [sys.executable, "-c", program]
    assert subprocess.run(command, cwd=tiny.ROOT, check=False).returncode == 0
