"""Activation checkpointing changes no gradient, report or count, and keeps less for the backward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pipeline.model.context import Context, Report
from pipeline.model.gpt import GPT
from pipeline.model.moe import Router
from pipeline.runtime.compiled import compiled
from pipeline.runtime.recompute import recompute_activations
from tests import tiny
from tests.family import MOE, RECURRENT, VARIANTS

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3], [2, 7, 1, 8, 2, 8, 1, 8]])
TARGETS = IDS.roll(-1, 1)
EXPERTS = {**MOE, "moe_aux_loss_weight": 0.01, "moe_z_loss_weight": 0.001}


def two_steps(model: GPT, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """What two micro-batches and the end of their step leave: losses, figures, gradients and state."""
    model.train()
    torch.manual_seed(0)
    found: dict[str, torch.Tensor] = {}
    for number in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != torch.float32):
            loss = model(IDS, targets=TARGETS, depth=2 + number if model.depth_distribution else None)
        loss.total.backward()
        found |= {f"{number}.total": loss.total.detach(), f"{number}.nats": loss.cross_entropy}
        found |= {f"{number}.{name}": value for name, value in loss.figures.items()}
    routers = [module for module in model.modules() if isinstance(module, Router)]
    found |= {
        f"load {index}": router._load for index, router in enumerate(routers) if router._load is not None
    }
    model.after_step()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        found[f"{name}.grad"] = parameter.grad
    return found | model.state_dict() | {"next random number": torch.rand(1)}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("name", VARIANTS)
def test_two_steps_are_the_same_to_the_bit(name: str, dropout: float, dtype: torch.dtype) -> None:
    switches = {**VARIANTS[name], "dropout": dropout}
    found = two_steps(recompute_activations(tiny.model(**switches)), dtype)
    assert_equal(found, two_steps(tiny.model(**switches), dtype))


@pytest.mark.parametrize(
    "switches",
    [{}, EXPERTS, RECURRENT, {"layer_dropout": 0.3}],
    ids=["gpt2", "experts", "recurrent", "layer-dropout"],
)
def test_compiled_steps_are_the_same_to_the_bit(switches: dict[str, Any]) -> None:
    torch.compiler.reset()
    switches = {**switches, "dropout": 0.2}
    expected = two_steps(compiled(tiny.model(**switches), "aot_eager"))
    found = two_steps(recompute_activations(compiled(tiny.model(**switches), "aot_eager")))
    assert_equal(found, expected)


def test_nothing_is_reported_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    report = Report()
    monkeypatch.setattr("pipeline.model.gpt.Context", lambda cache: Context(cache, report=report))
    model = recompute_activations(tiny.model(**EXPERTS)).train()
    loss = model(IDS, targets=TARGETS)
    losses = len(report.losses)
    loss.total.backward()
    assert len(report.losses) == losses == 2 * tiny.config().n_layer
    assert set(report._counts.values()) == {1}


def kept(model: GPT) -> int:
    """The number of values that a forward pass in training keeps for the backward pass."""
    held: list[torch.Tensor] = []

    def hold(tensor: torch.Tensor) -> torch.Tensor:
        held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
        model.train()(IDS, targets=TARGETS).total.backward()
    storages = {tensor.data_ptr(): tensor.untyped_storage() for tensor in held}
    return sum({storage.data_ptr(): storage.nbytes() // 4 for storage in storages.values()}.values())


def test_a_layer_keeps_its_input_only() -> None:
    def of_a_layer(recomputed: bool) -> int:
        few, many = (tiny.model(n_layer=layers) for layers in (2, 6))
        if recomputed:
            recompute_activations(few), recompute_activations(many)
        return (kept(many) - kept(few)) // 4

    width = IDS.numel() * tiny.config().n_embd
    assert of_a_layer(recomputed=True) == width
    assert of_a_layer(recomputed=False) > 16 * width


def test_the_model_keeps_its_names_and_its_evaluation() -> None:
    model = recompute_activations(tiny.model())
    assert model.state_dict().keys() == tiny.model().state_dict().keys()
    assert torch.equal(model(IDS), tiny.model()(IDS))
