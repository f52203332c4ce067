"""Decoding with a KV cache: temperature, top-k, top-p or greedy, several samples in one batch."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pipeline.config.errors import UserError
from pipeline.config.model import GPTConfig
from pipeline.model.cache import KVCache
from pipeline.model.gpt import GPT
from pipeline.model.size import model_size
from pipeline.runtime.memory import memory_of
from pipeline.storage.machine import binary
from pipeline.tokens.tokenizers import Tokenizer


@dataclass
class TokenSampler:
    """Chooses each row's next token from logits (B, vocabulary). Equal generator states give equal tokens."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    greedy: bool = False
    generator: torch.Generator | None = None

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """The chosen ids (B,) for logits (B, vocabulary)."""
        if self.greedy:
            return logits.argmax(-1)
        probabilities = self.probabilities(logits)
        return torch.multinomial(probabilities, num_samples=1, generator=self.generator)[:, 0]

    def probabilities(self, logits: torch.Tensor) -> torch.Tensor:
        """The probabilities (B, vocabulary) to draw from, after temperature, top_k and top_p."""
        logits = logits - logits.amax(-1, keepdim=True)  # at most 0, so a small temperature cannot overflow
        logits = logits / self.temperature
        if self.top_k is not None:
            kth = logits.topk(min(self.top_k, logits.shape[-1])).values[:, -1:]
            logits = logits.masked_fill(logits < kth, -torch.inf)
        probabilities = logits.softmax(-1)
        if self.top_p is not None:  # nucleus sampling (Holtzman et al. 2020)
            ordered, ids = probabilities.sort(descending=True, stable=True)
            unneeded = ordered.cumsum(-1) - ordered >= self.top_p
            probabilities = torch.zeros_like(ordered).scatter(-1, ids, ordered.masked_fill(unneeded, 0.0))
            probabilities /= probabilities.sum(-1, keepdim=True)
        return probabilities


def check_memory(config: GPTConfig, samples: int, tokens: int, device: torch.device) -> None:
    """Raise UserError if the keys and values of so many samples of `tokens` tokens cannot fit into memory."""
    width = config.n_embd // config.n_head * (config.n_kv_head or config.n_head)
    values = 2 * model_size(config).applications * min(config.block_size, tokens) * width
    needed, room = samples * values * 4, memory_of(device)
    if needed > room.total:
        raise UserError(
            f"sample.num_samples = {samples:,}: keys and values need {binary(needed)} of memory, but "
            f"{device} has {binary(room.total)}; set it to {max(1, room.total // (4 * values)):,} or less"
        )


@torch.inference_mode()
def generate(
    model: GPT,
    prompt: torch.Tensor,
    max_new_tokens: int,
    sampler: TokenSampler,
    vocab_size: int,
    depth: int | None = None,
) -> Iterator[torch.Tensor]:
    """Yield the next ids (B,), `max_new_tokens` times, after a prompt (B, T).

    The KV cache is used for up to `block_size` positions. After that the window slides by one token per step.
    All positions change, so the whole window is computed again, as in nanoGPT. Ids from `vocab_size` on are
    padding and never chosen. A recurrent model takes `depth` steps, by default the depth it was trained for.
    Raises UserError if the first logits are not finite.
    """
    ids = prompt[:, -model.block_size :]
    cache: KVCache | None = KVCache(model.block_size, batch=len(ids))
    unseen = ids
    for number in range(max_new_tokens):
        logits = model.next_logits(unseen, cache, depth)[:, :vocab_size]
        if number == 0 and not logits.isfinite().all():  # only once: it waits for the GPU
            raise UserError("the model's logits are not numbers; its weights are damaged or it diverged")
        token = sampler(logits)
        yield token
        ids = torch.cat([ids, token[:, None]], dim=1)
        if ids.shape[1] > model.block_size:
            ids = unseen = ids[:, -model.block_size :]
            cache = None
        else:
            unseen = token[:, None]


class TextStream:
    """Decodes the ids of one sample one by one; holds back the bytes of an incomplete character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._vocabulary = tokenizer.vocabulary
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        return self._decoder.decode(self._vocabulary[token])

    def finish(self) -> str:
        return self._decoder.decode(b"", final=True)
