"""The loss is the sum over tokens, each predicted from its window alone, however the windows are batched."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from pipeline.evaluate.evaluation import Evaluation
from pipeline.evaluate.loss import (
    LOGITS,
    NEVER,
    TOKENS_ON_CPU,
    TOKENS_ON_GPU,
    evaluate,
    evaluate_by_depth,
    evaluate_stopping,
    stopping_at,
    windows_at_once,
)
from pipeline.model.gpt import GPT
from pipeline.model.halting import LearnedStopping
from pipeline.tokens.batches import Batch, evaluation_windows
from pipeline.tokens.shards import Tokens
from tests import tiny
from tests.family import RECURRENT, STOPPING

CPU = torch.device("cpu")
IDS = np.random.default_rng(0).integers(0, 11, 60).astype(np.uint16)  # 7 windows of 8 and one of 3
OWN = 0.6  # the threshold of learned stopping at which some tokens of the tiny model stop, and some go on
THRESHOLD: dict[str, object] = {
    "learned_stopping_use_threshold": True,
    "learned_stopping_threshold": OWN,
}
TOKEN_BYTES = np.array([1, 2, 3, 4, 1, 1, 2, 1, 1, 1, 0])


def windows(batch_size: int = 3, limit: int | None = None) -> Iterator[Batch]:
    return evaluation_windows(Tokens([IDS]), 8, batch_size, limit)


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


def test_the_first_windows_are_evaluated_alone() -> None:
    evaluation = evaluate(tiny.model(), windows(batch_size=3, limit=5), TOKEN_BYTES, CPU)
    assert evaluation.tokens == 5 * 8
    assert evaluation.bytes == TOKEN_BYTES[IDS[1 : 1 + 40]].sum()


@pytest.mark.parametrize("vocab_size", [11, 1000, 10**6])
@pytest.mark.parametrize("block_size", [8, 1024, 10**4])
def test_a_batch_is_as_large_as_is_fast_and_its_logits_fit(vocab_size: int, block_size: int) -> None:
    with torch.device("meta"):
        model = tiny.model(vocab_size=vocab_size, block_size=block_size)
    for device in (CPU, torch.device("cuda")):
        tokens = windows_at_once(model, device) * block_size
        most = min(TOKENS_ON_CPU if device == CPU else TOKENS_ON_GPU, LOGITS // 4 // vocab_size)
        assert tokens == block_size or most - block_size < tokens <= most


def test_16_bits_round_no_logits() -> None:
    """A head whose logits are all far from zero, as GPT-2's are: softmax does not see the distance."""
    model = tiny.model(tie_word_embeddings=False)
    weights = model.state_dict()
    bias = weights["head.ln_f.bias"].copy_(torch.randn(16, generator=torch.Generator().manual_seed(0)))
    weights["head.ln_f.weight"].zero_()
    near = evaluate(model, windows(), TOKEN_BYTES, CPU)
    weights["head.lm_head.weight"].sub_(80 * bias / bias.square().sum())  # lowers every logit by 80
    far = model.head(torch.zeros(1, 1, 16))
    assert far.min() > -90 and far.max() < -70
    for dtype in ("float32", "bfloat16"):
        loss = evaluate(model, windows(), TOKEN_BYTES, CPU, dtype).loss
        assert loss == pytest.approx(near.loss, abs=1e-5)


def test_the_products_before_the_head_are_in_the_given_precision() -> None:
    model = tiny.model()
    seen: set[torch.dtype] = set()
    for part in model.trunk.modules():
        part.register_forward_hook(lambda part, given, made: seen.add(made.dtype))
    evaluate(model, windows(), TOKEN_BYTES, CPU)
    assert seen == {torch.float32}
    exact = evaluate(model, windows(), TOKEN_BYTES, CPU).loss
    assert evaluate(model, windows(), TOKEN_BYTES, CPU, "bfloat16").loss == pytest.approx(exact, abs=1e-3)
    assert torch.bfloat16 in seen


