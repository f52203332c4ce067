"""Halting by hand: masses of stopping, the loss of the gate, blocks that are really not run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.model.attention import CausalSelfAttention
from pipeline.model.block import Block, LayerDropout
from pipeline.model.cache import KVCache
from pipeline.model.context import Context
from pipeline.model.halting import LearnedStopping, StickyDropout, StoppingGate
from pipeline.model.load import load_weights
from pipeline.weights.model_folder import Weights, save_weights
from tests import tiny
from tests.family import RECURRENT, STOPPING, THRESHOLD

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3], [2, 7, 1, 8, 2, 8, 1, 8]])


def member(**switches: Any) -> Any:
    """A model of the family; its parts are looked into."""
    return tiny.model(**switches)


class Tripling:
    """A loop whose step multiplies by three; `seen` is which rows took each step."""

    def __init__(self) -> None:
        self.seen: list[list[int]] = []

    def advance(self, x: torch.Tensor, n: int, rows: torch.Tensor | None = None) -> torch.Tensor:
        assert n == len(self.seen)
        self.seen.append(list(range(len(x))) if rows is None else rows.tolist())
        return 3 * x

    def fill_cache(self, x: torch.Tensor, n: int, rows: torch.Tensor) -> None:
        raise AssertionError("there is no cache")


class FixedGate(StoppingGate):
    """The given probabilities, one after the other: numbers, or one for each token."""

    def __init__(self, *probabilities: Any) -> None:
        nn.Module.__init__(self)
        self.left = list(probabilities)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given = torch.as_tensor(self.left.pop(0), dtype=torch.float32)
        return given[..., None].expand(*x.shape[:2], 1)


class Watched(LearnedStopping):
    """Keeps the masses that it reports on."""

    def _report(self, masses: torch.Tensor, *rest: Any) -> None:
        self.masses = masses
        super()._report(masses, *rest)


def run(halting: nn.Module, x: torch.Tensor, depth: int) -> tuple[list[torch.Tensor], Context, Tripling]:
    steps, context = Tripling(), Context()
    return list(halting(steps, x, depth, context)), context, steps


@contextmanager
def rows_computed(block: nn.Module) -> Iterator[list[int]]:
    """How many sequences each call of the block is given."""
    rows: list[int] = []
    handle = block.register_forward_pre_hook(lambda module, arguments: rows.append(len(arguments[0])))
    yield rows
    handle.remove()


# Learned stopping, softly


def test_masses_and_blend_by_hand() -> None:
    """The gate says 1/2, 1/2: a half takes one step, a quarter two, a quarter three."""
    stopping = Watched(FixedGate(0.5, 0.5))
    states, context, _ = run(stopping, torch.full((2, 3, 4), 1.0), depth=3)
    torch.testing.assert_close(stopping.masses, torch.tensor([0.5, 0.25, 0.25]).expand(2, 3, 3))
    assert float(context.report.mean_depth) == pytest.approx(1.75)  # 1/2 + 2/4 + 3/4
    # 3, then 3 + 1/2 (9 − 3) = 6, then 6 + 1/4 (18 − 6) = 9
    assert [state.unique().tolist() for state in states] == [[3.0], [6.0], [9.0]]


def test_masses_sum_to_one_and_weigh_the_depth() -> None:
    torch.manual_seed(0)
    gates = torch.rand(4, 2, 7)
    stopping = Watched(FixedGate(*gates), controller_weight=1.0, target_depth=0.0)
    _, context, _ = run(stopping.train(), torch.randn(2, 7, 4), depth=5)
    torch.testing.assert_close(stopping.masses.sum(-1), torch.ones(2, 7))
    torch.testing.assert_close(stopping.masses[0, 0, 2], gates[2, 0, 0] * (1 - gates[:2, 0, 0]).prod())
    expected_depth = (stopping.masses * torch.arange(1, 6)).sum(-1).mean()
    torch.testing.assert_close(torch.as_tensor(context.report.mean_depth), expected_depth)
    torch.testing.assert_close(context.report.losses[0], expected_depth**2)


def test_losses_of_the_gate_by_hand() -> None:
    """Masses 1/2, 1/4, 1/4: entropy 3/2 ln 2; depth 7/4, which misses the target 2 by 1/4."""
    half = torch.full((2, 3), 0.5, requires_grad=True)
    stopping = LearnedStopping(FixedGate(half, half), 0.1, target_depth=None, entropy_weight=0.01)
    _, context, _ = run(stopping, torch.ones(2, 3, 4), depth=3)
    controller, entropy = context.report.losses
    assert controller.item() == pytest.approx(0.1 * 0.25**2)
    assert entropy.item() == pytest.approx(-0.01 * 1.5 * math.log(2))
    figures = context.report.means()
    assert figures["controller_loss"].item() == pytest.approx(0.1 * 0.25**2)
    assert figures["stopping_entropy"].item() == pytest.approx(1.5 * math.log(2))
    assert figures["target_depth"].item() == 2.0
    # Depth is 1 + s + s², s = 1/2 to go on: by the gate that is −2, and the loss 2 · 0.1 · (−1/4) · (−2).
    (gradient,) = torch.autograd.grad(controller, half)
    assert gradient.sum().item() == pytest.approx(0.1)


@pytest.mark.parametrize(("target", "depth", "aim"), [(2.0, 4, 2.0), (3.0, 2, 2.0), (None, 4, 2.5)])
def test_target_depth_is_within_the_depth_drawn(target: float | None, depth: int, aim: float) -> None:
    stopping = LearnedStopping(FixedGate(*[0.0] * depth), 1.0, target)
    _, context, _ = run(stopping, torch.ones(1, 1, 4), depth)
    assert context.report.means()["target_depth"].item() == aim
    assert context.report.losses[0].item() == pytest.approx((depth - aim) ** 2)


def test_an_open_gate_is_the_loop_itself() -> None:
    model = member(**RECURRENT, **STOPPING, learned_stopping_min_prob=0.0)
    plain = member(**RECURRENT)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "halting" not in k})
    model.trunk.halting = LearnedStopping(FixedGate(0.0, 0.0, 0.0))
    with torch.no_grad():
        torch.testing.assert_close(model(IDS), plain(IDS), atol=1e-5, rtol=0)


# The gate


def gate(**changes: Any) -> StoppingGate:
    torch.manual_seed(0)
    settings = {"temperature": 1.0, "min_prob": 0.01, "warmup_steps": 0, **changes}
    part = StoppingGate(4, True, **settings)
    nn.init.normal_(part.logit.weight)
    return part


def test_temperature_and_bounds_by_hand() -> None:
    part = gate(temperature=2.0, min_prob=0.2)
    nn.init.zeros_(part.logit.weight)
    # 0.2 + 0.6 times 3/4, 1/3, 1 and 0
    for bias, probability in ((2 * math.log(3), 0.65), (-2 * math.log(2), 0.4), (99.0, 0.8), (-99.0, 0.2)):
        nn.init.constant_(part.logit.bias, bias)
        torch.testing.assert_close(part(torch.randn(2, 3, 4)), torch.full((2, 3, 1), probability))


@pytest.mark.parametrize("training", [True, False])
def test_the_gate_stays_closed_for_its_warmup(training: bool) -> None:
    part = gate(warmup_steps=3).train(training)
    x = torch.randn(2, 3, 4)
    for _ in range(3):
        assert torch.equal(part(x), torch.full((2, 3, 1), 0.01))
        part.after_step()
    assert (part(x) > 0.01).all()
    torch.testing.assert_close(part(x), gate()(x))


def test_warmup_goes_on_after_a_checkpoint(tmp_path: Any) -> None:
    switches = {**RECURRENT, **STOPPING, "learned_stopping_warmup_steps": 3}
    model = member(**switches).train()
    for _ in range(2):
        model.after_step()
    save_weights(model.state_dict(), tmp_path)
    resumed = member(**switches).train()
    load_weights(resumed, Weights(tmp_path / "model.safetensors"))
    depths = []
    for each in (model, resumed):
        for _ in range(2):
            depths.append(each(IDS, targets=IDS, depth=3).figures["mean_depth"].item())
            each.after_step()
    closed = sum((1 - 1e-4) ** n for n in (0, 1, 2))
    assert depths[::2] == pytest.approx([closed, closed])
    assert depths[1::2] == [depths[1]] * 2
    assert depths[1] < 2.5


@torch.no_grad()
def test_the_gate_sees_no_later_token() -> None:
    model = member(**RECURRENT, **STOPPING)
    said: list[torch.Tensor] = []
    model.trunk.halting.gate.register_forward_hook(lambda part, given, made: said.append(made))
    changed = IDS.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 11
    model(IDS)
    model(changed)
    for before, after in zip(said[:2], said[2:], strict=True):
        torch.testing.assert_close(before[:, :5], after[:, :5], atol=1e-6, rtol=0)
        assert not torch.isclose(before[:, 5:], after[:, 5:]).any()
    assert said[0].std() > 0


# The threshold


def stopping_model(threshold: float, **switches: Any) -> Any:
    """Recurrent, 6 steps, with a gate so decided that tokens stop at different ones."""
    model = member(
        **{
            **RECURRENT,
            "recurrent_depth": 6,
            **STOPPING,
            **THRESHOLD,
            "learned_stopping_threshold": threshold,
            **switches,
        }
    )
    with torch.no_grad():
        model.trunk.halting.gate.logit.weight.mul_(4.0)
    return model


@torch.no_grad()
def by_masks(model: Any, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits, and how many steps each token took (B, T): every block runs, and its result may be dropped."""
    trunk = model.trunk
    context = Context()
    x = start = model.embed(ids, context)
    left = torch.ones(*ids.shape, 1)
    taken = torch.zeros(ids.shape)
    for n in range(6):
        left = left * (1 - trunk.halting.gate(x)) if n else left
        going = 1 - left <= trunk.halting.threshold
        taken += going[..., 0]
        x = torch.where(going, x + left * (trunk.step(x, start, context, n) - x), x)
    return model.head(x), taken


