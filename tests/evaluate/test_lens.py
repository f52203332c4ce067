"""The depth lens agrees with the model that it looks at, for every variant."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F

from pipeline.evaluate.lens import as_json, lens, shown_texts
from pipeline.tokens.tokenizers import ByteTokenizer, CharTokenizer, Tokenizer
from tests import tiny
from tests.family import MOE, RECURRENT, STOPPING, THRESHOLD, VARIANTS

IDS = torch.tensor([3, 1, 4, 1, 5, 9, 2, 6])


@pytest.mark.parametrize("name", VARIANTS)
@torch.no_grad()
def test_the_last_depth_is_the_model(name: str) -> None:
    model = tiny.model(**VARIANTS[name])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = lens(model, IDS, vocab_size=11, top=3)
    logits = model(IDS[None])[0]
    last = list(found.depths).index(found.trained_depth)
    nats = F.cross_entropy(logits[:-1], IDS[1:], reduction="none")
    torch.testing.assert_close(found.nats[last], nats, atol=1e-5, rtol=0)
    best = logits.softmax(-1).topk(3)
    torch.testing.assert_close(found.top_probabilities[last], best.values, atol=1e-5, rtol=0)
    assert torch.equal(found.top_ids[last], best.indices)
    assert found.nats.shape == (len(model.depths), 7) and found.top_ids.shape == (len(model.depths), 8, 3)
    assert (found.steps_taken is None) == (model.stopping is None)
    assert bool(found.experts) == VARIANTS[name].get("moe", False)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(part._forward_hooks for part in model.modules())


@pytest.mark.parametrize("changes", [{}, THRESHOLD])
def test_steps_taken_are_those_that_the_model_counts(changes: dict[str, object]) -> None:
    model = tiny.model(**{**RECURRENT, **STOPPING, **changes})
    found = lens(model, IDS, vocab_size=11)
    with torch.no_grad():
        _, mean_depth = model.logits_and_mean_depth(IDS[None])
    assert found.steps_taken is not None
    assert float(found.steps_taken.mean()) == pytest.approx(float(mean_depth), abs=1e-5)
    assert found.steps_taken.min() >= 1


def test_a_token_that_stopped_keeps_its_predictions() -> None:
    model = tiny.model(**{**RECURRENT, **STOPPING, **THRESHOLD, "learned_stopping_threshold": 0.4})
    found = lens(model, IDS, vocab_size=11)
    assert found.steps_taken is not None
    taken = found.steps_taken.int().tolist()
    assert min(taken) < 3, "some token stops early, or this tests nothing"
    for position, steps in enumerate(taken):
        kept = found.top_probabilities[steps - 1 :, position]
        torch.testing.assert_close(kept, kept[:1].expand_as(kept))


def test_every_run_of_a_mixture_has_its_choices() -> None:
    dense = lens(tiny.model(**MOE), IDS, vocab_size=11).experts
    assert [(one.layer, one.run) for one in dense] == [("moe0", 1), ("moe1", 1), ("moe2", 1)]
    looped = lens(tiny.model(**RECURRENT, **MOE), IDS, vocab_size=11).experts
    assert [(one.layer, one.run) for one in looped] == [("moe0", 1), ("moe0", 2), ("moe0", 3)]
    for one in (*dense, *looped):
        top_k = one.chosen.shape[1]
        assert one.chosen.shape[0] == 8 and float(one.load.sum()) == pytest.approx(top_k)
        assert float(one.load[0]) == (one.chosen == 0).sum().item() / 8


def test_padding_of_the_vocabulary_is_never_predicted() -> None:
    found = lens(tiny.model(), IDS, vocab_size=10, top=20)
    assert found.top_ids.shape[-1] == 10 and found.top_ids.max() < 10


@pytest.mark.parametrize("tokenizer", [CharTokenizer("abcdefghi\n<", True), ByteTokenizer(False)])
def test_as_json_is_plain_and_has_the_text_of_each_token(tokenizer: Tokenizer) -> None:
    model = tiny.model(**RECURRENT, **MOE, vocab_size=tokenizer.vocab_size)
    found = lens(model, IDS, tokenizer.vocab_size)
    values = json.loads(json.dumps(as_json(found, tokenizer), allow_nan=False))
    assert values["tokens"] == [shown_texts(tokenizer)[i] for i in IDS.tolist()]
    text, probability = values["predictions"][0][0][0]
    assert text == shown_texts(tokenizer)[int(found.top_ids[0, 0, 0])]
    assert probability == pytest.approx(float(found.top_probabilities[0, 0, 0]), abs=1e-4)
    assert values["nats"][2][6] == pytest.approx(float(found.nats[2, 6]), abs=1e-4)


def test_bytes_that_are_no_text_are_shown_as_numbers() -> None:
    texts = shown_texts(ByteTokenizer(end_of_text=True))
    assert texts[0x41] == "A" and texts[0xE2] == "⟨e2⟩" and texts[256] == "⟨end of text⟩"


@pytest.mark.parametrize("changes", [{}, {**THRESHOLD, **MOE}])
def test_the_last_tokens_alone(changes: dict[str, object]) -> None:
    model = tiny.model(**({**RECURRENT, **STOPPING, **changes} if changes else {}))
    whole, found = lens(model, IDS, 11), lens(model, IDS, 11, last=3)
    assert torch.equal(found.ids, IDS[-3:])
    torch.testing.assert_close(found.nats, whole.nats[:, -2:])
    torch.testing.assert_close(found.top_probabilities, whole.top_probabilities[:, -3:])
    if changes:
        assert whole.steps_taken is not None and found.steps_taken is not None
        assert torch.equal(found.steps_taken, whole.steps_taken[-3:])
        assert all(
            torch.equal(one.chosen, other.chosen[-3:])
            for one, other in zip(found.experts, whole.experts, strict=True)
        )
