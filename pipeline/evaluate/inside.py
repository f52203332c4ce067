"""What a model shows of itself: the lens on a passage, text at each depth, which tokens experts take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeVar

import torch

from pipeline.config.params import Sample
from pipeline.evaluate.at_depth import at_depth
from pipeline.evaluate.lens import as_json, decisions, lens, shown_texts
from pipeline.model.gpt import GPT
from pipeline.serve.sampling import TextStream, TokenSampler, generate
from pipeline.tokens.prompt import encode_prompt
from pipeline.tokens.shards import Tokens
from pipeline.tokens.tokenizers import Tokenizer

T = TypeVar("T")

PASSAGE_TOKENS = 128  # of the validation split that the lens looks at
MOST_DEPTHS = 16  # that are shown; of more, some are left out evenly
WRITTEN_TOKENS = 60  # at each depth
EXPERT_TOKENS = 2048  # whose experts are counted
FAVOURITES = 8  # tokens named for each expert


def shown_depths(model: GPT) -> list[int]:
    """At most MOST_DEPTHS of the model's depths, among them the first, the trained one and the last."""
    depths = list(model.depths)
    if len(depths) <= MOST_DEPTHS:
        return depths
    return sorted({*evenly(depths, MOST_DEPTHS - 1), model.depth})


def evenly(values: Sequence[T], most: int) -> Sequence[T]:
    """At most so many of the values, evenly apart, with the first and the last."""
    if len(values) <= most:
        return values
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]


def passage_lens(model: GPT, tokens: Tokens, tokenizer: Tokenizer, device: torch.device) -> dict[str, Any]:
    """The depth lens on the start of `tokens`, at the shown depths, as JSON."""
    ids = _first(tokens, min(PASSAGE_TOKENS, model.block_size), device)
    found = lens(model, ids, tokenizer.vocab_size, depths=shown_depths(model))
    return as_json(found, tokenizer)


def written_by_depth(
    model: GPT, tokenizer: Tokenizer, settings: Sample, device: torch.device
) -> list[dict[str, Any]]:
    """For each shown depth the share of the model's FLOPs, and a text that it writes, all from one seed."""
    prompt, ids = encode_prompt(settings.start, tokenizer)
    prompts, count = [torch.from_numpy(ids).to(device)], min(WRITTEN_TOKENS, settings.max_new_tokens)
    written = []
    for depth in shown_depths(model):
        shortened = at_depth(model, depth)
        sampler, stream = TokenSampler.of(settings, device), TextStream(tokenizer)
        chosen = generate(shortened, prompts, count, sampler, tokenizer.vocab_size)
        text = "".join([prompt, *(stream.feed(int(token)) for token in chosen), stream.finish()])
        share = shortened.flops_per_token() / model.flops_per_token()
        written.append({"depth": depth, "flops_share": round(share, 4), "text": text})
    return written


@torch.inference_mode()
def experts_of_tokens(
    model: GPT, tokens: Tokens, tokenizer: Tokenizer, device: torch.device
) -> dict[str, Any] | None:
    """For each mixture and run of it, each expert's load and the tokens that it takes more than its share of.

    They are counted over the first EXPERT_TOKENS of `tokens`; None for a model without experts.
    """
    window = min(model.block_size, EXPERT_TOKENS)
    ids = _first(tokens, EXPERT_TOKENS // window * window, device)
    taken: dict[tuple[str, int], list[Counter[int]]] = {}
    for start in range(0, len(ids), window):
        read = ids[start : start + window]
        for choices in decisions(model, read)[1]:
            candidates = len(choices.load)
            counters = taken.setdefault((choices.layer, choices.run), [Counter() for _ in range(candidates)])
            for token, experts in zip(read.tolist(), choices.chosen.tolist(), strict=True):
                for expert in experts:
                    counters[expert][token] += 1
            dummy = choices.dummy
    if not taken:
        return None
    texts = shown_texts(tokenizer)
    layers = [
        {"layer": layer, "run": run, "experts": _shares(counters, len(ids), texts)}
        for (layer, run), counters in taken.items()
    ]
    return {"tokens": len(ids), "dummy": dummy, "layers": layers}


def _shares(counters: Sequence[Counter[int]], tokens: int, texts: Sequence[str]) -> list[dict[str, Any]]:
    """The load of each expert, and [text, share of this token's choices] of its favourites."""
    by_token: Counter[int] = sum(counters, Counter())
    choices = max(1, by_token.total())
    return [
        {
            "load": round(counter.total() / tokens, 4),
            "favourites": [
                [texts[token], round(counter[token] / by_token[token], 3)]
                for token in _favourites(counter, by_token, counter.total() / choices)
            ],
        }
        for counter in counters
    ]


def _favourites(counter: Counter[int], by_token: Counter[int], share: float) -> list[int]:
    """Tokens that occur more than twice, by how many more of them an expert takes than its share."""
    surplus = {
        token: taken - share * by_token[token] for token, taken in counter.items() if by_token[token] > 2
    }
    best = sorted((token for token in surplus if surplus[token] > 0), key=lambda t: (-surplus[t], t))
    return best[:FAVOURITES]


def _first(tokens: Tokens, count: int, device: torch.device) -> torch.Tensor:
    """The first `count` ids, or as many as there are, int64 (T)."""
    count = min(count, len(tokens))
    return torch.as_tensor(tokens.read(0, count).astype("int64"), device=device)
