"""The loss is the sum over tokens, each predicted from its window alone, however the windows are batched."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from pipeline.data.batches import Batch, evaluation_windows
from pipeline.data.shards import Tokens
from pipeline.evaluate.evaluation import Evaluation
from pipeline.evaluate.loss import evaluate, evaluate_by_depth
from tests import tiny

CPU = torch.device("cpu")
IDS = np.random.default_rng(0).integers(0, 11, 60).astype(np.uint16)  # 7 windows of 8 and one of 3
TOKEN_BYTES = np.array([1, 2, 3, 4, 1, 1, 2, 1, 1, 1, 0])


def windows(batch_size: int = 3, batches: int | None = None) -> Iterator[Batch]:
    return evaluation_windows(Tokens([IDS]), 8, batch_size, batches)


def test_evaluation_by_hand() -> None:
    evaluation = Evaluation(nats=16 * math.log(2), tokens=4, bytes=8)
    assert evaluation.loss == pytest.approx(4 * math.log(2))  # 4 bits per token
    assert evaluation.perplexity == pytest.approx(16)
    assert evaluation.bits_per_byte == pytest.approx(2)
    assert evaluation.as_json() == {
        "val_loss": evaluation.loss,
        "val_bpb": evaluation.bits_per_byte,
        "perplexity": evaluation.perplexity,
        "tokens": 4,
        "bytes": 8,
    }


def test_a_hopeless_loss_is_still_a_number() -> None:
    assert math.isfinite(Evaluation(nats=1e6, tokens=1, bytes=1).perplexity)
    assert math.isnan(Evaluation(nats=1.0, tokens=1, bytes=0).bits_per_byte)


@torch.inference_mode()
def test_loss_is_counted_one_token_at_a_time() -> None:
    model = tiny.model()
    nats, num_bytes = 0.0, 0
    for position in range(1, len(IDS)):
        first = (position - 1) // 8 * 8  # of the window that predicts it
        context = torch.from_numpy(IDS[first:position].astype(np.int64))[None]
        log_p = model(context)[0, -1].double().log_softmax(dim=-1)
        nats -= float(log_p[IDS[position]])
        num_bytes += int(TOKEN_BYTES[IDS[position]])
    evaluation = evaluate(model, windows(), TOKEN_BYTES, CPU)
    assert (evaluation.tokens, evaluation.bytes) == (59, num_bytes)
    assert evaluation.nats == pytest.approx(nats, rel=1e-6)
    assert evaluation.loss == pytest.approx(nats / 59, rel=1e-6)
    assert evaluation.bits_per_byte == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-6)


def test_loss_does_not_depend_on_the_batch_size() -> None:
    model = tiny.model()
    reference = evaluate(model, windows(batch_size=1), TOKEN_BYTES, CPU)
    for batch_size in (2, 3, 7, 100):
        evaluation = evaluate(model, windows(batch_size), TOKEN_BYTES, CPU)
        assert evaluation.loss == pytest.approx(reference.loss, abs=1e-6)
        assert (evaluation.tokens, evaluation.bytes) == (reference.tokens, reference.bytes)


def test_the_same_model_gives_the_same_loss_and_goes_on_training() -> None:
    model = tiny.model(dropout=0.5).train()
    first = evaluate(model, windows(), TOKEN_BYTES, CPU)
    assert model.training
    assert evaluate(model, windows(), TOKEN_BYTES, CPU) == first
    assert evaluate(tiny.model(), windows(), TOKEN_BYTES, CPU) == first  # nothing is dropped
    assert evaluate(model.eval(), windows(), TOKEN_BYTES, CPU) == first
    assert not model.training


def test_the_first_batches_are_evaluated_alone() -> None:
    evaluation = evaluate(tiny.model(), windows(batch_size=3, batches=2), TOKEN_BYTES, CPU)
    assert evaluation.tokens == 2 * 3 * 8
    assert evaluation.bytes == TOKEN_BYTES[IDS[1 : 1 + 48]].sum()


def test_each_depth_is_a_model_cut_off_there() -> None:
    model = tiny.model(n_layer=3)
    curve = evaluate_by_depth(model, windows(), TOKEN_BYTES, CPU)
    assert len(curve) == model.depth == 3
    for depth, point in enumerate(curve, start=1):
        shorter = tiny.model(n_layer=depth)
        shorter.load_state_dict({name: model.state_dict()[name] for name in shorter.state_dict()})
        expected = evaluate(shorter, windows(), TOKEN_BYTES, CPU)
        assert point.nats == pytest.approx(expected.nats, rel=1e-6)
        assert (point.tokens, point.bytes) == (expected.tokens, expected.bytes)
    assert curve[-1] == evaluate(model, windows(), TOKEN_BYTES, CPU)
    assert len({round(point.loss, 4) for point in curve}) == 3