def test_a_token_stops_once_enough_of_its_mass_has() -> None:
    """The gate says 1/4, 1/4, 1/2, …: of the mass, 1/4 has stopped, then 7/16, then 23/32."""
    gates = [[[0.25, 0.9]], [[0.25, 0.0]], [[0.5, 0.0]], [[0.0, 0.0]]]
    stopping = LearnedStopping(FixedGate(*gates), threshold=0.5).eval()
    states, context, steps = run(stopping, torch.ones(1, 2, 4), depth=5)
    # 3, then 3 + 3/4 (9 − 3) = 7.5, then 7.5 + 9/16 (22.5 − 7.5) = 15.9375; the second stops after one step
    assert [state[0, 0, 0].item() for state in states] == [3.0, 7.5, 15.9375, 15.9375, 15.9375]
    assert [state[0, 1, 0].item() for state in states] == [3.0] * 5
    assert steps.seen == [[0]] * 3
    assert float(context.report.mean_depth) == 2.0  # 3 steps and 1


MEMBERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "injection": {"recurrent_prelude_injection": True},
    "values": {"value_embeddings": True, "n_kv_head": 1, "recurrent_extra_layernorm": True},
}


@pytest.mark.parametrize("switches", MEMBERS.values(), ids=MEMBERS)
@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
@torch.no_grad()
def test_what_has_stopped_is_not_computed(threshold: float, switches: dict[str, Any]) -> None:
    model = stopping_model(threshold, **switches)
    logits, taken = by_masks(model, IDS)
    with rows_computed(model.trunk.step.block) as rows:
        context = Context()
        read = model.head(model._read(IDS, context, None))
    torch.testing.assert_close(read, logits, atol=1e-5, rtol=0)
    assert float(context.report.mean_depth) == pytest.approx(taken.mean().item())
    longest = taken.amax(1)  # a sequence is computed while one of its tokens goes on
    assert rows == [count for n in range(6) if (count := int((longest > n).sum()))]