def test_each_depth_is_a_model_cut_off_there() -> None:
    model = tiny.model(n_layer=3)
    curve = evaluate_by_depth(model, windows(), TOKEN_BYTES, CPU)
    assert list(curve) == [1, 2, 3] and model.depth == 3
    for depth, point in curve.items():
        shorter = tiny.model(n_layer=depth)
        shorter.load_state_dict({name: model.state_dict()[name] for name in shorter.state_dict()})
        expected = evaluate(shorter, windows(), TOKEN_BYTES, CPU)
        assert point.nats == pytest.approx(expected.nats, rel=1e-6)
        assert (point.tokens, point.bytes) == (expected.tokens, expected.bytes)
    assert curve[3] == evaluate(model, windows(), TOKEN_BYTES, CPU)
    assert len({round(point.loss, 4) for point in curve.values()}) == 3


def test_a_recurrent_model_is_read_to_twice_its_depth() -> None:
    model = tiny.model(**RECURRENT)
    curve = evaluate_by_depth(model, windows(), TOKEN_BYTES, CPU)
    assert list(curve) == [1, 2, 3, 4, 5, 6]
    assert curve[3] == evaluate(model, windows(), TOKEN_BYTES, CPU)
    deeper = tiny.model(**RECURRENT | {"recurrent_depth": 5})
    deeper.load_state_dict(model.state_dict())
    assert curve[5] == evaluate(deeper, windows(), TOKEN_BYTES, CPU)


def stopping_model(**changes: object) -> tuple[GPT, LearnedStopping]:
    model = tiny.model(**{**RECURRENT, **STOPPING, **changes})
    assert model.stopping is not None
    return model, model.stopping


def test_on_the_curve_of_a_stopping_model_no_token_stops() -> None:
    model, stopping = stopping_model(**THRESHOLD)
    curve = evaluate_by_depth(model, windows(), TOKEN_BYTES, CPU)
    assert stopping.threshold == OWN
    softly, _ = stopping_model()
    assert curve == evaluate_by_depth(softly, windows(), TOKEN_BYTES, CPU)
    assert curve[3] == evaluate(softly, windows(), TOKEN_BYTES, CPU)
    assert curve[3] != evaluate(model, windows(), TOKEN_BYTES, CPU)


def test_thresholds_from_all_stop_at_once_to_none_ever_does() -> None:
    model, stopping = stopping_model(**THRESHOLD)
    thresholds = [1e-5, OWN, NEVER, None]
    at_once, own, never, softly = evaluate_stopping(model, windows(), TOKEN_BYTES, CPU, thresholds)
    assert stopping.threshold == OWN
    assert [at_once.threshold, own.threshold, never.threshold, softly.threshold] == thresholds
    assert at_once.mean_depth == 1  # the first step is always taken
    assert 1 < own.mean_depth < never.mean_depth == 3
    assert own.evaluation == evaluate(model, windows(), TOKEN_BYTES, CPU)
    assert never.evaluation == evaluate_by_depth(model, windows(), TOKEN_BYTES, CPU)[3]
    assert 1 < softly.mean_depth < 3  # what it expects
    assert softly.evaluation == evaluate(stopping_model()[0], windows(), TOKEN_BYTES, CPU)


def test_mean_depth_is_over_tokens_however_they_are_batched() -> None:
    """The last window is shorter than the others, so that a mean over batches would differ."""
    model, _ = stopping_model(**THRESHOLD)
    (reference,) = evaluate_stopping(model, windows(1), TOKEN_BYTES, CPU, [0.45])
    steps = 0.0
    with stopping_at(model, 0.45), torch.inference_mode():
        for ids, _ in windows(1):
            steps += float(model.logits_and_mean_depth(ids)[1]) * ids.numel()
    assert reference.mean_depth == pytest.approx(steps / 59, rel=1e-5)
    for batch_size in (2, 3, 100):
        (point,) = evaluate_stopping(model, windows(batch_size), TOKEN_BYTES, CPU, [0.45])
        assert point.mean_depth == pytest.approx(reference.mean_depth, rel=1e-5)


def test_the_threshold_comes_back_after_an_error() -> None:
    model, stopping = stopping_model(**THRESHOLD)
    with pytest.raises(AssertionError, match="block_size"):
        evaluate_stopping(model, iter([(torch.zeros(1, 9).long(),) * 2]), TOKEN_BYTES, CPU, [0.2])
    assert stopping.threshold == OWN
