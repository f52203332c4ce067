"""A loss or a gradient that is not finite stops a run before it reaches the weights."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pipeline.model.gpt import GPT, Loss
from pipeline.optim.adamw import AdamW
from pipeline.optim.muon import Muon
from pipeline.optim.optimizer import Optimizer, Rule
from pipeline.train.finite import Finite, NotFinite
from tests.train.runs import Runs, log_of, outcome, weights_of


class Sting(torch.autograd.Function):
    """Adds nothing to a number, and makes the gradient infinite."""

    @staticmethod
    def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * math.inf


SPOILERS = {
    "loss": lambda loss: loss._replace(total=loss.total * math.nan),
    "gradient": lambda loss: loss._replace(total=Sting.apply(loss.total)),
}


def spoil(patched: pytest.MonkeyPatch, what: str, *steps: int) -> None:
    """Make the loss or the gradient of these steps not finite, in the second micro-batch of two."""
    forward, passes = GPT.forward, [0]

    def spoiled(model: GPT, *args: Any, **kwargs: Any) -> Any:
        result = forward(model, *args, **kwargs)
        if isinstance(result, Loss) and model.training and torch.is_grad_enabled():
            passes[0] += 1
            if passes[0] % 2 == 0 and passes[0] // 2 in steps:
                return SPOILERS[what](result)
        return result

    patched.setattr(GPT, "forward", spoiled)


@pytest.mark.parametrize(
    ("what", "message"),
    [("loss", "step 9: the training loss is nan"), ("gradient", "step 9: the norm of the gradient is ")],
)
def test_the_run_stops_before_the_update_and_can_go_on(runs: Runs, what: str, message: str) -> None:
    with pytest.MonkeyPatch.context() as patched:
        spoil(patched, what, 9)
        with pytest.raises(NotFinite) as error:
            runs()
    assert str(error.value).startswith(message) and error.value.status == 3
    incident = json.loads((runs.only() / "incident.json").read_text())
    assert incident["step"] == 9 and incident["checkpoint"] == "step-000000008"
    assert incident["learning_rate"] > 0
    windows = incident["windows"]
    assert len(windows) == 2 and all(len(starts) == 4 for starts in windows)
    assert outcome(runs()) == outcome(runs.elsewhere("uninterrupted")())


@pytest.mark.parametrize("what", SPOILERS)
def test_a_step_may_be_left_out(runs: Runs, what: str) -> None:
    skipping = ["train.skip_nonfinite_steps=2", "log.log_interval=1"]
    with pytest.MonkeyPatch.context() as patched:
        spoil(patched, what, 3, 7)
        fitted = runs(*skipping)
        rows = log_of(fitted)
        assert [row["skipped_steps"] for row in rows if row["step"] in (2, 4, 6, 8, 20)] == [None, 1, 1, 2, 2]
        assert rows[3]["train_loss"] is None, "there was no step since the row before"
        assert all(value.isfinite().all() for value in weights_of(fitted).values())
    with pytest.MonkeyPatch.context() as patched:
        spoil(patched, what, 3, 7, 11)
        with pytest.raises(NotFinite, match="step 11"):
            runs.elsewhere("too-many")(*skipping)


def test_no_broken_checkpoint_is_ever_saved(runs: Runs) -> None:
    with pytest.MonkeyPatch.context() as patched:
        spoil(patched, "gradient", 9)
        with pytest.raises(NotFinite):
            runs("runtime.checkpoint_interval=1")
    for path in runs.only().glob("*/*.safetensors"):
        assert all(value.isfinite().all() for value in load_file(path).values()), path


def test_without_waiting_the_first_one_is_remembered_and_nothing_more_is_updated() -> None:
    """As on a GPU, where the host looks only now and then."""
    finite = Finite(torch.device("cpu"))
    one = torch.tensor(1.0)
    found = []
    for step, loss in enumerate([one, one, one * math.inf, one, one * math.nan], start=1):
        finite.look(step, loss, one * 2)
        found.append(finite.found.item())
    assert found == [0, 0, 1, 1, 1]
    incident = finite.incident()
    assert incident is not None and (incident.step, incident.loss, incident.grad_norm) == (3, math.inf, 2)


@pytest.mark.parametrize("rule", [AdamW(), Muon()], ids=["adamw", "muon"])
def test_the_optimizer_changes_nothing_from_then_on(rule: Rule) -> None:
    parameter = torch.nn.Parameter(torch.ones(3, 3))
    group = {"params": [parameter], "param_names": ["p"], "lr": 0.1, "weight_decay": 0.1, "rule": rule}
    optimizer = Optimizer([group])
    optimizer.found_inf = torch.zeros(())

    def state() -> list[torch.Tensor]:
        return [parameter.detach().clone(), *(value.clone() for value in optimizer.state[parameter].values())]

    for _ in range(2):
        parameter.grad = torch.full((3, 3), 0.5)
        optimizer.step()
    before = state()
    optimizer.found_inf.fill_(1.0)
    parameter.grad = torch.full((3, 3), math.nan)
    optimizer.step()
    assert all(map(torch.equal, before, state()))
