"""Figures of the layers' health are those computed by hand, and measuring them changes no bit of a run."""

from __future__ import annotations

import csv
import math
from itertools import product
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from pipeline.model.context import Context
from pipeline.model.feedforward import FeedForward
from pipeline.model.gpt import GPT
from pipeline.optim.build import build_optimizer
from pipeline.train import health
from pipeline.train.fit import FittedRun
from tests import tiny
from tests.family import VARIANTS
from tests.train.runs import Runs, log_of, outcome, stopped_at_each

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3], [2, 7, 1, 8, 2, 8, 1, 8]])

each = pytest.mark.parametrize("name", VARIANTS)


def measured(fitted: FittedRun) -> dict[tuple[int, str], dict[str, float]]:
    """The content of health.csv: for each step and layer, what was measured."""
    with fitted.run.health.open(newline="") as file:
        return {
            (int(row.pop("step")), row.pop("layer")): {
                figure: float(value) for figure, value in row.items() if value
            }
            for row in csv.DictReader(file)
        }


def of_pass(model: GPT, figure: str, ids: torch.Tensor = IDS) -> dict[str, float]:
    """One figure of a forward pass, by layer."""
    figures = health.numbers(health.of_pass(model, ids))
    prefix = f"health/{figure}/"
    return {name.removeprefix(prefix): value for name, value in figures.items() if name.startswith(prefix)}


@each
def test_measuring_changes_no_bit(name: str, runs: Runs) -> None:
    switches = [f"model.{key}={str(value).lower()}" for key, value in VARIANTS[name].items()]
    short = [*switches, "train.max_iters=3", "train.eval_iters=1", "model.dropout=0.1"]
    plain = runs.elsewhere("plain")(*short, "log.health_interval=null")
    watched = runs(*short, "log.health_interval=1")
    assert outcome(watched) == outcome(plain)
    assert watched.run.folder.name == plain.run.folder.name
    assert not plain.run.health.exists()
    figures = measured(watched)
    assert {step for step, _ in figures} == {0, 1, 2, 3}
    assert all(math.isfinite(value) for row in figures.values() for value in row.values())


@each
def test_a_pass_leaves_the_model_as_it_was(name: str) -> None:
    model = tiny.model(**VARIANTS[name]).train()
    model(IDS, targets=IDS)  # a router has loads to remember until the step is done
    twin = tiny.model(**VARIANTS[name]).train()
    twin(IDS, targets=IDS)
    drawn = torch.random.get_rng_state()
    first, second = (health.numbers(health.of_pass(model, IDS)) for _ in range(2))
    assert first == second
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert all(part.training for part in model.modules())
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    for gpt in (model, twin):
        gpt.after_step()
    for key, value in twin.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


def test_a_pass_that_fails_leaves_no_hooks() -> None:
    model = tiny.model().train()
    with pytest.raises(IndexError):
        health.of_pass(model, torch.full((1, 8), 10**6))
    assert model.training
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())


@each
def test_each_parameter_is_in_one_layer(name: str) -> None:
    model = tiny.model(**VARIANTS[name])
    measured = [parameter for parameters in health.layers(model).values() for parameter in parameters]
    assert len(measured) == len(set(measured))
    assert set(measured) == set(model.parameters())


def test_layers_are_named_by_what_they_are() -> None:
    def names(**changes: Any) -> str:
        return " ".join(health.layers(tiny.model(**changes)))

    assert names(n_layer=2) == "wte wpe norms h.0.attn h.0.mlp h.1.attn h.1.mlp"
    assert names(n_layer=1, layer_dropout=0.1, position="alibi") == "wte norms h.0.attn h.0.mlp"
    looped = names(**VARIANTS["recurrent-prelude-coda"])
    assert looped == (
        "wte wpe norms prelude.0.attn prelude.0.mlp prelude.1.attn prelude.1.mlp step.attn step.mlp "
        "coda.0.attn coda.0.mlp"
    )
    mixture = names(n_layer=1, moe=True, tie_word_embeddings=False)
    assert mixture == "wte wpe norms h.0.attn h.0.mlp.router.scores h.0.mlp.experts lm_head"


def feed_forward(model: GPT, path: str) -> FeedForward:
    part = model.trunk.get_submodule(path)
    assert isinstance(part, FeedForward)
    return part