@torch.no_grad()
def test_tokens_of_the_test_above_stop_at_different_steps() -> None:
    taken = torch.stack([by_masks(stopping_model(threshold), IDS)[1] for threshold in (0.5, 0.8, 0.95)])
    assert taken.unique().numel() >= 4
    assert (taken.amax(2) < 6).any()  # a sequence that ends early
    assert ((taken.amax(2) != taken.amax((1, 2))[:, None]) & (taken.amax(2) > 0)).any()  # … before another


@torch.no_grad()
def test_the_extremes_of_the_threshold() -> None:
    never, at_once = stopping_model(0.5), stopping_model(0.001)
    never.trunk.halting.threshold = 1 - 1e-7
    for model, expected in ((never, [3] * 6), (at_once, [3])):
        with rows_computed(model.trunk.step.block) as rows:
            model(IDS)
        assert rows == expected
    softly = stopping_model(0.5)
    softly.trunk.halting.threshold = None
    torch.testing.assert_close(never(IDS), softly(IDS), atol=1e-5, rtol=0)
    assert torch.equal(at_once(IDS), at_once(IDS, depth=1))


@pytest.mark.parametrize("switches", [{}, {"position": "rotary"}, {"fixed_edge_blocks": True}])
@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
@torch.no_grad()
def test_decoding_goes_on_where_sequences_have_stopped(threshold: float, switches: dict[str, Any]) -> None:
    """Token by token, sequences stop at different steps; later tokens still attend to all of them."""
    model = stopping_model(threshold, **switches)
    whole = model(IDS)
    for chunks in ([1] * 8, [3, 1, 4], [5, 1, 1, 1]):
        cache = KVCache(model.block_size, batch=3)
        with rows_computed(model.trunk.step.block) as rows:
            parts = [model(part, cache) for part in IDS.split(chunks, dim=1)]
        torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=0)
        assert sum(rows) < 3 * 6 * len(chunks)


# Sticky dropout and layer dropout


