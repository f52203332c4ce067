"""The depth curve of a model, and what it reaches at thresholds of learned stopping."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.evaluate.depth import Baseline, measure
from pipeline.evaluate.evaluation import Evaluation
from pipeline.evaluate.loss import evaluate
from pipeline.tokens.batches import evaluation_windows
from pipeline.tokens.shards import open_split
from pipeline.tokens.tokenizers import load_tokenizer
from tests import tiny
from tests.family import RECURRENT, STOPPING, THRESHOLD
from tests.figures import CURVE, STOPS

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


def test_no_thresholds_are_no_points(tiny_tokens: Path) -> None:
    vocab_size = load_tokenizer(tiny_tokens).vocab_size
    model = tiny.model(**{**RECURRENT, **STOPPING, "vocab_size": vocab_size})
    curve = measure("model", model, tiny.params("depth.stopping_thresholds=[]"), tiny_tokens, CPU)
    assert list(curve.points) == [1, 2, 3, 4, 5, 6] and not curve.stopping


def test_a_baseline_that_counts_other_tokens_is_drawn_at_the_same_bits_per_byte() -> None:
    """Half as many tokens of twice the loss are the same prediction of the same text."""
    other = Evaluation(nats=200.0, tokens=50, bytes=250)
    assert Baseline("other", other.bits_per_byte).loss_per_token_of(CURVE.final) == pytest.approx(2.0)
