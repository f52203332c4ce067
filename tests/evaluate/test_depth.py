"""The depth curve of a model, and what it reaches at thresholds of learned stopping."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.config.errors import UserError
from pipeline.evaluate.depth import Baseline, mean_curve, measure
from pipeline.evaluate.evaluation import Evaluation
from pipeline.evaluate.loss import evaluate
from pipeline.tokens.batches import evaluation_windows
from pipeline.tokens.shards import open_split
from pipeline.tokens.tokenizers import load_tokenizer
from tests import tiny
from tests.family import RECURRENT, SHARED, STOPPING, THRESHOLD
from tests.figures import CURVE, STOPS, curve_of

CPU = torch.device("cpu")
OWN = THRESHOLD["learned_stopping_threshold"]


def test_what_a_model_reaches_by_itself() -> None:
    assert CURVE.final.loss == 2.0
    assert replace(CURVE, trained_depth=2).final.loss == 2.5
    assert STOPS.final.loss == 2.3
    assert replace(STOPS, threshold=None).final.loss == 2.0


def test_a_stack_is_measured_through_its_layers(tiny_tokens: Path) -> None:
    model = tiny.model(vocab_size=load_tokenizer(tiny_tokens).vocab_size)
    curve = measure("dense", model, tiny.params("depth.eval_iters=2"), tiny_tokens, CPU)
    assert (curve.name, curve.unit, curve.trained_depth) == ("dense", "layers applied", 3)
    assert list(curve.points) == [1, 2, 3] and not curve.stopping
    assert curve.final.tokens == 2 * 4 * 8


@pytest.mark.parametrize(("changes", "thresholds"), [({}, [0.3, 0.9]), (THRESHOLD, [0.3, OWN, 0.9])])
def test_a_stopping_model_is_measured_at_its_own_threshold_too(
    tiny_tokens: Path, changes: dict[str, object], thresholds: list[float]
) -> None:
    tokenizer = load_tokenizer(tiny_tokens)
    config = {**RECURRENT, **STOPPING, **changes, "vocab_size": tokenizer.vocab_size}
    model = tiny.model(**config)
    params = tiny.params("depth.stopping_thresholds=[0.9, 0.3]")
    curve = measure("model", model, params, tiny_tokens, CPU)
    assert (curve.unit, curve.trained_depth) == ("steps of the shared block", 3)
    assert list(curve.points) == [1, 2, 3, 4, 5, 6]
    assert [point.threshold for point in curve.stopping] == thresholds
    windows = evaluation_windows(open_split(tiny_tokens, "val"), 8, batch_size=4)
    expected = evaluate(model, windows, tokenizer.token_bytes, CPU)
    assert curve.final.loss == pytest.approx(expected.loss, abs=1e-6)


@pytest.mark.parametrize("switches", [RECURRENT, {**RECURRENT, **STOPPING}, SHARED])
def test_the_curve_of_a_loop_ends_where_it_is_asked_to(
    tiny_tokens: Path, switches: dict[str, object]
) -> None:
    """Each point is what the same weights reach in a model of that depth."""
    tokenizer = load_tokenizer(tiny_tokens)
    model = tiny.model(**{**switches, "vocab_size": tokenizer.vocab_size})
    loops = [f"model.{name}={str(value).lower()}" for name, value in switches.items()]
    params = tiny.params("depth.eval_iters=2", "depth.stopping_thresholds=[]", *loops)
    usual = measure("model", model, params, tiny_tokens, CPU)
    curve = measure("model", model, params.with_overrides(["depth.max=9"]), tiny_tokens, CPU)
    assert list(curve.points) == list(range(1, 10)) and curve.trained_depth == model.depth == 3
    assert {depth: curve.points[depth] for depth in usual.points} == usual.points
    depth = "recurrent_depth" if "recurrent_depth" in switches else "n_layer"
    deeper = tiny.model(**{**switches, depth: 9, "vocab_size": tokenizer.vocab_size})
    deeper.load_state_dict(model.state_dict())
    assert measure("deeper", deeper, params, tiny_tokens, CPU).points[9] == curve.points[9]


@pytest.mark.parametrize(
    ("switches", "message"), [({}, "no loop"), (RECURRENT, "3 times; set it to that or")]
)
def test_a_curve_that_the_model_does_not_have_is_refused(
    tiny_tokens: Path, switches: dict[str, object], message: str
) -> None:
    model = tiny.model(**switches, vocab_size=load_tokenizer(tiny_tokens).vocab_size)
    with pytest.raises(UserError, match=rf"depth\.max = 2: .*{message}"):
        measure("model", model, tiny.params("depth.max=2"), tiny_tokens, CPU)


def test_the_mean_of_curves_is_that_of_losses_and_depths() -> None:
    other = replace(STOPS, points=curve_of(500.0, 350.0, 300.0).points)
    mean = mean_curve([STOPS, other])
    assert [point.loss for point in mean.points.values()] == [4.5, 3.0, 2.5]
    assert mean.seeds == (STOPS, other) and mean.stopping == STOPS.stopping
    assert mean_curve([CURVE]).points == CURVE.points


def test_no_thresholds_are_no_points(tiny_tokens: Path) -> None:
    vocab_size = load_tokenizer(tiny_tokens).vocab_size
    model = tiny.model(**{**RECURRENT, **STOPPING, "vocab_size": vocab_size})
    curve = measure("model", model, tiny.params("depth.stopping_thresholds=[]"), tiny_tokens, CPU)
    assert list(curve.points) == [1, 2, 3, 4, 5, 6] and not curve.stopping


def test_a_baseline_that_counts_other_tokens_is_drawn_at_the_same_bits_per_byte() -> None:
    """Half as many tokens of twice the loss are the same prediction of the same text."""
    other = Evaluation(nats=200.0, tokens=50, bytes=250)
    assert Baseline("other", other.bits_per_byte).loss_per_token_of(CURVE.final) == pytest.approx(2.0)