def norm(tensors: list[torch.Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_norms_are_those_of_the_weights_before_and_after_the_step(runs: Runs, dtype: str) -> None:
    every = ["runtime.keep_every=1", "runtime.checkpoint_interval=1", "train.max_iters=4"]
    fitted = runs(*every, "log.health_interval=2", "log.log_interval=1", f"train.dtype={dtype}")
    figures = measured(fitted)
    before, after = (
        load_file(fitted.run.folder / f"step-00000000{step}" / "model.safetensors") for step in (3, 4)
    )
    for layer, part in (("h.1.mlp", "trunk.h.1.mlp."), ("wte", "embed.wte."), ("norms", "ln_")):
        names = [name for name in before if part in name]
        changed = norm([after[name] - before[name] for name in names])
        weights = norm([before[name] for name in names])
        found = figures[4, layer]
        assert found["weight_norm"] == pytest.approx(weights, rel=1e-5), layer
        assert found["update_norm"] == pytest.approx(changed, rel=1e-4), layer
        assert found["update_ratio"] == pytest.approx(changed / weights, rel=1e-4), layer
    for step in (2, 4):
        squares = sum(row.get("grad_norm", 0) ** 2 for (at, _), row in figures.items() if at == step)
        assert math.sqrt(squares) == pytest.approx(log_of(fitted)[step]["grad_norm"], rel=1e-4)
    assert {step for (step, _), row in figures.items() if "update_norm" in row} == {2, 4}
    assert {step for (step, _), row in figures.items() if "activation_rms" in row} == {0, 2, 4}


def test_an_update_is_measured_where_a_layer_has_no_gradient() -> None:
    model = tiny.model(layer_dropout=0.5)
    optimizer = build_optimizer(model, tiny.params("train.weight_decay=0").train)
    model.embed.wte.weight.grad = torch.full_like(model.embed.wte.weight, 0.5)
    figures = health.numbers(health.of_update(model, optimizer.step))
    elements = model.embed.wte.weight.numel()
    assert figures["health/grad_norm/wte"] == pytest.approx(0.5 * math.sqrt(elements))
    assert figures["health/update_norm/wte"] == pytest.approx(0.01 * math.sqrt(elements), rel=1e-4)
    assert figures["health/grad_norm/h.0.attn"] == figures["health/update_norm/h.0.attn"] == 0
    assert figures["health/weight_norm/h.0.attn"] > 0


def test_a_step_that_is_left_out_has_no_update(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scale of float16 begins so high that gradients overflow."""
    make = torch.amp.GradScaler.__init__

    def overflowing(self: torch.amp.GradScaler, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **{**kwargs, "init_scale": 2.0**24})

    monkeypatch.setattr(torch.amp.GradScaler, "__init__", overflowing)
    figures = measured(runs("train.dtype=float16", "train.max_iters=1", "log.health_interval=1"))
    assert figures[1, "h.0.mlp"]["update_norm"] == 0
    assert not math.isfinite(figures[1, "h.0.mlp"]["grad_norm"])


@pytest.mark.parametrize(("length", "position"), list(product([1, 8, 200], ["learned", "rotary"])))
def test_uniform_attention_has_the_entropy_of_the_number_of_keys(length: int, position: str) -> None:
    model = tiny.model(block_size=200, position=position, n_layer=2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "h.0.attn.c_attn" in name:
                parameter[:16] = 0  # of the queries
    ids = torch.arange(3 * length).view(3, length) % 11
    seen = range(length) if length <= health.QUERIES else [200 * n // 64 - 1 for n in range(1, 65)]
    expected = sum(math.log(1 + query) for query in seen) / len(seen)
    entropy = of_pass(model, "attention_entropy", ids)
    assert entropy["h.0"] == pytest.approx(expected, rel=1e-5)
    assert entropy["h.1"] < expected or length == 1


@pytest.mark.parametrize("name", ["gpt2", "alibi", "rotary", "qk-norm", "gqa", "modern-gqa"])
def test_entropy_is_that_of_the_weights_which_attention_uses(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the identity as values, the output of the attention kernel is its weights."""
    model = tiny.model(**VARIANTS.get(name, {}))
    attention = nn.functional.scaled_dot_product_attention
    found = []

    def exposed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> torch.Tensor:
        weights = attention(q, k, torch.eye(8).expand(*k.shape[:3], 8), **options)
        found.append(float(torch.special.entr(weights).sum(-1).mean()))
        return attention(q, k, v, **options)

    monkeypatch.setattr("pipeline.model.attend.F.scaled_dot_product_attention", exposed)
    with torch.no_grad():
        model(IDS)
    monkeypatch.undo()
    assert list(of_pass(model, "attention_entropy").values()) == pytest.approx(found, rel=1e-4)
    with torch.autocast("cpu", torch.bfloat16):  # which has a kernel of its own
        assert list(of_pass(model, "attention_entropy").values()) == pytest.approx(found, rel=0.05)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu2", "swiglu"])
def test_units_that_fire_on_no_token_are_dead(activation: str) -> None:
    model = tiny.model(activation=activation)
    mlp = feed_forward(model, "h.1.mlp")
    units = mlp.c_proj.in_features
    with torch.no_grad():
        mlp.c_fc.weight[:units] = 0
        mlp.c_fc.bias[:units] = torch.where(torch.arange(units) < 10, -1.0, 1.0)
    assert of_pass(model, "dead_units")["h.1.mlp"] == pytest.approx(10 / units)


@pytest.mark.parametrize("switches", [{}, {"share_moe_experts": True}])
def test_units_of_an_expert_without_tokens_are_dead(switches: dict[str, Any]) -> None:
    model = tiny.model(moe=True, moe_num_experts=4, moe_top_k=1, **switches)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("router.bias"):
                value.copy_(torch.tensor([-9.0, 0, -9, 0]))  # two of the four
            if "experts.c_fc" in name:
                value.fill_(0.0 if name.endswith("weight") else 1.0)
            if name.endswith("h.0.mlp.experts.c_fc.bias"):
                value[1, :16] = -1.0
    dead = of_pass(model, "dead_units")
    assert dead["h.0.mlp.experts"] == pytest.approx((2 * 64 + 16) / (4 * 64))
    assert len(dead) == (1 if switches else 3)


def test_a_unit_of_a_shared_block_lives_if_it_fires_in_any_application() -> None:
    model = tiny.model(**VARIANTS["shared"])
    few = IDS[:1, :2]
    fired: list[torch.Tensor] = []
    hook = feed_forward(model, "step.block.mlp").c_fc.register_forward_hook(
        lambda module, inputs, output: fired.append(output > 0)
    )
    with torch.no_grad():
        model(few)
    hook.remove()
    dead_in_each = [(~one.flatten(0, 1).any(0)).float().mean() for one in fired]
    dead = (~torch.stack(fired).flatten(0, 2).any(0)).float().mean()
    assert 0 < dead < min(dead_in_each)
    assert of_pass(model, "dead_units", few) == {"step.mlp": pytest.approx(float(dead))}


def test_scales_are_those_of_the_stream_and_the_logits() -> None:
    model = tiny.model()
    with torch.no_grad():
        context = Context()
        streams = list(model.trunk.readings(model.embed(IDS, context), context))
        logits = model(IDS)
    expected = {f"h.{n}": float(stream.square().mean().sqrt()) for n, stream in enumerate(streams)}
    assert of_pass(model, "activation_rms") == pytest.approx(expected, rel=1e-5)
    assert of_pass(model, "logit_rms") == pytest.approx({"head": float(logits.square().mean().sqrt())})


def test_a_recurrent_model_has_figures_for_each_application() -> None:
    model = tiny.model(**VARIANTS["recurrent-prelude-coda"])
    applications = ["prelude.0", "prelude.1", "step.0", "step.1", "step.2", "coda.0"]
    assert list(of_pass(model, "activation_rms")) == applications
    assert list(of_pass(model, "attention_entropy")) == applications


def test_a_pass_reads_a_bounded_number_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "TOKENS", 20)
    model = tiny.model()
    assert of_pass(model, "logit_rms") == of_pass(model, "logit_rms", IDS[:2])
    monkeypatch.setattr(health, "TOKENS", 1)
    assert of_pass(model, "logit_rms") == of_pass(model, "logit_rms", IDS[:1])


def test_a_resumed_run_measures_at_the_same_steps(runs: Runs) -> None:
    watched = ["log.health_interval=3", "model.moe=true"]
    uninterrupted = runs.elsewhere("uninterrupted")(*watched)
    stopped = stopped_at_each(runs, [2, 3, 4, 5, 6, 13, 18, 19], *watched)
    assert stopped.run.health.read_text() == uninterrupted.run.health.read_text()
    assert list(dict.fromkeys(step for step, _ in measured(stopped))) == [0, 3, 6, 9, 12, 15, 18]
    assert outcome(stopped) == outcome(uninterrupted)


def test_a_run_that_goes_on_from_another_has_its_figures(runs: Runs) -> None:
    runs("log.health_interval=3")
    longer = runs("train.max_iters=30", "log.health_interval=3")
    fresh = runs.elsewhere("fresh")("train.max_iters=30", "log.health_interval=3")
    assert longer.run.health.read_text() == fresh.run.health.read_text()


def test_the_log_keeps_its_columns_and_rows(runs: Runs) -> None:
    plain, watched = runs("log.health_interval=null"), runs.elsewhere("watched")("log.health_interval=1")
    assert outcome(watched)["log"] == outcome(plain)["log"]


@pytest.mark.parametrize("name", ["gpt2", "recurrent-moe"])
def test_compiled_training_is_measured_and_not_compiled_again(
    name: str, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        compiled.append(1)
        return graph.forward

    compile_with = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **_: compile_with(model, backend=backend))
    switches = [f"model.{key}={str(value).lower()}" for key, value in VARIANTS.get(name, {}).items()]
    few = [*switches, "train.max_iters=4", "model.dropout=0.0", "runtime.compile=true"]

    def compilations(*overrides: str) -> tuple[FittedRun, int]:
        torch.compiler.reset()
        compiled.clear()
        return runs.elsewhere("-".join(overrides))(*few, *overrides), len(compiled)

    plain, graphs = compilations("log.health_interval=null")
    watched, graphs_watched = compilations("log.health_interval=2")
    assert graphs_watched == graphs > 0
    assert outcome(watched) == outcome(plain)
    eager = runs(*few, "runtime.compile=false", "log.health_interval=2")
    for place, row in measured(eager).items():
        assert measured(watched)[place] == pytest.approx(row, rel=1e-2), place
