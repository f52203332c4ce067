"""What is shown of a model: at which depths, what it writes there, and which tokens its experts take."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch

from pipeline.evaluate.inside import experts_of_tokens, passage_lens, shown_depths, written_by_depth
from pipeline.model.moe import Router
from pipeline.serve.sampling import TokenSampler, generate
from pipeline.tokens.shards import open_split, open_tokenizer
from tests import tiny
from tests.family import MOE, RECURRENT

CPU = torch.device("cpu")


def test_many_depths_are_thinned_evenly_with_the_trained_one() -> None:
    assert shown_depths(tiny.model()) == [1, 2, 3]
    depths = shown_depths(tiny.model(recurrent_shared_weights=True, recurrent_depth=50))
    assert depths[0] == 1 and depths[-1] == 100 and 50 in depths and len(depths) <= 16
    gaps = [after - before for before, after in pairwise(depths)]
    assert max(gaps) <= 8


def test_the_whole_depth_writes_what_sampling_writes(tiny_tokens: Path) -> None:
    tokenizer = open_tokenizer(tiny_tokens)
    model = tiny.model(**RECURRENT, vocab_size=tokenizer.vocab_size)
    settings = tiny.params("sample.start='the '", "sample.max_new_tokens=12").sample
    written = written_by_depth(model, tokenizer, settings, CPU)
    assert [one["depth"] for one in written] == [1, 2, 3, 4, 5, 6]
    drawn = torch.Generator().manual_seed(settings.seed)
    sampler = TokenSampler(settings.temperature, settings.top_k, settings.top_p, generator=drawn)
    prompt = torch.from_numpy(tokenizer.encode("the ").astype("int64"))
    ids = [int(token) for token in generate(model, [prompt], 12, sampler, tokenizer.vocab_size)]
    assert written[2]["text"] == "the " + tokenizer.decode(ids)
    assert written[2]["flops_share"] == 1.0 and written[0]["flops_share"] < 1 < written[5]["flops_share"]


def test_experts_and_their_favourites_are_those_of_the_router(tiny_tokens: Path) -> None:
    tokenizer, val = open_tokenizer(tiny_tokens), open_split(tiny_tokens, "val")
    model = tiny.model(**MOE, moe_top_k=1, vocab_size=tokenizer.vocab_size)
    router = next(part for part in model.modules() if isinstance(part, Router))
    with torch.no_grad():  # whatever the token, the second expert
        router.scores.weight.zero_()
        router.scores.bias.copy_(torch.tensor([0.0, 5.0, 0.0]))
    found = experts_of_tokens(model, val, tokenizer, CPU)
    assert found is not None and [one["layer"] for one in found["layers"]] == ["moe0", "moe1", "moe2"]
    first, second = (one["experts"] for one in found["layers"][:2])
    assert [one["load"] for one in first] == [0, 1, 0]
    assert all(one["favourites"] == [] for one in first), "an expert that takes all prefers nothing"
    assert sum(one["load"] for one in second) == 1
    assert experts_of_tokens(tiny.model(vocab_size=tokenizer.vocab_size), val, tokenizer, CPU) is None


def test_the_passage_is_the_start_of_the_text(tiny_tokens: Path) -> None:
    tokenizer, val = open_tokenizer(tiny_tokens), open_split(tiny_tokens, "val")
    found = passage_lens(tiny.model(vocab_size=tokenizer.vocab_size), val, tokenizer, CPU)
    assert "".join(found["tokens"]) == tokenizer.decode(val.read(0, 8).tolist())