def test_dropped_sequences_stay_dropped_and_untouched() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 3, 4)
    states, context, steps = run(StickyDropout(0.4).train(), x, depth=6)
    assert steps.seen[0] == list(range(64))  # one step at least
    before = x
    for state, rows in zip(states, steps.seen, strict=False):
        dropped = sorted(set(range(64)) - set(rows))
        assert torch.equal(state[rows], 3 * before[rows])
        assert torch.equal(state[dropped], before[dropped])
        before = state
    for earlier, later in zip(steps.seen, steps.seen[1:], strict=False):
        assert set(later) < set(earlier)
    taken = sum(map(len, steps.seen)) / 64
    assert float(context.report.mean_depth) == pytest.approx(taken)


def test_no_step_is_taken_once_every_sequence_is_dropped() -> None:
    torch.manual_seed(0)
    states, _, steps = run(StickyDropout(0.9).train(), torch.randn(4, 3, 4), depth=50)
    assert len(steps.seen) < 20
    assert len(states) == 50
    assert torch.equal(states[-1], states[len(steps.seen) - 1])


def test_sequences_take_as_many_steps_as_expected() -> None:
    """1 + 0.7 + 0.49 + 0.343 of 4."""
    torch.manual_seed(0)
    _, context, steps = run(StickyDropout(0.3).train(), torch.zeros(20_000, 1, 1), depth=4)
    assert float(context.report.mean_depth) == pytest.approx(2.533, abs=0.03)
    assert [len(rows) / 20_000 for rows in steps.seen] == pytest.approx([1, 0.7, 0.49, 0.343], abs=0.02)


@torch.no_grad()
def test_sticky_dropout_saves_the_models_work_in_training_only() -> None:
    model = member(**{**RECURRENT, "recurrent_depth": 6}, sticky_dropout=0.4)
    with rows_computed(model.trunk.step.block) as rows:
        plain = member(**{**RECURRENT, "recurrent_depth": 6})
        assert torch.equal(model(IDS), plain(IDS))
        assert rows == [3] * 6
        rows.clear()
        model.train()
        torch.manual_seed(0)
        figures = model(IDS, targets=IDS).figures
    assert sum(rows) < 18
    assert figures["mean_depth"].item() == pytest.approx(sum(rows) / 3)


class Recorder(Block):
    """A block that adds one and says which sequences it was given."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.seen: list[list[int]] = []

    def forward(self, x: torch.Tensor, context: Context, layer_index: int) -> torch.Tensor:
        assert context.rows is None or len(context.rows) == len(x)
        self.seen.append(list(range(len(x))) if context.rows is None else context.rows.tolist())
        return x + 1


def test_layer_dropout_leaves_sequences_as_they_are() -> None:
    torch.manual_seed(0)
    block = Recorder()
    layer = LayerDropout(block, 0.3).train()
    x = torch.randn(20_000, 1, 2)
    y = layer(x, Context(), 0)
    (rows,) = block.seen
    assert len(rows) / 20_000 == pytest.approx(0.7, abs=0.015)
    dropped = sorted(set(range(20_000)) - set(rows))
    assert torch.equal(y[rows], x[rows] + 1)
    assert torch.equal(y[dropped], x[dropped])
    # The next one draws anew.
    layer(x, Context(), 0)
    again = len(set(block.seen[1]) & set(rows)) / 20_000
    assert again == pytest.approx(0.49, abs=0.015)


def test_layer_dropout_is_off_after_training_and_may_leave_all_out() -> None:
    block = Recorder()
    layer = LayerDropout(block, 0.99).eval()
    x = torch.randn(5, 1, 2)
    assert torch.equal(layer(x, Context(), 0), x + 1)
    torch.manual_seed(0)
    assert torch.equal(layer.train()(x, Context(), 0), x)
    assert [len(seen) for seen in block.seen] == [5, 1]  # one is computed, and not used


def test_layer_dropout_within_sticky_dropout_counts_rows_of_the_whole_batch() -> None:
    chosen = torch.tensor([0, 2])
    rows = [context.select(chosen).rows for context in (Context(rows=torch.tensor([1, 4, 6])), Context())]
    torch.testing.assert_close(rows, [torch.tensor([1, 6]), torch.tensor([0, 2])])


def test_a_dropped_layer_gives_the_others_what_is_theirs() -> None:
    """Value embeddings, which reach attention by the context, stay with their sequences."""
    model = member(value_embeddings=True, layer_dropout=0.5, n_layer=1).train()
    (layer,) = model.trunk.blocks()
    assert isinstance(layer, LayerDropout)
    assert isinstance(layer.block.attn, CausalSelfAttention)
    context = Context()
    x = model.embed(IDS, context)
    torch.manual_seed(1)
    y = layer(x, context, 0)
    whole = layer.block(x, context, 0)
    kept = (y != x).flatten(1).any(1)
    assert 0 < kept.sum() < 3
    torch.testing.assert_close(y[kept], whole[kept])
